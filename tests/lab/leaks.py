"""What a test must not leave behind: tasks of its event loop, open descriptors, child processes.

A plugin for pytest, active for every test. Things that wider fixtures own (a session's control plane) exist before the
first snapshot and are not counted. What is merely on its way out gets `GRACE` seconds.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import uvloop

from tests.lab.processes import ADOPTED

GRACE = 2.0
POLL = 0.02


def pytest_configure() -> None:
    uvloop.new_event_loop().close()  # libuv's first loop opens a pipe that lives as long as the process


@pytest.fixture(autouse=True)
def leaks_nothing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fails the test that leaves something behind. Set up before, torn down after all other fixtures of the test."""
    before = descriptors() | children()
    if _runs_a_loop(request):
        request.getfixturevalue("a_loop")
        # the loop itself (its selector, its self-pipe) is closed after this fixture, by the runner's own
        before |= descriptors()
    yield
    end = time.monotonic() + GRACE
    while left := {key: what for key, what in (descriptors() | children()).items() if before.get(key) != what}:
        gc.collect()
        if time.monotonic() > end:
            pytest.fail("the test leaves behind: " + ", ".join(f"{key} ({what})" for key, what in sorted(left.items())))
        time.sleep(POLL)


@pytest.fixture(autouse=True)
def leaks_no_task(request: pytest.FixtureRequest, leaks_nothing: None) -> None:
    """Torn down before `leaks_nothing`: what goes only while a loop runs has gone by then."""
    if _runs_a_loop(request):
        request.getfixturevalue("a_loop_that_ends")


@pytest_asyncio.fixture
async def a_loop() -> None:
    """The loop of the test."""


@pytest_asyncio.fixture
async def a_loop_that_ends() -> AsyncIterator[None]:
    """Fails the test that leaves tasks behind. It waits for descriptors too, and `leaks_nothing` judges them: the end
    of a connection whose peer has just gone is closed by a loop that runs."""
    before = len(descriptors())  # each run of a loop has some of its own
    yield
    end = time.monotonic() + GRACE
    while (left := asyncio.all_tasks() - {asyncio.current_task()}) or len(descriptors()) > before:
        if time.monotonic() > end:
            break
        await asyncio.sleep(POLL)
    if left:
        names = ", ".join(sorted(f"{task.get_name()} ({task.get_coro()!r})" for task in left))
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=GRACE)
        pytest.fail(f"the test leaves tasks behind: {names}")


def _runs_a_loop(request: pytest.FixtureRequest) -> bool:
    return inspect.iscoroutinefunction(inspect.unwrap(getattr(request.function, "hypothesis", request.function)))


def descriptors() -> dict[str, str]:
    """Open descriptors of this process: number and what it is (`socket:[4711]`, `pipe:[42]`, a path)."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        try:
            found[f"descriptor {number}"] = os.readlink(f"/proc/self/fd/{number}")
        except FileNotFoundError:  # the one that listed the folder
            continue
    return found


def children() -> dict[str, str]:
    """Child processes, ended but not waited for ones too: id and command line."""
    found: dict[str, str] = {}
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # there is none: what almost every test says, in a hundredth of the time
        return found
    for thread in os.listdir("/proc/self/task"):
        try:
            pids = Path(f"/proc/self/task/{thread}/children").read_text().split()
        except FileNotFoundError:  # a thread that has just ended
            continue
        for pid in pids:
            if int(pid) in ADOPTED:
                continue
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError):  # it was waited for, before or while it was read
                continue
            if "multiprocessing.resource_tracker" not in command:  # Python's own, one a process, ends with it
                found[f"process {pid}"] = command.strip()[:200] or "ended, not waited for"
    return found
