"""The peers as processes: Go's proxy (the host's end) and agent (the member's), of either vintage; our agent."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from tests.lab import assets
from tests.lab.pki import ClusterCA
from tests.lab.processes import ADOPTED, Child, Started, free_ports, whole_lines

Vintage = Literal["2020", "2023"]
VINTAGES: Final[tuple[Vintage, ...]] = ("2020", "2023")
CLUSTER: Final = "edge-1"
TOKEN: Final = "5f" * 32
START_DEADLINE: Final = 60.0


@dataclass(frozen=True, slots=True)
class Account:
    """A pod's ServiceAccount: a folder with `token` and `ca.crt`, and the environment that names the apiserver."""

    folder: Path
    host: str
    port: int

    def use(self, token: str) -> None:
        """Write the token as the kubelet does: beside, then renamed."""
        (self.folder / "token.new").write_text(token)
        (self.folder / "token.new").rename(self.folder / "token")


def make_account(folder: Path, *, host: str, port: int, ca: bytes, token: str) -> Account:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "ca.crt").write_bytes(ca)
    account = Account(folder, host, port)
    account.use(token)
    return account


class Peer(Started):
    """What is run as one process, from `start` or for the time of a context."""

    _child: Child | None = None

    @property
    def child(self) -> Child:
        assert self._child is not None
        return self._child

    def stop(self) -> int | None:
        """Its exit code; None where nothing runs."""
        if self._child is None:
            return None
        child, self._child = self._child, None
        return child.stop()


class GoProxy(Peer):
    """The host's end with one cluster; ports of 127.0.0.1 only. Start with `start`, or as a context manager."""

    def __init__(
        self, folder: Path, vintage: Vintage, *, name: str = CLUSTER, token: str = TOKEN, rekey_bytes: int = 0
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vintage, self.name, self.token = folder, vintage, name, token
        self._rekey_bytes = rekey_bytes
        self.port, self.kubernetes_port, self.kubesphere_port = free_ports(3)
        self.url = f"http://127.0.0.1:{self.port}"
        self.ca = ClusterCA(folder, "tower-ca")
        self.kubeconfig = folder / f"{name}.kubeconfig"
        ports = {"kubernetesPort": self.kubernetes_port, "kubespherePort": self.kubesphere_port}
        (folder / "clusters.json").write_text(json.dumps([{"name": name, "token": token, **ports}]))

    @property
    def available(self) -> bool:
        """What the proxy says of the cluster; its listeners may need another moment."""
        path = self.folder / f"{self.name}.available"
        return path.exists() and path.read_text() == "true"

    def start(self) -> None:
        program = assets.ensure([f"go-proxy-{self.vintage}"])[f"go-proxy-{self.vintage}"]
        pair = self.ca.files
        arguments: list[str | Path] = ["-bind", "127.0.0.1", "-port", str(self.port), "-clusters"]
        arguments += [
            self.folder / "clusters.json",
            "-state",
            self.folder,
            "-ca-cert",
            pair.certificate,
            "-ca-key",
            pair.key,
            f"-rekey-bytes={self._rekey_bytes}",
        ]
        self._child = Child("go-proxy", [program, *arguments], log=self.folder / "proxy.log")
        ADOPTED.add(self._child.pid)
        log = self.folder / "proxy.log"
        self._child.until(lambda: "listening on" in log.read_text(), "the Go proxy listens", START_DEADLINE)


class GoAgent(Peer):
    """The member's end. It works by a kubeconfig with an inline certificate, or by a ServiceAccount's token."""

    def __init__(
        self,
        folder: Path,
        vintage: Vintage,
        server: str,
        *,
        credential: Path | Account,
        name: str = CLUSTER,
        token: str = TOKEN,
        kubesphere: str = "127.0.0.1:9",
        keepalive: str = "10s",
        rekey_bytes: int = 0,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.vintage = folder, vintage
        self._arguments: list[str | Path] = [f"--name={name}", f"--token={token}", f"--proxy-server={server}"]
        self._arguments += [f"--keepalive={keepalive}", f"--kubesphere-service={kubesphere}", "--v=0"]
        self._arguments.append(f"--rekey-bytes={rekey_bytes}")
        self._environ = {"PATH": os.environ["PATH"], **(environ or {})}
        if isinstance(credential, Account):
            self._arguments.append(f"--account={credential.folder}")
            self._environ |= {
                "KUBERNETES_SERVICE_HOST": credential.host,
                "KUBERNETES_SERVICE_PORT": str(credential.port),
            }
        else:
            self._arguments.append(f"--kubeconfig={credential}")

    @property
    def said(self) -> str:
        """Its log so far."""
        log = self.folder / "agent.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def start(self, *, connected: bool = True) -> None:
        """Run it; with `connected` until the server has taken its registration."""
        program = assets.ensure([f"go-agent-{self.vintage}"])[f"go-agent-{self.vintage}"]
        before = self.said.count(" connected")
        self._child = Child("go-agent", [program, *self._arguments], log=self.folder / "agent.log", env=self._environ)
        ADOPTED.add(self._child.pid)
        if connected:
            self._child.until(
                lambda: self.said.count(" connected") > before, "the Go agent is connected", START_DEADLINE
            )


class OurAgent(Peer):
    """`tower-agent` in the same place: as a process, with a configuration file and the flags of a test."""

    def __init__(
        self,
        folder: Path,
        server: str,
        *,
        kubeconfig: Path,
        name: str = CLUSTER,
        token: str = TOKEN,
        settings: Mapping[str, Any] | None = None,
        constants: Mapping[str, float] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._constants = dict(constants or {})
        (self.health,) = free_ports(1)
        (folder / "token").touch(0o600)
        (folder / "token").write_text(f"{token}\n")
        config = {
            "dialect": "kubesphere-v1",
            "kubesphere_v1": {"server": server, "cluster": name, "ship_credential": True},
            "kubeconfig": str(kubeconfig),
            "token_file": str(folder / "token"),
            "health_address": f"127.0.0.1:{self.health}",
            "proxy_from_environment": False,
        }
        (folder / "agent.yaml").write_text(yaml.safe_dump(config | dict(settings or {})))

    @property
    def events(self) -> list[dict[str, Any]]:
        """Its log so far."""
        log = self.folder / "agent.log"
        lines = whole_lines(log) if log.exists() else []
        return [json.loads(line) for line in lines if line.startswith("{")]

    def said(self, event: str) -> list[dict[str, Any]]:
        """Its log lines of that name."""
        return [each for each in self.events if each["event"] == event]

    def until(self, event: str, count: int = 1) -> dict[str, Any]:
        """The log line of that name, when the `count`th has been written."""
        self.child.until(lambda: len(self.said(event)) >= count, f"{event} ({count})", START_DEADLINE)
        return self.said(event)[count - 1]

    def start(self, *flags: str, registered: bool = True) -> None:
        before = len(self.said("host-registered"))
        scaled = [sys.executable, "-m", "tests.lab.scaled", json.dumps(self._constants), "tower-agent"]
        argv: list[str | Path] = [*scaled] if self._constants else [Path(sys.executable).parent / "tower-agent"]
        argv += ["--config", self.folder / "agent.yaml", "run", "--log-format", "json", *flags]
        self._child = Child(
            "tower-agent", argv, log=self.folder / "agent.log", env={"PATH": os.environ["PATH"]}, cwd=assets.ROOT
        )
        ADOPTED.add(self._child.pid)
        if registered:
            self.until("host-registered", before + 1)
