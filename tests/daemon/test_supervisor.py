from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.supervisor import Supervisor


class Deaths:
    def __init__(self) -> None:
        self.seen: list[tuple[str, BaseException]] = []
        self.happened = asyncio.Event()

    def __call__(self, name: str, exc: BaseException) -> None:
        self.seen.append((name, exc))
        self.happened.set()


@pytest.mark.asyncio
async def test_a_death_is_logged_under_its_name_and_told_once() -> None:
    deaths = Deaths()
    supervisor = Supervisor(on_failure=deaths)

    async def dies() -> None:
        raise TowerError("TWR105", "disk full")

    with capture_logs() as logs:
        supervisor.start(dies(), name="store-writer")
        await deaths.happened.wait()
    assert [(name, str(exc)[:17]) for name, exc in deaths.seen] == [("store-writer", "TWR105: disk full")]
    assert (logs[0]["event"], logs[0]["task"], logs[0]["code"]) == ("task-failed", "store-writer", "TWR105")


@pytest.mark.asyncio
async def test_close_cancels_awaits_and_is_no_failure() -> None:
    deaths = Deaths()
    supervisor = Supervisor(on_failure=deaths)
    cleaned = []

    async def works() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            cleaned.append(True)

    supervisor.start(works(), name="b")
    supervisor.start(works(), name="a")
    await asyncio.sleep(0)
    assert {"a", "b"} <= {task.get_name() for task in asyncio.all_tasks()}
    await supervisor.close()
    assert cleaned == [True, True]
    assert deaths.seen == []
    with pytest.raises(RuntimeError, match="'late' was started while its owner is closing"):
        supervisor.start(works(), name="late")


@pytest.mark.asyncio
async def test_a_task_that_does_not_end_is_named_and_not_waited_for_without_end() -> None:
    supervisor = Supervisor(on_failure=Deaths())
    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = supervisor.start(stubborn(), name="stubborn")
    await asyncio.sleep(0)
    with capture_logs() as logs:
        await supervisor.close(deadline=0.05)
    assert logs[0]["event"] == "tasks-did-not-end"
    assert logs[0]["tasks"] == ["stubborn"]
    release.set()
    await task


@pytest.mark.asyncio
async def test_restart_backs_off_after_errors_and_heeds_a_retry_after() -> None:
    deaths = Deaths()
    supervisor = Supervisor(on_failure=deaths)
    runs = 0
    done = asyncio.Event()

    async def flaky() -> None:
        nonlocal runs
        runs += 1
        if runs == 1:
            raise OSError("cut")
        if runs == 2:
            raise TowerError("TWR221", "later", retry_after=0.02)
        done.set()
        await asyncio.Event().wait()

    with capture_logs() as logs:
        supervisor.restart(flaky, name="dialer", backoff=Backoff(random=lambda: 0.0, minimum=0.001, maximum=0.002))
        await done.wait()
        await supervisor.close()
    assert [entry["event"] for entry in logs] == ["task-restarts", "task-restarts"]
    assert [entry["delay"] for entry in logs] == [0.001, 0.021]
    assert deaths.seen == []
