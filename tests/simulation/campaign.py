"""Many runs: what they came to, and for each failure the one command that shows it again."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from itertools import count
from multiprocessing import get_context
from random import SystemRandom
from time import monotonic

from tests.simulation.plan import draw
from tests.simulation.report import Report
from tests.simulation.run import play
from tests.simulation.shrink import shrink
from tests.simulation.world import Violation

BATCH = 25
ENOUGH_TO_SEE_ALL = 400  # runs after which a pair or a fault that never occurred is a failure


def one(seed: int, keep: str | None, lines: int) -> int:
    """Play one seed, with the end of its trace."""
    plan = draw(seed)
    if keep is not None:
        plan = plan.keep([int(number) for number in keep.split(",") if number])
    print(plan)
    for number, item in enumerate(plan.items):
        print(f"  {number}: {item}")
    trace: list[str] = []
    try:
        result = play(plan, trace=trace)
    except Violation as violation:
        print("\n".join(trace[-lines:]))
        print(f"seed {seed}: {violation}")
        return 1
    print("\n".join(trace[-lines:]))
    print(f"seed {seed}: well; trace {result.trace_hash}, {result.seconds:.0f} simulated seconds")
    return 0


def run_batch(seeds: range) -> tuple[Report, list[str]]:
    """Play some seeds; what they came to, and how to see each failure again."""
    report, failures = Report(), []
    for seed in seeds:
        plan = draw(seed)
        try:
            report.add(play(plan))
        except Violation as violation:
            failures.append(explain(seed, violation))
    return report, failures


def explain(seed: int, violation: Violation) -> str:
    """A failure, and the one command that shows it again as small as it gets."""
    keep = shrink(draw(seed), violation)
    command = f"python -m tests.simulation --seed {seed} --keep {','.join(map(str, keep)) or ','}"
    return f"{violation}\n  again: {command}"


def first_failure(seeds: range) -> int:
    """Where the planted bug is seen first; 3 when it is not."""
    for seed in seeds:
        try:
            play(draw(seed))
        except Violation as violation:
            print(f"{seed} {violation}")
            return 0
    return 3


def many(seeds: range, jobs: int) -> int:
    """Play these."""
    total, failures = Report(), []
    batches = [range(at, min(at + BATCH, seeds.stop)) for at in range(seeds.start, seeds.stop, BATCH)]
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        for report, failed in pool.map(run_batch, batches):
            total.merge(report)
            failures += failed
    return _conclude(total, failures)


def soak(seconds: float, jobs: int) -> int:
    """Play fresh seeds for so long."""
    total, failures, until = Report(), [], monotonic() + seconds
    first = SystemRandom().randrange(10**9, 10**12)
    print(f"fresh seeds from {first} for {seconds:g} s", flush=True)
    starts = count(first, BATCH)
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        while monotonic() < until and not failures:
            batches = [range(at, at + BATCH) for at in (next(starts) for _ in range(4 * jobs))]
            for report, failed in pool.map(run_batch, batches):
                total.merge(report)
                failures += failed
    return _conclude(total, failures)


def _conclude(total: Report, failures: list[str]) -> int:
    print("\n".join(total.lines()))
    for failure in failures:
        print(failure)
    missing = total.missing if total.runs >= ENOUGH_TO_SEE_ALL else []
    for each in missing:
        print(f"never seen: {each}")
    return 1 if failures or missing else 0
