"""The admin socket as a file: private, replaced when dead, never taken from a living server."""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.faults import TowerError
from tests.tower_server.kit import admin, running
from tower_server.admin.socket import bind_private

pytestmark = pytest.mark.asyncio


async def test_it_is_private_and_goes_with_the_server(tmp_path):
    async with running(tmp_path) as server:
        assert stat.S_IMODE(server.config.admin_socket.stat().st_mode) == 0o600
    assert not (tmp_path / "admin.sock").exists()


async def test_a_socket_that_others_can_open_answers_nobody_but_its_owner_and_root(tmp_path, monkeypatch):
    """As one that a socket unit made with another mode, where only the kernel's word for the peer is left."""
    stranger = f"""
import os, socket
os.chdir({str(tmp_path)!r})
if os.geteuid() == 0:
    os.setuid(65534)
try:
    with socket.socket(socket.AF_UNIX) as peer:
        peer.connect("admin.sock")
        peer.sendall(b"GET /v1/info HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
        print(peer.recv(100))
except (BrokenPipeError, ConnectionResetError):
    print(b"")
"""
    async with running(tmp_path) as server:
        tmp_path.chmod(0o711)
        server.config.admin_socket.chmod(0o666)
        assert (await admin(server, "GET", "/v1/info")).status == 200
        if os.geteuid() != 0:  # then that process is of another user than the server takes itself for
            monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 4711)
        asking = await asyncio.create_subprocess_exec(sys.executable, "-c", stranger, stdout=subprocess.PIPE)
        async with asyncio.timeout(30):
            said, _ = await asking.communicate()
        assert (asking.returncode, said) == (0, b"b''\n")


async def test_a_socket_that_a_dead_server_left_is_replaced(tmp_path):
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "admin.sock"))
    async with running(tmp_path) as server:
        assert (await admin(server, "GET", "/v1/info")).status == 200


async def test_it_is_not_made_where_another_user_could_answer_in_its_place(tmp_path, monkeypatch):
    somebody = os.geteuid() + 4711
    planted = tmp_path / "planted"
    planted.mkdir()
    real = Path.stat

    def of_somebody(path, **more):
        fields = list(real(path, **more))
        fields[4] = somebody if path == planted else fields[4]
        return os.stat_result(fields)

    monkeypatch.setattr(Path, "stat", of_somebody)
    with pytest.raises(TowerError, match=f"in this server's place: {planted} belongs to uid {somebody}") as caught:
        bind_private(planted / "admin.sock")
    assert (caught.value.code, list(planted.iterdir())) == ("TWR103", [])
    assert "admin_socket" in caught.value.mend


async def test_a_volume_of_a_pod_will_do(tmp_path):
    tmp_path.chmod(0o2777)  # what a kubelet makes: everybody in the pod may write
    bind_private(tmp_path / "admin.sock").close()
    assert stat.S_IMODE((tmp_path / "admin.sock").stat().st_mode) == 0o600


async def test_a_living_server_keeps_its_socket(tmp_path):
    async with running(tmp_path) as server:
        with pytest.raises(TowerError) as caught:
            bind_private(server.config.admin_socket)
        assert caught.value.code == "TWR107"
        assert (await admin(server, "GET", "/v1/info")).status == 200


async def test_a_living_server_that_is_too_busy_to_accept_keeps_its_socket_too(tmp_path):
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as living, contextlib.ExitStack() as waiting:
        living.bind(str(path))
        living.listen(0)
        callers = [waiting.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(2)]
        for caller in callers:
            caller.setblocking(False)
        assert [caller.connect_ex(str(path)) for caller in callers] == [0, errno.EAGAIN], "one may wait, and no more"
        with pytest.raises(TowerError, match="listens on the admin socket") as caught:
            bind_private(path)
        assert caught.value.code == "TWR107"
        assert path.is_socket()


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path):
    (tmp_path / "admin.sock").write_text("precious")
    with pytest.raises(TowerError, match="not a socket"):
        bind_private(tmp_path / "admin.sock")
    assert (tmp_path / "admin.sock").read_text() == "precious"


async def test_the_umask_is_as_it_was(tmp_path):
    before = os.umask(0o022)
    try:
        bind_private(tmp_path / "a.sock").close()
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


@pytest.mark.slow
async def test_a_watch_that_a_stop_ends_leaves_no_traceback_in_the_log(tmp_path, caplog):
    async with running(tmp_path) as server:
        reader, writer = await asyncio.open_unix_connection(str(server.config.admin_socket))
        writer.write(b"GET /v1/clusters?watch=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await reader.readuntil(b"SYNCED")
    await reader.read()
    writer.close()
    assert [line.getMessage() for line in caplog.records if line.name == "uvicorn.error"] == []
