"""The owner's policy: read from its file, followed when it changes, compared with the member's RBAC.

A file that cannot be used at start ends the start. One that becomes unusable later changes nothing: the policy in force
stays, and the host is told that it is Degraded. A host that the file does not name may act as nobody; without a file a
host may do what the manifest of a new member grants.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from daemon import yamlfile
from daemon.faults import TowerError
from gateway.errors import PolicyError
from gateway.policy import Policy
from tower_agent.member import MemberApi

MAX_NAMED: Final = 10  # names in one sentence; it travels in every status


class PolicyFile:
    """The rules of all hosts. `path` None: every host has the default."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.problem: str | None = None
        self._hosts: Mapping[str, Any] | None = None
        self._seen: tuple[int, int, int] | None = None
        if path is not None:
            self._hosts, self._seen = _read(path), _stamp(path)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts that the file names."""
        return tuple(sorted(map(str, self._hosts or ())))

    def policy(self, host: str) -> Policy:
        """The rules for one host. Raises TowerError TWR101."""
        if self._hosts is None:
            return Policy.default(host)
        return _rules(self.path, self._hosts, host)

    def changed(self) -> bool:
        """Whether the file has new content that can be used; what cannot be used is kept in `problem`."""
        if self.path is None:
            return False
        stamp = _stamp(self.path)
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            hosts = _read(self.path)
        except TowerError as error:
            self.problem = f"{error.message}; the policy that was read before is in force"
            return False
        self.problem = None
        if hosts == self._hosts:
            return False
        self._hosts = hosts
        return True


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """Changes when the file does; a ConfigMap is swapped by a link, which gives another inode."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read(path: Path) -> Mapping[str, Any]:
    document, _lines = yamlfile.read(path, decides=True)
    unknown = sorted(set(document) - {"hosts"})
    hosts = document.get("hosts", {})
    if unknown or not isinstance(hosts, dict):
        what = f"unknown keys {', '.join(unknown)}" if unknown else "`hosts` is not a mapping"
        raise TowerError("TWR101", f"the policy file {path}: {what}; it holds `hosts:` with the rules of each host")
    for host in hosts:
        _rules(path, hosts, str(host))
    return hosts


def _rules(path: Path | None, hosts: Mapping[str, Any], host: str) -> Policy:
    rules = hosts.get(host)
    if rules is not None and not isinstance(rules, dict):
        raise TowerError("TWR101", f"the policy file {path}: the rules of host {host!r} are not a mapping")
    try:
        return Policy.from_dict(host, rules or {})
    except PolicyError as error:
        raise TowerError("TWR101", f"the policy file {path}: {error.message}") from error


async def drift(api: MemberApi, policy: Policy) -> str | None:
    """How policy and RBAC are apart, in one sentence; None when every name of the policy may be impersonated.

    RBAC that allows more than the policy is no drift: the policy is what decides then. Raises TowerError where the
    apiserver cannot be asked.
    """
    missing = [
        f"{kind[:-1]} {name}"
        for kind, names in (("users", policy.users), ("groups", policy.groups))
        for name in sorted(names)
        if not await api.may("impersonate", kind, name)
    ]
    if not missing:
        return None
    more = f" and {len(missing) - MAX_NAMED} more" if len(missing) > MAX_NAMED else ""
    named = ", ".join(missing[:MAX_NAMED])
    return f"the policy allows what RBAC does not let this agent impersonate: {named}{more}"
