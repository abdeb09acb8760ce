"""Listening sockets for callers' ports, made in one way, so that what allocation tries is what a listener does."""

from __future__ import annotations

import errno
import socket
from typing import Final

HELD: Final = frozenset({errno.EADDRINUSE, errno.EACCES})


def listening_socket(address: str, port: int, *, backlog: int) -> socket.socket:
    """A non-blocking TCP listener. An empty address means all, IPv4 and IPv6 on one socket where the machine can."""
    everywhere = not address
    both = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in address else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if both else 1)
        sock.bind((address or ("::" if both else "0.0.0.0"), port))
        sock.listen(backlog)
        sock.setblocking(False)
    except BaseException:
        sock.close()
        raise
    return sock
