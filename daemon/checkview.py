"""How a report of checks is printed: by category for a host, hop by hop for an agent's way out.

Healthy checks take one line for each category; failed ones show code, evidence and the next step. No meaning is in
colour alone; `paint` adds colour where the terminal takes it. Some texts come from members, so terminal control
sequences are removed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from daemon.checks import Item, Report
from daemon.units import format_count

WIDTH: Final = 100
SIGNS: Final = {"failed": "x", "warning": "!", "skipped": "-", "unknown": "?"}
Paint = Callable[[str], str]


def _plain(word: str) -> str:
    return word


def by_category(report: Report, *, paint: Paint = _plain, command: str = "towerctl") -> str:
    """`ok server ... 7/7` a category, details below those that are not fine, a sum at the end."""
    groups: dict[str, list[Item]] = {}
    for item in report.items:
        groups.setdefault(item.category, []).append(item)
    width = max((len(name) for name in groups), default=0)
    lines: list[str] = []
    for name, items in groups.items():
        passed = sum(item.status == "ok" for item in items)
        word = _word(items)
        count = f"{passed}/{len(items)}"
        what = _summary(items, WIDTH - width - 10 - len(count)) if word == "ok" else f"{count} fine"
        tail = f"  {count}" if word == "ok" else ""
        lines.append(f"{paint(word)}{' ' * (6 - len(word))}{_clean(name):<{width}}  {what}{tail}".rstrip())
        for item in items:
            lines += _details(item, paint)
    return "\n".join([*lines, _sum(report, command)]) + "\n"


def by_hop(report: Report, *, command: str = "towerctl") -> str:
    """`ok dns 203.0.113.9 | ok tcp 8ms | ...`, then the hop that is wrong; hops behind it on one line."""
    lines: list[str] = []
    row = ""
    for item in report.items:
        if item.status != "ok":
            continue
        cell = f"ok {_clean(item.title)} {_clean(item.message)}".rstrip()
        if row and len(row) + len(cell) + 3 > WIDTH:
            lines.append(row + " |")
            row = ""
        row = f"{row} | {cell}" if row else cell
    if row:
        lines.append(row)
    for item in report.items:
        if item.status not in ("ok", "skipped"):
            lines += _details(item, _plain, hop=True)
    skipped = [item for item in report.items if item.status == "skipped"]
    for root in dict.fromkeys(item.root for item in skipped):
        titles = ", ".join(_clean(item.title) for item in skipped if item.root == root)
        lines.append(f" - not checked: {titles} (needs {root})")
    return "\n".join([*lines, _sum(report, command)]) + "\n"


def _word(items: Sequence[Item]) -> str:
    statuses = {item.status for item in items}
    if "failed" in statuses:
        return "FAIL"
    if "warning" in statuses:
        return "warn"
    return "ok" if statuses == {"ok"} else "?" if "unknown" in statuses else "-"


def _said(items: Sequence[Item]) -> list[str]:
    """Of several subjects what all of them say alike, else their names: one subject's own figures say nothing."""
    subjects = list(dict.fromkeys(item.subject for item in items if item.subject))
    if len(subjects) < 2:
        return [item.message for item in items]
    kinds: dict[str, set[str]] = {}
    for item in items:
        kinds.setdefault(item.name.partition("/")[0] if item.subject else item.name, set()).add(item.message)
    alike = [message for messages in kinds.values() if len(messages) == 1 for message in messages]
    return alike if any(alike) else subjects


def _summary(items: Sequence[Item], room: int) -> str:
    text = ""
    for message in dict.fromkeys(_clean(said) for said in _said(items) if said):
        longer = f"{text}, {message}" if text else message
        if len(longer) > room:
            return f"{text}, ..." if text else f"{message[: room - 3]}..."
        text = longer
    return text


def _details(item: Item, paint: Paint, *, hop: bool = False) -> list[str]:
    if item.status == "ok":
        return []
    about = item.title if hop or (item.status == "skipped" and not item.subject) else item.subject
    if item.status == "skipped" and item.subject:
        about = f"{item.subject}: {item.title}"
    between = " " if item.status == "skipped" else ": "
    head = " ".join(part for part in (item.code, _clean(about)) if part)
    lines = [f" {paint(SIGNS[item.status])} {head}{between}{_clean(item.message)}"]
    lines += [f"     {_clean(line)}" for line in item.evidence]
    if item.next and item.status != "skipped":
        lines.append(f"     next: {_clean(item.next)}")
    return lines


def _sum(report: Report, command: str) -> str:
    counts = report.counts
    text = f"{counts['ok']} passed, {format_count(counts['warning'], 'warning')}, {counts['failed']} failed"
    if counts["skipped"]:
        text += f", {counts['skipped']} skipped"
    if counts["unknown"]:
        text += f", {counts['unknown']} could not be checked"
    text += f" in {report.seconds:.1f}s"
    first = next((item.code for item in report.items if item.status == "failed" and item.code), "")
    return f"{text}; {command} explain {first}" if first else text


def _clean(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
