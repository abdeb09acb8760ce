"""The kinds of objects that `get` lists, and their columns: NAME first, AGE last, about 80 characters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from daemon.units import format_bytes, format_duration
from towerctl import times
from towerctl.output import Object, Resource
from towerctl.table import Column


def field(key: str) -> Callable[[Object], str]:
    return lambda item: text(item.get(key))


def text(value: Any) -> str:
    return "-" if value is None or value == "" else str(value)


def _age(key: str) -> Callable[[Object], str]:
    return lambda item: times.age(item.get(key))


def _until(key: str) -> Callable[[Object], str]:
    return lambda item: times.until(item.get(key))


def _duration(key: str) -> Callable[[Object], str]:
    return lambda item: format_duration(item.get(key))


def _bytes(key: str) -> Callable[[Object], str]:
    return lambda item: format_bytes(item.get(key))


def _tunnels(item: Object) -> str:
    return f"{item.get('tunnels') or 0}/{item.get('tunnels_expected') or 0}"


def _member(key: str) -> Callable[[Object], str]:
    return lambda item: text((item.get("member") or {}).get(key))


def _port(item: Object) -> str:
    return ",".join(str(port) for _, port in sorted((item.get("ports") or {}).items()))


def _state(item: Object) -> str:
    """With what is beside it, as kubectl writes a node's `Ready,SchedulingDisabled`."""
    return text(item.get("state")) + (",Flapping" if item.get("flapping") else "")


def _used(item: Object) -> str:
    return f"{item.get('used') or 0}/{item.get('uses') or 0}"


def agent_state(item: Object) -> str:
    if item.get("revoked"):
        return "Revoked"
    return "Connected" if item.get("tunnels") else "Disconnected"


_name: Final = field("name")

CLUSTERS: Final = Resource(
    "cluster",
    "clusters",
    (
        Column("NAME", _name),
        Column("READY", field("ready")),
        Column("REASON", _state),
        Column("TUNNELS", _tunnels),
        Column("RTT", _duration("rtt"), volatile=True),
        Column("VERSION", _member("version")),
        Column("PORT", _port, wide=True),
        Column("ENDPOINT", field("server"), wide=True),
        Column("DIALECT", field("dialect"), wide=True),
        Column("AGENT", _member("agent_version"), wide=True),
        Column("CODE", field("code"), wide=True),
        Column("CERT-EXPIRES", _until("certificate_expires"), wide=True, volatile=True),
        Column("HEARTBEAT", _age("last_heartbeat"), volatile=True),
        Column("AGE", _age("created"), volatile=True),
    ),
    _name,
)

TUNNELS: Final = Resource(
    "tunnel",
    "tunnels",
    (
        Column("CLUSTER", field("cluster")),
        Column("TUNNEL", field("id")),
        Column("AGENT", field("agent")),
        Column("FROM", field("remote")),
        Column("STATE", field("state")),
        Column("RTT", _duration("rtt"), volatile=True),
        Column("STREAMS", field("streams"), volatile=True),
        Column("SERVER", field("server"), wide=True),
        Column("INSTANCE", field("instance"), wide=True),
        Column("DIALECT", field("dialect"), wide=True),
        Column("VERSION", field("version"), wide=True),
        Column("IN", _bytes("bytes_in"), wide=True, volatile=True),
        Column("OUT", _bytes("bytes_out"), wide=True, volatile=True),
        Column("UP", _age("opened"), volatile=True),
    ),
    field("id"),
)

STREAMS: Final = Resource(
    "stream",
    "streams",
    (
        Column("CLUSTER", field("cluster")),
        Column("STREAM", field("id")),
        Column("TUNNEL", field("tunnel")),
        Column("SERVICE", field("service")),
        Column("CALLER", field("caller")),
        Column("IN", _bytes("bytes_in"), volatile=True),
        Column("OUT", _bytes("bytes_out"), volatile=True),
        Column("CONNECTION", field("connection_id"), wide=True),
        Column("SERVER", field("server"), wide=True),
        Column("AGE", _age("opened"), volatile=True),
    ),
    lambda item: f"{item.get('tunnel')}.{item.get('id')}",
)

AGENTS: Final = Resource(
    "agent",
    "agents",
    (
        Column("CLUSTER", field("cluster")),
        Column("AGENT", _name),
        Column("STATE", agent_state),
        Column("TUNNELS", field("tunnels")),
        Column("VERSION", field("version")),
        Column("FROM", field("remote"), wide=True),
        Column("SERVING-EXPIRES", _until("serving_expires"), wide=True, volatile=True),
        Column("RENEWED", _age("renewed"), wide=True, volatile=True),
        Column("EXPIRES", _until("identity_expires"), volatile=True),
        Column("SEEN", _age("seen"), volatile=True),
        Column("AGE", _age("created"), volatile=True),
    ),
    _name,
)

TOKENS: Final = Resource(
    "token",
    "tokens",
    (
        Column("CLUSTER", field("cluster")),
        Column("TOKEN", field("id")),
        Column("STATE", field("state")),
        Column("USED", _used),
        Column("EXPIRES", _until("expires"), volatile=True),
        Column("AGENTS", lambda item: ",".join(item.get("agents") or []), wide=True),
        Column("AGE", _age("created"), volatile=True),
    ),
    field("id"),
)
