"""The network of a Kubernetes host: servers with addresses of their own, and Services that a real kube-proxy keeps.

    here  10.77.N.254 ---- veth ---- 10.77.N.253  the host's namespace, with 10.77.N.1, .2, ... for its servers

Who calls a ClusterIP, from here or from inside, is sent by kube-proxy's own nftables rules to an address that the
Service's slices name. No fence stands before it, as before a member's.
"""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from tests.lab import assets
from tests.lab.controlplane import ControlPlane
from tests.lab.network import MemberNetwork, _run
from tests.lab.processes import Child, LabError

SERVICES = "10.96.0.0/16"
SUBNET = "10.77.{}.{}"


class ServiceNetwork(MemberNetwork):
    """The namespace `name` with `servers` addresses in it, until `close`. A `ControlPlane` runs in it as in any."""

    def __init__(self, servers: int) -> None:
        tag = secrets.token_hex(3)
        self.name = f"tower-{tag}"
        self._link, inner = f"ts{tag}", f"tn{tag}"
        number = _free_subnet()
        self.host, self.member = SUBNET.format(number, 254), SUBNET.format(number, 253)
        self.servers = [SUBNET.format(number, index + 1) for index in range(servers)]
        try:
            _run("ip", "netns", "add", self.name)
            _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", inner, "netns", self.name)
            _run("ip", "addr", "add", f"{self.host}/24", "dev", self._link)
            _run("ip", "link", "set", self._link, "up")
            self.run("ip", "addr", "add", f"{self.member}/24", "dev", inner)
            self.run("ip", "link", "set", inner, "up")
            self.run("ip", "link", "set", "lo", "up")
            for address in self.servers:
                self.run("ip", "addr", "add", f"{address}/32", "dev", inner)
            self.run("ip", "route", "add", SERVICES, "dev", "lo", "src", self.member)
            # In place of one that a killed run has left: it would lead nowhere.
            _run("ip", "route", "replace", SERVICES, "via", self.member, "dev", self._link)
        except BaseException:
            self.close()
            raise

    def proxy(self, plane: ControlPlane, folder: Path) -> Child:
        """kube-proxy in nftables mode, following the Services of `plane`."""
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "nftables",
            "hostnameOverride": "node-1",
            "clientConnection": {"kubeconfig": str(plane.kubeconfig("kube-proxy", groups=["system:masters"]))},
            "healthzBindAddress": "",
            "metricsBindAddress": "",
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
            "nftables": {"syncPeriod": "30s", "minSyncPeriod": "100ms"},
        }
        node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
        plane.install([node])
        status = {"status": {"addresses": [{"type": "InternalIP", "address": self.member}]}}
        plane.kubectl("patch", "node", "node-1", "--subresource=status", "--type=merge", "-p", json.dumps(status))
        path = folder / "kube-proxy.yaml"
        path.write_text(json.dumps(config))
        command = [assets.ensure(["kube-proxy"])["kube-proxy"], "--config", path]
        return Child("kube-proxy", command, log=folder / "kube-proxy.log", namespace=self.name)


def _free_subnet() -> int:
    taken = _run("ip", "-4", "-o", "addr")
    for _ in range(100):
        number = secrets.randbelow(250)
        if SUBNET.format(number, "") not in taken:
            return number
    raise LabError("no free subnet of 10.77/16")
