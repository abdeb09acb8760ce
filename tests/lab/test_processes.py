"""Owned children: their ends are seen at once and explained by their log, and stop leaves nothing."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.lab import processes
from tests.lab.processes import PORTS, Child, LabError, free_ports, whole_lines

pytestmark = pytest.mark.slow  # many processes


def test_a_child_that_ends_early_is_reported_with_its_code_and_log(tmp_path: Path) -> None:
    child = Child("etcd", ["sh", "-c", "echo disk full; exit 3"], log=tmp_path / "log")
    with pytest.raises(LabError, match=r"(?s)etcd ended with 3 before it is ready.*disk full"):
        child.until(lambda: False, "it is ready", 10)
    child.stop()


def test_a_wait_has_a_deadline(tmp_path: Path) -> None:
    child = Child("etcd", ["sleep", "30"], log=tmp_path / "log")
    with pytest.raises(LabError, match="waited 0 s in vain: readiness"):
        child.until(lambda: False, "readiness", 0.1)
    assert child.stop() == -signal.SIGTERM


def test_stop_ends_a_child_that_ignores_it_and_what_it_started(tmp_path: Path) -> None:
    script = f"trap '' TERM; sleep 60 & echo $! > {tmp_path}/grandchild; echo up; wait; wait"
    child = Child("stubborn", ["sh", "-c", script], log=tmp_path / "log")
    child.until(lambda: "up" in child.tail(), "up", 10)
    assert child.stop(deadline=0.2) == -signal.SIGKILL
    grandchild = int((tmp_path / "grandchild").read_text())
    end = time.monotonic() + 30
    while Path(f"/proc/{grandchild}").exists() and _state(grandchild) != "Z":
        assert time.monotonic() < end
        time.sleep(0.01)
    assert child.stop() == -signal.SIGKILL


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def test_a_child_does_not_outlive_an_owner_that_is_killed(tmp_path: Path) -> None:
    owner = os.fork()
    if owner == 0:
        try:
            child = Child("orphan", ["sleep", "60"], log=tmp_path / "log")
            (tmp_path / "pid").write_text(str(child.pid))
            while Path(f"/proc/{child.pid}/comm").read_text() != "sleep\n":  # until then nothing ties it to its owner
                time.sleep(0.001)
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(owner, 0)
    pid = int((tmp_path / "pid").read_text())
    end = time.monotonic() + 30
    while _state(pid) != "Z":
        assert time.monotonic() < end, "it still runs"
        time.sleep(0.01)


def test_free_ports_are_free_distinct_and_out_of_the_ephemeral_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PORTS", PORTS[:200])
    monkeypatch.setattr(processes, "_given", set())
    ports = free_ports(5) + free_ports(5)
    assert len(set(ports)) == 10, "those before may not be bound yet"
    assert all(port in PORTS for port in ports)
    with pytest.raises(LabError, match="no 191 free ports"):
        free_ports(191)


def test_a_line_that_is_still_being_written_is_none_yet(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, lines in (("", []), ("half", []), ("one\nhal", ["one"]), ("one\ntwo\n", ["one", "two"])):
        log.write_text(text)
        assert whole_lines(log) == lines
