"""The admin API on its Unix socket: mode 0600 from its first moment, the peer's user checked and named in the log.

uvicorn's protocol serves the connections; its own server object is left out, since it wants the process' signals and
wakes ten times a second.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import socket
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from certs.files import intruder
from daemon.faults import TowerError
from daemon.log import get_logger
from protocol import defaults

SO_PEERCRED: Final = struct.Struct("iII")  # pid, uid, gid of struct ucred
GRACE: Final = 0.5  # seconds that calls get to end; watches never do by themselves
MAX_HEAD: Final = 64 * 1024
MAX_CONNECTIONS: Final = 256

log = get_logger(__name__)
_numbers = itertools.count()


class AdminSocket:
    """Owns the socket file and its connections."""

    def __init__(self, app: Any, path: Path, *, malformed: Callable[[], None] = lambda: None) -> None:
        """`malformed` is told of each request that is no HTTP: it does not come to `app`."""
        self._path = path
        self._app_state = {"malformed": malformed}
        self._server: asyncio.Server | None = None
        self._own = False
        self._state = ServerState()
        self._config = uvicorn.Config(
            app,
            lifespan="off",
            ws="websockets-sansio",
            ws_max_size=1024 * 1024,
            ws_per_message_deflate=False,
            log_config=None,
            access_log=False,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            http="h11",  # the one of uvicorn's that bounds a head
            h11_max_incomplete_event_size=MAX_HEAD,
            timeout_keep_alive=30,
        )

    async def start(self, sock: socket.socket | None = None) -> None:
        """Listens on `sock` (inherited) or makes the file. TowerError TWR103 when that cannot be."""
        self._config.load()
        logging.getLogger("uvicorn.error").addFilter(_worth_a_line)
        self._own = sock is None
        sock = sock or bind_private(self._path)
        # From Python 3.13 on a loop takes the file of whatever it served away, also one that is systemd's.
        keep: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await asyncio.get_running_loop().create_unix_server(self._connection, sock=sock, **keep)

    def _connection(self) -> asyncio.Protocol:
        return _Connection(config=self._config, server_state=self._state, app_state=self._app_state)

    async def stop(self) -> None:
        """Ends calls and connections, watches and forwards among them, and takes the file away."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        tasks = set(self._state.tasks)
        if tasks:
            _, left = await asyncio.wait(tasks, timeout=GRACE)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left, timeout=GRACE)
        for connection in list(self._state.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(0)
        self._server = None
        if self._own:
            self._path.unlink(missing_ok=True)


class BoundedConnection(H11Protocol):
    """One of at most `MAX_CONNECTIONS`, where who says nothing gives way first, and has a deadline."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.number = next(_numbers)
        self.timeout_keep_alive_task = self.loop.call_later(defaults.HEAD_DEADLINE, self.timeout_keep_alive_handler)
        if len(self.connections) <= MAX_CONNECTIONS:
            return
        # Many may come in one turn, and those that were dropped in it are still in the set.
        held = [each for each in self.connections if not each.transport.is_closing()]
        if len(held) > MAX_CONNECTIONS:
            waiting = [each for each in held if isinstance(each, BoundedConnection) and each.waiting]
            min(waiting, key=lambda each: each.number).transport.abort()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but a head that comes in bits does not put off its end: a whole one does."""
        self.conn.receive_data(data)
        self.handle_events()

    def send_400_response(self, msg: str) -> None:
        self.app_state["malformed"]()
        super().send_400_response(msg)

    @property
    def waiting(self) -> bool:
        """Whether no whole request has come, or none since the last was answered."""
        cycle: Any = self.cycle
        return cycle is None or cycle.response_complete or cycle.more_body


class _Connection(BoundedConnection):
    """Refuses peers of other users, and puts who the peer is where the application finds it."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        peer = transport.get_extra_info("socket")
        pid, uid, _ = SO_PEERCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, SO_PEERCRED.size))
        self.client = (f"uid={uid}", pid)
        if uid not in (0, os.geteuid()):
            log.warning("admin-peer-refused", uid=uid, pid=pid)
            transport.abort()


def bind_private(path: Path) -> socket.socket:
    """A listening Unix socket of mode 0600. A file that a dead server left is replaced, a living one is not."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        who = intruder(path.parent, public=True)
        if who:
            raise TowerError(
                "TWR103",
                f"another user could answer at the admin socket {path} in this server's place: {who}",
                mend="set admin_socket to a path in a directory of root's or of this user",
            )
        _clear(path)
        before = os.umask(0o177)
        try:
            sock.bind(str(path))
        finally:
            os.umask(before)
        sock.listen(128)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise TowerError(
            "TWR103",
            f"the admin socket {path} cannot be made: {error.strerror or error}",
            mend=f"let this user (uid {os.geteuid()}) write {path.parent}, or set another admin_socket",
        ) from error
    except BaseException:
        sock.close()
        raise
    return sock


def _clear(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise TowerError("TWR103", f"{path} is there already and is not a socket", mend="set another admin_socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            path.unlink(missing_ok=True)
            return
        except BlockingIOError:
            pass  # so many wait for it to accept them that there is no room: it is busy, not dead
    raise TowerError(
        "TWR107",
        f"a server listens on the admin socket {path} already",
        mend="stop it, or give this one another admin_socket and state_dir",
    )


def _worth_a_line(line: logging.LogRecord) -> bool:
    """Not what uvicorn says of a WebSocket that was refused by an answer, as a forward to a member that is away is, nor
    its traceback for each watch that `stop` ends."""
    if line.exc_info and isinstance(line.exc_info[1], asyncio.CancelledError):
        return False
    return not str(line.msg).startswith("ASGI callable returned without completing handshake")
