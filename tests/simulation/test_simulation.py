"""The fixed seeds, that they say the same every time and see everything, and that planted bugs do not get past them."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.simulation import campaign, shrink
from tests.simulation.mutants import MUTANTS, ROOT, SEEDS, Mutant, hunt, mutated
from tests.simulation.plan import Fault, Plan, draw
from tests.simulation.run import Result, play
from tests.simulation.world import Violation

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_the_fixed_seeds_hold_and_see_every_pair_and_every_fault() -> None:
    """The same that look for planted bugs: what they see there is the bug."""
    command = [sys.executable, "-m", "tests.simulation", "--seeds", f"0:{SEEDS}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=880, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    numbers = re.match(r"(\d+) runs, ([\d.]+) simulated hours, .* (\d+) links lost, (\d+) resumes", done.stdout)
    assert numbers, done.stdout
    assert int(numbers[1]) == SEEDS
    assert float(numbers[2]) > 60
    assert int(numbers[4]) > 1000, "resumes are what this is about"


def test_a_seed_says_the_same_in_another_interpreter() -> None:
    plan = max((draw(seed) for seed in range(20)), key=lambda plan: len(plan.items))
    here = play(plan).trace_hash
    assert play(plan).trace_hash == here
    command = [sys.executable, "-m", "tests.simulation", "--seed", str(plan.seed)]
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert f"trace {here}," in done.stdout


def test_another_seed_is_another_run() -> None:
    assert play(draw(1)).trace_hash != play(draw(2)).trace_hash


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_one_change_that_compiles(mutant: Mutant) -> None:
    compile(mutated(mutant), mutant.module, "exec")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_bug_is_seen(mutant: Mutant) -> None:
    print(hunt(mutant))


def test_a_failing_run_is_shrunk_and_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = max((draw(seed) for seed in range(20)), key=lambda plan: len(plan.items))
    guilty = [plan.items[2], plan.items[-3]]

    def play(one: Plan) -> Result:
        if all(item in one.items for item in guilty):
            raise Violation("S1 bytes", "planted")
        if len(one.items) < 2:
            raise Violation("L3 no end", "another failure, which must not be taken for it")
        raise AssertionError("only violations are looked for")

    def outcome(one: Plan) -> Result | None:
        try:
            return play(one)
        except AssertionError as error:
            if isinstance(error, Violation):
                raise
            return None

    monkeypatch.setattr(shrink, "play", outcome)
    said = campaign.explain(plan.seed, Violation("S1 bytes", "planted"))
    assert said.endswith(f"--seed {plan.seed} --keep 2,{len(plan.items) - 3}")


def test_every_fault_says_what_it_is() -> None:
    assert len({fault.value for fault in Fault}) == len(Fault)
