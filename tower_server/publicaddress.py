"""The URL under which agents reach this tower: the configured one, else what a Kubernetes host publishes.

Looked for in this order: the address of a LoadBalancer in front of the tunnel port, the host of an Ingress with TLS to
it, a NodePort on a node with an external address. An address that may be wrong (a node's internal one, an Ingress
without TLS or host) is never used; the reason given instead names it. `find` is pure; `PublicAddress` repeats it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import Forbidden, KubeError
from daemon.kube.resources import SERVICES, Object, Resource, name_of
from daemon.log import get_logger

INGRESSES: Final = Resource("networking.k8s.io", "v1", "ingresses", "Ingress")
NODES: Final = Resource("", "v1", "nodes", "Node", namespaced=False)
TUNNEL: Final = "tunnel"
"""The name of the tunnel port in the Service, by which it is found."""
LOOK_EVERY: Final = 60.0
EXTERNAL: Final = ("ExternalDNS", "ExternalIP")
SET_IT: Final = "set `public_url: wss://HOST:PORT` in the server's configuration to what members can dial"

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Missing:
    """Why there is no address, and what to do."""

    text: str
    mend: str


def find(services: Sequence[Object], ingresses: Sequence[Object], nodes: Sequence[Object]) -> str | Missing:
    """The URL, or why there is none."""
    leading = [service for service in services if tunnel_port(service) is not None]
    if not leading:
        return Missing(f"no Service of the tower's namespace has a port named {TUNNEL}", SET_IT)
    why: list[str] = []
    for source in (_balanced(leading), _ingressed(leading, ingresses), _node_port(leading, nodes)):
        for found in source:
            if isinstance(found, str):
                return found
            why.append(found.text)
    if why:
        return Missing("; ".join(why), f"wait until it has one, or {SET_IT}")
    (service, *_) = leading
    kind = (service.get("spec") or {}).get("type", "ClusterIP")
    text = f"the Service {name_of(service)} is of type {kind}, and no Ingress leads to it: nobody outside reaches it"
    return Missing(text, f"make it a LoadBalancer or NodePort, or {SET_IT}")


def tunnel_port(service: Object) -> dict[str, Any] | None:
    for port in (service.get("spec") or {}).get("ports") or ():
        if port.get("name") == TUNNEL:
            return dict(port)
    return None


def _url(host: str, port: int) -> str:
    shown = f"[{host}]" if ":" in host else host
    return f"wss://{shown}" + ("" if port == 443 else f":{port}")


def _published(of: Object) -> str | None:
    """The name, or the address, that a load balancer has written into a status."""
    for each in ((of.get("status") or {}).get("loadBalancer") or {}).get("ingress") or ():
        if each.get("hostname") or each.get("ip"):
            return str(each.get("hostname") or each["ip"])
    return None


def _balanced(services: Iterable[Object]) -> Iterator[str | Missing]:
    for service in services:
        if (service.get("spec") or {}).get("type") != "LoadBalancer":
            continue
        host, port = _published(service), tunnel_port(service)
        if host is not None and port is not None:
            yield _url(host, int(port["port"]))
        else:
            yield Missing(f"the load balancer of Service {name_of(service)} has no address yet", "")


def _ingressed(services: Iterable[Object], ingresses: Iterable[Object]) -> Iterator[str | Missing]:
    names = {name_of(service) for service in services}
    for ingress in ingresses:
        spec = ingress.get("spec") or {}
        secured = [str(host) for tls in spec.get("tls") or () for host in tls.get("hosts") or ()]
        for rule in spec.get("rules") or ():
            paths = (rule.get("http") or {}).get("paths") or ()
            backends = {((path.get("backend") or {}).get("service") or {}).get("name") for path in paths}
            if not backends & names:
                continue
            host = str(rule.get("host") or "")
            if not host or "*" in host:
                yield Missing(f"the Ingress {name_of(ingress)} leads to it without a host of its own", "")
            elif not any(_covers(each, host) for each in secured):
                yield Missing(f"the Ingress {name_of(ingress)} has no TLS for {host}", "")
            elif _published(ingress) is None:
                yield Missing(f"no ingress controller has taken the Ingress {name_of(ingress)} ({host}) yet", "")
            else:
                yield _url(host, 443)


def _covers(pattern: str, host: str) -> bool:
    return pattern == host or (pattern.startswith("*.") and host.partition(".")[2] == pattern[2:])


def _node_port(services: Iterable[Object], nodes: Sequence[Object]) -> Iterator[str | Missing]:
    for service in services:
        port = tunnel_port(service)
        if (service.get("spec") or {}).get("type") != "NodePort" or port is None or not port.get("nodePort"):
            continue
        number = int(port["nodePort"])
        ready = sorted(filter(_is_ready, nodes), key=name_of)
        outside = [address for node in ready for address in _addresses(node, EXTERNAL)]
        inside = [address for node in ready for address in _addresses(node, ("InternalIP",))]
        if outside:
            yield _url(outside[0], number)
        elif inside:
            yield Missing(
                f"the Service {name_of(service)} is a NodePort, and no ready node has an external address "
                f"(members that reach {inside[0]} could be given {_url(inside[0], number)})",
                "",
            )
        else:
            yield Missing(f"the Service {name_of(service)} is a NodePort, and no node is ready", "")


def _addresses(node: Object, kinds: Sequence[str]) -> Iterator[str]:
    held = (node.get("status") or {}).get("addresses") or ()
    for kind in kinds:
        yield from (str(each["address"]) for each in held if each.get("type") == kind and each.get("address"))


def _is_ready(node: Object) -> bool:
    conditions = (node.get("status") or {}).get("conditions") or ()
    return any(each.get("type") == "Ready" and each.get("status") == "True" for each in conditions)


class PublicAddress:
    """`configured` wins. Without one, and with a host cluster's `client`, `look` finds what `known` then is."""

    def __init__(self, configured: str | None, *, client: Client | None = None, namespace: str = "") -> None:
        self.configured = configured
        self.known = configured
        self.changed: Callable[[str], None] = lambda _url: None
        """Called with each new URL that was found."""
        self._client = client
        self._namespace = namespace
        self._missing = Missing("no public_url is set", SET_IT)

    @property
    def missing(self) -> TowerError:
        """Why there is none."""
        text = f"this server does not know under which URL its agents reach it: {self._missing.text}"
        return TowerError("TWR111", text, mend=self._missing.mend)

    async def url(self) -> str:
        """As of now; TowerError TWR111."""
        await self.look()
        if self.known is None:
            raise self.missing
        return self.known

    async def look(self) -> None:
        """Ask the host cluster. While that cannot be asked, what was known stays."""
        if self.configured is not None or self._client is None:
            return
        try:
            found = await self._find(self._client)
        except KubeError as error:
            self._missing = Missing(f"the host cluster cannot be asked: {error.message}", error.mend or SET_IT)
            return
        if isinstance(found, Missing):
            self.known, self._missing = None, found
        elif found != self.known:
            log.info("public-address", url=found)
            self.known = found
            self.changed(found)

    async def _find(self, client: Client) -> str | Missing:
        services = (await client.list(SERVICES, namespace=self._namespace)).items
        leading = [each for each in services if tunnel_port(each) is not None]
        unseen: list[str] = []
        ingresses = await self._seen(client, INGRESSES, unseen, namespace=self._namespace)
        is_node_port = any((each.get("spec") or {}).get("type") == "NodePort" for each in leading)
        nodes = await self._seen(client, NODES, unseen) if is_node_port else []
        found = find(leading, ingresses, nodes)
        if isinstance(found, Missing) and unseen:
            return Missing(f"{found.text}; {'; '.join(unseen)}", found.mend)
        return found

    async def _seen(
        self, client: Client, resource: Resource, unseen: list[str], *, namespace: str | None = None
    ) -> list[Object]:
        """What there is; a right that is missing is no obstacle to what can be seen without it."""
        try:
            return (await client.list(resource, namespace=namespace)).items
        except Forbidden:
            unseen.append(f"this server may not list {resource}")
            return []
