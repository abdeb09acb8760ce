"""What many runs came to, and what they have to have seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from protocol.streams import TRANSITIONS, Input, State
from tests.simulation.plan import Fault
from tests.simulation.run import Result

TO_BE_SEEN = (
    "resumes",
    "asked wrongly: UNKNOWN_TUNNEL",
    "asked wrongly: STALE_LINK",
    "asked wrongly: POSITION",
    "refused an agent: FORBIDDEN",
    "chosen among several",
    "chosen beside one that stalls",
    "arrived after what left later on another link",
    "ended beside one that stands still",
    "tunnels lost: REPLACED",
)


@dataclass(slots=True)
class Report:
    """Sums over runs."""

    runs: int = 0
    seconds: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    faults: Counter[Fault] = field(default_factory=Counter)
    pairs: Counter[tuple[State, Input]] = field(default_factory=Counter)

    def add(self, result: Result) -> None:
        """One more run."""
        self.runs += 1
        self.seconds += result.seconds
        self.counts.update(result.counts)
        self.faults.update(result.faults)
        self.pairs.update(result.pairs)

    def merge(self, other: Report) -> None:
        """Many more."""
        self.runs += other.runs
        self.seconds += other.seconds
        self.counts.update(other.counts)
        self.faults.update(other.faults)
        self.pairs.update(other.pairs)

    @property
    def missing(self) -> list[str]:
        """Legal pairs of the transition table and all else that never occurred, and faults that were never drawn."""
        pairs = [f"the pair ({s.value}, {i.value})" for s, i in TRANSITIONS if not self.pairs[s, i]]
        illegal = [f"illegal: ({s.value}, {i.value})" for s, i in self.pairs if (s, i) not in TRANSITIONS]
        faults = [f"the fault {fault.name}" for fault in Fault if not self.faults[fault]]
        return pairs + illegal + faults + [f"counted: {what}" for what in TO_BE_SEEN if not self.counts[what]]

    def lines(self) -> list[str]:
        """For people."""
        counts = self.counts
        lost = sum(n for what, n in counts.items() if what.startswith("links lost"))
        return [
            f"{self.runs} runs, {self.seconds / 3600:.1f} simulated hours, {counts['tunnels']} tunnels, "
            f"{counts['streams']} streams, {lost} links lost, {counts['resumes']} resumes",
            "faults: " + ", ".join(f"{fault.name} {self.faults[fault]}" for fault in Fault),
            f"{sum(1 for pair in TRANSITIONS if self.pairs[pair])} of {len(TRANSITIONS)} pairs of state and input: "
            + ", ".join(f"{s.value} / {i.value} {self.pairs[s, i]}" for s, i in TRANSITIONS),
            "counted: " + ", ".join(f"{what} {number}" for what, number in sorted(counts.items())),
        ]
