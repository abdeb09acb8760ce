"""A graph of checks that names root causes only.

A check says what it needs; when a need fails, everything above it is skipped and points at the one fault that is to be
mended, so that one cut cable does not print twenty failures. The same report serves `towerctl check` (run in the
server, sent as JSON, printed by the command line) and `tower-agent check` (run and printed on the spot); exit code and
JSON do not depend on how it is printed.

Every check has a deadline; checks that do not need each other run side by side, a bounded number at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal, cast, get_args

from daemon.faults import EXIT_COULD_NOT_CHECK, EXIT_FAILED, TowerError, of_cluster

Status = Literal["ok", "warning", "failed", "skipped", "unknown"]
STATUSES: Final = cast("tuple[Status, ...]", get_args(Status))
CHECK_DEADLINE: Final = 10.0
AT_ONCE: Final = 16  # each may hold a connection; a hundred clusters are checked in a few rounds


@dataclass(frozen=True, slots=True)
class Result:
    """What a check found. `message` is one short line; `next` what to do now (the fault's mend where left out)."""

    status: Status
    message: str
    code: str = ""
    evidence: tuple[str, ...] = ()
    next: str = ""


def ok(message: str = "") -> Result:
    return Result("ok", message)


def warn(code: str, message: str, *, next_step: str = "") -> Result:
    return _named("warning", code, message, (), next_step)


def fail(code: str, message: str, *, evidence: Sequence[str] = (), next_step: str = "") -> Result:
    return _named("failed", code, message, evidence, next_step)


def unknown(code: str, message: str, *, next_step: str = "") -> Result:
    """The check itself could not be made (no right to look, nobody to ask): neither fine nor broken."""
    return _named("unknown", code, message, (), next_step)


def _named(status: Status, code: str, message: str, evidence: Sequence[str], next_step: str) -> Result:
    mend = TowerError(code, message).mend
    return Result(status, message, code, tuple(evidence), next_step or mend)


@dataclass(frozen=True, slots=True)
class Check:
    """One check. `name` is unique in its graph; `title` is what people read when it was not made ("/readyz")."""

    name: str
    run: Callable[[], Awaitable[Result]]
    needs: tuple[str, ...] = ()
    category: str = "checks"
    subject: str = ""
    title: str = ""
    code: str = ""
    """The fault that a failure would most likely be; shown when the check is skipped or takes too long."""
    deadline: float = CHECK_DEADLINE
    cluster: str = ""
    """Whose name stands in the next step, where that is a command about a cluster."""


@dataclass(frozen=True, slots=True)
class Item:
    """A check together with its result, as it is sent and printed."""

    category: str
    name: str
    subject: str
    title: str
    status: Status
    message: str
    code: str = ""
    evidence: tuple[str, ...] = ()
    next: str = ""
    needs: tuple[str, ...] = ()
    seconds: float = 0.0
    root: str = ""
    """For a skipped check: the code (or name) of what failed below it."""


@dataclass(frozen=True, slots=True)
class Report:
    """All results, in the order in which the checks were given."""

    items: tuple[Item, ...]
    seconds: float = 0.0
    counts: Mapping[Status, int] = field(init=False)

    def __post_init__(self) -> None:
        counts = {status: sum(item.status == status for item in self.items) for status in STATUSES}
        object.__setattr__(self, "counts", counts)

    def exit_code(self, *, fail_on_warning: bool = False, ignore: Collection[str] = ()) -> int:
        """0 fine (warnings too, unless asked), 1 something failed, 3 nothing failed but something was not checkable.

        Args:
            ignore: codes (`TWR503`) and families of them (`TWR5XX`) that count as fine, though they are shown.
        """
        alike = tuple(code.rstrip("X") for code in ignore)
        counted = {item.status for item in self.items if not (item.code and item.code.startswith(alike))}
        if "failed" in counted or (fail_on_warning and "warning" in counted):
            return EXIT_FAILED
        return EXIT_COULD_NOT_CHECK if "unknown" in counted or not self.items else 0

    def document(self) -> dict[str, Any]:
        """The JSON form: `{apiVersion, kind: CheckList, seconds, items: [...]}`; keys are only ever added."""
        items = [{key: _listed(value) for key, value in asdict(item).items()} for item in self.items]
        return {"apiVersion": "tower/v1", "kind": "CheckList", "seconds": round(self.seconds, 3), "items": items}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Report:
        """From the JSON form; keys that are not known are left out. Raises TowerError TWR611."""
        try:
            items = tuple(_item(entry) for entry in document["items"])
            return cls(items, float(document.get("seconds", 0.0)))
        except (KeyError, TypeError, ValueError, OverflowError) as exc:
            raise TowerError("TWR611", f"the report of checks cannot be read: {exc!r}") from exc


def _listed(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return round(value, 4) if isinstance(value, float) else value


def _item(entry: Mapping[str, Any]) -> Item:
    if entry["status"] not in STATUSES:
        raise ValueError(f"status {entry['status']!r}")
    known = {key: entry[key] for key in Item.__dataclass_fields__ if key in entry}
    for key in ("evidence", "needs"):
        known[key] = tuple(str(part) for part in known.get(key) or ())
    for key in known.keys() - {"evidence", "needs", "seconds"}:
        if not isinstance(known[key], str):
            raise ValueError(f"{key} {known[key]!r}")
    return Item(**{"subject": "", "title": "", **known})


class Graph:
    """Checks and what they need. Raises ValueError for a name that stands twice, an unknown need, or a circle."""

    def __init__(self, checks: Iterable[Check]) -> None:
        self._checks: dict[str, Check] = {}
        for check in checks:
            if check.name in self._checks:
                raise ValueError(f"the check {check.name!r} stands twice")
            self._checks[check.name] = check
        done: set[str] = set()
        for name in self._checks:
            self._walk(name, (), done)

    def _walk(self, name: str, path: tuple[str, ...], done: set[str]) -> None:
        if name in path:
            raise ValueError(f"checks need each other in a circle: {' -> '.join([*path, name])}")
        if name not in self._checks:
            raise ValueError(f"the check {path[-1]!r} needs {name!r}, which is not there")
        if name not in done:
            for need in self._checks[name].needs:
                self._walk(need, (*path, name), done)
            done.add(name)

    async def run(self) -> Report:
        """Makes every check whose needs are met; never raises for a check that fails."""
        began = time.monotonic()
        slots = asyncio.Semaphore(AT_ONCE)
        tasks: dict[str, asyncio.Task[Item]] = {}
        async with asyncio.TaskGroup() as group:
            for name in self._ordered():
                check = self._checks[name]
                needs = [tasks[need] for need in check.needs]
                tasks[name] = group.create_task(_make(check, needs, slots), name=f"check {name}")
        return Report(tuple(tasks[name].result() for name in self._checks), time.monotonic() - began)

    def _ordered(self) -> list[str]:
        """Needs first."""
        order: dict[str, None] = {}

        def visit(name: str) -> None:
            for need in self._checks[name].needs:
                visit(need)
            order.setdefault(name)

        for name in self._checks:
            visit(name)
        return list(order)


async def _make(check: Check, needs: list[asyncio.Task[Item]], slots: asyncio.Semaphore) -> Item:
    below = [await need for need in needs]
    blocked = next((item for item in below if item.status in ("failed", "skipped", "unknown")), None)
    began = time.monotonic()
    root = ""
    if blocked is not None:
        root = blocked.root or blocked.code or blocked.name
        result = Result("skipped", f"not checked (needs {root})", check.code)
    else:
        async with slots:
            began = time.monotonic()
            result = await _result(check)
    return Item(
        category=check.category,
        name=check.name,
        subject=check.subject,
        title=check.title or check.name,
        status=result.status,
        message=result.message,
        code=result.code,
        evidence=result.evidence,
        next=of_cluster(result.next, check.cluster),
        needs=check.needs,
        seconds=time.monotonic() - began,
        root=root,
    )


async def _result(check: Check) -> Result:
    try:
        async with asyncio.timeout(check.deadline):
            return await check.run()
    except TimeoutError:
        return fail(check.code or "TWR112", f"{check.title or check.name}: no result within {check.deadline:g}s")
    except TowerError as exc:
        make = unknown if exc.exit_code == EXIT_COULD_NOT_CHECK else fail
        return make(exc.code, exc.message, next_step=exc.mend)
    except Exception as exc:  # the boundary: a defective check is a finding, and the others are still worth making
        return fail("TWR112", f"the check {check.name} itself failed: {type(exc).__name__}: {exc}")
