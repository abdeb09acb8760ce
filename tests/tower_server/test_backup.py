"""A copy is of one moment, of a running server too, and makes a server of the same name, CA, clusters and ports."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from certs.ca import Authority
from certs.errors import ListRefused
from certs.revocation import RevocationList, verify_list
from certs.revocation import newer as later
from certs.rotation import announce, announced
from certs.token import parse_token
from daemon.faults import TowerError
from tests.tower_server.kit import Refused, Running, admin, enrol, running
from tower_server import backup
from tower_server.backup import inspect, read_copy, restore, snapshot, write
from tower_server.main import cli
from tower_server.store.base import Kind
from tower_server.store.sqlite_file import MIGRATIONS, open_database


def database(folder: Path) -> Path:
    return folder / "state" / "tower.db"


async def copied(folder: Path) -> bytes:
    """The state of the server that runs in this loop."""
    return await asyncio.to_thread(snapshot, database(folder), folder / "admin.sock")


def refused(caught: pytest.ExceptionInfo[TowerError], code: str, text: str, mend: str) -> None:
    assert caught.value.code == code
    assert text in caught.value.message
    assert mend in caught.value.mend


@pytest.mark.asyncio
async def test_a_copy_of_a_running_server_makes_the_same_server_elsewhere(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    async with running(here) as server:
        await server.add("edge-1")
        port, root = server.port("edge-1"), server.services.authority.bundle.root_pem
        data = await copied(here)
        await server.add("edge-2")  # after the copy: not in it
    contents, aside, _ = restore(data, database(there), replace=False)
    assert (contents.counts[Kind.CLUSTER], aside) == (1, None)
    assert stat.S_IMODE(database(there).stat().st_mode) == 0o600
    async with running(there, ports={"range": (port, port), "bind": "127.0.0.1"}) as server:
        assert [cluster["name"] for cluster in (await admin(server, "GET", "/v1/clusters")).json()["items"]] == [
            "edge-1"
        ]
        assert server.port("edge-1") == port
        assert server.services.authority.bundle.root_pem == root


@pytest.mark.asyncio
async def test_writes_that_go_on_meanwhile_are_in_the_copy_whole_or_not_at_all(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        adding = asyncio.create_task(asyncio.wait_for(_fill(server), 30))
        copies = [inspect(await copied(tmp_path), "copy") for _ in range(5)]
        await adding
        copies.append(inspect(await copied(tmp_path), "copy"))
    found = [contents.counts.get(Kind.CLUSTER, 0) for contents in copies]
    assert found == sorted(found)
    assert found[-1] == 8


async def _fill(server: object) -> None:
    for number in range(8):
        await server.add(f"edge-{number}")  # type: ignore[attr-defined]


@pytest.mark.asyncio
async def test_without_a_server_the_file_itself_is_read(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        await server.add("edge-1")
    assert str(inspect(await copied(tmp_path), "copy")) == "1 cluster, 0 agents"


@pytest.mark.slow
@pytest.mark.asyncio
async def test_a_state_directory_that_is_named_is_copied_also_while_another_ones_server_answers(tmp_path: Path) -> None:
    asked, other = tmp_path / "asked", tmp_path / "other"
    asked.mkdir()
    other.mkdir()

    async def named(folder: Path) -> bytes:
        return await asyncio.to_thread(snapshot, database(folder), asked / "admin.sock", named=True)

    async with running(asked) as server:
        await server.add("edge-1")
        assert str(inspect(await named(asked), "copy")) == "1 cluster, 0 agents"
        with pytest.raises(TowerError) as caught:
            await named(other)
        refused(caught, "TWR104", f"no store at {database(other)}, and the server at {asked}/admin.sock", "--state-dir")
        async with running(other):
            with pytest.raises(TowerError) as caught:
                await named(other)
            refused(caught, "TWR107", f"keeps its own in {database(asked)}", "--config")
            with pytest.raises(TowerError) as caught:
                await asyncio.to_thread(snapshot, database(other), tmp_path / "none.sock")
            refused(caught, "TWR107", f"no server answers at {tmp_path}/none.sock", "TOWER_ADMIN_SOCKET")
        words = ["backup", str(tmp_path / "copy"), "--state-dir", str(database(other).parent)]
        env = {"TOWER_ADMIN_SOCKET": str(asked / "admin.sock")}
        made = await asyncio.to_thread(CliRunner().invoke, cli, words, env=env)
        assert f"{tmp_path}/copy: 0 clusters, 0 agents, " in made.stderr


@pytest.mark.asyncio
async def test_a_release_that_copies_the_state_of_the_one_before_leaves_it_to_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path) as server:
        await server.add("edge-1")
    monkeypatch.setitem(open_database.__kwdefaults__, "migrations", (*MIGRATIONS, "CREATE TABLE later (x)"))
    data = await copied(tmp_path)
    assert inspect(data, "copy").schema == len(MIGRATIONS)
    with pytest.raises(TowerError):
        restore(data, database(tmp_path), replace=False)
    restore(data, database(tmp_path), replace=True)
    monkeypatch.undo()
    async with running(tmp_path) as server:  # the release of before, which refuses a newer file
        assert [each["name"] for each in (await admin(server, "GET", "/v1/clusters")).json()["items"]] == ["edge-1"]


def test_without_server_and_file_it_says_where_it_looked(tmp_path: Path) -> None:
    with pytest.raises(TowerError) as caught:
        snapshot(database(tmp_path), tmp_path / "admin.sock")
    refused(caught, "TWR104", f"there is no store at {database(tmp_path)}", "--state-dir")


@pytest.mark.slow
@pytest.mark.asyncio
async def test_nothing_is_restored_beneath_a_running_server(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        data = await copied(tmp_path)
        with pytest.raises(TowerError) as caught:
            await asyncio.to_thread(restore, data, database(tmp_path), replace=True)
        refused(caught, "TWR107", "is held by another process", "stop the other tower-server")
        assert (await admin(server, "GET", "/v1/clusters")).status == 200


@pytest.mark.asyncio
async def test_a_state_that_is_there_is_replaced_only_on_request_and_put_aside(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        empty = await copied(tmp_path)
        await server.add("edge-1")
    with pytest.raises(TowerError) as caught:
        restore(empty, database(tmp_path), replace=False)
    refused(caught, "TWR104", "holds a state already (1 cluster, 0 agents)", "--replace")
    contents, aside, _ = restore(empty, database(tmp_path), replace=True)
    assert str(contents) == "0 clusters, 0 agents"
    assert aside is not None
    assert stat.S_IMODE(aside.stat().st_mode) == 0o600
    assert str(inspect(read_copy(aside), "aside")) == "1 cluster, 0 agents"
    async with running(tmp_path) as server:
        assert (await admin(server, "GET", "/v1/clusters")).json()["items"] == []


@pytest.mark.asyncio
async def test_a_restored_ca_is_announced_as_later_than_what_agents_have_heard_since_the_copy(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        data = await copied(tmp_path)
        await admin(server, "POST", "/v1/authority/rotate", {"step": "start"})
        rotated = server.services.authority
        trusted, number = rotated.bundle, rotated.number

    def heard(authority: Authority) -> tuple[int, bytes]:
        found = announced(announce(authority), trusted=trusted, number=number)
        assert found is not None
        return found[0], found[1].to_pem()

    restore(data, database(tmp_path), replace=True)
    async with running(tmp_path) as server:
        again = server.services.authority
        assert heard(again) == (again.number, again.bundle.to_pem())
        assert len(again.bundle.roots) == 1
        await admin(server, "POST", "/v1/authority/rotate", {"step": "start"})
        assert heard(again) == (again.number, again.bundle.to_pem())


@pytest.mark.asyncio
async def test_what_is_revoked_after_a_restore_is_above_all_that_agents_have_seen(tmp_path: Path) -> None:
    def sent(server: Running) -> RevocationList:
        issuers = server.services.authority.bundle.revocation_keys()
        return verify_list(server.services.revocations.signed, issuers=issuers, host=server.services.authority.host)

    async with running(tmp_path) as server:
        data = await copied(tmp_path)
        for caller in ("alice", "bob", "carol"):
            await admin(server, "POST", f"/v1/callers/{caller}/revoke")
        seen = sent(server)
    restore(data, database(tmp_path), replace=True)
    async with running(tmp_path) as server:
        with pytest.raises(ListRefused):  # it has forgotten them: agents keep to what they know
            later(seen, sent(server))
        await admin(server, "POST", "/v1/callers/mallory/revoke")
        assert "mallory" in later(seen, sent(server)).users


@pytest.mark.asyncio
async def test_a_token_that_was_used_after_the_copy_lets_in_nobody_else_after_the_restore(tmp_path: Path) -> None:
    async with running(tmp_path) as server:
        token, before = await server.add("edge-1"), await server.add("edge-2")
        joined_before = await enrol(server, before)
        data = await copied(tmp_path)
        await enrol(server, token)
    restore(data, database(tmp_path), replace=True)
    async with running(tmp_path) as server:
        with pytest.raises(Refused) as caught:
            await enrol(server, token)
        assert caught.value.code == "TWR208"
        keys = {"key": joined_before.key, "serving_key": joined_before.serving_key}
        assert (await enrol(server, before, **keys)).reply.chain == joined_before.reply.chain


@pytest.mark.slow
@pytest.mark.asyncio
async def test_what_was_done_between_the_copy_and_its_restore_is_named_with_what_is_to_be_done_again(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as server:
        tokens = {name: await server.add(name) for name in ("stays", "goes", "made-anew")}
        first = await enrol(server, tokens["stays"])
        await enrol(server, tokens["goes"])
        data = await copied(tmp_path)
        made = (await admin(server, "POST", "/v1/clusters/stays/tokens", {})).json()
        joined = await enrol(server, parse_token(made["token"]))
        await admin(server, "POST", f"/v1/agents/stays/{first.reply.agent}/revoke")
        await admin(server, "POST", "/v1/callers/alice/revoke")
        for name in ("goes", "made-anew"):
            await admin(server, "DELETE", f"/v1/clusters/{name}")
        await server.add("made-anew")
        await enrol(server, await server.add("comes"))
    assert restore(data, database(tmp_path), replace=True)[2] == [
        "goes, made-anew: deleted since, and there again: delete it again",
        "comes, made-anew: added since: `towerctl add cluster`, and the member joins again",
        f"stays/{joined.reply.agent}: joined since, and will be refused: join again with a new token",
        f"agent stays/{first.reply.agent}, caller alice: revoked since, and not in the copy: revoke it again",
    ]


def some_state(folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    connection = open_database(folder / "s.db")
    data = connection.serialize()
    connection.close()
    return data


def newer(folder: Path) -> bytes:
    connection = open_database(folder / "newer.db")
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    data = connection.serialize()
    connection.close()
    return data


def foreign(folder: Path) -> bytes:
    connection = sqlite3.connect(folder / "foreign.db")
    connection.execute("CREATE TABLE other (x)")
    connection.commit()
    data = connection.serialize()
    connection.close()
    return data


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        (lambda folder: b"", "TWR104", "is not the state of a tower server"),
        (lambda folder: os.urandom(9000), "TWR104", "is not the state of a tower server"),
        (lambda folder: some_state(folder)[:5000], "TWR104", ""),
        (lambda folder: some_state(folder)[:100] + bytes(12000), "TWR104", ""),
        (foreign, "TWR104", "is not the state of a tower server"),
        (newer, "TWR106", "was written by a newer tower-server"),
    ],
    ids=["empty", "noise", "cut short", "blanked", "another program's", "newer"],
)
def test_what_is_no_copy_is_refused_and_changes_nothing(tmp_path: Path, make: object, code: str, text: str) -> None:
    data = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(TowerError) as caught:
        restore(data, database(tmp_path), replace=True)
    refused(caught, code, text, "")
    assert caught.value.mend
    assert not database(tmp_path).exists()


def test_a_copy_is_private_and_no_file_is_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "copy"
    write(b"one", target, replace=False)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with pytest.raises(TowerError) as caught:
        write(b"two", target, replace=False)
    refused(caught, "TWR104", f"{target} exists already", "--overwrite")
    write(b"two", target, replace=True)
    assert target.read_bytes() == b"two"
    with pytest.raises(TowerError) as caught:
        write(b"x", tmp_path / "none" / "copy", replace=False)
    refused(caught, "TWR104", "cannot be written", "directory that exists")
    with pytest.raises(TowerError) as caught:
        write(b"x", tmp_path / ("x" * 300), replace=False)
    refused(caught, "TWR104", "File name too long", "directory that exists")


def test_a_pipe_that_brings_no_copy_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("certs.files.PIPE_DEADLINE", 0.01)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TowerError) as caught:
        read_copy(tmp_path / "pipe")
    refused(caught, "TWR104", "nothing came through it", "name the copy that backup wrote")


def test_the_commands_say_what_they_copied_and_what_is_to_be_done(tmp_path: Path) -> None:
    some_state(tmp_path / "state")
    (tmp_path / "state" / "s.db").rename(database(tmp_path))
    config = tmp_path / "server.yaml"
    config.write_text(f"state_dir: {tmp_path}/state\nadmin_socket: {tmp_path}/admin.sock\n")
    copy = tmp_path / "copy"
    made = CliRunner().invoke(cli, ["backup", str(copy), "--config", str(config)])
    assert made.exit_code == 0, made.output
    assert f"{copy}: 0 clusters, 0 agents, " in made.stderr
    back = CliRunner().invoke(cli, ["restore", str(copy), "--config", str(config)])
    assert back.exit_code == 0, back.output
    assert "revoke again what was revoked" in back.stderr
    assert backup.inspect(copy.read_bytes(), "copy").schema == len(MIGRATIONS)
