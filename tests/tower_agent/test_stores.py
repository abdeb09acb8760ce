"""Where identities are looked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from certs.identity_files import DirectoryIdentityStore
from certs.identity_secret import SecretIdentityStore
from daemon.faults import TowerError
from tests.tower_agent.backend import Pki
from tests.tower_agent.test_member import api
from tower_agent.config import AgentConfig
from tower_agent.stores import enrolled, needs_secret, stores_of


def test_the_directory_unless_a_secret_is_named(tmp_path: Path) -> None:
    plain = AgentConfig(state_dir=tmp_path)
    assert [type(store) for store in stores_of(plain, None)] == [DirectoryIdentityStore]
    assert not needs_secret(plain)
    member = api(tmp_path, 1, Pki(tmp_path))
    secret = AgentConfig(state_dir=tmp_path, identity_secret="tower/identity")
    assert [type(store) for store in stores_of(secret, member)] == [SecretIdentityStore]
    both = AgentConfig(state_dir=tmp_path, hosts=[{"name": "west", "identity_secret": "tower/west"}])
    assert [type(store) for store in stores_of(both, member)] == [DirectoryIdentityStore, SecretIdentityStore]
    assert needs_secret(both)


@pytest.mark.asyncio
async def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(TowerError) as caught:
        await enrolled([DirectoryIdentityStore(folder)])
    assert caught.value.code == "TWR104"
    assert "0777" in caught.value.message
    assert "chmod" in caught.value.mend
