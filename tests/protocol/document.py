"""The parts of docs/PROTOCOL.md that follow from the code: tables and diagrams, as the document must show them."""

from __future__ import annotations

import re
from pathlib import Path

from protocol.streams import TRANSITIONS, Input, State

PATH = Path(__file__).resolve().parents[2] / "docs" / "PROTOCOL.md"
VECTORS = PATH.parent / "vectors"

_RESETS = {Input.S_RST, Input.R_RST}
_DATA = {Input.S_DATA, Input.R_DATA}


def text() -> str:
    return PATH.read_text()


def rows(heading: str) -> list[list[str]]:
    """The cells of the first table under a heading, without its head; code marks taken off."""
    section = re.split(r"^#+ ", text().split(f" {heading}\n", 1)[1], flags=re.MULTILINE)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def diagram() -> str:
    """The life of a stream without DATA, which changes nothing, and RST, which ends everything."""
    lines = ["stateDiagram-v2"]
    lines += [f"    {state.name}: {state.value}" for state in State]
    lines += ["    [*] --> OPENING: send OPEN", "    [*] --> ASKED: receive OPEN"]
    for (state, what), after in TRANSITIONS.items():
        if what not in _RESETS | _DATA:
            lines.append(f"    {state.name} --> {after.name}: {what.value}")
    lines += ["    BOTH_FINISHED --> CLOSED: all sent and consumed", "    CLOSED --> [*]"]
    return "\n".join(lines)


def matrix() -> str:
    """Every state and input; what stands empty is not allowed."""
    lines = ["| state | " + " | ".join(what.value for what in Input) + " |", "|---" * (len(Input) + 1) + "|"]
    for state in State:
        after = [TRANSITIONS.get((state, what)) for what in Input]
        cells = ["" if to is None else "same" if to is state else to.value for to in after]
        lines.append(f"| {state.value} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(diagram(), matrix(), sep="\n\n")
