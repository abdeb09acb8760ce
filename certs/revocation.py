"""The signed, numbered list of what a host has taken back.

Signed by the *clients* issuer: whoever can mint a caller is the one to unmake it, every agent has that certificate
pinned already, and unlike a server's leaf it does not run out while a restarted agent still rests on the list that it
kept. The signature covers a prefix that no certificate begins with, so the list can never pass for one nor one for it.

An entry names a certificate by serial, or an agent or user *up to a time*: what was issued to them later is good again.
An agent entry `*` stands for all agents of a cluster. Certificates carry whole seconds and a second's ties count as
revoked: what is issued in the very second of the revocation has to bear the next one. Numbers only rise: an agent
refuses a list with a lower number, and one with the same number and another content. The same list signed again later
replaces the earlier one: it says how old an agent's knowledge is, and no replay of an older signature makes it look
younger.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from certs import codec
from certs.errors import ListRefused, MessageError
from certs.keys import MAX_SIGNATURE_BYTES, PublicKey, Signer, verify_signature
from certs.names import is_label, is_user
from protocol import defaults

ALL_AGENTS: Final = "*"
_CONTEXT: Final = b"tower revocation list v1\x00"
_WHAT: Final = "the revocation list"
_DAY: Final = 86400.0
_LONGEST_CALLER: Final = defaults.MAX_CALLER_DAYS * _DAY
_LONGEST_AGENT: Final = (defaults.AGENT_IDENTITY_DAYS + defaults.EXPIRED_IDENTITY_GRACE_DAYS) * _DAY


@dataclass(frozen=True, slots=True)
class RevocationList:
    """What is revoked. Times are Unix seconds; lookups take constant time.

    `serials` maps to the time from which the certificate is dead anyway; `agents` (cluster, agent) and `users` to the
    time up to which what was issued is revoked.
    """

    number: int
    host: str
    issued_at: float
    serials: Mapping[int, float] = field(default_factory=dict)
    agents: Mapping[tuple[str, str], float] = field(default_factory=dict)
    users: Mapping[str, float] = field(default_factory=dict)

    def revokes_agent(self, *, serial: int, cluster: str, agent: str, issued_at: float) -> bool:
        return (
            serial in self.serials
            or issued_at <= self.agents.get((cluster, agent), -1.0)
            or issued_at <= self.agents.get((cluster, ALL_AGENTS), -1.0)
        )

    def revokes_user(self, *, serial: int, user: str, issued_at: float) -> bool:
        return serial in self.serials or issued_at <= self.users.get(user, -1.0)

    def pruned(self, at: float) -> RevocationList:
        """Without what no living certificate can match any more; the number stays, so raise it where that matters."""
        return replace(
            self,
            serials={serial: end for serial, end in self.serials.items() if end > at},
            agents={agent: up_to for agent, up_to in self.agents.items() if up_to + _LONGEST_AGENT > at},
            users={user: up_to for user, up_to in self.users.items() if up_to + _LONGEST_CALLER > at},
        )

    def for_members(self) -> RevocationList:
        """What agents are sent: callers only. Names of other members' agents are none of a member's business."""
        return replace(self, agents={})

    def sign(self, sign: Signer) -> bytes:
        """The encoded list, by `Authority.revocation_signer()`; ListRefused when it is longer than agents take."""
        payload = codec.encode(
            {
                "number": self.number,
                "host": self.host,
                "issued_at": self.issued_at,
                "serials": [[f"{serial:x}", end] for serial, end in sorted(self.serials.items())],
                "agents": [[*agent, up_to] for agent, up_to in sorted(self.agents.items())],
                "users": [[user, up_to] for user, up_to in sorted(self.users.items())],
            }
        )
        signature = codec.base64_text(sign(_CONTEXT + payload))
        encoded = signature.encode() + b"." + payload
        if len(encoded) > defaults.MAX_REVOCATION_BYTES:
            raise ListRefused(
                f"the revocation list has {len(encoded)} bytes, more than the {defaults.MAX_REVOCATION_BYTES} allowed",
                "revoke by user in place of by serial: one entry covers all certificates of that user",
            )
        return encoded


def verify_list(encoded: bytes, *, issuers: tuple[PublicKey, ...], host: str) -> RevocationList:
    """The list in `encoded`, when one of the host's `issuers` (of clients) signed it."""
    if len(encoded) > defaults.MAX_REVOCATION_BYTES:
        raise ListRefused(f"the revocation list has {len(encoded)} bytes, more than allowed")
    signature_text, _, payload = encoded.partition(b".")
    try:
        signature = codec.binary(
            {"signature": signature_text.decode("ascii", "replace")}, "signature", limit=MAX_SIGNATURE_BYTES, what=_WHAT
        )
    except MessageError as exc:
        raise ListRefused(exc.text) from exc
    if not any(verify_signature(key, _CONTEXT + payload, signature) for key in issuers):
        raise ListRefused(f"the revocation list is not signed by the clients issuer of {host}")
    try:
        parsed = _parse(payload)
    except MessageError as exc:
        raise ListRefused(exc.text) from exc
    if parsed.host != host:
        raise ListRefused(f"the revocation list is that of {parsed.host}, not of {host}")
    return parsed


def list_age(encoded: bytes) -> tuple[int, float]:
    """Number and time of signing of a list that was verified before, to be compared; (-1, 0.0) for what is no list."""
    try:
        message = codec.decode(encoded.partition(b".")[2], limit=defaults.MAX_REVOCATION_BYTES, what=_WHAT)
        return codec.count(message, "number", what=_WHAT), codec.number(message, "issued_at", what=_WHAT)
    except MessageError:
        return -1, 0.0


def newer(held: RevocationList | None, offered: RevocationList) -> RevocationList:
    """The one to go by, `offered` when it may replace `held`: a higher number, or the same list signed later."""
    if held is None or offered.number > held.number:
        return offered
    if offered.number < held.number:
        raise ListRefused(
            f"the revocation list has number {offered.number}, lower than {held.number} which is in force",
            "after a restore from a backup revoke again what was revoked since the copy: that list is taken",
        )
    if replace(offered, issued_at=held.issued_at) != held:
        raise ListRefused(f"two different revocation lists have the number {held.number}")
    return offered if offered.issued_at > held.issued_at else held


def _parse(payload: bytes) -> RevocationList:
    message = codec.decode(payload, limit=defaults.MAX_REVOCATION_BYTES, what=_WHAT)
    sequence = message.get("number")
    if isinstance(sequence, bool) or not isinstance(sequence, int) or not 0 <= sequence < 2**63:
        raise MessageError(f"{_WHAT}: 'number' must be a whole number")
    return RevocationList(
        number=sequence,
        host=codec.text(message, "host", limit=63, what=_WHAT),
        issued_at=codec.number(message, "issued_at", what=_WHAT),
        serials={_serial(key): end for (key,), end in _entries(message, "serials", 1)},
        agents={_agent(*key): up_to for key, up_to in _entries(message, "agents", 2)},
        users={_user(key): up_to for (key,), up_to in _entries(message, "users", 1)},
    )


def _entries(message: codec.Object, name: str, keys: int) -> list[tuple[list[str], float]]:
    rows: Any = message.get(name)
    if not isinstance(rows, list):
        raise MessageError(f"{_WHAT}: {name!r} must be a list")
    result: list[tuple[list[str], float]] = []
    for row in rows:
        if not isinstance(row, list) or len(row) != keys + 1 or not all(isinstance(key, str) for key in row[:keys]):
            raise MessageError(f"{_WHAT}: an entry of {name!r} is malformed")
        result.append((row[:keys], codec.as_time(row[keys], f"{_WHAT}: {name!r}")))
    return result


def _serial(key: str) -> int:
    try:
        if len(key) <= 40 and key.isalnum():
            return int(key, 16)
    except ValueError:
        pass
    raise MessageError(f"{_WHAT}: a serial number is not hexadecimal")


def _agent(cluster: str, agent: str) -> tuple[str, str]:
    if not is_label(cluster) or not (agent == ALL_AGENTS or is_label(agent)):
        raise MessageError(f"{_WHAT}: an agent's name is malformed")
    return cluster, agent


def _user(key: str) -> str:
    if not is_user(key):
        raise MessageError(f"{_WHAT}: a user's name is malformed")
    return key
