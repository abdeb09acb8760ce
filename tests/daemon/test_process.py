from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAD = """
import asyncio, resource, sys
from daemon import log
from daemon.faults import TowerError
from daemon.process import run
log.configure()
"""
TAIL = """
sys.exit(run(main, name="tower-test"))
"""
SERVE = """
async def main(process):
    await process.ready("serving")
    print("up", flush=True)
    await process.stop.wait()
    print("cleaned", flush=True)
"""


@contextlib.contextmanager
def started(body: str, **environ: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + body + TAIL],
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def ended(body: str) -> tuple[int, str, str]:
    with started(body) as process:
        out, err = process.communicate(timeout=20)
        return process.returncode, out, err


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_systemd_hears_of_it(number: signal.Signals, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        with started(SERVE, NOTIFY_SOCKET=str(tmp_path / "notify")) as process:
            assert manager.recv(999) == b"READY=1\nSTATUS=serving"
            process.send_signal(number)
            out, err = process.communicate(timeout=20)
            assert manager.recv(999) == b"STOPPING=1"
    assert (process.returncode, out) == (0, "up\ncleaned\n")
    assert '"event": "stopping"' in err


@pytest.mark.slow
def test_a_second_signal_ends_it_at_once() -> None:
    body = """
async def main(process):
    print("up", flush=True)
    await process.stop.wait()
    print("draining", flush=True)
    await asyncio.sleep(3600)
"""
    with started(body) as process:
        assert first_line(process) == "up\n"
        process.send_signal(signal.SIGTERM)
        assert first_line(process) == "draining\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM


@pytest.mark.slow
def test_a_named_failure_is_one_clear_message() -> None:
    code, out, err = ended("async def main(process): raise TowerError('TWR103', 'cannot listen on 127.0.0.1:8443')\n")
    assert (code, out) == (1, "")
    assert err.splitlines()[0] == "tower-test: TWR103: cannot listen on 127.0.0.1:8443"
    assert "ss -ltnp" in err
    assert err.splitlines()[-1] == "  more: `towerctl explain TWR103`"
    assert "Traceback" not in err


@pytest.mark.slow
def test_the_exit_code_is_the_failure_s_own_or_that_of_main() -> None:
    assert ended("async def main(process): raise TowerError('TWR601', 'no cluster named')\n")[0] == 2
    assert ended("async def main(process): return 3\n")[0] == 3


@pytest.mark.slow
def test_a_defect_is_logged_and_said_without_a_bare_traceback() -> None:
    code, _, err = ended("async def main(process): raise ValueError('oops twr1.abcdefghijklmn')\n")
    assert code == 1
    assert "tower-test: TWR112: ValueError: oops" in err
    assert '"event": "process-failed"' in err
    assert "abcdefghijklmn" not in err


@pytest.mark.slow
def test_the_death_of_a_task_ends_the_process_cleanly_and_with_its_reason() -> None:
    body = """
async def dies():
    raise TowerError("TWR105", "disk full")
async def waits():
    try:
        await asyncio.Event().wait()
    finally:
        print("cancelled", flush=True)
async def main(process):
    process.tasks.start(waits(), name="waits")
    process.tasks.start(dies(), name="store")
    await process.stop.wait()
    print("cleaned", flush=True)
"""
    code, out, err = ended(body)
    assert (code, out) == (1, "cleaned\ncancelled\n")
    assert "tower-test: TWR105: disk full" in err
    assert '"task": "store"' in err


@pytest.mark.slow
def test_limits_are_set_before_the_work() -> None:
    body = """
async def main(process):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    print(soft == hard, resource.getrlimit(resource.RLIMIT_CORE)[0] <= 1, type(asyncio.get_running_loop()).__module__)
"""
    assert (
        ended("resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))" + body)[
            1
        ]
        == "True True uvloop\n"
    )
