"""Joining a host: nothing secret before the fingerprint fits, nobody locked out by a lost answer."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from certs.identity_files import DirectoryIdentityStore
from certs.revocation import list_age
from daemon.faults import TowerError
from daemon.redact import redact_text
from tests.tower_agent.tower import Tower, new_tower, serving_tower, state_dir
from tower_agent.enrol import Enrolment, refusal_of
from tower_agent.http import Answer
from tower_agent.wayout import WayOut

BUSY_ALERT = bytes.fromhex("15030300020250")
STEERING = "\x1b]0;owned\x07\x9b2J\u202e"


async def join(tower: Tower, folder: Path, token: str | None = None, *, wait: float = 5.0) -> Enrolment:
    store = DirectoryIdentityStore(folder)
    enrolment = Enrolment(token or str(tower.token()), store=store, way=WayOut(), wait=wait)
    await enrolment.run()
    return enrolment


async def refused(tower: Tower, folder: Path, token: str | None = None) -> TowerError:
    with pytest.raises(TowerError) as caught:
        await join(tower, folder, token, wait=0.2)
    return caught.value


@pytest.mark.asyncio
async def test_a_join_leaves_a_private_identity(tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    async with serving_tower(new_tower()) as tower:
        tower.revoke(users={"mallory": 1.0})
        await join(tower, folder)
    store = DirectoryIdentityStore(folder)
    identity = await store.load("east")
    assert identity is not None
    assert (identity.cluster, identity.agent, identity.url) == ("edge", "a1", f"https://127.0.0.1:{tower.port}")
    kept = await store.revocations("east")
    assert kept is not None
    assert list_age(kept)[0] == 1
    for file in (folder / "east").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_lost_answer_is_asked_for_again_with_the_same_keys(tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    async with serving_tower(new_tower(lose_replies=1)) as tower:
        token = str(tower.token())
        error = await refused(tower, folder, token)
        assert "503" in error.message
        tower.lose_replies = 2
        await join(tower, folder, token)
    assert len(tower.enrolled_keys) >= 4
    assert await DirectoryIdentityStore(folder).load("east") is not None
    from certs.keys import key_fingerprint, public_key_from_csr

    assert len({key_fingerprint(public_key_from_csr(csr)) for csr in tower.enrolled_keys}) == 1


@pytest.mark.asyncio
async def test_a_foreign_fingerprint_ends_before_a_secret_leaves(tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    other = new_tower("east")
    async with serving_tower(new_tower("east")) as tower:
        token = replace(tower.token(), ca=other.bundle.fingerprint)
        error = await refused(tower, folder, str(token))
    assert error.code == "TWR223"
    assert other.bundle.fingerprint in error.message
    assert tower.bundle.fingerprint in error.message
    assert [request.method for request in tower.requests] == ["GET"]
    assert token.secret not in "".join(request.target + request.body.decode() for request in tower.requests)
    assert not (folder / "east").exists()


@pytest.mark.asyncio
async def test_the_servers_own_words_reach_the_person(tmp_path: Path) -> None:
    async with serving_tower(new_tower()) as tower:
        token = tower.token()
        tower.secrets.clear()
        error = await refused(tower, state_dir(tmp_path), str(token))
    assert error.code == "TWR204"
    assert "no such token" in error.message
    assert error.mend == f"ask for another: `towerctl create token {token.cluster}`"
    assert token.secret not in str(error)


@pytest.mark.parametrize("body", [{"code": "TWR204", "message": STEERING, "mend": STEERING}, STEERING])
def test_no_word_of_a_server_steers_the_terminal_of_who_joins(body: object) -> None:
    raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    error = refusal_of(Answer(400, {}, raw), "the server answered 400")
    assert f"{error.message}{error.mend}".isprintable()
    assert "]0;owned" in error.message


def test_whatever_answers_in_a_servers_place_is_quoted_and_no_traceback() -> None:
    assert refusal_of(Answer(400, {}, b"[" * 99_999), "it answered 400").message.startswith("it answered 400: [[[")


@pytest.mark.asyncio
async def test_a_server_that_is_away_is_named_by_hop(tmp_path: Path) -> None:
    async with serving_tower(new_tower()) as tower:
        pass
    error = await refused(tower, state_dir(tmp_path))
    assert error.code == "TWR211"
    assert f"127.0.0.1:{tower.port}" in error.message


@asynccontextmanager
async def poor_way(port: int, first: bytes) -> AsyncIterator[tuple[int, list[int]]]:
    """A way to `port`, as a proxy too, whose first connection hears `first` and is closed; how many came."""
    came = [0]

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came[0] += 1
        said = await reader.read(65536)
        if came[0] == 1:
            writer.write(first)
            writer.close()
            return
        far_reader, far = await asyncio.open_connection("127.0.0.1", port)
        if said.startswith(b"CONNECT "):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            far.write(said)
        await asyncio.gather(pump(reader, far), pump(far_reader, writer), return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], came
    finally:
        server.close()
        await server.wait_closed()


@pytest.mark.asyncio
@pytest.mark.parametrize("first", [BUSY_ALERT, b""], ids=["busy", "cut"])
async def test_a_server_that_has_no_room_for_the_tls_of_a_join_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bytes
) -> None:
    monkeypatch.setattr("protocol.defaults.COME_BACK", 0.05)
    async with serving_tower(new_tower()) as tower, poor_way(tower.port, first) as (port, came):
        await join(tower, state_dir(tmp_path), str(tower.token(url=f"https://127.0.0.1:{port}")), wait=30.0)
    assert came[0] == 3


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("status", "code"), [(502, None), (503, None), (504, None), (403, "TWR212"), (407, "TWR212")], ids=str
)
async def test_what_a_proxy_says_of_a_server_that_is_away_may_pass_and_its_rules_do_not(
    tmp_path: Path, status: int, code: str | None
) -> None:
    answer = f"HTTP/1.1 {status} No\r\n\r\n".encode()
    async with serving_tower(new_tower()) as tower, poor_way(tower.port, answer) as (port, came):
        way = WayOut(proxy=f"http://127.0.0.1:{port}")
        store = DirectoryIdentityStore(state_dir(tmp_path))
        enrolment = Enrolment(str(tower.token()), store=store, way=way, wait=30.0)
        if code is None:
            await enrolment.run()
        else:
            with pytest.raises(TowerError) as caught:
                await enrolment.run()
            assert caught.value.code == code
            assert redact_text(caught.value.message) == caught.value.message  # what it says to do can be read
        assert came[0] == (3 if code is None else 1)


@pytest.mark.asyncio
async def test_a_setting_that_cannot_be_used_is_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.test:1080")
    monkeypatch.setattr("tower_agent.enrol.Backoff.next", None)  # whoever waits fails
    tower = new_tower()
    token = str(tower.token(url="https://tower.test:1"))
    with pytest.raises(TowerError) as caught:
        await join(tower, state_dir(tmp_path), token, wait=30.0)
    assert (caught.value.code, "a proxy of kind 'socks5' is not supported" in caught.value.message) == ("TWR212", True)


@pytest.mark.asyncio
async def test_another_address_is_asked_where_the_first_is_no_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def lookup(_host: str, port: int, _deadline: float) -> list[tuple[int, tuple[str, int]]]:
        return [(socket.AF_INET, (address, port)) for address in addresses]

    monkeypatch.setattr("protocol.aio.tcpdial._lookup", lookup)
    async with serving_tower(new_tower()) as tower:
        impostor = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.2", tower.port)
        try:
            addresses = ["127.0.0.2", "127.0.0.1"]
            await join(tower, state_dir(tmp_path), wait=30.0)
            addresses = ["127.0.0.2"]
            error = await refused(tower, state_dir(tmp_path, "other"))
        finally:
            impostor.close()
            await impostor.wait_closed()
    assert error.code == "TWR213"
    assert f"127.0.0.2:{tower.port}" in error.message


@pytest.mark.asyncio
async def test_another_host_of_the_same_name_and_another_cluster_are_kept_apart(tmp_path: Path) -> None:
    folder = state_dir(tmp_path)
    async with serving_tower(new_tower("east")) as tower:
        await join(tower, folder)
        error = await refused(tower, folder, str(tower.token(cluster="other")))
        assert error.code == "TWR224"
        assert "as cluster 'edge', and the token is for 'other'" in error.message
        await join(tower, folder)  # the same host and cluster once more is a new enrolment
    async with serving_tower(new_tower("east")) as stranger:
        error = await refused(stranger, folder)
    assert "another host that is called 'east'" in error.message
    assert "tower-agent leave east --forget" in str(error.mend)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("token", "told"), [("", "the input is empty"), ("twr1.%%%", "characters that no token has"), ("x", "twr1.")]
)
async def test_what_is_no_token_is_refused_without_repeating_it(tmp_path: Path, token: str, told: str) -> None:
    with pytest.raises(TowerError) as caught:
        Enrolment(token, store=DirectoryIdentityStore(tmp_path), way=WayOut())
    assert caught.value.code == "TWR207"
    assert told in caught.value.message


@pytest.mark.asyncio
async def test_a_plain_address_is_refused_unless_it_was_asked_for(tmp_path: Path) -> None:
    tower = new_tower()
    token = str(tower.token(url="ws://127.0.0.1:1"))
    with pytest.raises(TowerError) as caught:
        Enrolment(token, store=DirectoryIdentityStore(tmp_path), way=WayOut())
    assert caught.value.code == "TWR227"
    assert "insecure_transport" in caught.value.mend
    Enrolment(token, store=DirectoryIdentityStore(tmp_path), way=WayOut(insecure_transport=True))
