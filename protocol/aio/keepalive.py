"""TCP's own question whether the other end of a silent connection is still there.

A watch or a log may be silent for hours, and a machine that loses its power says nothing: unless it is to ask, the
kernel keeps such a connection for good, and whoever waits at the far side of the tunnel waits as long. What is set on
a listening socket holds for each connection that it accepts.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from protocol import defaults


def keep_alive(sock: Any) -> None:
    """Have the connection end with an error some two minutes after the other end fell silent for good."""
    with contextlib.suppress(OSError, AttributeError):  # no TCP, or gone already: such a transport has no socket
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, defaults.KEEPALIVE_IDLE)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, defaults.KEEPALIVE_INTERVAL)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, defaults.KEEPALIVE_PROBES)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
