"""What a member's owner lets one host act as, by exact names.

The policy of a host names users and groups that its certificate callers may appear as, and which of its users may
themselves impersonate (`kubectl --as`). There are no patterns: the same names stand in the ClusterRole
(`resourceNames`), and the two must be able to agree. `system:` names are refused unless the owner sets
`allow_system_names` as well, a second deliberate step. The agent reads the file; this module takes the parsed mapping.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gateway.errors import PolicyError

_KEYS: Final = ("users", "groups", "may_impersonate", "allow_system_names")
SYSTEM: Final = "system:"


def usable_name(name: str) -> bool:
    """Whether a user or group can stand in a header and come out of it as it went in."""
    return bool(name) and name.isprintable() and name == name.strip()


def probe_user(host: str) -> str:
    """As whom a host finds out whether a request would get through: who denies it is never Ready there."""
    return f"tower:{host}:probe"


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for one host. An empty policy admits nobody."""

    host: str
    users: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()
    may_impersonate: frozenset[str] = frozenset()
    allow_system_names: bool = False

    @classmethod
    def default(cls, host: str) -> Policy:
        """What the manifest grants unless the owner says otherwise: the host's own admin and its probe."""
        return cls(
            host=host,
            users=frozenset({f"tower:{host}:admin", probe_user(host)}),
            groups=frozenset({f"tower:{host}:cluster-admins"}),
        )

    @classmethod
    def from_dict(cls, host: str, rules: Mapping[str, Any]) -> Policy:
        """Raises PolicyError naming the key and the value that is wrong."""
        unknown = sorted(set(rules) - set(_KEYS))
        if unknown:
            raise PolicyError(
                f"the policy of host {host!r} has unknown keys {', '.join(unknown)}; known are {', '.join(_KEYS)}"
            )
        allow_system = rules.get("allow_system_names", False)
        if not isinstance(allow_system, bool):
            raise PolicyError(f"the policy of host {host!r}: allow_system_names must be true or false")
        names = {
            key: _names(host, key, rules.get(key) or [], allow_system=allow_system)
            for key in ("users", "groups", "may_impersonate")
        }
        return cls(host=host, allow_system_names=allow_system, **names)

    def denies(self, user: str, groups: tuple[str, ...]) -> str | None:
        """None when the host may act as `user` in `groups`; else what rules are in the way, and all lines to add."""
        lacking = {
            "users": [] if user in self.users else [user],
            "groups": [group for group in groups if group not in self.groups],
        }
        what = [f"{rule[:-1]} {json.dumps(name)}" for rule, names in lacking.items() for name in names]
        return self._denial(f"let it act as {' in '.join(what)}", lacking) if what else None

    def denies_impersonation(self, user: str) -> str | None:
        """None when the certificate caller `user` may send Impersonate-User and Impersonate-Group; else as `denies`."""
        if user in self.may_impersonate:
            return None
        return self._denial(f"let user {json.dumps(user)} impersonate others", {"may_impersonate": [user]})

    def _denial(self, what: str, lacking: Mapping[str, list[str]]) -> str:
        rules = {rule: names for rule, names in lacking.items() if names}
        named = " and ".join(f"`{rule}`" for rule in rules)
        system = any(name.startswith(SYSTEM) for names in rules.values() for name in names)
        lines = "      allow_system_names: true\n" if system else ""
        for rule, names in rules.items():
            lines += f"      {rule}:\n" + "".join(f"        - {json.dumps(name)}\n" for name in names)
        return (
            f"this member's policy for host {self.host} (rule{'s' * (len(rules) > 1)} {named}) does not {what}; "
            f"the member's owner can add\n  hosts:\n    {self.host}:\n{lines}"
            "to the agent's policy and apply the manifest made from it"
        )


def _names(host: str, key: str, value: object, *, allow_system: bool) -> frozenset[str]:
    if not isinstance(value, list | tuple | set | frozenset):
        raise PolicyError(f"the policy of host {host!r}: {key} must be a list of names")
    for name in value:
        if not isinstance(name, str) or not usable_name(name):
            raise PolicyError(f"the policy of host {host!r}: {key} holds {name!r}, which is not a usable name")
        if "*" in name:
            raise PolicyError(f"the policy of host {host!r}: {key} holds {name!r}; there are no patterns, name each")
        if name.startswith(SYSTEM) and not allow_system:
            raise PolicyError(
                f"the policy of host {host!r}: {key} holds {name!r}; names of Kubernetes itself are refused "
                "unless `allow_system_names: true` stands beside them"
            )
    return frozenset(value)
