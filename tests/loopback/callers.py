"""Callers of a cluster's port, as bytes over TLS or none; and what the processes say of them: metrics and logs."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from certs.tls import ClientTrust, client_context
from tests.kubernetes.rawhttp import Answer, Connection
from tests.kubernetes.views import View
from tests.lab.processes import wait_until, whole_lines
from tests.lab.world import TowerWorld

PATIENCE = 30.0


@dataclass(frozen=True, slots=True)
class Caller:
    """Who connects to the port that a kubeconfig names."""

    kubeconfig: Path

    @property
    def cluster(self) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load(self.kubeconfig.read_text())["clusters"][0]["cluster"]
        return found

    @property
    def address(self) -> tuple[str, int]:
        where = urlsplit(self.cluster["server"])
        assert where.hostname is not None
        assert where.port is not None
        return where.hostname, where.port

    def connect(self, *, anonymous: bool = False) -> Connection:
        """A TLS connection; `anonymous` without the certificate."""
        return Connection(View("caller", Path("-"), self.kubeconfig, Path("-")), anonymous=anonymous)

    def ask(self, path: str, *headers: str, method: str = "GET", anonymous: bool = False) -> Answer:
        """One request on a connection of its own."""
        with self.connect(anonymous=anonymous) as connection:
            connection.send(connection.request(method, path, *headers))
            return connection.answer(method)

    def say(self, data: bytes, *, anonymous: bool = False) -> tuple[int, dict[str, Any]]:
        """Raw bytes over TLS; the status and the JSON of the answer. The connection must end after it."""
        with self.connect(anonymous=anonymous) as connection:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):  # refused before all of it was read
                connection.send(data)
            answer = connection.answer()
            assert connection.at_end()
        return answer.status, json.loads(answer.body)

    def plain(self) -> socket.socket:
        """A bare TCP connection."""
        return socket.create_connection(self.address, timeout=PATIENCE)


def context_of(caller: Caller, certificate: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """TLS that believes the cluster's authority, with a certificate of the test's own."""
    context = client_context(ClientTrust(ca_pem=base64.b64decode(caller.cluster["certificate-authority-data"])))
    if certificate is not None:
        context.load_cert_chain(certificate, key)
    return context


def get_as(caller: Caller, context: ssl.SSLContext, path: str, *headers: str) -> tuple[int, dict[str, Any]]:
    """One GET with any TLS context; ssl.SSLError where the handshake comes to nothing."""
    with caller.plain() as bare, context.wrap_socket(bare, server_hostname=caller.cluster["tls-server-name"]) as tls:
        tls.sendall("\r\n".join([f"GET {path} HTTP/1.1", "Host: k", *headers, "", ""]).encode())
        response = http.client.HTTPResponse(tls)
        response.begin()
        return response.status, json.loads(response.read())


@contextlib.contextmanager
def watching(caller: Caller, *headers: str, anonymous: bool = False) -> Iterator[Callable[[], None]]:
    """A stream that runs; what is yielded holds that nothing of it was lost until now and that it still goes on."""
    with caller.connect(anonymous=anonymous) as connection:
        connection.send(connection.request("GET", "/watch", *headers))
        while connection.line() != b"\r\n":
            pass
        expected = 0

        def goes_on() -> None:
            nonlocal expected
            now, at = time.time(), 0.0
            while at < now:
                line = next(line for line in iter(connection.line, b"") if b"tick" in line)
                said = json.loads(line)
                assert said["tick"] == expected
                expected, at = expected + 1, said["at"]

        goes_on()
        yield goes_on


def ended(bare: socket.socket) -> bytes:
    """What still comes until the peer ends the connection."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while data := bare.recv(65536):
            got += data
    return got


def ticks_until_end(connection: Connection) -> float:
    """Reads a watch until it ends, however it does; the time of its end."""
    with contextlib.suppress(OSError):
        while connection.line():
            pass
    return time.monotonic()


# ---- what the processes say ----------------------------------------------------------------------------------------


def health_port(world: TowerWorld, cluster: str | None = None) -> int:
    """Of the server, or of a cluster's agent."""
    if cluster is None:
        return world.health_port
    config = yaml.safe_load(world.members[cluster].config.read_text())
    return int(config["health_address"].rpartition(":")[2])


def metrics(world: TowerWorld, cluster: str | None = None) -> dict[str, float]:
    """Every series of the server, or of a cluster's agent, by its name and labels as they are written."""
    connection = http.client.HTTPConnection("127.0.0.1", health_port(world, cluster), timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    series = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in series}


@contextlib.contextmanager
def moves(world: TowerWorld, series: str, *, cluster: str | None = None, by: float = 1) -> Iterator[None]:
    """Holds that a counter moves by (at least) so much during the block."""
    before = metrics(world, cluster).get(series, 0.0)
    yield
    wait_until(lambda: metrics(world, cluster).get(series, 0.0) >= before + by, f"{series} moves", PATIENCE)


@contextlib.contextmanager
def logs(log: Path, *patterns: str, without: tuple[str, ...] = ()) -> Iterator[None]:
    """Holds that a line with all of `patterns` is written during the block, and none of `without` anywhere in it."""
    start = log.stat().st_size

    def written() -> str:
        with log.open("rb") as file:
            file.seek(start)
            return file.read().decode()

    def found() -> bool:
        return any(all(re.search(one, line) for one in patterns) for line in written().splitlines())

    yield
    wait_until(found, f"a line with {patterns} in {log.name}; there is:\n{written()}", PATIENCE)
    for secret in without:
        assert secret not in written()


def tunnels(world: TowerWorld, cluster: str) -> list[str]:
    """The ids of a cluster's tunnels."""
    return [item["id"] for item in world.call("GET", f"/v1/tunnels?cluster={cluster}")[1]["items"]]


def lines(log: Path, event: str, *words: str) -> list[dict[str, Any]]:
    """What a process has said of an event; `time` as seconds."""
    found = [json.loads(line) for line in whole_lines(log) if f'"{event}"' in line]
    for entry in found:
        entry["time"] = datetime.fromisoformat(entry["time"]).timestamp()
    return [entry for entry in found if entry["event"] == event and all(word in json.dumps(entry) for word in words)]


def the_line(log: Path, event: str, *words: str) -> dict[str, Any]:
    """The one line of an event with these words, waited for: who sees an end may see it before the log tells of it."""
    wait_until(lambda: bool(lines(log, event, *words)), f"{event} with {words} in {log.name}", PATIENCE)
    (line,) = lines(log, event, *words)
    return line
