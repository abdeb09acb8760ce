"""Who is let in, in which order it is looked at, and what a cluster's history says of those who were not."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from daemon.faults import TowerError
from tests.tower_server.kit import admin, enrol, until
from tests.tower_server.legacy.goagent import config_of
from tests.tower_server.legacy.kit import CLUSTER, TOKEN, Host, host
from tower_server.legacy import registrar as module
from tower_server.legacy.registrar import Registrar

pytestmark = pytest.mark.asyncio
REMOTE = "192.0.2.7:4711"


@pytest_asyncio.fixture
async def tower(tmp_path: Path) -> AsyncIterator[Host]:
    async with host(tmp_path) as found:
        yield found


def registrar(tower: Host) -> Registrar:
    return Registrar(tower.running.services.clusters, tower.running.services.agents)


def payload(tower: Host, **changes: Any) -> bytes:
    return json.dumps(config_of(tower.backend, CLUSTER, **changes)).encode()


async def test_a_good_one_is_read_whole(tower: Host) -> None:
    found = await registrar(tower).register(payload(tower), REMOTE)
    assert (found.name, str(found.kubernetes)) == (CLUSTER, tower.backend.address)
    assert not tower.member.history


async def test_nothing_but_name_and_token_is_read_before_the_token_is_known(
    tower: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(_claim: object) -> Any:
        raise AssertionError("the rest was read")

    monkeypatch.setattr(module, "read_registration", never)
    for changes in ({"Token": "cd" * 32}, {"Name": "nobody"}):
        with pytest.raises(TowerError) as caught:
            await registrar(tower).register(payload(tower, **changes), REMOTE)
        assert caught.value.code == "TWR240"


async def test_a_name_that_is_unknown_costs_a_comparison_too(tower: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[str] = []
    matches = module.secret_matches
    monkeypatch.setattr(
        module, "secret_matches", lambda secret, stored: compared.append(stored) or matches(secret, stored)
    )
    for changes in ({"Token": "cd" * 32}, {"Name": "nobody"}):
        with pytest.raises(TowerError):
            await registrar(tower).register(payload(tower, **changes), REMOTE)
    assert len(compared) == 2
    assert len({len(each) for each in compared}) == 1


@pytest.fixture
def settling(tower: Host, monkeypatch: pytest.MonkeyPatch) -> Host:
    """As after the start of a server that shares its store with a controller."""
    monkeypatch.setattr(tower.running.services.clusters, "_settled_at", time.monotonic() + 600)
    return tower


async def test_an_agent_that_comes_before_its_record_is_made_is_let_in_as_soon_as_it_is(
    settling: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITS", 600.0)
    clusters = settling.running.services.clusters
    watched = len(clusters._observers)
    coming = [
        asyncio.create_task(registrar(settling).register(payload(settling, Name=name), REMOTE))
        for name in ("late", CLUSTER)
    ]
    assert (await coming[1]).name == CLUSTER  # who is known waits for nobody
    await until(lambda: len(clusters._observers) > watched)
    await clusters.create("late")
    assert not coming[0].done()
    made = await admin(settling.running, "POST", "/v1/clusters/late/legacy-token", {"token": TOKEN})
    assert made.status == 201, made.body
    async with asyncio.timeout(30):
        assert (await coming[0]).name == "late"


async def test_while_records_may_be_missing_a_wrong_token_takes_as_long_as_an_unknown_name(
    settling: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITS", 0.5)
    clusters, said, took = settling.running.services.clusters, set(), []
    watched = len(clusters._observers)
    for changes in ({"Token": "cd" * 32}, {"Name": "nobody"}):
        began = time.monotonic()
        with pytest.raises(TowerError) as caught:
            await registrar(settling).register(payload(settling, **changes), REMOTE)
        took.append(time.monotonic() - began)
        said.add(str(caught.value))
    assert len(said) == 1
    assert min(took) >= 0.5
    assert len(clusters._observers) == watched, "nothing is left of those who waited"


async def test_who_sends_much_does_not_wait(settling: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WAITS", 600.0)
    much = payload(settling, Name="nobody", CAData="A" * module.MAX_WAITING)
    with pytest.raises(TowerError, match="Unauthorized agent"):
        async with asyncio.timeout(30):
            await registrar(settling).register(much, REMOTE)


async def test_who_has_shown_the_token_makes_a_verdict_and_who_has_not_a_line(tower: Host) -> None:
    with pytest.raises(TowerError):
        await registrar(tower).register(payload(tower, Token="cd" * 32), REMOTE)
    assert tower.member.verdict.state == "NeverConnected"
    assert (tower.member.history[0].event, tower.member.history[0].remote) == ("refused", REMOTE)
    with pytest.raises(TowerError) as caught:
        await registrar(tower).register(payload(tower, CAData="AAAA"), REMOTE)
    assert caught.value.code == "TWR242"
    assert tower.member.verdict.state == "AuthFailed"
    assert "CAData" in tower.member.verdict.cause


async def test_a_window_counts_until_its_end_and_only_beside_native_agents(tower: Host) -> None:
    from certs.token import parse_token

    clusters = tower.running.services.clusters
    made = (await admin(tower.running, "POST", f"/v1/clusters/{CLUSTER}/tokens", {})).json()
    identity = await enrol(tower.running, parse_token(made["token"]))
    await clusters.set_legacy(CLUSTER, legacy_until=time.time() - 1)
    with pytest.raises(TowerError) as caught:
        await registrar(tower).register(payload(tower), REMOTE)
    assert caught.value.code == "TWR241"
    await clusters.set_legacy(CLUSTER, legacy_until=time.time() + 60)
    await registrar(tower).register(payload(tower), REMOTE)
    await clusters.set_legacy(CLUSTER, legacy_until=None)
    await tower.running.services.agents.revoke(CLUSTER, identity.reply.agent)
    await registrar(tower).register(payload(tower), REMOTE)  # the only native agent is revoked: nobody is beside it


async def test_a_token_opens_no_tunnels_without_number(tower: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OF_AGENT", 2)
    for _ in range(2):
        await tower.registered()
    with pytest.raises(TowerError, match="2 tunnels of Go agents, and 2 are the most") as caught:
        await registrar(tower).register(payload(tower), REMOTE)
    assert (caught.value.code, CLUSTER in caught.value.mend) == ("TWR221", True)
    await tower.agents[0].end()
    await until(lambda: len(tower.member.tunnels) == 1)
    await registrar(tower).register(payload(tower), REMOTE)
