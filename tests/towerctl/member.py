"""A member to operate: a small HTTPS apiserver, an echo service, and a real `tower-agent` joined to the tower."""

from __future__ import annotations

import contextlib
import json
import socketserver
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.lab.pki import ClusterCA, write_kubeconfig
from tests.lab.processes import Child, free_ports, wait_until
from tests.lab.world import BIN, READY_DEADLINE, TowerWorld

ANSWERS: dict[str, Any] = {
    "/readyz": "ok",
    "/version": {"major": "1", "minor": "34", "gitVersion": "v1.34.0"},
    "/api/v1/namespaces/kube-system": {"kind": "Namespace", "metadata": {"name": "kube-system", "uid": "uid-1"}},
    "/api/v1/nodes": {"kind": "NodeList", "metadata": {"remainingItemCount": 2}, "items": [{}]},
}


class Apiserver(BaseHTTPRequestHandler):
    """Answers what an agent and a probe ask. `ready` is the apiserver's own health.

    Each connection ends with its answer: one that an agent of the session keeps for later would be seen as left behind
    by whichever test runs when it is opened.
    """

    protocol_version = "HTTP/1.1"
    ready = True

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/readyz" and not type(self).ready:
            self._answer(500, "[-]etcd failed: reason withheld")
        elif path in ANSWERS:
            self._answer(200, ANSWERS[path])
        else:
            self._answer(404, {"kind": "Status", "code": 404})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(201, {"kind": "SelfSubjectAccessReview", "status": {"allowed": True}})

    def _answer(self, status: int, document: Any) -> None:
        body = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        kind = "text/plain" if isinstance(document, str) else "application/json"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        """Nobody reads it."""


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        while data := self.request.recv(65536):
            self.request.sendall(data)


@contextlib.contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[int]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield int(server.server_address[1])  # type: ignore[index]
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Threading(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


class Member:
    """What an agent needs to serve clusters; `join` may be called for several."""

    def __init__(self, folder: Path, *, apiserver: int, echo: int, ca: ClusterCA) -> None:
        self.folder = folder
        self.echo = echo
        self.kubeconfig = write_kubeconfig(
            folder / "member.kubeconfig",
            name="member",
            server=f"https://127.0.0.1:{apiserver}",
            ca=ca.pem,
            token="t",
        )

    @contextlib.contextmanager
    def joined(self, tower: TowerWorld, name: str) -> Iterator[Child]:
        """A cluster with one agent that serves it; a request gets through when this is entered."""
        added = json.loads(tower.towerctl("add", "cluster", name, "-o", "json").stdout)
        folder = self.folder / name
        folder.mkdir()
        (health,) = free_ports(1)
        config = folder / "agent.yaml"
        config.write_text(
            yaml.safe_dump(
                {
                    "kubeconfig": str(self.kubeconfig),
                    "state_dir": str(folder / "state"),
                    "health_address": f"127.0.0.1:{health}",
                    "services": {"echo": f"127.0.0.1:{self.echo}", "nothing": "127.0.0.1:1"},
                }
            )
        )
        subprocess.run(
            [str(BIN / "tower-agent"), "--config", str(config), "join"],
            input=added["join"]["token"].encode(),
            env=tower.environment(),
            capture_output=True,
            check=True,
            timeout=30,
        )
        agent = Child(
            "tower-agent",
            [BIN / "tower-agent", "--config", config, "run"],
            log=folder / "agent.log",
            env=tower.environment(),
        )
        try:
            wait_until(lambda: tower.cluster(name)["ready"] == "True", f"cluster {name} is Ready", READY_DEADLINE)
            yield agent
        finally:
            agent.stop()
            tower.towerctl("delete", "cluster", name, "--yes", check=False)


@contextlib.contextmanager
def member(folder: Path) -> Iterator[Member]:
    folder.mkdir()
    ca = ClusterCA(folder, "member-ca")
    pair = ca.server("apiserver", ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair.certificate, pair.key)
    apiserver = ThreadingHTTPServer(("127.0.0.1", 0), Apiserver)
    apiserver.daemon_threads = True
    apiserver.socket = context.wrap_socket(apiserver.socket, server_side=True, do_handshake_on_connect=False)
    with serving(apiserver) as port, serving(_Threading(("127.0.0.1", 0), Echo)) as echo:
        yield Member(folder, apiserver=port, echo=echo, ca=ca)
