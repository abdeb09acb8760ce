"""Requests that kubectl does not send, as bytes over TLS to where a kubeconfig points, and their answers compared.

Two answers are the same when status, body and headers are, but for Date, Audit-Id and the hop-by-hop ones.
"""

from __future__ import annotations

import base64
import http.client
import io
import os
import socket
import ssl
import tempfile
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import yaml

from certs.tls import ClientTrust, client_context
from tests.kubernetes.views import View

DEADLINE = 20.0
DIFFERENT = {"date", "audit-id", "connection", "keep-alive", "transfer-encoding", "upgrade", "trailer", "te"}


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Connection:
    """One TLS connection of the caller of `view`; `authorization` belongs into each of its requests."""

    def __init__(self, view: View, *, anonymous: bool = False, source: str = "") -> None:
        config = yaml.safe_load(view.kubeconfig.read_text())
        cluster: dict[str, Any] = config["clusters"][0]["cluster"]
        user: dict[str, Any] = {} if anonymous else config["users"][0]["user"]
        where = urlsplit(cluster["server"])
        context = client_context(ClientTrust(ca_pem=base64.b64decode(cluster["certificate-authority-data"])))
        context.set_alpn_protocols(["http/1.1"])
        if "client-certificate-data" in user:
            _load(context, user["client-certificate-data"], user["client-key-data"])
        self.authorization = f"Authorization: Bearer {user['token']}\r\n" if "token" in user else ""
        self.host = where.netloc
        name = cluster.get("tls-server-name") or where.hostname
        plain = socket.create_connection((where.hostname, where.port), timeout=DEADLINE, source_address=(source, 0))
        self._socket = context.wrap_socket(
            plain, server_hostname=name, suppress_ragged_eofs=False
        )  # an end without close_notify is no end
        self._raw = socket.SocketIO(self._socket, "rb")
        self._reader = _Kept(self._raw, 65536)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def request(self, method: str, path: str, *headers: str, body: bytes = b"") -> bytes:
        """The bytes of a request with this caller's credential."""
        lines = [f"{method} {path} HTTP/1.1", "Host: kubernetes", *headers]
        return "\r\n".join([*lines, self.authorization + "\r\n"]).encode() + body

    def interim(self) -> bytes:
        """The head of an interim answer, as it came."""
        return self._reader.readline() + self._reader.readline()

    def line(self) -> bytes:
        """The next line of what comes, as it came; empty at the end."""
        return self._reader.readline()

    def answer(self, method: str = "GET") -> Answer:
        """The next answer; a pipelined one behind it stays in the buffer for the next call."""
        reader = http.client.HTTPResponse(self._reader, method=method)  # type: ignore[arg-type]
        reader.begin()
        body = reader.read()
        headers = ((name.lower(), value) for name, value in reader.getheaders())
        kept = tuple(sorted(header for header in headers if header[0] not in DIFFERENT))
        return Answer(reader.status, kept, body)

    def at_end(self) -> bool:
        """Whether the peer has ended the connection (waits for it)."""
        try:
            return self._reader.read(1) == b""
        except (ConnectionError, ssl.SSLError):
            return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._raw.close()
        self._socket.close()


class _Kept(io.BufferedReader):
    """The connection's one buffered reader: each HTTPResponse gets it as its own, and its close leaves it open."""

    def makefile(self, _mode: str) -> Self:
        return self

    def close(self) -> None: ...


def _load(context: ssl.SSLContext, certificate: str, key: str) -> None:
    with tempfile.NamedTemporaryFile() as file:  # ssl reads keys from files only
        os.chmod(file.name, 0o600)
        file.write(base64.b64decode(certificate) + b"\n" + base64.b64decode(key))
        file.flush()
        context.load_cert_chain(file.name)
