"""What an agent is: its keys, chains and the trust of its host; and the rules by which it is kept.

An agent may serve several hosts, each with an identity of its own. Per host there are three entries: `pending.json`,
the keys of a join whose answer is still out (the same token with the same keys gets the same answer, so a lost reply
locks nobody out); `identity.json`, everything of an enrolled agent in one entry, so that key and certificate never
come apart; `revocations`, the last signed list. The rules are here once, the two places to keep entries in
identity_files and identity_secret. Where several agents share one place the first writer wins and the others adopt
what it wrote.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from certs import codec
from certs.errors import AuthorityError, IdentityError, MessageError, Untrusted
from certs.keys import PrivateKey, generate_key, key_fingerprint, key_from_pem, key_to_pem
from certs.names import is_label
from certs.revocation import list_age
from certs.verify import TrustBundle, load_chain

PENDING: Final = "pending.json"
IDENTITY: Final = "identity.json"
REVOCATIONS: Final = "revocations"
ENTRIES: Final = (PENDING, IDENTITY, REVOCATIONS)
MAX_ENTRY_BYTES: Final = 512 * 1024

Entries = MutableMapping[tuple[str, str], bytes]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class PendingJoin:
    """Keys made for one token, kept before anything is sent."""

    host: str
    token_id: str
    key_pem: bytes = field(repr=False)
    serving_key_pem: bytes = field(repr=False)

    @classmethod
    def create(cls, host: str, token_id: str) -> PendingJoin:
        return cls(host, token_id, key_to_pem(generate_key()), key_to_pem(generate_key()))

    @property
    def key(self) -> PrivateKey:
        return key_from_pem(self.key_pem, what="the pending identity")

    @property
    def serving_key(self) -> PrivateKey:
        return key_from_pem(self.serving_key_pem, what="the pending serving certificate")


@dataclass(frozen=True, slots=True)
class StoredIdentity:
    """An enrolled agent. PEM throughout, chains leaf first."""

    host: str
    url: str
    cluster: str
    agent: str
    key_pem: bytes = field(repr=False)
    serving_key_pem: bytes = field(repr=False)
    chain_pem: bytes
    serving_chain_pem: bytes
    trust_pem: bytes
    trust_number: int = 0
    """Of the announcement that `trust_pem` came with; 0 for that of the enrolment."""

    @property
    def key(self) -> PrivateKey:
        return key_from_pem(self.key_pem, what=f"the identity for {self.host}")

    @property
    def chain(self) -> tuple[bytes, ...]:
        """DER, leaf first, for the handshake."""
        return load_chain(self.chain_pem)

    @property
    def bundle(self) -> TrustBundle:
        return TrustBundle.from_pem(self.trust_pem)

    def check(self) -> None:
        """That the parts belong together, whatever the time is; AuthorityError or Untrusted says what does not fit."""
        bundle = self.bundle
        chain, serving_chain = self.chain, load_chain(self.serving_chain_pem)
        identity = bundle.identify_agent(chain)
        serving = bundle.identify_serving(serving_chain)
        serving_key = key_from_pem(self.serving_key_pem, what=f"the serving certificate for {self.host}")
        if (identity.host, identity.cluster, identity.agent) != (self.host, self.cluster, self.agent):
            raise AuthorityError(f"the certificate is that of {identity.agent} of {identity.cluster}@{identity.host}")
        if key_fingerprint(identity.public_key) != key_fingerprint(self.key.public_key()):
            raise AuthorityError("the private key is not that of the identity's certificate")
        if key_fingerprint(serving.public_key) != key_fingerprint(serving_key.public_key()):
            raise AuthorityError("the private key is not that of the serving certificate")


class IdentityStore(ABC):
    """Where an agent keeps its identities."""

    async def hosts(self) -> tuple[str, ...]:
        """The hosts that this agent is enrolled with, sorted."""
        return await self._change(lambda entries: tuple(sorted(host for host, name in entries if name == IDENTITY)))

    async def load(self, host: str) -> StoredIdentity | None:
        """None when there is none; IdentityError when it is damaged."""
        return await self._change(lambda entries: self._decode_identity(entries, host))

    async def pending(self, host: str, token_id: str) -> PendingJoin:
        """The keys for this join: those kept for the same token, or new ones, kept before they are returned."""

        def change(entries: Entries) -> PendingJoin:
            kept = self._decode(entries, host, PENDING)
            if kept is not None and kept.get("token_id") == token_id:
                try:
                    return PendingJoin(host, token_id, _pem(kept, "key"), _pem(kept, "serving_key"))
                except MessageError as exc:
                    raise self._damaged(host, PENDING, exc.text) from exc
            join = PendingJoin.create(_label(host), token_id)
            entries[host, PENDING] = _encode(
                token_id=token_id, key=join.key_pem.decode(), serving_key=join.serving_key_pem.decode()
            )
            return join

        return await self._change(change)

    async def save(self, identity: StoredIdentity, *, replaces: StoredIdentity | None) -> StoredIdentity:
        """Keep `identity` where `replaces` was (None: where nothing was).

        Returns what is kept afterwards: where another agent wrote meanwhile, that one's identity is to be adopted. The
        join's keys stay: to whoever comes second with the same token the server gives the same answer for them.
        Nor does a renewal take back a later trust; a new join, with other keys, may: its host may have begun anew.
        """
        identity.check()
        expected = replaces.chain_pem if replaces is not None else None

        def change(entries: Entries) -> StoredIdentity:
            kept = self._decode_identity(entries, identity.host)
            if kept is not None and kept.chain_pem != expected:
                return kept
            saved, renewed = identity, kept is not None and kept.key_pem == identity.key_pem
            if kept is not None and renewed and kept.trust_number > identity.trust_number:
                saved = replace(identity, trust_number=kept.trust_number, trust_pem=kept.trust_pem)
                saved.check()
            if kept is None:  # a list that is there is of one that was removed, perhaps of another host of this name
                entries.pop((_label(identity.host), REVOCATIONS), None)
            entries[_label(identity.host), IDENTITY] = _encode_identity(saved)
            return saved

        return await self._change(change)

    async def revocations(self, host: str) -> bytes | None:
        """The last list kept, signed as it came."""
        return await self._change(lambda entries: entries.get((host, REVOCATIONS)))

    async def save_revocations(self, host: str, encoded: bytes) -> None:
        """Keep a verified list, unless a later one is kept already."""

        def change(entries: Entries) -> None:
            kept = entries.get((_label(host), REVOCATIONS))
            if kept is None or list_age(kept) < list_age(encoded):
                entries[host, REVOCATIONS] = encoded

        await self._change(change)

    async def forget(self, host: str) -> None:
        """Drop everything of one host: its keys too."""

        def change(entries: Entries) -> None:
            for name in ENTRIES:
                entries.pop((host, name), None)

        await self._change(change)

    @abstractmethod
    def place(self, host: str, name: str) -> str:
        """Where an entry lies, for messages."""

    @abstractmethod
    async def _change(self, change: Callable[[Entries], T]) -> T:
        """Run `change` on all entries and keep what it changed, at once and for all or not at all per entry.

        It may run more than once, each time on fresh entries, when somebody else writes at the same time.
        """

    def _decode_identity(self, entries: Entries, host: str) -> StoredIdentity | None:
        kept = self._decode(entries, host, IDENTITY)
        if kept is None:
            return None
        try:
            identity = StoredIdentity(
                host=host,
                url=codec.text(kept, "url", limit=1024, what=IDENTITY),
                cluster=codec.text(kept, "cluster", limit=63, what=IDENTITY),
                agent=codec.text(kept, "agent", limit=63, what=IDENTITY),
                key_pem=_pem(kept, "key"),
                serving_key_pem=_pem(kept, "serving_key"),
                chain_pem=_pem(kept, "chain"),
                serving_chain_pem=_pem(kept, "serving_chain"),
                trust_pem=_pem(kept, "trust"),
                trust_number=codec.count(kept, "trust_number", what=IDENTITY),
            )
            identity.check()
        except (MessageError, AuthorityError, Untrusted) as exc:
            raise self._damaged(host, IDENTITY, exc.text) from exc
        return identity

    def _decode(self, entries: Entries, host: str, name: str) -> codec.Object | None:
        raw = entries.get((host, name))
        if raw is None:
            return None
        try:
            return codec.decode(raw, limit=MAX_ENTRY_BYTES, what="the entry")
        except MessageError as exc:
            raise self._damaged(host, name, exc.text) from exc

    def _damaged(self, host: str, name: str, why: str) -> IdentityError:
        return IdentityError(
            f"{self.place(host, name)} cannot be used: {why}",
            "restore it, or remove it and join again with a new token",
        )


def _encode_identity(identity: StoredIdentity) -> bytes:
    return _encode(
        url=identity.url,
        cluster=identity.cluster,
        agent=identity.agent,
        key=identity.key_pem.decode(),
        serving_key=identity.serving_key_pem.decode(),
        chain=identity.chain_pem.decode(),
        serving_chain=identity.serving_chain_pem.decode(),
        trust=identity.trust_pem.decode(),
        trust_number=identity.trust_number,
    )


def _encode(**parts: str | int) -> bytes:
    return codec.encode(parts)


def _pem(kept: codec.Object, name: str) -> bytes:
    value: Any = kept.get(name)
    if not isinstance(value, str) or "-----BEGIN" not in value:
        raise MessageError(f"{name!r} is not PEM")
    return value.encode()


def _label(host: str) -> str:
    if not is_label(host):
        raise IdentityError(f"the host name {host[:80]!r} is not a DNS label", "join again with a new token")
    return host
