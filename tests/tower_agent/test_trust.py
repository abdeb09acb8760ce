"""One host's trust: nothing foreign, nothing older."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from certs.errors import ListRefused, Untrusted
from certs.identity_files import DirectoryIdentityStore
from daemon.faults import TowerError
from protocol.defaults import REVOCATIONS_STALE
from tests.tower_agent.tower import Tower, new_tower, serving_tower, state_dir
from tower_agent.enrol import Enrolment
from tower_agent.trust import HostTrust
from tower_agent.wayout import WayOut


async def joined(folder: Path) -> tuple[Tower, DirectoryIdentityStore, HostTrust]:
    """A tower, which is gone again, and what an agent that joined it holds."""
    store = DirectoryIdentityStore(state_dir(folder))
    async with serving_tower(new_tower()) as tower:
        await Enrolment(str(tower.token()), store=store, way=WayOut()).run()
    return tower, store, await HostTrust.load(store, "east")


@pytest.mark.asyncio
async def test_lists_move_forward_only_and_survive_a_restart(tmp_path: Path) -> None:
    tower, store, trust = await joined(tmp_path)
    first, second = tower.revoke(), tower.revoke(users={"jane": time.time() + 60})
    assert trust.take_revocations(second) is True
    assert trust.take_revocations(second) is False
    with pytest.raises(ListRefused, match="lower than 2"):
        trust.take_revocations(first)
    stranger = new_tower("east")
    with pytest.raises(ListRefused, match="not signed"):
        trust.take_revocations(stranger.revoke())
    jane = list(tower.client("jane")[0].chain_der)
    with pytest.raises(Untrusted, match="jane was revoked"):
        trust.verify_client(jane)
    await trust.keep_revocations(second)
    again = await HostTrust.load(store, "east")
    with pytest.raises(ListRefused, match="lower than 2"):
        again.take_revocations(first)
    assert again.verify_client(list(tower.client("joan")[0].chain_der)).user == "joan"
    with pytest.raises(Untrusted):
        again.verify_client(list(stranger.client("joan")[0].chain_der))


@pytest.mark.asyncio
async def test_a_list_that_could_not_be_kept_is_kept_when_it_comes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tower, store, trust = await joined(tmp_path)
    tower.revoke(users={"jane": time.time() + 60})
    assert tower.revocations is not None
    first, again = (
        replace(tower.revocations, issued_at=time.time() - age).sign(tower.authority.revocation_signer())
        for age in (60, 1)
    )
    assert trust.take_revocations(first) is True

    async def full(_host: str, _encoded: bytes) -> None:
        raise TowerError("TWR105", "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(store, "save_revocations", full)
        with pytest.raises(TowerError, match="no space left"):
            await trust.keep_revocations(first)
    assert trust.take_revocations(again) is True, "a restart would have forgotten it"
    await trust.keep_revocations(again)
    with pytest.raises(Untrusted, match="jane was revoked"):
        (await HostTrust.load(store, "east")).verify_client(list(tower.client("jane")[0].chain_der))


@pytest.mark.asyncio
async def test_only_a_server_of_this_host_ends_the_outer_tls(tmp_path: Path) -> None:
    tower, _, trust = await joined(tmp_path)
    assert trust.ends_at_tower(tower.server.chain_der)
    assert not trust.ends_at_tower(())
    assert not trust.ends_at_tower(new_tower("east").server.chain_der)
    assert not trust.ends_at_tower(tower.client("jane")[0].chain_der)


@pytest.mark.asyncio
async def test_what_is_missing_or_damaged_is_named(tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    store = DirectoryIdentityStore(folder)
    with pytest.raises(TowerError) as caught:
        await HostTrust.load(store, "east")
    assert caught.value.code == "TWR225"
    async with serving_tower(new_tower()) as tower:
        tower.revoke()
        await Enrolment(str(tower.token()), store=store, way=WayOut()).run()
    kept = folder / "east" / "revocations"
    kept.write_bytes(kept.read_bytes()[:-3])
    with pytest.raises(TowerError) as caught:
        await HostTrust.load(store, "east")
    assert caught.value.code == "TWR506"
    (folder / "east" / "identity.json").write_bytes(b"{}")
    with pytest.raises(TowerError) as caught:
        await HostTrust.load(store, "east")
    assert caught.value.code == "TWR104"
    assert "identity.json" in caught.value.message


@pytest.mark.asyncio
async def test_a_list_that_grows_old_is_noticed_and_no_replay_makes_it_young(tmp_path: Path) -> None:
    tower, _, trust = await joined(tmp_path)
    now = time.time()
    assert trust.stale_revocations(now) is None
    assert trust.stale_revocations(now + REVOCATIONS_STALE + 60) is not None, "one that never came"

    def signed(at: float) -> bytes:
        assert tower.revocations is not None
        return replace(tower.revocations, issued_at=at).sign(tower.authority.revocation_signer())

    tower.revoke()
    old, fresh, ahead = (signed(now + shift) for shift in (-REVOCATIONS_STALE - 60, -5, 7 * 86400))
    assert trust.take_revocations(old) is True
    await trust.keep_revocations(old)
    assert "is of" in str(trust.stale_revocations(now))
    assert trust.take_revocations(fresh) is False, "the same list: nothing to keep or to check anew"
    assert trust.stale_revocations(now) is None
    trust.take_revocations(old)
    assert trust.stale_revocations(now) is None
    assert trust.stale_revocations(now + REVOCATIONS_STALE) is not None
    trust.take_revocations(ahead)
    assert trust.stale_revocations(now + REVOCATIONS_STALE + 60) is not None, "a clock that runs ahead hides nothing"


@pytest.mark.asyncio
async def test_a_name_that_the_serving_certificate_lacks_makes_it_due_and_one_that_it_has_does_not(
    tmp_path: Path,
) -> None:
    _, _, trust = await joined(tmp_path)
    assert trust.take_names([f"{trust.identity.cluster}.members.tower"]) is False
    assert trust.renew_at > time.time()
    assert trust.take_names("nonsense") is False
    assert trust.take_names([f"10.96.0.{number}" for number in range(65)]) is False
    assert trust.take_names(["n" * 254]) is False
    assert trust.take_names(["10.96.0.9"]) is True
    assert trust.renew_at == 0.0
    assert trust.take_names(["10.96.0.9"]) is False, "that is no news, and not worth a line each time"
    assert trust.renew_at <= time.time()
    assert trust.take_names([]) is False
    assert trust.renew_at > time.time()
