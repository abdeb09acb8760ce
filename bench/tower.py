"""A tower server and an agent as real processes, and what they cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from bench.backend import Backend
from bench.longway import LongWay
from tests.lab.processes import Child, free_ports, wait_until

Mode = Literal["l7", "passthrough"]
Outer = Literal["wss", "ws"]
SCRIPTS = Path(sys.executable).parent
CLUSTER = "bench"
START_DEADLINE = 30.0


@dataclass(frozen=True)
class Usage:
    """CPU seconds used so far and resident memory, MiB: now and at its highest since `reset_peak`."""

    cpu: float
    rss: float
    peak: float


class Tower:
    """Server and agent with one cluster, joined and serving; the agent at the far end of `way`, if there is one."""

    def __init__(
        self,
        folder: Path,
        backend: Backend,
        *,
        mode: Mode,
        outer: Outer,
        agents: bool = True,
        way: LongWay | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        tunnel, server_health, agent_health, first = free_ports(4)
        host = way.host if way is not None else "127.0.0.1"
        self.namespace = way.name if way is not None else None
        self.url = f"{outer}://{host}:{tunnel}"
        self.socket = folder / "admin.sock"
        server = {
            "host": "bench-host",
            "public_url": self.url,
            "listen": f"{host}:{tunnel}",
            "plain_http": outer == "ws",
            "state_dir": str(folder / "server"),
            "admin_socket": str(self.socket),
            "health_address": f"127.0.0.1:{server_health}",
            "ports": {"range": f"{first}-{first}", "bind": "127.0.0.1"},
            "admission": {"handshakes_per_second": 1000, "handshake_burst": 2000},
            "log": {"level": "warning"},
        }
        config = folder / "server.yaml"
        config.write_text(yaml.safe_dump(server))
        self.server = Child(
            "tower-server", [SCRIPTS / "tower-server", "run", "--config", config], log=folder / "server.log"
        )
        self.children = [self.server]
        try:
            self.server.until(self.socket.exists, "admin socket", START_DEADLINE)
            joined = json.loads(self.ctl("add", "cluster", CLUSTER, "-o", "json"))
            self.token = str(joined["join"]["token"])
            self.port = int(json.loads(self.ctl("get", "clusters", CLUSTER, "-o", "json"))["ports"]["kubernetes"])
            self.agent = self._agent(folder, backend, mode, outer, agent_health) if agents else self.server
        except BaseException:
            self.stop()
            raise

    def _agent(self, folder: Path, backend: Backend, mode: Mode, outer: Outer, health: int) -> Child:
        token = folder / "token"
        token.write_text(self.token)
        token.chmod(0o600)
        agent = {
            "state_dir": str(folder / "agent"),
            "kubeconfig": str(backend.kubeconfig),
            "health_address": f"127.0.0.1:{health}",
            "token_file": str(token),
            "insecure_transport": outer == "ws",
            "proxy_from_environment": False,
            "log": {"level": "warning"},
        }
        if mode == "passthrough":
            agent["services"] = {"kubernetes": {"mode": "passthrough"}}
            agent["raw_services_over_foreign_tls"] = True
        config = folder / "agent.yaml"
        config.write_text(yaml.safe_dump(agent))
        run: list[str | Path] = [SCRIPTS / "tower-agent", "run", "--config", config]
        child = Child("tower-agent", run, log=folder / "agent.log", namespace=self.namespace)
        self.children.append(child)
        child.until(self._answers, "answer through the tunnel", START_DEADLINE)
        return child

    def _answers(self) -> bool:
        url = f"https://127.0.0.1:{self.port}/small"
        command = [
            "curl",
            "-sk",
            "-m",
            "3",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-H",
            "Authorization: Bearer b",
            url,
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout == "200"

    def ctl(self, *arguments: str) -> str:
        """Run towerctl against this server; its output."""
        command = [str(SCRIPTS / "towerctl"), "--socket", str(self.socket), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        if done.returncode:
            raise RuntimeError(f"towerctl {' '.join(arguments)}: {done.stderr.strip()}\n{self.server.tail()}")
        return done.stdout

    def stop(self) -> None:
        """End both, agent first."""
        for child in reversed(self.children):
            child.stop()


def usage(pid: int) -> Usage:
    """What a process has used, from /proc."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    return Usage(
        cpu=(int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"),
        rss=_mib(status["VmRSS"]),
        peak=_mib(status["VmHWM"]),
    )


def reset_peak(pid: int) -> None:
    """Let the highest memory start anew from what it is now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _mib(text: str) -> float:
    return int(text.split()[0]) / 1024


__all__ = ["CLUSTER", "Mode", "Outer", "Tower", "Usage", "reset_peak", "usage", "wait_until"]
