"""HTTP/1.1 to a Unix socket by the standard library: how the command lines reach the admin API of a running server."""

from __future__ import annotations

import http.client
import socket
from typing import Final

API_HOST: Final = "localhost"
"""The Host that the admin API answers to; others are refused there, so that no web page can be aimed at it."""


class UnixConnection(http.client.HTTPConnection):
    """One connection to the socket at `path`; `timeout` in seconds bounds each wait, None none."""

    def __init__(self, path: str, timeout: float | None) -> None:
        super().__init__(API_HOST, timeout=timeout)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)
