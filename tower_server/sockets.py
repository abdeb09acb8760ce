"""Listening sockets for callers' ports, made in one way: a listener can bind whatever port the allocation could bind.

Also takes the sockets that a service manager hands in. Each of them has to be one that this server serves: connections
to any other would wait in the kernel for somebody who never comes.
"""

from __future__ import annotations

import errno
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Final

from daemon.faults import TowerError

PORT_NAME: Final = re.compile(r"port-([0-9]{1,5})")
NAMES: Final = "tunnel, admin, health, kubesphere-v1 and port-NUMBER"
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


def check_inherited(inherited: Mapping[str, Sequence[socket.socket]], *, legacy: bool) -> None:
    """TowerError TWR103 for a socket that was handed in and nobody would answer at. `legacy`: Go agents are served."""
    for name, sockets in inherited.items():
        port = PORT_NAME.fullmatch(name)
        if not port and name not in ("tunnel", "admin", "health", "kubesphere-v1"):
            raise _nobody(
                f"is named {name!r}: those that are known are {NAMES}",
                "set FileDescriptorName= in its .socket unit to one of them, or disable that unit",
            )
        if len(sockets) > 1:
            raise _nobody(
                f"is the second one named {name} ({' and '.join(map(_address, sockets))})",
                "leave one ListenStream= in the .socket unit; a drop-in takes the unit's own away by an empty "
                "`ListenStream=` before its own",
            )
        if name == "kubesphere-v1" and not legacy:
            raise _nobody(
                "is named kubesphere-v1, and Go agents are not served",
                "set kubesphere_v1.enabled, or disable its .socket unit",
            )
        local = name == "admin"
        families = (socket.AF_UNIX,) if local else (socket.AF_INET, socket.AF_INET6)
        (sock,) = sockets
        if sock.family not in families or sock.type != socket.SOCK_STREAM:
            wanted = "the path of a Unix socket" if local else "a TCP port"
            raise _nobody(f"is named {name} and is at {_address(sock)}", f"set its ListenStream= to {wanted}")
        if port and sock.getsockname()[1] != int(port[1]):
            raise _nobody(
                f"is named {name} and listens at {_address(sock)}",
                "let FileDescriptorName= name the port of its ListenStream=",
            )


def _nobody(what: str, mend: str) -> TowerError:
    return TowerError("TWR103", f"a socket that was handed in {what}; nobody would answer there", mend=mend)


def _address(sock: socket.socket) -> str:
    where = sock.getsockname()
    return f"{where[0]}:{where[1]}" if isinstance(where, tuple) else str(where)
