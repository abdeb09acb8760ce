"""What every process of Tower does around its own work: loop, signals, systemd, inherited listeners, owned tasks.

`run(main, name=...)` is the only place that starts an event loop and the only one that turns errors into an exit code.
The first SIGTERM or SIGINT sets `process.stop`; a second one ends the process at once. Secrets live in memory, so core
dumps are off; the limit of open files is raised to what the machine allows, since each stream is a socket.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Final

import uvloop

from daemon import systemd
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.memory import settle_collector, tune_allocator
from daemon.redact import redact_text
from daemon.supervisor import Supervisor

_CORE_LIMIT: Final = 1  # too small for a file, and the one value at which the kernel starts no dump handler either

log = get_logger(__name__)


class Process:
    """What `main` gets: the stop event, its tasks, systemd's messages and listeners."""

    def __init__(self, *, name: str) -> None:
        self.name = name
        self.stop = asyncio.Event()
        self.notifier = systemd.Notifier()
        self.listeners = systemd.inherited_listeners()
        self.tasks = Supervisor(on_failure=self._failed)
        self.failure: BaseException | None = None

    def _failed(self, name: str, exc: BaseException) -> None:
        if self.failure is None:
            self.failure = exc
        self.stop.set()

    async def ready(self, status: str) -> None:
        """Tells systemd that the process serves, and starts the watchdog's beat if one is asked for."""
        settle_collector()
        self.notifier.ready(status)
        if self.notifier.watchdog_interval is not None:
            self.tasks.start(self.notifier.beat(), name="watchdog")


Main = Callable[[Process], Awaitable[int | None]]


def run(main: Main, *, name: str) -> int:
    """Runs `main` to its end and gives the exit code; every error becomes one clear message on standard error."""
    raise_file_limit()
    forbid_core_dumps()
    tune_allocator()
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(_supervised(main, name))
    except TowerError as exc:
        return report(exc, name=name)
    except KeyboardInterrupt:
        return 130
    except Exception as exc:  # the boundary of the process: what has no code of its own is a defect, said so
        log.error("process-failed", exc_info=True)
        return report(TowerError("TWR112", f"{type(exc).__name__}: {exc}"), name=name)


def report(exc: TowerError, *, name: str) -> int:
    """Prints a TowerError for people and gives the exit code that belongs to it."""
    text = f"{name}: {exc.code}: {exc.message}\n  {exc.mend}\n  more: `towerctl explain {exc.code}`"
    print(redact_text(text), file=sys.stderr)
    return exc.exit_code


async def _supervised(main: Main, name: str) -> int:
    process = Process(name=name)
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if process.stop.is_set():
            log.warning("killed", signal=number.name, why="second signal")
            sys.stderr.flush()
            os._exit(128 + number)
        log.info("stopping", signal=number.name)
        process.notifier.stopping()
        process.stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        code = await main(process)
    finally:
        process.notifier.stopping()
        await process.tasks.close()
        for sockets in process.listeners.values():
            for sock in sockets:
                sock.close()
        process.notifier.close()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
    if process.failure is not None:
        raise process.failure
    return code if code is not None else 0


def raise_file_limit() -> int:
    """Raises the soft limit of open files to the hard one; gives the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as exc:
            log.warning("file-limit-not-raised", soft=soft, hard=hard, why=str(exc))
            return soft
    return hard


def forbid_core_dumps() -> None:
    """No core dump, neither as a file nor to a handler: the memory holds keys and tokens."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    limit = _CORE_LIMIT if hard == resource.RLIM_INFINITY else min(_CORE_LIMIT, hard)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, hard))
