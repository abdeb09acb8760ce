"""One ClusterRoleBinding by the shipped credential: what is asked, and every answer that is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from gateway.tls import Apiserver as Address
from gateway.upstream import Upstreams
from tests.tower_server.legacy.goagent import Apiserver, apiserver
from tower_server.legacy import asking as module
from tower_server.legacy.binding import BindingError, bind, binding_name, unbind

pytestmark = pytest.mark.asyncio


@asynccontextmanager
async def upstreams(folder: Path) -> AsyncIterator[tuple[Apiserver, Upstreams]]:
    async with apiserver(folder) as backend:
        host, _, port = backend.address.rpartition(":")
        found = Upstreams(
            Address(host, int(port), "", backend.ca.pem.decode()), authorization=lambda: b"Bearer shipped"
        )
        try:
            yield backend, found
        finally:
            found.close()
            await asyncio.sleep(0.01)


async def test_the_hosts_admins_are_bound_and_unbound(tmp_path: Path) -> None:
    async with upstreams(tmp_path) as (backend, pools):
        await bind(pools.impersonation, "hq")
        await unbind(pools.impersonation, "hq")
        made, gone = backend.requests
        document = json.loads(made.body)
        assert document["metadata"]["name"] == binding_name("hq") == "tower-legacy:hq:cluster-admins"
        assert [each["name"] for each in document["subjects"]] == ["tower:hq:cluster-admins"]
        assert document["roleRef"]["name"] == "cluster-admin"
        assert gone.first.startswith("DELETE ")
        assert gone.first.split()[1].endswith(binding_name("hq"))
        for each in (made, gone):
            assert each.headers["authorization"] == "Bearer shipped"
            assert "impersonate-user" not in each.headers
        assert pools.impersonation.open_count == 0


async def test_a_refusal_carries_the_apiservers_words(tmp_path: Path) -> None:
    async with upstreams(tmp_path) as (backend, pools):
        backend.refuse_bindings = True
        with pytest.raises(BindingError, match="answered 403: not allowed"):
            await bind(pools.impersonation, "hq")


async def test_an_apiserver_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.3)
    async with upstreams(tmp_path) as (backend, pools):
        backend.silent = True
        with pytest.raises(BindingError, match=r"within 0\.3 s"):
            await bind(pools.impersonation, "hq")
        backend.server.close()
        with pytest.raises(BindingError, match="cannot connect"):
            await bind(pools.impersonation, "hq")
        assert pools.impersonation.open_count == 0
