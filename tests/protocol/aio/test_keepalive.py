"""Both ends of a connection are asked for when it is silent, and what has no such question is left as it is."""

from __future__ import annotations

import contextlib
import socket

from protocol import defaults
from protocol.aio.keepalive import keep_alive


def asked_after(sock: socket.socket) -> int | None:
    """Seconds of silence until the kernel has given the other end up; None where it never asks."""
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return None
    idle, interval, probes = (
        sock.getsockopt(socket.IPPROTO_TCP, option)
        for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
    )
    return idle + interval * probes


def test_a_dead_peer_is_given_up_within_two_minutes_by_whoever_dialled_and_whoever_accepted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.ExitStack() as stack:
        keep_alive(server)
        dialled = stack.enter_context(socket.create_connection(server.getsockname()))
        accepted = stack.enter_context(server.accept()[0])
        assert asked_after(dialled) is None
        keep_alive(dialled)
        assert asked_after(dialled) == asked_after(accepted) == 120
    assert defaults.KEEPALIVE_IDLE >= 60  # a caller whose machine sleeps for a minute goes on


def test_a_socket_that_is_no_tcp_or_gone_is_left_alone() -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        keep_alive(sock)
    keep_alive(sock)
    keep_alive(None)  # what a transport of uvloop has that is gone already
