"""A member for the ring: the backend's process, its PKI, what it recorded; a cluster for `TowerWorld.join`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab.controlplane import Done
from tests.lab.network import MemberNetwork
from tests.lab.pki import ClusterCA, write_kubeconfig
from tests.lab.processes import ADOPTED, Child, LabError, Started, free_ports, whole_lines
from tests.lab.world import ROOT
from tests.loopback.backend import TOKEN

AGENT = "agent-of-the-member"
START_DEADLINE = 60.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One request as the backend got it. `certificate` is the common name that its connection showed."""

    connection: int
    certificate: str | None
    first: str
    headers: list[list[str]]
    body: str

    def values(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]


class BackendMember(Started):
    """Start with `start`, end with `stop`; also a context manager. With a `network`, the backend listens inside it."""

    def __init__(self, folder: Path, network: MemberNetwork | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.programs: Mapping[str, Path] = {}
        self.network = network
        (self.port,) = free_ports(1)
        self.ca = ClusterCA(folder, "ca")
        self.ca.server("apiserver", ["127.0.0.1"])
        server = f"https://127.0.0.1:{self.port}"
        client = self.ca.client("agent", AGENT, ["system:masters"])
        self.by_certificate = write_kubeconfig(
            folder / "certificate.kubeconfig", name="member", server=server, ca=self.ca.pem, client=client
        )
        self.by_token = write_kubeconfig(
            folder / "token.kubeconfig", name="member", server=server, ca=self.ca.pem, token=TOKEN
        )
        self._child: Child | None = None

    def start(self) -> None:
        listening = self.folder / "listening"
        listening.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "tests.loopback.backend", self.folder, str(self.port)]
        namespace = self.network.name if self.network is not None else None
        self._child = Child("backend", argv, log=self.folder / "backend.log", cwd=ROOT, namespace=namespace)
        ADOPTED.add(self._child.pid)
        self._child.until(listening.exists, "the backend listens", START_DEADLINE)

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop()
            self._child = None

    def seen(self, marker: str) -> list[Seen]:
        """The requests whose target holds `marker`, in order."""
        lines = whole_lines(self.folder / "requests.jsonl")
        return [Seen(**json.loads(line)) for line in lines if marker in line]

    # What a control plane would do at the manifest: nothing, since the backend knows one account and one certificate.
    def install(self, objects: Sequence[Mapping[str, Any]]) -> None: ...

    def kubectl(self, *arguments: str) -> Done:
        raise LabError(f"the backend has no kubectl: {arguments}")

    def kubeconfig(self, user: str, *, token: str | None = None) -> Path:
        return self.by_token
