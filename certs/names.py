"""Who a certificate speaks for: the role in its URI SAN, and which names this system accepts at all.

A role is written `tower://<host>/<kind>/...` in one canonical way only: `parse_role` refuses what `str(role)` would not
have written, so no two spellings ever name the same peer. Hosts, clusters and agents are DNS labels. A user may hold
any printable ASCII (it travels in an HTTP header) and is percent-encoded in the URI; it has at most 64 characters,
which is what X.509 allows a CN.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, unquote

from certs.errors import IssueRefused

MEMBERS_DOMAIN: Final = "members.tower"
SCHEME: Final = "tower://"
MAX_NAME: Final = 64  # ub-common-name and ub-organization-name of RFC 5280
MAX_GROUPS: Final = 32
MAX_SERVER_NAMES: Final = 64
MAX_HOST_NAME: Final = 253  # RFC 1035

_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_PRINTABLE: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_DNS: Final = re.compile(r"(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*")


@dataclass(frozen=True, slots=True)
class RootRole:
    host: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}"


@dataclass(frozen=True, slots=True)
class IssuerRole:
    host: str
    issuer: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/issuers/{self.issuer}"


@dataclass(frozen=True, slots=True)
class ServerRole:
    host: str
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/servers/{self.name}"


@dataclass(frozen=True, slots=True)
class ReplicaRole:
    host: str
    name: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/replicas/{self.name}"


@dataclass(frozen=True, slots=True)
class AgentRole:
    host: str
    cluster: str
    agent: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/clusters/{self.cluster}/agents/{self.agent}"


@dataclass(frozen=True, slots=True)
class ServingRole:
    host: str
    cluster: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/clusters/{self.cluster}/serving"


@dataclass(frozen=True, slots=True)
class ClientRole:
    host: str
    user: str

    def __str__(self) -> str:
        return f"{SCHEME}{self.host}/clients/{quote(self.user, safe='')}"


Role = RootRole | IssuerRole | ServerRole | ReplicaRole | AgentRole | ServingRole | ClientRole


def parse_role(uri: str) -> Role | None:
    """The role that a URI SAN names; None when it is not one of ours or not in the canonical spelling."""
    if not uri.startswith(SCHEME) or len(uri) > 512:
        return None
    role: Role
    labels: tuple[str, ...]
    match uri[len(SCHEME) :].split("/"):
        case [host]:
            role, labels = RootRole(host), (host,)
        case [host, "issuers", issuer]:
            role, labels = IssuerRole(host, issuer), (host, issuer)
        case [host, "servers", name]:
            role, labels = ServerRole(host, name), (host, name)
        case [host, "replicas", name]:
            role, labels = ReplicaRole(host, name), (host, name)
        case [host, "clusters", cluster, "agents", agent]:
            role, labels = AgentRole(host, cluster, agent), (host, cluster, agent)
        case [host, "clusters", cluster, "serving"]:
            role, labels = ServingRole(host, cluster), (host, cluster)
        case [host, "clients", user]:
            role, labels = ClientRole(host, unquote(user)), (host,)
            if not is_user(role.user):
                return None
        case _:
            return None
    return role if str(role) == uri and all(map(is_label, labels)) else None


def member_name(cluster: str) -> str:
    """The name under which callers verify a cluster, whatever address they dial."""
    return f"{cluster}.{MEMBERS_DOMAIN}"


def is_label(name: str) -> bool:
    return _LABEL.fullmatch(name) is not None


def is_user(name: str) -> bool:
    return len(name) <= MAX_NAME and _PRINTABLE.fullmatch(name) is not None


def check_label(name: str, *, what: str) -> str:
    """`name`, when it is a DNS label; `what` is the noun for the message."""
    if not is_label(name):
        raise IssueRefused(
            f"the {what} name {name[:80]!r} is not a DNS label",
            "use 1 to 63 lower-case letters, digits and hyphens, with a letter or digit at both ends",
        )
    return name


def check_caller_name(name: str, *, host: str, what: str) -> str:
    """`name`, when this host may issue it as a user or group (`what`)."""
    if not is_user(name):
        raise IssueRefused(
            f"the {what} {name[:80]!r} cannot stand in a certificate and an HTTP header",
            f"use 1 to {MAX_NAME} printable ASCII characters, no space at either end",
        )
    if name.lower().startswith("system:"):
        raise IssueRefused(
            f"the {what} {name!r} belongs to Kubernetes: a tower never issues system: names",
            "choose another name, and let the member's owner bind it by RBAC",
        )
    if name.lower().startswith("tower:") and not name.startswith(f"tower:{host}:"):
        raise IssueRefused(
            f"the {what} {name!r} lies in the name space of another host",
            f"names of this host begin with tower:{host}:",
        )
    return name


def check_groups(groups: tuple[str, ...], *, host: str) -> tuple[str, ...]:
    if len(groups) > MAX_GROUPS:
        raise IssueRefused(
            f"{len(groups)} groups are more than a caller's certificate may carry",
            f"name at most {MAX_GROUPS}",
        )
    return tuple(dict.fromkeys(check_caller_name(group, host=host, what="group") for group in groups))


Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def parse_host(name: str) -> Address | str:
    """A name for a certificate as an address or a lower-case DNS name; a wildcard only as the whole first label."""
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        pass
    lowered = name.lower()
    if len(lowered) > MAX_HOST_NAME or _DNS.fullmatch(lowered) is None:
        raise IssueRefused(
            f"{name[:80]!r} is neither a DNS name nor an IP address", "leave out scheme, port, path and spaces"
        )
    return lowered


def check_serving_name(name: str, *, cluster: str) -> Address | str:
    """A further name for a cluster's serving certificate: never one that two clusters could share."""
    parsed = parse_host(name)
    if isinstance(parsed, str):
        shared = (
            parsed.startswith("*.")
            or parsed.split(".")[-1] == "localhost"
            or (parsed.endswith(f".{MEMBERS_DOMAIN}") and parsed != member_name(cluster))
        )
    else:
        shared = parsed.is_loopback or parsed.is_unspecified or parsed.is_multicast or parsed.is_link_local
    if shared:
        raise IssueRefused(
            f"the serving certificate of {cluster} may not carry {name!r}: it is not that cluster's alone",
            f"callers reach it as {member_name(cluster)} by tls-server-name, whatever address they dial",
        )
    return parsed
