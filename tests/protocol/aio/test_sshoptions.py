from __future__ import annotations

import pwd

import pytest

from tests.protocol.aio.sshpeers import connected, ended

pytestmark = pytest.mark.asyncio


async def test_both_ends_agree_on_what_go_agrees_on() -> None:
    async with connected() as pair:
        for end in (pair.server, pair.agent):
            assert end.get_extra_info("send_cipher") == end.get_extra_info("recv_cipher") == "aes128-gcm@openssh.com"


async def test_a_peer_with_weak_key_exchanges_only_is_told_so() -> None:
    weak = {"kex_algs": ("diffie-hellman-group1-sha1", "diffie-hellman-group14-sha1")}
    async with connected(agent=weak, authenticated=False) as pair:
        assert "No matching key exchange" in await ended(pair.server_owner)
        assert "No matching key exchange" in await ended(pair.agent_owner)


async def test_a_user_without_a_name_has_a_session_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container, whose uid stands in no /etc/passwd."""

    def nobody(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(variable, "")  # empty is none, and what is set meanwhile is taken back
    async with connected() as pair:
        assert pair.agent.get_extra_info("send_cipher")
