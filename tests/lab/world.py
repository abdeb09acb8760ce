"""A tower as its users run it: `tower-server` and `tower-agent` as processes, joined through `towerctl`, in one folder.

Nothing of the product is imported here: what a test sees is what the commands do. Configuration, state, socket and logs
lie in `folder` (its path short: a Unix socket's has at most 107 bytes), and `stop` ends every process.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import yaml

from tests.lab.controlplane import Done, run
from tests.lab.network import MemberNetwork
from tests.lab.processes import ADOPTED, Child, LabError, Started, free_ports, wait_until
from tests.lab.scaled import idle_limits

BIN = Path(sys.executable).parent
ROOT = Path(__file__).resolve().parents[2]
START_DEADLINE = 90.0
READY_DEADLINE = 60.0
COMMAND_DEADLINE = 60.0


class Cluster(Protocol):
    """What a tower needs of a member's cluster; `ControlPlane` is one."""

    programs: Mapping[str, Path]

    @property
    def network(self) -> MemberNetwork | None: ...
    def kubectl(self, *arguments: str) -> Done: ...
    def kubeconfig(self, user: str, *, token: str | None = None) -> Path: ...
    def install(self, objects: Sequence[Mapping[str, Any]]) -> None: ...


@dataclass(frozen=True, slots=True)
class Member:
    """A joined cluster: its agent's process, folder and configuration."""

    name: str
    plane: Cluster
    agent: Child
    folder: Path
    config: Path


class TowerWorld(Started):
    """One tower server and the agents joined to it."""

    def __init__(
        self,
        folder: Path,
        *,
        host: str = "lab",
        address: str = "127.0.0.1",
        settings: Mapping[str, Any] | None = None,
        idle_limits_divided_by: float | None = None,
        constants: Mapping[str, float] | None = None,
        tunnel_port: int | None = None,
        environments: Mapping[str, Mapping[str, str]] | None = None,  # of a program, beside what all run with
        namespace: str | None = None,  # of the server
    ) -> None:
        self._namespace = namespace
        self.folder, self.address, self.host = folder, address, host
        self._constants = dict(constants or {})
        self._environments = environments or {}
        if idle_limits_divided_by is not None:
            self._constants |= idle_limits(idle_limits_divided_by)
        self.socket = folder / "admin.sock"
        self.tunnel_port, self.health_port, first, *_ = free_ports(3)
        self.tunnel_port = tunnel_port or self.tunnel_port
        self._settings = settings or {}
        self._children: list[Child] = []
        self.members: dict[str, Member] = {}
        (folder / "home").mkdir(parents=True, exist_ok=True)
        self.config = self._write(
            folder / "server.yaml",
            {
                "host": self.host,
                "public_url": f"wss://{address}:{self.tunnel_port}",
                "listen": f":{self.tunnel_port}",
                "state_dir": str(folder / "server"),
                "admin_socket": str(self.socket),
                "health_address": f"127.0.0.1:{self.health_port}",
                "ports": {"range": f"{first}-{first + 20}", "bind": "127.0.0.1"},
                "callers": {"address": "127.0.0.1"},
                "replica": {"listen": "127.0.0.1:0"},
            }
            | self._settings,
        )

    def start(self) -> None:
        server = self._child("tower-server", "run", "--config", self.config, namespace=self._namespace)
        self._children.insert(0, self._children.pop())  # stopped last, also where agents outlived the one before
        if self.members:
            ADOPTED.add(server.pid)  # a test of a wider world has started it again
        server.until(self._answers, "the server answers", START_DEADLINE)

    def stop_server(self) -> int:
        """End the server by itself; `start` starts it again. Its exit code."""
        return self._children.pop(0).stop()

    def stop(self) -> None:
        while self._children:
            self._children.pop().stop()

    @property
    def children(self) -> Sequence[Child]:
        return tuple(self._children)

    @property
    def server(self) -> Child:
        return self._children[0]

    def environment(self) -> dict[str, str]:
        """What the commands run with: nothing of the user's but PATH, which finds the commands themselves."""
        path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(self.folder / "home"), "TOWER_ADMIN_SOCKET": str(self.socket)}

    def towerctl(
        self, *arguments: str, stdin: bytes = b"", check: bool = True, deadline: float = COMMAND_DEADLINE
    ) -> Done:
        return self.command("towerctl", *arguments, stdin=stdin, check=check, deadline=deadline)

    def command(
        self, program: str, *arguments: str, stdin: bytes = b"", check: bool = True, deadline: float = COMMAND_DEADLINE
    ) -> Done:
        done = run([str(BIN / program), *arguments], self.environment(), stdin, deadline)
        if check and done.code != 0:
            raise LabError(f"{program} {' '.join(arguments)}: exit code {done.code}: {done.stderr.decode().strip()}")
        return done

    def join(
        self,
        name: str,
        plane: Cluster,
        *,
        credential: Path | None = None,
        settings: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
    ) -> Member:
        """Add the cluster, apply its manifest in the member, join an agent and wait until a request gets through.

        The agent works as the manifest's ServiceAccount, unless `credential` names another kubeconfig.
        """
        added = json.loads(self.towerctl("add", "cluster", name, "-o", "json").stdout)
        folder = self.folder / f"agent-{name}"
        folder.mkdir()
        account = self.apply_manifest(name, plane, folder / "policy.yaml", policy)
        health, *_ = free_ports(1)
        config = self._write(
            folder / "agent.yaml",
            {
                "kubeconfig": str(credential or self._account_kubeconfig(plane, account)),
                "state_dir": str(folder / "state"),
                "policy_file": str(folder / "policy.yaml"),
                "health_address": f"127.0.0.1:{health}",
            }
            | dict(settings or {}),
        )
        inside = ["ip", "netns", "exec", plane.network.name] if plane.network else []
        join = [*inside, str(BIN / "tower-agent"), "--config", str(config), "join"]
        done = run(join, self.environment(), f"{added['join']['token']}\n".encode(), COMMAND_DEADLINE)
        if done.code != 0:
            raise LabError(f"tower-agent join: exit code {done.code}: {done.stderr.decode().strip()}")
        agent = self.start_agent(name, plane, config)
        self.members[name] = Member(name, plane, agent, folder, config)
        agent.until(lambda: self.cluster(name)["ready"] == "True", f"cluster {name} is Ready", READY_DEADLINE)
        return self.members[name]

    def start_agent(self, name: str, plane: Cluster, config: Path) -> Child:
        network = plane.network.name if plane.network else None
        return self._child("tower-agent", "--config", config, "run", log=f"agent-{name}", namespace=network)

    def call(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """One call of the admin API: what is waited for by asking often should not cost a command each time."""
        with contextlib.closing(_AdminConnection(self.socket)) as connection:
            data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, body=data, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, json.loads(response.read())

    def restart_agent(self, name: str) -> Child:
        """Start the agent of a joined cluster again; the one before is stopped if it still runs."""
        member = self.members[name]
        self._children.remove(member.agent)
        member.agent.stop()
        agent = self.start_agent(name, member.plane, member.config)
        ADOPTED.add(agent.pid)
        self.members[name] = replace(member, agent=agent)
        return agent

    def cluster(self, name: str) -> dict[str, Any]:
        """What the server says of it: `ready`, `state`, `code`, `cause` ..."""
        status, found = self.call("GET", f"/v1/clusters/{name}")
        if status != 200:
            raise LabError(f"cluster {name}: {found}")
        return found

    def _answers(self) -> bool:
        try:
            return self.call("GET", "/v1/info")[0] == 200
        except OSError:
            return False

    def until_state(self, name: str, state: str, *, deadline: float = READY_DEADLINE) -> None:
        wait_until(lambda: self.cluster(name)["state"] == state, f"state {state} of cluster {name}", deadline)

    def kubeconfig(self, name: str, *arguments: str) -> Path:
        """A kubeconfig with an embedded client certificate, as `towerctl kubeconfig` writes it."""
        path = self.folder / f"{'-'.join([name, *arguments]).replace('/', '_').replace(':', '_')}.kubeconfig"
        path.touch(0o600)
        path.write_bytes(self.towerctl("kubeconfig", name, "--embed", *arguments).stdout)
        return path

    def apply_manifest(
        self, name: str, plane: Cluster, policy_file: Path, rules: Mapping[str, Any] | None = None
    ) -> tuple[str, str]:
        """Apply what the owner would, but for the Deployment (nobody runs it here), and keep its policy as a file.

        `rules` are those of this host in the policy; without them the manifest's own. Returns the agent's account.
        """
        chosen = []
        if rules is not None:
            chosen = ["--policy", str(self._write(policy_file, {"hosts": {self.host: dict(rules)}}))]
        printed = self.towerctl("manifest", name, "--no-token", "-n", f"tower-{self.host}", *chosen).stdout
        documents = [document for document in yaml.safe_load_all(printed) if document]
        plane.install([document for document in documents if document["kind"] != "Deployment"])
        (text,) = [document["data"]["policy.yaml"] for document in documents if document["kind"] == "ConfigMap"]
        policy_file.write_text(text)
        (account,) = [document["metadata"] for document in documents if document["kind"] == "ServiceAccount"]
        return account["namespace"], account["name"]

    def _account_kubeconfig(self, plane: Cluster, account: Sequence[str]) -> Path:
        namespace, name = account
        token = plane.kubectl("create", "token", name, "-n", namespace, "--duration=24h").text
        return plane.kubeconfig(f"agent-of-{self.folder.name}", token=token)

    def _child(self, program: str, *arguments: str | Path, log: str = "", namespace: str | None = None) -> Child:
        scaled = [sys.executable, "-m", "tests.lab.scaled", json.dumps(self._constants), program]
        child = Child(
            program,
            [*(scaled if self._constants else [BIN / program]), *arguments],
            log=self.folder / f"{log or program}.log",
            namespace=namespace,
            env=self.environment() | dict(self._environments.get(program, {})),
            cwd=ROOT,  # where `tests` can be imported
        )
        self._children.append(child)
        return child

    @staticmethod
    def _write(path: Path, document: Mapping[str, Any]) -> Path:
        path.touch(0o600)
        path.write_text(yaml.safe_dump(dict(document), sort_keys=False))
        return path


class _AdminConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=COMMAND_DEADLINE)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except BaseException:
            self.sock.close()
            raise
