"""Why the apiserver could not be asked, each way with its own fault."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from daemon.faults import TowerError
from daemon.kube import access as access_module
from daemon.kube.access import Access
from tests.tower_agent.backend import Pki, Request, backend, write_kubeconfig
from tower_agent.member import MemberApi, readiness


def api(tmp_path: Path, port: int, pki: Pki, **user: object) -> MemberApi:
    file = write_kubeconfig(
        tmp_path / "config", f"https://127.0.0.1:{port}", pki.ca_pem, user or {"token": "own-token"}
    )
    return MemberApi(Access.find(file), version="1.2")


async def fault_of(member: MemberApi) -> TowerError:
    with pytest.raises(TowerError) as caught:
        await member.json("GET", "/api/v1/nodes")
    assert "own-token" not in str(caught.value)
    return caught.value


@pytest.mark.asyncio
async def test_answers_refusals_and_nonsense(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    async with backend(lambda _request: (200, {"kind": "NodeList"}), pki.server) as served:
        member = api(tmp_path, served.port, pki)
        assert await member.json("GET", "/api/v1/nodes") == {"kind": "NodeList"}
        assert served.requests[0].headers["authorization"] == "Bearer own-token"
        assert served.requests[0].headers["user-agent"] == "tower-agent/1.2"
        for status, content, code, told in (
            (401, {}, "TWR305", "answered 401 to the agent's own credential"),
            (403, {"message": "nodes is forbidden"}, "TWR305", "nodes is forbidden"),
            (500, {"message": "etcd is sick"}, "TWR306", "etcd is sick"),
            (200, b"<html>", "TWR306", "without JSON"),
            (200, b"[" * 9999, "TWR306", "without JSON"),
            (403, b"[" * 9999, "TWR305", "answered 403"),
            (200, [], "TWR306", "answered 200"),
        ):
            served.respond = lambda _request, answer=(status, content): answer
            fault = await fault_of(member)
            assert fault.code == code
            assert told in fault.message


@pytest.mark.asyncio
async def test_ways_that_are_broken(tmp_path: Path) -> None:
    pki, other = Pki(tmp_path), Pki(tmp_path, "Other CA")
    async with backend(lambda _request: (200, {}), other.server) as served:
        fault = await fault_of(api(tmp_path, served.port, pki))
        assert fault.code == "TWR304"
        assert "Other CA" in fault.message
    old = Pki(tmp_path, "Old CA", lasts=timedelta(minutes=-1))
    async with backend(lambda _request: (200, {}), old.server) as served:
        fault = await fault_of(api(tmp_path, served.port, old))
        assert (fault.code, "expected" in fault.message) == ("TWR304", False)
        assert re.search(r"certificate has expired\); the clock here says 20\d\d-", fault.message), fault.message
        assert "renew the apiserver's certificate" in fault.mend
    fault = await fault_of(api(tmp_path, served.port, pki))
    assert fault.code == "TWR301"
    assert f"127.0.0.1:{served.port}" in fault.message


def authorization(request: Request) -> tuple[int, object]:
    return 200, {"as": request.headers["authorization"]}


@pytest.mark.asyncio
async def test_a_renewed_kubeconfig_is_used_without_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "CONFIG_REREAD", 0.0)
    pki, other = Pki(tmp_path), Pki(tmp_path, "Other CA")
    async with backend(authorization, other.server) as served:
        member = api(tmp_path, served.port, pki)
        assert (await fault_of(member)).code == "TWR304"
        api(tmp_path, served.port, other, token="renewed")
        assert await member.json("GET", "/") == {"as": "Bearer renewed"}


@pytest.mark.asyncio
async def test_silence_is_a_timeout(tmp_path: Path) -> None:
    pki = Pki(tmp_path)

    async with backend(lambda _request: (200, None), pki.server) as served:
        with pytest.raises(TowerError) as caught:
            await api(tmp_path, served.port, pki).call("GET", "/readyz", deadline=0.3)
    assert caught.value.code == "TWR303"


@pytest.mark.asyncio
async def test_rights_nodes_and_readiness(tmp_path: Path) -> None:
    pki = Pki(tmp_path)

    def respond(request: Request) -> tuple[int, object]:
        if request.path == "/readyz":
            return 500, b"[-]etcd failed: reason withheld"
        if "selfsubjectaccessreviews" in request.path:
            document = request.json()
            assert isinstance(document, dict)
            attributes = document["spec"]["resourceAttributes"]
            return 201, {"status": {"allowed": attributes["name"] == "tower:host:admin"}}
        return 200, {"metadata": {"remainingItemCount": 4}, "items": [{}]}

    async with backend(respond, pki.server) as served:
        member = api(tmp_path, served.port, pki)
        assert await member.may("impersonate", "users", "tower:host:admin") is True
        assert await member.may("impersonate", "users", "someone") is False
        assert await member.node_count() == 5
        ready = await readiness(member)
        assert not ready.ok
        assert "etcd failed" in ready.text
        served.respond = lambda _request: (403, {})
        with pytest.raises(TowerError) as caught:
            await readiness(member)
        assert caught.value.code == "TWR305"
