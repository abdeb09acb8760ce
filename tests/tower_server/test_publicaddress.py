from __future__ import annotations

from typing import Any

import pytest

from daemon.faults import TowerError
from daemon.kube.client import Listing
from daemon.kube.errors import Forbidden, Unreachable
from tower_server.publicaddress import Missing, PublicAddress, find

PORT = {"name": "tunnel", "port": 8443, "nodePort": 30443}


def service(kind: str, *published: dict[str, str], **port: Any) -> dict[str, Any]:
    spec = {"type": kind, "ports": [{**PORT, **port}]}
    return {
        "metadata": {"name": "tower-server"},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": list(published)}},
    }


def ingress(host: str = "tower.example.com", *, tls: str | None = "tower.example.com", taken: bool = True) -> dict:
    path = {"path": "/v1", "backend": {"service": {"name": "tower-server"}}}
    spec: dict[str, Any] = {"rules": [{"host": host, "http": {"paths": [path]}}]}
    if tls is not None:
        spec["tls"] = [{"hosts": [tls]}]
    status = {"loadBalancer": {"ingress": [{"ip": "198.51.100.4"}] if taken else []}}
    return {"metadata": {"name": "tower"}, "spec": spec, "status": status}


def node(name: str, *, ready: bool = True, **addresses: str) -> dict[str, Any]:
    held = [{"type": kind, "address": address} for kind, address in addresses.items()]
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {"metadata": {"name": name}, "status": {"addresses": held, "conditions": conditions}}


@pytest.mark.parametrize(
    ("services", "ingresses", "nodes", "url"),
    [
        ([service("LoadBalancer", {"ip": "203.0.113.7"})], [], [], "wss://203.0.113.7:8443"),
        ([service("LoadBalancer", {"hostname": "lb.example.com"}, port=443)], [], [], "wss://lb.example.com"),
        ([service("LoadBalancer", {"ip": "2001:db8::7"})], [], [], "wss://[2001:db8::7]:8443"),
        ([service("ClusterIP")], [ingress()], [], "wss://tower.example.com"),
        ([service("ClusterIP")], [ingress(tls="*.example.com")], [], "wss://tower.example.com"),
        ([service("NodePort")], [], [node("a", ExternalIP="198.51.100.9")], "wss://198.51.100.9:30443"),
        (
            [service("NodePort")],
            [],
            [
                node("a", ready=False, ExternalIP="198.51.100.1"),
                node("b", InternalIP="10.0.0.2", ExternalIP="198.51.100.2"),
            ],
            "wss://198.51.100.2:30443",
        ),
        ([service("LoadBalancer")], [ingress()], [], "wss://tower.example.com"),
    ],
)
def test_what_the_host_publishes_is_found(services: list, ingresses: list, nodes: list, url: str) -> None:
    assert find(services, ingresses, nodes) == url


@pytest.mark.parametrize(
    ("services", "ingresses", "nodes", "told"),
    [
        ([], [], [], "no Service of the tower's namespace has a port named tunnel"),
        ([service("ClusterIP")], [], [], "the Service tower-server is of type ClusterIP, and no Ingress leads to it"),
        ([service("LoadBalancer")], [], [], "the load balancer of Service tower-server has no address yet"),
        ([service("ClusterIP")], [ingress(tls=None)], [], "the Ingress tower has no TLS for tower.example.com"),
        ([service("ClusterIP")], [ingress("*.example.com")], [], "without a host of its own"),
        ([service("ClusterIP")], [ingress(taken=False)], [], "no ingress controller has taken the Ingress tower"),
        (
            [service("NodePort")],
            [],
            [node("a", InternalIP="10.0.0.5")],
            "no ready node has an external address (members that reach 10.0.0.5 could be given wss://10.0.0.5:30443)",
        ),
        ([service("NodePort")], [], [node("a", ready=False, ExternalIP="198.51.100.9")], "no node is ready"),
    ],
)
def test_an_address_that_may_be_wrong_is_not_taken_but_explained(
    services: list, ingresses: list, nodes: list, told: str
) -> None:
    found = find(services, ingresses, nodes)
    assert isinstance(found, Missing)
    assert told in found.text
    assert "public_url" in found.mend


def test_an_ingress_to_another_service_is_not_ours() -> None:
    other = ingress()
    other["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]["name"] = "grafana"
    found = find([service("ClusterIP")], [other], [])
    assert isinstance(found, Missing)


class Host:
    """Of a Kubernetes client what is used here."""

    def __init__(self, **held: Any) -> None:
        self.held = held
        self.asked: list[str] = []

    async def list(self, resource: Any, *, namespace: str | None = None) -> Listing:
        self.asked.append(resource.plural)
        found = self.held.get(resource.plural, [])
        if isinstance(found, Exception):
            raise found
        return Listing(found, "1")


@pytest.mark.asyncio
async def test_what_is_configured_wins_and_nobody_is_asked() -> None:
    host = Host(services=[service("LoadBalancer", {"ip": "203.0.113.7"})])
    public = PublicAddress("wss://tower.example.com", client=host, namespace="tower-system")  # type: ignore[arg-type]
    assert await public.url() == "wss://tower.example.com"
    assert host.asked == []


@pytest.mark.asyncio
async def test_an_address_that_comes_goes_and_changes_is_followed() -> None:
    host = Host(services=[service("LoadBalancer")])
    public = PublicAddress(None, client=host, namespace="tower-system")  # type: ignore[arg-type]
    seen: list[str] = []
    public.changed = seen.append
    with pytest.raises(TowerError) as caught:
        await public.url()
    assert caught.value.code == "TWR111"
    assert "the load balancer of Service tower-server has no address yet" in caught.value.message
    assert "public_url" in (caught.value.mend or "")
    for address in ("203.0.113.7", "203.0.113.7", "203.0.113.8"):
        host.held["services"] = [service("LoadBalancer", {"ip": address})]
        assert await public.url() == f"wss://{address}:8443"
    assert seen == ["wss://203.0.113.7:8443", "wss://203.0.113.8:8443"]
    assert "nodes" not in host.asked, "without a NodePort no right to see nodes is needed"
    host.held["services"] = Unreachable("TWR114", "it is away")
    assert await public.url() == "wss://203.0.113.8:8443", "what was known stays while nobody can be asked"


@pytest.mark.asyncio
async def test_a_right_that_is_missing_is_named_where_it_matters() -> None:
    host = Host(services=[service("ClusterIP")], ingresses=Forbidden("TWR115", "no"))
    public = PublicAddress(None, client=host, namespace="tower-system")  # type: ignore[arg-type]
    with pytest.raises(TowerError, match="this server may not list ingresses"):
        await public.url()
    host.held["services"] = [service("LoadBalancer", {"ip": "203.0.113.7"})]
    assert await public.url()


@pytest.mark.asyncio
async def test_without_a_host_cluster_there_is_only_what_is_configured() -> None:
    with pytest.raises(TowerError, match="no public_url is set"):
        await PublicAddress(None).url()
