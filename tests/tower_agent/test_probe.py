"""The heartbeat's facts, and each fact by itself."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from protocol import defaults
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
            assert (await asyncio.wait_for(seen.get(), 30)).ok
        assert prober.latest is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_request_that_found_no_apiserver_is_looked_into_at_once_and_a_flood_of_them_at_a_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "PROBE_AGAIN", 0.2)
    pki, loop = Pki(tmp_path), asyncio.get_running_loop()
    seen: asyncio.Queue[tuple[float, Probe]] = asyncio.Queue()
    async with backend(member, pki.server) as served, asyncio.timeout(20):
        made = api(tmp_path, served.port, pki)
        prober = Prober(made, changed=lambda probe: seen.put_nowait((loop.time(), probe)), interval=3600.0)
        task = asyncio.create_task(prober.run())
        times = [(await seen.get())[0]]
        while len(times) < 4:  # each finds the apiserver well, so that each complaint is worth another look
            prober.suspect()
            await asyncio.sleep(0)
            if not seen.empty():
                times.append(seen.get_nowait()[0])
        assert times[3] - times[0] >= 3 * 0.2
        served.respond = lambda _request: (500, b"[-]etcd failed")
        prober.suspect()
        assert (await seen.get())[1].fault is not None
        for _ in range(100):
            prober.suspect()
        assert not prober._suspected.is_set(), "it is known by now"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.asyncio
async def test_an_apiserver_that_is_away_is_looked_for_soon_and_then_less_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(defaults, "PROBE_AGAIN", 0.05)
    pki, loop = Pki(tmp_path), asyncio.get_running_loop()
    seen: asyncio.Queue[float] = asyncio.Queue()
    async with backend(lambda _request: (500, b"no"), pki.server) as served, asyncio.timeout(20):
        made = api(tmp_path, served.port, pki)
        task = asyncio.create_task(
            Prober(made, changed=lambda _probe: seen.put_nowait(loop.time()), interval=0.2).run()
        )
        times = [await seen.get() for _ in range(6)]
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        for pause, least in zip(pauses, (0.05, 0.1, 0.2, 0.2, 0.2), strict=True):
            assert pause >= least - 0.01
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
