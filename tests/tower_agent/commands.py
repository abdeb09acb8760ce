"""The agent as a process, run from within a test's loop."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

PROGRAM = str(Path(sys.executable).parent / "tower-agent")


def environment(**extra: str) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", **extra}


async def command(*arguments: str | Path, stdin: str = "", **environ: str) -> tuple[int, str, str]:
    """Run to its end: exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        PROGRAM,
        *map(str, arguments),
        env=environment(**environ),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(30):
            out, err = await process.communicate(stdin.encode())
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


class Running:
    """An agent that runs; `log` is what it wrote."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def said(self, text: str) -> None:
        async with asyncio.timeout(20):
            while text not in self.log:
                assert self.process.returncode is None, self.log
                await asyncio.sleep(0.02)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        async with asyncio.timeout(30):
            return await self.process.wait()


@asynccontextmanager
async def running(log: Path, *arguments: str | Path, **environ: str) -> AsyncIterator[Running]:
    """`tower-agent ARGUMENTS` until the block ends."""
    with log.open("wb") as file:
        process = await asyncio.create_subprocess_exec(
            PROGRAM,
            *map(str, arguments),
            env=environment(**environ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=file,
            stderr=file,
        )
    try:
        yield Running(process, log)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
