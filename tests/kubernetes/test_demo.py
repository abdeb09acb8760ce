"""`make demo` as its reader meets it: it proves what it says, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.lab import network
from tests.lab.controlplane import ControlPlane

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 240.0


class Demo:
    """One run of the demo; everything it makes lies below `folder`."""

    def __init__(self, folder: Path, *, privileged: bool = True, **variables: str) -> None:
        folder.mkdir()
        self.folder, self._out = folder, folder.with_suffix(".out")
        environment = {key: value for key, value in os.environ.items() if key not in ("ONCE", "MEMBER_KUBECONFIG")}
        environment |= {"TMPDIR": str(folder), "KUBECONFIG": "/nonexistent/must-not-be-read", **variables}
        prefix = [] if privileged or os.geteuid() != 0 else ["unshare", "-U", "--map-user=1000"]
        with self._out.open("wb") as out:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "tests.lab.demo"],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    @property
    def output(self) -> str:
        return self._out.read_text()

    def answer(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def until(self, text: str) -> None:
        end = time.monotonic() + DEADLINE
        while text not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < end, self.output
            time.sleep(0.05)

    def code(self) -> int:
        return self.process.wait(DEADLINE)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            self.process.wait(DEADLINE)
        if self.process.stdin is not None:
            self.process.stdin.close()


@pytest.fixture
def demos() -> Iterator[list[Demo]]:
    started: list[Demo] = []
    yield started
    for demo in started:
        demo.close()


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="d-") as name:  # short: a Unix socket lies below it
        yield Path(name, "t")


def left_behind(folder: Path) -> Mapping[str, list[str]]:
    """Files below the folder, and processes that were started with the folder in their arguments."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            commands.append(path.read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # ended while we looked
            continue
    return {
        "files": [str(path) for path in folder.rglob("*")],
        "processes": [command for command in commands if str(folder) in command],
    }


def namespaces() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    return {line.split()[0] for line in listed.splitlines() if line.startswith("tower-")}


STAND_INS = "Stand-ins: Node and Pod status come from kwok"
NOTHING: Mapping[str, list[str]] = {"files": [], "processes": []}


def test_once_proves_and_leaves_nothing(demos: list[Demo], folder: Path) -> None:
    before = namespaces()
    demo = Demo(folder, ONCE="1")
    demos.append(demo)
    assert demo.code() == 0, demo.output
    for text in (
        "$ kubectl version",
        "$ kubectl get namespaces",
        "logs -f",
        "hello from inside",
        "All of it held.",
        STAND_INS,
    ):
        assert text in demo.output
    alone = network.lacking() is None
    assert ("no answer; only the agent reaches it" in demo.output) == alone
    assert ("no network of its own" in demo.output) != alone
    assert left_behind(folder) == NOTHING
    assert namespaces() <= before


@pytest.mark.parametrize(
    ("number", "privileged"),
    [(signal.SIGINT, True), (signal.SIGTERM, False)],
    ids=["interrupted", "without privileges"],
)
def test_it_stays_until_it_is_told_to_end(
    demos: list[Demo], folder: Path, number: signal.Signals, privileged: bool
) -> None:
    before = namespaces()
    demo = Demo(folder, privileged=privileged)
    demos.append(demo)
    demo.until("It stays up until Ctrl-C.")
    assert "All of it held." in demo.output
    assert STAND_INS in demo.output
    assert privileged or "no network of its own for the member (not root): everything runs on loopback" in demo.output
    assert left_behind(folder)["processes"]
    demo.process.send_signal(number)
    assert demo.code() == 0
    assert demo.output.endswith("nothing is left behind\n")
    assert left_behind(folder) == NOTHING
    assert namespaces() <= before


def test_an_interrupt_in_the_middle_of_setting_up_leaves_nothing(demos: list[Demo], folder: Path) -> None:
    before = namespaces()
    demo = Demo(folder)
    demos.append(demo)
    demo.until("a member:")
    demo.process.send_signal(signal.SIGINT)
    assert demo.code() == 0
    assert left_behind(folder) == NOTHING
    assert namespaces() <= before


# What the member has for all tests. What earlier tests deleted may still be on its way out while a demo runs.
FURNITURE = {"pod/shared", "configmap/one", "configmap/two", "serviceaccount/caller"}


def objects(member: ControlPlane) -> set[str]:
    kinds = "clusterroles,clusterrolebindings,serviceaccounts,configmaps,secrets,pods"
    return set(member.kubectl("get", kinds, "-A", "-o", "name").text.split())


def test_a_member_of_ones_own_is_left_alone_without_a_yes(
    demos: list[Demo], folder: Path, member: ControlPlane
) -> None:
    before = objects(member)
    demo = Demo(folder, ONCE="1", MEMBER_KUBECONFIG=str(member.admin_kubeconfig))
    demos.append(demo)
    demo.until("Create these? [y/N]")
    assert FURNITURE <= objects(member) <= before
    demo.answer("n\n")
    assert demo.code() == 1
    assert "nothing was created" in demo.output
    assert FURNITURE <= objects(member) <= before
    assert left_behind(folder) == NOTHING


def test_a_member_of_ones_own_gets_back_what_it_was(demos: list[Demo], folder: Path, member: ControlPlane) -> None:
    before = objects(member)
    demo = Demo(folder, ONCE="1", MEMBER_KUBECONFIG=str(member.admin_kubeconfig))
    demos.append(demo)
    demo.until("Create these? [y/N]")
    found = re.search(r"Namespace (\S+)", demo.output)
    assert found is not None
    demo.answer("y\n")
    demo.until("logs -f")
    while demo.process.poll() is None:  # the stand-in container's output
        member.write_log("greeter", f"hello at {time.monotonic()}", namespace=found[1])
        time.sleep(0.2)
    assert demo.code() == 0, demo.output
    assert "All of it held." in demo.output
    assert FURNITURE <= objects(member) <= before
    assert left_behind(folder) == NOTHING
