"""A real Kubernetes control plane as owned child processes: etcd and kube-apiserver, kwok and streamlet for pods.

Everything lies in one folder (PKI, data, logs, kubeconfigs) and ends with `stop`. There is no controller manager, no
scheduler and no kubelet: kwok keeps the status of the one node and of pods that name it, streamlet answers logs, exec,
attach and port-forward with a kubelet's own code. Pods therefore need `spec.nodeName: node-1`, Deployments stay empty,
a deleted namespace keeps its finalizer. With a `network`, all of it runs in that namespace and `kubectl` enters it.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.lab import assets, pki
from tests.lab.network import MemberNetwork
from tests.lab.processes import Child, LabError, Started, free_ports

NODE = "node-1"
PLANE = ("kube-apiserver", "etcd", "kubectl")
PODS = ("streamlet", "kwok")
START_DEADLINE = 180.0
KUBECTL_DEADLINE = 60.0
STAGES = Path(__file__).with_name("kwok-stages.yaml")
AUDIT_POLICY = Path(__file__).with_name("audit-policy.yaml")


@dataclass(frozen=True, slots=True)
class Done:
    """What a command left: its exit code and both outputs."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        return self.stdout.decode(errors="replace").strip()


@dataclass(frozen=True, slots=True)
class Ports:
    apiserver: int
    etcd: int
    etcd_peer: int
    streamlet: int
    kwok: int


class ControlPlane(Started):
    """`start`, use `admin_kubeconfig` and `kubectl`, `stop`; also a context manager."""

    def __init__(self, folder: Path, *, network: MemberNetwork | None = None, pods: bool = True) -> None:
        self.folder, self.network, self._pods = folder, network, pods
        self._children: list[Child] = []
        self.programs: Mapping[str, Path] = assets.ensure([*PLANE, *(PODS if pods else ())])
        self.ports = Ports(*free_ports(5))
        self.address = network.member if network else "127.0.0.1"
        self.url = f"https://{self.address}:{self.ports.apiserver}"
        for name in ("pki", "logs", "home", "containers"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        self.ca = pki.ClusterCA(folder / "pki", "member-ca")
        self.audit_log = folder / "logs" / "audit.json"
        self.admin_kubeconfig = self.kubeconfig("admin", groups=["system:masters"])

    def kubeconfig(self, user: str, *, groups: Sequence[str] = (), token: str | None = None) -> Path:
        """A kubeconfig straight to the apiserver: a client certificate of the member's own CA, or a bearer token."""
        client = None if token else self.ca.client(f"client-{user}", user, groups)
        path = self.folder / f"{user}.kubeconfig"
        return pki.write_kubeconfig(path, name="member", server=self.url, ca=self.ca.pem, client=client, token=token)

    def start(self) -> None:
        try:
            self._start_etcd()
            apiserver = self._start_apiserver()
            apiserver.until(self._ready, "the apiserver is ready", START_DEADLINE)
            if self._pods:
                self._start_pods()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        while self._children:
            self._children.pop().stop()

    @property
    def children(self) -> Sequence[Child]:
        return tuple(self._children)

    def kubectl(
        self,
        *arguments: str,
        kubeconfig: Path | None = None,
        stdin: bytes = b"",
        deadline: float = KUBECTL_DEADLINE,
        check: bool = True,
    ) -> Done:
        """Run kubectl straight to the apiserver (inside the member's network); `check` makes a failure a LabError."""
        done = run(self.kubectl_argv(*arguments, kubeconfig=kubeconfig), self.environment(), stdin, deadline)
        if check and done.code != 0:
            raise LabError(
                f"kubectl {' '.join(arguments)}: exit code {done.code}: {done.stderr.decode()[-2000:].strip()}"
            )
        return done

    def kubectl_argv(self, *arguments: str, kubeconfig: Path | None = None) -> list[str]:
        inside = ["ip", "netns", "exec", self.network.name] if self.network else []
        return [
            *inside,
            str(self.programs["kubectl"]),
            "--kubeconfig",
            str(kubeconfig or self.admin_kubeconfig),
            *arguments,
        ]

    def environment(self) -> dict[str, str]:
        """What kubectl runs with: nothing of the user's configuration, a home of its own for its discovery cache."""
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder / "home")}

    def install(self, objects: Sequence[Mapping[str, Any]]) -> None:
        self.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects).encode())

    def create_pod(self, name: str, *, namespace: str = "default", containers: Sequence[str] = ("main",)) -> None:
        """A pod that runs at once (as far as kwok says), to log, exec, attach and forward to."""
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace, "labels": {"app": name}},
            "spec": {
                "nodeName": NODE,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": container, "image": "stand-in"} for container in containers],
            },
        }
        self.kubectl("create", "-f", "-", stdin=json.dumps(pod).encode())
        self.kubectl("wait", "-n", namespace, "--for=condition=Ready", f"pod/{name}", "--timeout=20s")

    def log_file(self, pod: str, *, namespace: str = "default", container: str = "main") -> Path:
        return self.folder / "containers" / f"{namespace}_{pod}_{container}.log"

    def write_log(self, pod: str, *lines: str, namespace: str = "default", container: str = "main") -> None:
        """Append to a container's log, in the runtime's format."""
        with self.log_file(pod, namespace=namespace, container=container).open("a") as log:
            for line in lines:
                log.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime())}.000000000Z stdout F {line}\n")

    def _child(self, name: str, *arguments: str | Path) -> Child:
        child = Child(
            name,
            [self.programs[name], *arguments],
            log=self.folder / "logs" / f"{name}.log",
            namespace=self.network.name if self.network else None,
            env=self.environment(),
            cwd=self.folder,
        )
        self._children.append(child)
        return child

    def _start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in (self.ports.etcd, self.ports.etcd_peer))
        self._child(
            "etcd",
            *("--name", "member", "--data-dir", self.folder / "etcd", "--log-level", "warn"),
            "--unsafe-no-fsync",  # a test's data need not survive a power cut
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"member={peer}"),
        )

    def _start_apiserver(self) -> Child:
        front_ca = pki.ClusterCA(self.folder / "pki", "front-proxy-ca")
        front = front_ca.client("front-proxy-client", "front-proxy-client")
        names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost", "127.0.0.1", "10.96.0.1"]
        serving = self.ca.server("apiserver", [*names, *([self.address] if self.network else [])])
        kubelet = self.ca.client("kubelet-client", "kube-apiserver-kubelet-client", ["system:masters"])
        accounts = pki.service_account_key(self.folder / "pki")
        return self._child(
            "kube-apiserver",
            *("--bind-address", "0.0.0.0" if self.network else "127.0.0.1", "--secure-port", str(self.ports.apiserver)),
            *("--advertise-address", self.address, "--endpoint-reconciler-type", "none"),
            *("--etcd-servers", f"http://127.0.0.1:{self.ports.etcd}", "--service-cluster-ip-range", "10.96.0.0/16"),
            *("--authorization-mode", "Node,RBAC", "--allow-privileged=true", "--profiling=false"),
            "--disable-admission-plugins=ServiceAccount",  # nobody makes the default accounts here
            *("--audit-policy-file", AUDIT_POLICY, "--audit-log-path", self.audit_log),
            *("--client-ca-file", self.ca.files.certificate),
            *("--tls-cert-file", serving.certificate, "--tls-private-key-file", serving.key),
            *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
            *("--service-account-key-file", accounts.certificate, "--service-account-signing-key-file", accounts.key),
            *("--kubelet-client-certificate", kubelet.certificate, "--kubelet-client-key", kubelet.key),
            *("--kubelet-certificate-authority", self.ca.files.certificate),
            *("--kubelet-preferred-address-types", "InternalIP"),
            *("--requestheader-client-ca-file", front_ca.files.certificate),
            *("--requestheader-allowed-names", "front-proxy-client"),
            *("--requestheader-username-headers", "X-Remote-User", "--requestheader-group-headers", "X-Remote-Group"),
            *("--requestheader-extra-headers-prefix", "X-Remote-Extra-"),
            *("--proxy-client-cert-file", front.certificate, "--proxy-client-key-file", front.key),
        )

    def _start_pods(self) -> None:
        serving = self.ca.server("kubelet", ["localhost", "127.0.0.1", NODE])
        tls = ["--tls-cert-file", serving.certificate, "--tls-private-key-file", serving.key]
        self._child(
            "streamlet",
            *("--listen", f"127.0.0.1:{self.ports.streamlet}", "--dir", self.folder / "containers"),
            *("--client-ca-file", self.ca.files.certificate, *tls),
        )
        kwok = self._child(
            "kwok",
            *("--kubeconfig", self.kubeconfig("kwok", groups=["system:masters"]), "--config", STAGES),
            *("--manage-all-nodes=true", "--node-lease-duration-seconds", "0"),  # no controller watches leases here
            *("--node-ip", "127.0.0.1", "--node-name", "localhost", "--node-port", str(self.ports.streamlet)),
            *("--server-address", f"127.0.0.1:{self.ports.kwok}", *tls),
        )
        node = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE}},
        }
        self.kubectl("create", "-f", "-", stdin=json.dumps(node).encode())
        kwok.until(self._node_ready, f"{NODE} is Ready", START_DEADLINE)

    def _ready(self) -> bool:
        return self.kubectl("get", "--raw", "/readyz", "--request-timeout=5s", check=False).text == "ok"

    def _node_ready(self) -> bool:
        done = self.kubectl(
            "get", "node", NODE, "-o", "jsonpath={.status.daemonEndpoints.kubeletEndpoint.Port}", check=False
        )
        return done.text == str(self.ports.streamlet)


def run(
    argv: Sequence[str], environment: Mapping[str, str], stdin: bytes = b"", deadline: float = KUBECTL_DEADLINE
) -> Done:
    """A command to its end, or a LabError when it has none within the deadline."""
    try:
        done = subprocess.run(
            list(argv), input=stdin, env=dict(environment), capture_output=True, timeout=deadline, check=False
        )
    except subprocess.TimeoutExpired as error:
        seen = (error.stderr or b"")[-2000:].decode(errors="replace")
        raise LabError(f"{' '.join(argv)}: no end within {deadline:.0f} s; stderr so far: {seen}") from None
    return Done(done.returncode, done.stdout, done.stderr)
