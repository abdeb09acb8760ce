"""The heartbeat's facts, and each fact by itself."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.tower_agent.backend import Pki, Request, backend
from tests.tower_agent.test_member import api
from tower_agent.probe import Probe, Prober


def member(request: Request) -> tuple[int, object]:
    if request.path == "/readyz":
        return 200, b"ok"
    if request.path == "/version":
        return 200, {"gitVersion": "v1.35.4"}
    if request.path.startswith("/api/v1/nodes"):
        return 403, {"message": "nodes is forbidden"}
    return 200, {"metadata": {"uid": "4be1"}}


@pytest.mark.asyncio
async def test_a_forbidden_fact_hides_no_other(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    async with backend(member, pki.server) as served:
        prober = Prober(api(tmp_path, served.port, pki), changed=lambda _probe: None)
        probe = await prober.once()
        assert probe.ok
        fields = probe.fields()
        assert (fields["version"], fields["uid"], fields["nodes"], fields["code"]) == ("v1.35.4", "4be1", None, None)

        asked = len(served.requests)
        again = await prober.once()
        assert again.facts == probe.facts
        assert [request.path for request in served.requests[asked:]] == ["/readyz"]

        served.respond = lambda _request: (500, b"[-]etcd failed")
        sick = (await prober.once()).fields()
        assert (sick["ready"], sick["code"], sick["version"]) == (False, "TWR302", "v1.35.4")
        served.respond = lambda _request: (401, {})
        refused = (await prober.once()).fields()
        assert (refused["code"], refused["reason"]) == ("TWR305", "CredentialRefused")
    down = (await prober.once()).fields()
    assert (down["ready"], down["code"]) == (False, "TWR301")


@pytest.mark.asyncio
async def test_it_probes_until_cancelled(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    seen: asyncio.Queue[Probe] = asyncio.Queue()
    async with backend(member, pki.server) as served:
        prober = Prober(api(tmp_path, served.port, pki), changed=seen.put_nowait, interval=0.01)
        task = asyncio.create_task(prober.run())
        for _ in range(3):
            assert (await asyncio.wait_for(seen.get(), 5)).ok
        assert prober.latest is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
