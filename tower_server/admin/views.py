"""Objects of the admin API, as docs/ARCHITECTURE.md writes them down. No secret is ever in one of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from certs.names import member_name
from certs.peers import rfc3339
from daemon.faults import FAULTS
from protocol.aio.tunnel import StreamInfo, Tunnel
from tower_server.admin.services import Services
from tower_server.listeners import CallerPort
from tower_server.member import CONDITIONS, DETACHED, Entry, Member, is_legacy
from tower_server.records import KUBERNETES, Agent, Cluster, Token
from tower_server.tokens import token_state

API_VERSION = "tower/v1"
_YEAR_10000 = 253402300800.0  # RFC 3339 knows no later one
Object = dict[str, Any]


def object_of(kind: str, fields: Mapping[str, Any]) -> Object:
    return {"apiVersion": API_VERSION, "kind": kind, **fields}


def list_of(kind: str, items: Iterable[Object]) -> Object:
    return object_of(f"{kind}List", {"items": list(items)})


def moment(at: float | None) -> str | None:
    return None if at is None else rfc3339(at)


def wall(loop_time: float) -> float:
    """The wall-clock time of a moment on the loop's clock."""
    return time.time() - (asyncio.get_running_loop().time() - loop_time)


def cluster_view(services: Services, cluster: Cluster, member: Member, agents: Iterable[Agent]) -> Object:
    member.refresh()  # as of now: a probe may have gone stale since anything happened
    verdict = member.verdict
    living = [agent for agent in agents if agent.revoked is None]
    expiries = [min(agent.identity_expires, agent.serving_expires) for agent in living]
    up = bool(member.tunnels)
    return object_of(
        "Cluster",
        {
            "name": cluster.name,
            "uid": cluster.uid,
            "created": moment(cluster.created),
            "ready": verdict.ready,
            "state": verdict.state,
            "code": verdict.code or None,
            "cause": verdict.cause or None,
            "mend": FAULTS[verdict.code].mend_for(cluster.name) if verdict.code in FAULTS else None,
            "since": moment(member.since),
            "ports": dict(cluster.ports),
            "server": server_url(services, cluster),
            "tls_server_name": member_name(cluster.name),
            "dialect": min(member.tunnels, key=is_legacy).dialect if up else None,
            "tunnels": member.tunnels_of_host,
            "tunnels_expected": member.expected,
            "rtt": member.rtt,
            "last_seen": moment(time.time() if up else member.connected),
            "last_heartbeat": moment(member.last_heartbeat),
            "flapping": member.flaps.said() or None,
            "member": member_view(member),
            "agents": [agent.name for agent in living],
            "certificate_expires": moment(min(expiries, default=None)),
            "serving_names": list(cluster.serving_names),
            "conditions": conditions(member, services.clusters.ports.of(cluster.name)),
            "history": [entry_view(entry) for entry in member.history],
        },
    )


def member_view(member: Member) -> Object | None:
    """What the agent last reported, its probe's facts first."""
    if not member.known_report:
        return None
    report = dict(member.known_report)
    facts: Object = {}
    probe = report.get("probe")
    if isinstance(probe, Mapping):
        facts = {key: probe.get(key) for key in ("version", "uid", "nodes")}
        report["probe"] = {**probe, "at": _told_moment(probe.get("at"))}
    report |= {key: _told_moment(report[key]) for key in ("identity_expires", "serving_expires") if key in report}
    return {**facts, **report, "reported": moment(member.reported_at)}


def _told_moment(at: object) -> str | None:
    """A time in an agent's words, which may be anything."""
    return rfc3339(at) if isinstance(at, int | float) and 0 <= at < _YEAR_10000 else None


def entry_view(entry: Entry) -> Object:
    return {
        "at": moment(entry.at),
        "event": entry.event,
        "agent": entry.agent,
        "remote": entry.remote,
        "code": entry.code or None,
        "text": entry.text or None,
    }


def conditions(member: Member, ports: Iterable[CallerPort]) -> list[Object]:
    verdict = member.verdict
    available = member.tunnels_of_host > 0
    ready = {"True": "True", "False": "False"}.get(verdict.ready, "Unknown") if available else "Unknown"
    cause = verdict.cause
    found = [
        _condition("AgentAvailable", str(available), "Connected" if available else verdict.state, cause, member.since),
        _condition("MemberReady", ready, verdict.state, cause, member.since),
    ]
    said = {each for tunnel in member.serving for each in tunnel.data.get(CONDITIONS, ())}
    for kind, status, reason, message in sorted(said):
        found.append(_condition(kind, status, reason, message, member.since))
    for port in ports:
        problem = port.problem
        message = problem.message if problem is not None else f"port {port.port} listens for {port.service}"
        status, reason = ("True", "Listening") if port.listening else ("False", "PortUnavailable")
        if port.service == KUBERNETES or problem is not None:
            found.append(_condition("PortReady", status, reason, message, port.since))
    return found


def _condition(kind: str, status: str, reason: str, message: str, since: float) -> Object:
    return {"type": kind, "status": status, "reason": reason, "message": message, "since": moment(since)}


def server_url(services: Services, cluster: Cluster) -> str | None:
    """Where callers reach the cluster; None while it has no port."""
    port = cluster.ports.get(KUBERNETES)
    if port is None:
        return None
    if not services.callers_address:  # in pods, whose ports nothing but the cluster's own Service leads to
        return f"https://mc-{cluster.name}.{services.namespace}.svc:6443"
    host = services.callers_address
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def tunnel_view(member: Member, tunnel: Tunnel) -> Object:
    return object_of(
        "Tunnel",
        {
            "id": tunnel.id,
            "name": tunnel.id,
            "cluster": member.name,
            "agent": tunnel.peer.agent,
            "instance": tunnel.instance,
            "remote": tunnel.remote,
            "dialect": tunnel.dialect,
            "state": _state(tunnel),
            "rtt": tunnel.rtt,
            "streams": tunnel.stream_count,
            "bytes_in": tunnel.bytes_in,
            "bytes_out": tunnel.bytes_out,
            "opened": moment(wall(tunnel.opened_at)),
            "version": tunnel.software or None,
        },
    )


def _state(tunnel: Tunnel) -> str:
    if tunnel.draining:
        return "Draining"
    if tunnel.renew_only:
        return "RenewOnly"
    if DETACHED in tunnel.data:
        return "Detached"
    return "Stalled" if tunnel.stalled else "Open"


def stream_view(member: Member, tunnel: Tunnel, stream: StreamInfo) -> Object:
    return object_of(
        "Stream",
        {
            "id": stream.id,
            "name": f"{tunnel.id}.{stream.id}",
            "tunnel": tunnel.id,
            "cluster": member.name,
            "service": stream.service,
            "caller": stream.caller,
            "connection_id": stream.connection_id,
            "opened": moment(wall(stream.opened_at)),
            "bytes_in": stream.bytes_in,
            "bytes_out": stream.bytes_out,
        },
    )


def agent_view(agent: Agent, tunnels: list[Tunnel]) -> Object:
    up = bool(tunnels)
    return object_of(
        "Agent",
        {
            "name": agent.name,
            "cluster": agent.cluster,
            "created": moment(agent.created),
            "renewed": moment(agent.renewed),
            "revoked": moment(agent.revoked),
            "seen": moment(time.time() if up else agent.seen),
            "identity_expires": moment(agent.identity_expires),
            "serving_expires": moment(agent.serving_expires),
            "tunnels": len(tunnels),
            "version": (tunnels[0].software if up else agent.version) or None,
            "remote": tunnels[0].remote if up else None,
        },
    )


def token_view(token: Token) -> Object:
    return object_of(
        "Token",
        {
            "id": token.id,
            "name": token.id,
            "cluster": token.cluster,
            "created": moment(token.created),
            "expires": moment(token.expires),
            "uses": token.uses,
            "used": len(token.keys),
            "state": token_state(token, time.time()),
            "agents": sorted({answer.agent for answer in token.keys.values()}),
        },
    )
