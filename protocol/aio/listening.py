"""Listening sockets, and what is known of a connection, or said to it, before it has cost anything."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Any, Final

OVER: Final = (7, 8)  # CLOSE, CLOSE_WAIT of <netinet/tcp.h>
MAX_UNREAD: Final = 64 * 1024
_TCP_INFO: Final = struct.Struct("@B51xI")  # tcpi_state, tcpi_last_data_recv: milliseconds


async def accept(listening: socket.socket) -> tuple[socket.socket, Any]:
    """The next connection and where it comes from; OSError. Cancelling loses none, as `loop.sock_accept` may."""
    while True:
        try:
            sock, address = listening.accept()
        except BlockingIOError:
            await _readable(listening)
        else:
            sock.setblocking(False)
            return sock, address


async def _readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def now() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(sock, now)
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def waited_for(sock: socket.socket) -> float | None:
    """Seconds that a connection which was just accepted has waited since it spoke; None when its peer has given up."""
    try:
        state, waited = _TCP_INFO.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size))
    except OSError:  # not TCP: who inherits a listener may have any
        return 0.0
    return None if state in OVER else waited / 1000


def turn_away(sock: socket.socket, word: bytes) -> None:
    """Close a connection by `word`. What it has said is read away first: unread bytes would reset the word away."""
    with contextlib.suppress(OSError):  # it goes either way
        sock.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            sock.recv(MAX_UNREAD)
        sock.send(word)
        sock.shutdown(socket.SHUT_WR)
    sock.close()


async def bound(host: str | None, port: int) -> list[socket.socket]:
    """A socket for each address of `host`; OSError when one cannot be had."""
    loop = asyncio.get_running_loop()
    infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(infos):
            sock = socket.socket(family, kind, protocol)
            bound.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(address)
    except OSError:
        for sock in bound:
            sock.close()
        raise
    return bound
