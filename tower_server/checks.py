"""What `towerctl check` asks: the server itself, then each cluster along the way to its apiserver."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from daemon.checks import Check, Graph, Result, fail, ok, warn
from daemon.units import format_age, format_count, format_duration
from protocol import defaults
from tower_server.admin.among import at_the_owner
from tower_server.member import Member, is_legacy

if TYPE_CHECKING:
    from tower_server.admin.services import Services
    from tower_server.replicas.replicas import Replicas

CA_WARNS: Final = 30 * 86400.0


def check_graph(services: Services, cluster: str | None = None) -> Graph:
    """All checks, or those of the server and one cluster."""
    names = services.clusters.names() if cluster is None else [cluster]
    about = (replace(check, cluster=name) for name in names for check in _cluster_checks(services, name))
    return Graph([*_server_checks(services), *about])


def _server_checks(services: Services) -> Iterator[Check]:
    if services.host is not None:
        from tower_server.hostchecks import clock_check
        from tower_server.hostrights import check_rights

        rights = partial(check_rights, services.host, services.namespace)
        yield Check("rights", rights, category="server", title="rights on the host", code="TWR115")
        yield clock_check(services.host, needs=("rights",))  # they are asked for, which tells the apiserver's time
    needs = () if services.host is None else ("rights",)
    yield Check("store", partial(_store, services), needs=needs, category="server", title="store", code="TWR105")
    yield Check("public-url", partial(_public_url, services), category="server", title="public URL", code="TWR111")
    if services.replicas is not None:
        servers = partial(_servers, services.replicas)
        yield Check("servers", servers, category="server", title="other servers", code="TWR118")
    yield Check("ca", partial(_ca, services), category="pki", title="tower CA", code="TWR501")


def _cluster_checks(services: Services, name: str) -> Iterator[Check]:
    _, member = services.clusters.get(name)
    port, tunnel, ready = f"port/{name}", f"tunnel/{name}", f"readyz/{name}"
    yield Check(port, partial(_port, services, name), category="ports", subject=name, title="port", code="TWR110")
    yield Check(tunnel, partial(_tunnel, member), category="clusters", subject=name, title="tunnel", code="TWR201")
    yield Check(
        f"identity/{name}", partial(_identity, services, member), category="pki", subject=name, title="identities",
        code="TWR503",
    )  # fmt: skip
    yield Check(
        ready, partial(_readyz, services, member), needs=(tunnel,), category="clusters", subject=name, title="/readyz",
        code="TWR302",
    )  # fmt: skip
    yield Check(
        f"redundancy/{name}", partial(_redundancy, member), needs=(ready,), category="clusters", subject=name,
        title="tunnels and policy", code="TWR202",
    )  # fmt: skip
    if services.host is not None:
        from tower_server.hostchecks import host_checks  # brings the whole client along

        yield from host_checks(services.host, name, needs=(ready,))


async def _store(services: Services) -> Result:
    return ok(f"store {await services.store.check()}")


async def _public_url(services: Services) -> Result:
    await services.public.look()
    if services.public.known is None:
        return warn("TWR111", f"join commands cannot be made: {services.public.missing.message}")
    return ok(f"agents are told to dial {services.public.known}")


async def _ca(services: Services) -> Result:
    left = services.authority.bundle.root.not_valid_after_utc.timestamp() - time.time()
    if left < CA_WARNS:
        return warn("TWR503", f"the tower CA expires in {format_age(left)}")
    return ok(f"CA {format_age(left)} left")


async def _port(services: Services, name: str) -> Result:
    for port in services.clusters.ports.of(name):
        if not port.listening:
            return fail("TWR110", port.problem.message if port.problem else f"port {port.port} does not listen")
    return ok("listening")


async def _servers(replicas: Replicas) -> Result:
    links = replicas.links.values()
    if silent := sorted(f"{link.peer.name} ({link.peer.address}): {link.why}" for link in links if not link.up):
        return warn("TWR118", f"no heartbeat comes to {replicas.name} of {', nor of '.join(silent)}")
    return ok(f"{format_count(len(links), 'other server')}")


async def _tunnel(member: Member) -> Result:
    if member.serving:
        return ok(f"{format_count(len(member.serving), 'tunnel')}, round trip {format_duration(member.rtt)}")
    if member.elsewhere is not None:
        return ok(f"{format_count(member.elsewhere.tunnels, 'tunnel')} at another server")
    evidence = [
        f"last {entry.event}: {', '.join(filter(None, (entry.text or entry.code, entry.agent)))} from {entry.remote}"
        for entry in list(member.history)[:2]
    ]
    verdict = member.verdict
    return fail(verdict.code or "TWR201", verdict.cause, evidence=evidence)


async def _identity(services: Services, member: Member) -> Result:
    now = time.time()
    living = [agent for agent in await services.agents.list(member.name) if agent.revoked is None]
    serving = {tunnel.peer.agent for tunnel in member.serving if not is_legacy(tunnel)}
    if gone := sorted(serving - {agent.name for agent in living}):
        return fail("TWR209", f"agent {gone[0]} serves, but its record is gone: it will be refused when it reconnects")
    for agent in living:
        left = min(agent.identity_expires, agent.serving_expires) - now
        if left < 0:
            return warn("TWR502", f"the certificates of agent {agent.name} expired {format_age(-left)} ago")
        if left < defaults.AGENT_IDENTITY_DAYS * 86400.0 / 10:
            return warn("TWR503", f"the certificates of agent {agent.name} expire in {format_age(left)}")
    return ok(f"certificates of {format_count(len(living), 'agent')}")


async def _readyz(services: Services, member: Member) -> Result:
    if not member.serving and await at_the_owner(services, "ping", member.name) is not None:
        return ok("/readyz answered at another server")
    result = await services.probing.now(member)
    if result is None:
        return fail("TWR201", "the tunnel was lost during the check")
    if not result.ok:
        return fail(result.code, result.text)
    return ok(f"/readyz answered in {format_duration(result.readyz)}")


async def _redundancy(member: Member) -> Result:
    verdict = member.verdict
    if said := member.flaps.said():
        return warn("TWR229", said)
    if verdict.state == "Degraded":
        return warn(verdict.code, verdict.cause)
    return ok("as many tunnels as expected")
