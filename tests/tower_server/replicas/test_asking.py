"""One server asks others over their replica ports, in real TLS; some answer, some do not."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack

import pytest

from certs.ca import Authority
from daemon.faults import TowerError
from tests.tower_server.replicas.kit import Caller, Host, certificate, serving
from tests.waiting import until
from tower_server.replicas import asking as module
from tower_server.replicas import port as port_module
from tower_server.replicas.asking import ask, ask_all
from tower_server.replicas.wire import Asking

pytestmark = pytest.mark.asyncio
QUESTION = Asking("tunnels", "edge")


async def test_an_answer_of_any_size_comes_whole() -> None:
    host = Host()
    many = [{"id": str(number), "text": "x" * 100} for number in range(20_000)]

    async def answer(asking: Asking) -> dict:
        return {"items": many}

    host.answers = answer
    async with serving(host) as port:
        assert (await ask(Caller(port).link, QUESTION))["items"] == many
    assert host.questions == [QUESTION]


@pytest.mark.slow
async def test_who_does_not_answer_is_named_and_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 3.0)
    well, slow, gone = Host(), Host(), Host()
    ended = []

    async def never(asking: Asking) -> dict:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(asking)
        return {}

    slow.answers = never
    async with AsyncExitStack() as stack:
        links = [
            Caller(await stack.enter_async_context(serving(host, name)), name=name).link
            for host, name in ((well, "well"), (slow, "slow"))
        ]
        async with serving(gone, "gone") as port:
            links.append(Caller(port, name="gone").link)
        told, silent = await ask_all(links, QUESTION)
        await until(lambda: ended)  # nobody waits for it any more
    assert told == [("well", {"items": []})]
    assert sorted(each.server for each in silent) == ["gone", "slow"]
    reasons = {each.server: each.why for each in silent}
    assert "server slow does not answer: no answer within 3 s" in reasons["slow"]
    assert "server gone does not answer: " in reasons["gone"]


async def test_a_refusal_comes_with_its_code_and_a_defect_without_its_insides() -> None:
    host = Host()

    async def refuse(asking: Asking) -> dict:
        raise TowerError("TWR222", "the tunnel t-1 does not answer a ping")

    async def fail(asking: Asking) -> dict:
        raise KeyError("secret")

    async with serving(host) as port:
        host.answers = refuse
        with pytest.raises(TowerError, match="the tunnel t-1 does not answer") as caught:
            await ask(Caller(port).link, QUESTION)
        assert caught.value.code == "TWR222"
        host.answers = fail
        with pytest.raises(TowerError) as caught:
            await ask(Caller(port).link, QUESTION)
    assert caught.value.code == "TWR112"
    assert "secret" not in caught.value.message


async def test_a_server_of_another_host_or_name_is_neither_asked_nor_answered() -> None:
    host = Host()
    async with serving(host, "owner") as port:
        with pytest.raises(TowerError, match="was called as other"):
            await ask(Caller(port, name="other").link, QUESTION)
        stranger = certificate("other", Authority.create("hq", at=time.time()))
        with pytest.raises(TowerError, match="does not answer"):
            await ask(Caller(port, mine=stranger).link, QUESTION)
    assert host.questions == []


async def test_questions_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 60.0)
    monkeypatch.setattr(port_module, "MAX_ASKED", 4)
    host = Host()
    open_ended = asyncio.Event()

    async def wait(asking: Asking) -> dict:
        await open_ended.wait()
        return {}

    host.answers = wait
    async with serving(host) as port:
        link = Caller(port).link
        asked = [asyncio.create_task(ask(link, QUESTION)) for _ in range(port_module.MAX_ASKED)]
        await until(lambda: len(port.asked) == port_module.MAX_ASKED)
        with pytest.raises(TowerError, match="does not answer"):
            await ask(link, QUESTION)
        open_ended.set()
        assert await asyncio.gather(*asked) == [{}] * port_module.MAX_ASKED
