"""The two pools: the agent's credential in one, nothing of it in the other."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path

import pytest

from daemon.kube.access import Access
from gateway.errors import UpstreamError
from tests.tower_agent.backend import Pki, backend, write_kubeconfig
from tower_agent.apiserver import make_upstreams, renew_upstreams


def access(tmp_path: Path, pki: Pki, user: dict[str, object]) -> Access:
    return Access.find(write_kubeconfig(tmp_path / "config", "https://127.0.0.1:6443", pki.ca_pem, user))


@pytest.mark.asyncio
async def test_a_token_speaks_for_the_impersonation_pool_only(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("own-token")
    upstreams = make_upstreams(access(tmp_path, Pki(tmp_path), {"tokenFile": "token"}))
    assert upstreams.bearer.authorization is None
    assert upstreams.impersonation.authorization is not None
    assert upstreams.impersonation.authorization() == b"Bearer own-token"


@pytest.mark.asyncio
async def test_a_certificate_needs_no_token(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    user: dict[str, object] = {
        "client-certificate-data": base64.b64encode(pki.client_pem).decode(),
        "client-key-data": base64.b64encode(pki.client_key).decode(),
    }
    upstreams = make_upstreams(access(tmp_path, pki, user))
    assert upstreams.impersonation.authorization is None
    assert str(upstreams.apiserver) == "127.0.0.1:6443"


@pytest.mark.asyncio
async def test_a_token_that_is_gone_is_a_fault_of_the_agent(tmp_path: Path) -> None:
    upstreams = make_upstreams(access(tmp_path, Pki(tmp_path), {"tokenFile": "missing"}))
    assert upstreams.impersonation.authorization is not None
    with pytest.raises(UpstreamError) as caught:
        upstreams.impersonation.authorization()
    assert caught.value.code == "TWR309"
    assert "missing" in caught.value.message


@pytest.mark.asyncio
async def test_both_pools_follow_an_authority_that_was_renewed(tmp_path: Path) -> None:
    first, second = Pki(tmp_path, "One"), Pki(tmp_path, "Two")
    async with backend(lambda _request: (200, {}), second.server) as served:
        server = f"https://127.0.0.1:{served.port}"
        file = write_kubeconfig(tmp_path / "config", server, first.ca_pem, {"token": "first"})
        held = Access.find(file)
        upstreams = make_upstreams(held)
        for pool in (upstreams.bearer, upstreams.impersonation):
            with pytest.raises(UpstreamError) as caught:
                await pool.dial()
            assert caught.value.code == "TWR304"
        write_kubeconfig(file, server, second.ca_pem, {"token": "second"})
        held.forget_token()
        held.follow()
        renew_upstreams(upstreams, held)
        for pool in (upstreams.bearer, upstreams.impersonation):
            pool.discard(await pool.dial())
        assert upstreams.bearer.authorization is None
        assert upstreams.impersonation.authorization is not None
        assert upstreams.impersonation.authorization() == b"Bearer second"
        upstreams.close()
        await asyncio.sleep(0)  # the turn in which their sockets are closed
