"""The calls of the admin API, one function each: arguments in, an object out, TowerError for every refusal."""

from __future__ import annotations

import time
from typing import Any

from pydantic import Field

from certs.errors import CertsError
from certs.keys import MAX_CSR_BYTES, public_key_from_csr
from certs.names import check_caller_name, is_label, member_name
from daemon.faults import TowerError
from protocol import defaults
from protocol.errors import TunnelLost
from tower_server.admin.among import at_the_owner, everywhere, tell_everywhere, unknown, with_others
from tower_server.admin.body import Body, checked
from tower_server.admin.services import Services
from tower_server.admin.views import (
    Object,
    agent_view,
    cluster_view,
    list_of,
    moment,
    object_of,
    server_url,
    stream_view,
    token_view,
    tunnel_view,
)
from tower_server.checks import check_graph
from tower_server.faultof import certs_fault
from tower_server.probe import probe
from tower_server.records import Agent
from tower_server.replicas.wire import Asking
from tower_server.revocation_sync import sync_revocations
from tower_server.rotation import Step
from tower_server.tokens import NewToken


class NewCluster(Body):
    name: str
    serving_names: list[str] = Field(default=[], max_length=32)
    expected_tunnels: int | None = Field(default=None, ge=1, le=64)
    ttl: float | None = None
    uses: int | None = None
    join: bool = True


class NewTokenBody(Body):
    ttl: float | None = None
    uses: int | None = None


class CredentialBody(Body):
    csr: str = Field(max_length=MAX_CSR_BYTES)
    user: str | None = None
    groups: list[str] | None = Field(default=None, max_length=32)
    ttl: float | None = None


class RotationBody(Body):
    step: Step
    force: bool = False


class Nothing(Body):
    """A call that takes no body."""


# ---- clusters ---------------------------------------------------------------------------------------------------


async def view_of(services: Services, name: str) -> Object:
    services.clusters.get(name)  # refuses what is not there before anything is waited for
    agents, stale = await services.agents.shown(name)
    return {**cluster_view(services, *services.clusters.get(name), agents), "stale": stale}


async def list_clusters(services: Services) -> Object:
    by_cluster: dict[str, list[Agent]] = {}
    agents, stale = await services.agents.shown()
    for agent in agents:
        by_cluster.setdefault(agent.cluster, []).append(agent)
    found = [(name, *services.clusters.get(name)) for name in services.clusters.names()]
    views = [cluster_view(services, c, m, by_cluster.get(name, ())) for name, c, m in found]
    return {**list_of("Cluster", ({**view, "stale": stale} for view in views)), "stale": stale}


async def create_cluster(services: Services, document: dict[str, Any]) -> Object:
    asked = checked(NewCluster, document)
    if asked.join:
        await services.public.url()  # refuses before anything is made
    cluster = await services.clusters.create(
        asked.name, serving_names=asked.serving_names, expected_tunnels=asked.expected_tunnels
    )
    try:
        join = await services.tokens.create(cluster, ttl=asked.ttl, uses=asked.uses) if asked.join else None
    except TowerError:
        await services.clusters.delete(cluster)
        raise
    view = await view_of(services, cluster.name)
    return view if join is None else {**view, "join": new_token_view(join)}


async def delete_cluster(services: Services, name: str) -> Object:
    cluster, _ = services.clusters.get(name)
    view = await view_of(services, name)
    if cluster.resource:
        raise TowerError(
            "TWR605",
            f"the cluster {name} belongs to a Cluster resource of this host, from which it would be made again",
            mend=f"delete the resource: kubectl delete clusters.cluster.kubesphere.io {name}",
        )
    await services.clusters.delete(cluster)
    return await tell_everywhere(services, "revocations", view)  # who cannot read them serves the cluster still


# ---- tokens, agents, revocations --------------------------------------------------------------------------------


def new_token_view(made: NewToken) -> Object:
    """With the secret: shown this once. The command reads it from standard input, so it never stands in argv."""
    return {**token_view(made.token), "token": made.text, "command": f"echo '{made.text}' | tower-agent join"}


async def create_token(services: Services, cluster: str, document: dict[str, Any]) -> Object:
    asked = checked(NewTokenBody, document)
    record, _ = services.clusters.get(cluster)
    await services.public.url()
    return new_token_view(await services.tokens.create(record, ttl=asked.ttl, uses=asked.uses))


async def list_tokens(services: Services, cluster: str | None) -> Object:
    return list_of("Token", map(token_view, await services.tokens.list(cluster)))


async def revoke_token(services: Services, token: str) -> Object:
    return token_view(await services.tokens.revoke(token))


async def list_agents(services: Services, cluster: str | None) -> Object:
    agents, stale = await services.agents.shown(cluster)
    own = [_agent(services, agent) for agent in agents]
    if services.replicas is None:
        return {**list_of("Agent", own), "stale": stale}
    tunnels = await everywhere(services, "Tunnel", "tunnels", cluster, ())
    items = [with_others(view, tunnels["items"]) for view in own]
    return {**list_of("Agent", items), "unanswered": tunnels["unanswered"], "stale": stale}


def _agent(services: Services, agent: Agent) -> Object:
    member = services.registry.members.get(agent.cluster)
    return agent_view(agent, [t for t in (member.tunnels if member else []) if t.peer.agent == agent.name])


async def revoke_agent(services: Services, cluster: str, agent: str) -> Object:
    services.clusters.get(cluster)
    revoked = await services.agents.revoke(cluster, agent)
    return await _revocation(services, "agent", f"{cluster}/{agent}", revoked.revoked)


async def revoke_caller(services: Services, user: str) -> Object:
    try:
        check_caller_name(user, host=services.authority.host, what="user")
    except CertsError as error:
        raise TowerError("TWR605", error.text, mend=error.mend or None) from error
    now = time.time()
    await services.revocations.revoke_user(user, at=now)
    return await _revocation(services, "caller", user, now)


async def revoke_certificate(services: Services, serial: str) -> Object:
    try:
        number = int(serial, 16) if len(serial) <= 40 and serial.isalnum() else -1
    except ValueError:
        number = -1
    if number < 0:
        raise TowerError("TWR605", f"{serial[:60]!r} is not the serial number of a certificate: hexadecimal digits")
    now = time.time()
    await services.revocations.revoke_serial(number, expires=now + defaults.MAX_CALLER_DAYS * 86400.0, at=now)
    services.registry.close_serial(number)
    return await _revocation(services, "certificate", f"{number:x}", now)


async def _revocation(services: Services, kind: str, name: str, at: float | None) -> Object:
    """As it was done, at every server of the host before this returns; those that were not heard heed it within ten
    seconds and are named."""
    number = services.revocations.current.number
    made = object_of("Revocation", {"type": kind, "name": name, "at": moment(at), "number": number})
    return await tell_everywhere(services, "revocations", made)


async def list_revocations(services: Services) -> Object:
    listing = list_of("Revocation", services.revocations.items())
    return {**listing, "number": services.revocations.current.number}


# ---- callers ----------------------------------------------------------------------------------------------------


async def create_credential(services: Services, cluster: str, document: dict[str, Any]) -> Object:
    asked = checked(CredentialBody, document)
    host = services.authority.host
    connection = await connection_of(services, cluster)
    user = f"tower:{host}:admin" if asked.user is None else asked.user
    admins = [f"tower:{host}:cluster-admins"]
    groups = asked.groups if asked.groups is not None else admins if asked.user is None else []
    ttl = defaults.CALLER_HOURS * 3600.0 if asked.ttl is None else asked.ttl
    try:
        key = public_key_from_csr(asked.csr.encode())
        at = services.revocations.time_for_caller(user, at=time.time())
        issued = services.authority.issue_client(user, groups, public_key=key, at=at, ttl=ttl)
    except CertsError as error:
        raise certs_fault(error) from error
    return {
        **connection,
        "kind": "Credential",
        "chain": issued.chain_pem.decode(),
        "serial": f"{issued.serial:x}",
        "user": user,
        "groups": groups,
        "expires": moment(issued.not_after),
    }


async def connection_of(services: Services, cluster: str) -> Object:
    record, _ = services.clusters.get(cluster)
    return object_of(
        "Connection",
        {
            "cluster": record.name,
            "server": server_url(services, record),
            "tls_server_name": member_name(record.name),
            "ca": services.authority.bundle.root_pem.decode(),
            "host": services.authority.host,
        },
    )


# ---- tunnels ----------------------------------------------------------------------------------------------------


async def list_tunnels(services: Services, cluster: str | None) -> Object:
    return await everywhere(services, "Tunnel", "tunnels", cluster, own_tunnels(services, cluster))


def own_tunnels(services: Services, cluster: str | None) -> list[Object]:
    return [tunnel_view(member, tunnel) for member, tunnel in services.registry if cluster in (None, member.name)]


async def list_streams(services: Services, cluster: str | None) -> Object:
    return await everywhere(services, "Stream", "streams", cluster, own_streams(services, cluster))


def own_streams(services: Services, cluster: str | None) -> list[Object]:
    found = [(member, tunnel) for member, tunnel in services.registry if cluster in (None, member.name)]
    return [stream_view(m, t, stream) for m, t in found for stream in t.streams()]


async def told_to_servers(services: Services, asking: Asking) -> Object:
    """What this server says to another one of its host."""
    cluster = known_name(asking.cluster, "cluster") if asking.cluster else None
    match asking.call:
        case "tunnels":
            return list_of("Tunnel", own_tunnels(services, cluster))
        case "streams":
            return list_of("Stream", own_streams(services, cluster))
        case "ping" if cluster is not None:
            return await own_ping(services, cluster)
        case "revocations":
            await sync_revocations(services.revocations, services.registry, services.clusters.look)
            return object_of("Revocations", {"number": services.revocations.current.number})
    raise unknown(asking.call)


async def ping(services: Services, cluster: str) -> Object:
    """Times the parts of the way apart, at the server that holds the tunnel; the first that fails is the Error."""
    _, member = services.clusters.get(cluster)
    if member.pick() is None:
        answer = await at_the_owner(services, "ping", cluster)
        if answer is not None:
            return answer
    return await own_ping(services, cluster)


async def own_ping(services: Services, cluster: str) -> Object:
    _, member = services.clusters.get(cluster)
    tunnel = member.pick()
    if tunnel is None:
        verdict = member.verdict
        raise TowerError(verdict.code or "TWR201", f"cluster {cluster}: {verdict.cause}")
    try:
        mux = await tunnel.ping()
    except (TunnelLost, TimeoutError) as error:
        raise TowerError("TWR222", f"cluster {cluster}: the tunnel {tunnel.id} does not answer a ping") from error
    result = await probe(member, tunnel, services.credential)
    if not result.ok:
        raise TowerError(result.code, f"cluster {cluster}: {result.text}")
    return object_of(
        "Ping",
        {
            "cluster": cluster,
            "tunnel": tunnel.id,
            "agent": tunnel.peer.agent,
            "mux": mux,
            "stream": result.stream,
            "readyz": result.readyz,
            "status": result.status,
        },
    )


async def check(services: Services, cluster: str | None) -> Object:
    if cluster is not None:
        services.clusters.get(cluster)
    return (await check_graph(services, cluster).run()).document()


async def authority(services: Services) -> Object:
    return object_of("Authority", await services.rotation.view())


async def rotate(services: Services, document: dict[str, Any]) -> Object:
    asked = checked(RotationBody, document)
    await services.rotation.take(asked.step, force=asked.force)
    return await authority(services)


async def info(services: Services) -> Object:
    return object_of(
        "Info",
        {
            "version": services.version,
            "host": services.authority.host,
            "public_url": services.public.known,
            "listen": services.listen,
            "started": moment(services.started),
            "ca_fingerprint": services.authority.bundle.fingerprint,
            "ca": services.authority.bundle.root_pem.decode(),
            "clusters": len(services.clusters.names()),
            "tunnels": sum(1 for _ in services.registry),
        },
    )


def known_name(name: str, what: str) -> str:
    """A path's part that must be a DNS label. TowerError TWR605."""
    if not is_label(name):
        raise TowerError("TWR605", f"{name[:80]!r} cannot be the name of a {what}")
    return name
