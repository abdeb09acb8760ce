"""Whether a member's KubeSphere has the host's secret: what is asked, judged and reported."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from typing import Any

import pytest

from daemon.kube.errors import Forbidden
from daemon.kubesphere import KEY, proof
from tests.tower_server.kit import joined, running
from tests.waiting import until
from tower_server import kubesphere
from tower_server.kubesphere import HostSecret, Question, compared, in_play

SECRET = "the host's own secret of 32 chars"


def answer(question: Question, secret: str = SECRET, *, host: str = "hq", cluster: str = "edge") -> dict[str, str]:
    own = b"a" * 32
    made = proof(secret, host=host, cluster=cluster, server_nonce=question.nonce, agent_nonce=own)
    return {"nonce": base64.b64encode(own).decode(), "mac": base64.b64encode(made).decode()}


def judged(said: object, question: Question) -> dict[str, Any]:
    return compared(SECRET, said, question, host="hq", cluster="edge")


def test_the_same_secret_is_no_trouble_and_another_one_is() -> None:
    question = Question()
    assert judged(answer(question), question) == {"pending": False, "trouble": ""}
    assert "is not this host's" in judged(answer(question, "another"), question)["trouble"]


def test_an_answer_to_somebody_elses_question_is_worth_nothing() -> None:
    question, other = Question(), Question()
    for said in (answer(other), answer(question, cluster="paris"), answer(question, host="x")):
        assert judged(said, question)["trouble"]


def test_an_agent_has_a_while_to_answer_and_an_older_one_is_named() -> None:
    question = Question()
    assert judged(None, question) == {"pending": True, "trouble": ""}
    question.asked = time.monotonic() - 60
    late = judged(None, question)
    assert not late["pending"]
    assert "older than this server" in late["trouble"]


@pytest.mark.parametrize(
    "said", [{}, {"mac": 1, "nonce": 2}, {"mac": "!", "nonce": "!"}, {"mac": "YQ==", "nonce": "YQ=="}, {"text": 5}]
)
def test_what_is_no_answer_is_no_match(said: object) -> None:
    assert judged(said, Question())["trouble"] == "its agent's answer cannot be read"


def test_why_an_agent_has_none_is_passed_on_in_a_form_for_people() -> None:
    told = judged({"text": "no ConfigMap\x1b[2J" + "x" * 1000}, Question())["trouble"]
    assert told.startswith("no ConfigMap")
    assert "\x1b" not in told
    assert len(told) < 400


def test_it_is_in_play_only_where_both_have_a_kubesphere() -> None:
    assert in_play(SECRET, {"services": {"kubesphere": {}}})
    assert not in_play("", {"services": {"kubesphere": {}}})
    assert not in_play(SECRET, {"services": {"kubernetes": {}}})
    assert not in_play(SECRET, {"services": "kubesphere"})


class Host:
    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str]] = []

    async def get(self, _resource: object, name: str, *, namespace: str) -> Any:
        self.asked.append((namespace, name))
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, Exception):
            raise found
        return found


@pytest.mark.asyncio
async def test_the_hosts_secret_is_read_now_and_then_and_kept_while_it_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(kubesphere, "READ_EVERY", 0.01)
    good = {"data": {KEY: f"authentication: {{jwtSecret: '{SECRET.replace(chr(39), chr(39) * 2)}'}}"}}
    host = Host(Forbidden("TWR115", "403"), good, {"data": {}}, Forbidden("TWR115", "403"))
    held = HostSecret(host, place="kubesphere-system/kubesphere-config")  # type: ignore[arg-type]
    work = asyncio.create_task(held.run())
    await until(lambda: len(host.asked) > 4)
    assert held.secret == SECRET
    work.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await work
    assert set(host.asked) == {("kubesphere-system", "kubesphere-config")}


@pytest.mark.asyncio
async def test_an_agent_is_asked_once_a_tunnel_and_its_proof_goes_no_further(tmp_path) -> None:
    async with running(tmp_path) as server, joined(server, "edge") as agent:
        await until(lambda: server.member("edge").tunnels)
        (tunnel,) = server.member("edge").tunnels
        tunnel.data["control"]._control.kubesphere = lambda: SECRET
        await agent.report(services={"kubernetes": {"mode": "gateway"}})
        await until(lambda: server.member("edge").report)
        assert agent.control is not None
        assert not agent.control.of("compare")
        services = {"kubernetes": {"mode": "gateway"}, "kubesphere": {"address": "ks:80"}}
        await agent.report(services=services)
        await until(lambda: agent.control.of("compare"))
        assert server.member("edge").report["kubesphere"] == {"pending": True, "trouble": ""}
        question = tunnel.data["kubesphere"]
        assert base64.b64decode(agent.control.of("compare")[0]["nonce"]) == question.nonce
        await agent.report(services=services, kubesphere=answer(question))
        await until(lambda: server.member("edge").report["kubesphere"] == {"pending": False, "trouble": ""})
        await agent.report(services=services, kubesphere=answer(question, "another"))
        await until(lambda: server.member("edge").report["kubesphere"]["trouble"])
        assert len(agent.control.of("compare")) == 1


@pytest.mark.asyncio
async def test_what_an_agent_says_unasked_is_not_reported(tmp_path) -> None:
    async with running(tmp_path) as server, joined(server, "edge") as agent:
        await agent.report(services={}, kubesphere={"trouble": "of its own making"})
        await until(lambda: server.member("edge").report)
        assert "kubesphere" not in server.member("edge").report
