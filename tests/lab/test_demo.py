"""The demo's own manners: how it ends, and what it says of a machine that was too busy for it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab.demo import too_busy


def test_only_a_busy_machine_is_blamed_and_the_next_step_named() -> None:
    assert too_busy(1.5, 2) == ""
    assert "load 31 on 2 processors" in too_busy(31.2, 2)
    assert too_busy(31.2, 2).endswith("run it again")


BUSY = "import os, sys; os.getloadavg = lambda: (99.0, 99.0, 99.0)\nfrom tests.lab import demo; sys.exit(demo.main())"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variable", "told"),
    [
        ("MEMBER_KUBECONFIG", "no such file; name the kubeconfig of the member to use"),
        ("KUBEBUILDER_ASSETS", "no such folder; correct the variable or unset it"),
    ],
)
def test_what_was_given_and_is_not_there_is_no_fault_of_a_busy_machine(
    tmp_path: Path, variable: str, told: str
) -> None:
    environment = os.environ | {"MEMBER_KUBECONFIG": "", variable: str(tmp_path / "none")}
    done = subprocess.run([sys.executable, "-c", BUSY], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert told in done.stderr
    assert "busy" not in done.stderr


BEHIND = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
from tests.lab import demo
demo.demo = lambda *_, **__: os.kill(os.getpid(), signal.SIGINT) or 0
sys.exit(demo.main())
"""


@pytest.mark.slow
def test_it_is_ended_by_sigint_also_where_a_shell_started_it_behind_itself() -> None:
    environment = os.environ | {"ONCE": "1", "MEMBER_KUBECONFIG": ""}
    done = subprocess.run([sys.executable, "-c", BEHIND], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert "nothing is left behind" in done.stderr


AGAIN = """
import os, signal, sys
from tests.lab import demo

def clean_up():
    for number in demo.ENDING:
        os.kill(os.getpid(), number)
    os.system("kill -INT $$")  # as a terminal does to all that run in it
    print("cleaned up", flush=True)

def run(stack, *_, once):
    stack.callback(clean_up)
    if "ended" not in sys.argv:
        os.kill(os.getpid(), signal.SIGINT)
    return 0

demo.demo = run
sys.exit(demo.main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["interrupted", "ended"])
def test_a_second_interrupt_cuts_no_clean_up(how: str) -> None:
    environment = os.environ | {"ONCE": "", "MEMBER_KUBECONFIG": ""}
    argv = [sys.executable, "-c", AGAIN, how]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "cleaned up\n"), done.stderr
