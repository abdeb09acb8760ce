"""A resolver with a dead name server: it answers later than a dial waits, and does not end when it should."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from typing import Any

import pytest

from protocol.aio import lookup
from protocol.aio.lookup import look_up

HERE = [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("127.0.0.1", 443))]


class Resolver:
    """It answers names only once `answers` is set; `asked` is what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, outcome: Any = HERE) -> None:
        self.answers, self.asked = threading.Event(), list[str]()
        self.outcome = outcome
        monkeypatch.setattr(socket, "getaddrinfo", self._ask)

    def _ask(self, host: str, *_: object, flags: int = 0, **__: object) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not a number")
        self.asked.append(host)
        assert self.answers.wait(30)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


async def gives_up(name: str) -> None:
    with pytest.raises(TimeoutError):
        await look_up(name, 443, 0.01)


async def finished(name: str) -> None:
    await asyncio.wrap_future(lookup._lookups[name, 443])


@pytest.mark.asyncio
async def test_who_asks_again_gets_what_was_found_after_the_first_had_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch)
    for _ in range(3):
        await gives_up("slow.test")
    resolver.answers.set()
    await finished("slow.test")
    assert await look_up("slow.test", 443, 5.0) == HERE
    assert resolver.asked == ["slow.test"], "one thread for a name, however often it is dialled"
    assert await look_up("slow.test", 443, 5.0) == HERE
    assert resolver.asked == ["slow.test"] * 2, "an answer that somebody got is not kept"


@pytest.mark.asyncio
async def test_what_was_found_long_ago_is_asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, OSError("it was away"))
    await gives_up("old.test")
    resolver.answers.set()
    await finished("old.test")
    found_at, outcome = lookup._lookups["old.test", 443].result()
    old: Future[Any] = Future()
    old.set_result((found_at - lookup.KEPT - 1.0, outcome))
    lookup._lookups["old.test", 443] = old
    resolver.outcome = HERE
    assert await look_up("old.test", 443, 5.0) == HERE


@pytest.mark.asyncio
async def test_several_who_wait_hear_the_same_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    resolver = Resolver(monkeypatch, socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"))
    resolver.answers.set()
    both = await asyncio.gather(*(look_up("bad.test", 443, 5.0) for _ in range(2)), return_exceptions=True)
    assert [str(each) for each in both] == ["[Errno -3] Temporary failure in name resolution"] * 2


@pytest.mark.asyncio
async def test_a_number_is_no_question() -> None:
    assert (await look_up("::1", 443, 0.0))[0][4][:2] == ("::1", 443)


@pytest.mark.slow
def test_a_process_ends_though_the_resolver_does_not() -> None:
    program = """
import asyncio, socket, time, uvloop
from protocol.aio import hops, tcpdial

def ask(*_, flags=0, **__):
    if flags:
        raise socket.gaierror("no number")
    time.sleep(3600)

async def main():
    try:
        await tcpdial.connect_tcp("tower.test", 443, 0.1, hops.unnoted)
    except hops.DialError as error:
        print(error)

socket.getaddrinfo = ask
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=True)
    assert "no answer for 'tower.test' within 0.1 s" in done.stdout
