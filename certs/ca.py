"""The tower CA of one host: a root, the issuers under it, and everything they sign.

A rotation puts a second root with issuers of its own beside the first (`with_next`), lets it sign (`switched`) and
takes the first away (`finished`); from the first step to the last both are trusted. Each step counts `number` up, so
that no agent goes back to an earlier trust.

The authority decides every field of what it issues; of a request it takes only the public key. Nothing here reads a
clock or a file: time is an argument in Unix seconds, and the store keeps what `to_pem` returns.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Collection, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from certs.errors import AuthorityError, IssueRefused
from certs.generation import DAY, Generation, Issued, Signing, distinguished_name
from certs.issuers import AGENT_SERVING, AGENTS, CLIENTS, INNER, ISSUERS, REPLICAS, TOWER_SERVERS, Issuer
from certs.keys import PublicKey, Signer, key_from_pem, key_to_pem, signer
from certs.names import (
    MAX_SERVER_NAMES,
    MEMBERS_DOMAIN,
    Address,
    AgentRole,
    ClientRole,
    ReplicaRole,
    Role,
    ServerRole,
    ServingRole,
    check_caller_name,
    check_groups,
    check_label,
    check_serving_name,
    member_name,
    parse_host,
)
from certs.verify import TrustBundle
from protocol import defaults

MIN_TTL: Final = 60.0  # shorter ones end before their holder has used them once
MAX_CALLER_TTL: Final = defaults.MAX_CALLER_DAYS * DAY
SERVER_TTL: Final = defaults.SERVER_CERTIFICATE_DAYS * DAY
_RESTORE: Final = "restore it from a backup: the certificates of this host end at its root"
_KEY: Final = re.compile(rb"-----BEGIN PRIVATE KEY-----.+?-----END PRIVATE KEY-----\s*", re.DOTALL)


class Phase(enum.StrEnum):
    """Where a rotation of the CA is."""

    STEADY = "steady"  # one root
    ANNOUNCED = "announced"  # a new root is trusted, the old one signs
    SWITCHED = "switched"  # the new root signs, the old one is trusted


_NEXT_STEP: Final = {Phase.STEADY: "start", Phase.ANNOUNCED: "switch", Phase.SWITCHED: "finish"}


class Authority:
    """The keys of one host's CA; whoever holds it can mint any peer of this host.

    All that issue or verify hold the one object. It changes only by `take_over`, after the store has the new state.
    """

    def __init__(self, generations: Sequence[Generation], *, number: int = 1) -> None:
        self._generations = tuple(generations)  # the one that signs first
        self.number = number
        self.bundle = TrustBundle.from_certificates(
            [each.certificate for generation in generations for each in generation.published]
        )
        self.inner_bundle = TrustBundle.from_certificates(
            [each.certificate for generation in generations for each in generation.signing]
        )
        """For the host's own servers among themselves."""
        self.host = self.bundle.host

    @classmethod
    def create(cls, host: str, *, at: float) -> Authority:
        """A new root and its issuers; `host` is the name that every certificate of this tower carries."""
        check_label(host, what="host")
        return cls([Generation.create(host, at)])

    @property
    def complete(self) -> bool:
        """Whether no generation lacks an issuer."""
        return all(generation.complete for generation in self._generations)

    def completed(self, *, at: float) -> Authority:
        """With every issuer. What peers are told stays the same, and so does the number."""
        return Authority([each.completed(self.host, at) for each in self._generations], number=self.number)

    # ---- rotation -----------------------------------------------------------------------------------------------

    @property
    def phase(self) -> Phase:
        if len(self._generations) == 1:
            return Phase.STEADY
        first, second = (each.root.certificate.not_valid_before_utc for each in self._generations)
        return Phase.ANNOUNCED if first <= second else Phase.SWITCHED

    def with_next(self, *, at: float) -> Authority:
        """With a new root beside the old one, which goes on signing. IssueRefused unless STEADY."""
        self._expect(Phase.STEADY)
        # A second of the clock apart, since the times of certificates have no fractions and tell the two apart.
        after = self.bundle.root.not_valid_before_utc.timestamp() + defaults.CERTIFICATE_BACKDATE + 1.0
        new = Generation.create(self.host, max(at, after))
        return Authority([*self._generations, new], number=self.number + 1)

    def switched(self) -> Authority:
        """With the new root signing, and the old one still trusted. IssueRefused unless ANNOUNCED."""
        self._expect(Phase.ANNOUNCED)
        return Authority(self._generations[::-1], number=self.number + 1)

    def finished(self) -> Authority:
        """Without the old root. IssueRefused unless SWITCHED."""
        self._expect(Phase.SWITCHED)
        return Authority(self._generations[:1], number=self.number + 1)

    def take_over(self, other: Authority) -> None:
        """Become `other`, a later state of this same CA."""
        if other.host != self.host or other.number < self.number:
            raise AuthorityError(f"the tower CA of {other.host} (state {other.number}) does not follow this one's")
        self._generations, self.number = other._generations, other.number
        self.bundle, self.inner_bundle = other.bundle, other.inner_bundle

    def _expect(self, phase: Phase) -> None:
        if self.phase is not phase:
            raise IssueRefused(
                f"the rotation of the tower CA is at {self.phase}, and this step begins at {phase}",
                f"the next step is `towerctl rotate authority {_NEXT_STEP[self.phase]}`; "
                "`towerctl describe authority` shows how far it is",
            )

    def root_signers(self) -> tuple[Signer, ...]:
        """Of every root, for what agents are to believe whichever of them they know: see certs.rotation."""
        return tuple(signer(generation.root.key) for generation in self._generations)

    # ---- keeping ------------------------------------------------------------------------------------------------

    def to_pem(self) -> bytes:
        """Certificates and private keys, the signing root first: for a file of mode 0600 or a Secret, nowhere else."""
        pairs = [pair for generation in self._generations for pair in generation.signing]
        return b"".join(pair.certificate.public_bytes(Encoding.PEM) + key_to_pem(pair.key) for pair in pairs)

    @classmethod
    def from_pem(cls, pem: bytes, *, number: int = 1) -> Authority:
        bundle = TrustBundle.from_pem(_KEY.sub(b"", pem))
        keys = [key_from_pem(block, what="the tower CA") for block in _KEY.findall(pem)]
        by_point = {key.public_key().public_numbers(): key for key in keys}

        def pair(certificate: x509.Certificate, name: str) -> Signing:
            public = certificate.public_key()
            key = by_point.get(public.public_numbers()) if isinstance(public, PublicKey) else None
            if key is None:
                raise AuthorityError(f"the tower CA of {bundle.host} lacks the key of its {name}", _RESTORE)
            return Signing(certificate, key)

        generations = []
        for root in bundle.roots:
            under = bundle.issuers_under(root)
            if missing := sorted(set(ISSUERS) - INNER - under.keys()):
                raise AuthorityError(f"the tower CA of {bundle.host} lacks the issuers {', '.join(missing)}", _RESTORE)
            issuers = {name: pair(certificate, name) for name, certificate in under.items()}
            generations.append(Generation(pair(root, "root"), issuers))
        return cls(generations, number=number)

    def revocation_signer(self) -> Signer:
        """Signs revocation lists: see certs.revocation for why this is the *clients* issuer."""
        return signer(self._generations[0].issuers[CLIENTS.name].key)

    def issue_server(
        self,
        name: str,
        names: Collection[str],
        *,
        public_key: PublicKey,
        at: float,
    ) -> Issued:
        """For a tower server: its tunnel port, the seal key of enrolment, and its own answers on a cluster's port.

        `names` are DNS names and addresses; the one wildcard allowed is `*.members.tower`, under which the server
        answers for a cluster that has no tunnel.
        """
        role = ServerRole(self.host, check_label(name, what="server"))
        parsed = [parse_host(each) for each in names]
        for each in parsed:
            if isinstance(each, str) and each.startswith("*.") and each != f"*.{MEMBERS_DOMAIN}":
                raise IssueRefused(f"a tower server's certificate may not carry the wildcard {each}", "name each host")
        return self._issue(
            TOWER_SERVERS, role, distinguished_name(name), public_key, at=at, ttl=SERVER_TTL, names=parsed
        )

    def issue_replica(
        self,
        name: str,
        *,
        public_key: PublicKey,
        at: float,
    ) -> Issued:
        """What one server of the host shows to another; it is known by its role, so it carries no other name."""
        role = ReplicaRole(self.host, check_label(name, what="replica"))
        return self._issue(REPLICAS, role, distinguished_name(name), public_key, at=at, ttl=SERVER_TTL)

    def issue_agent(
        self,
        cluster: str,
        agent: str,
        *,
        public_key: PublicKey,
        at: float,
        ttl: float = defaults.AGENT_IDENTITY_DAYS * DAY,
    ) -> Issued:
        """An agent's identity for the handshake of the tunnel."""
        role = AgentRole(self.host, check_label(cluster, what="cluster"), check_label(agent, what="agent"))
        return self._issue(AGENTS, role, distinguished_name(agent, cluster), public_key, at=at, ttl=ttl)

    def issue_serving(
        self,
        cluster: str,
        names: Collection[str] = (),
        *,
        public_key: PublicKey,
        at: float,
        ttl: float = defaults.AGENT_IDENTITY_DAYS * DAY,
    ) -> Issued:
        """What an agent shows to callers: `<cluster>.members.tower`, and names that are this cluster's alone."""
        role = ServingRole(self.host, check_label(cluster, what="cluster"))
        parsed = [parse_host(member_name(cluster)), *(check_serving_name(each, cluster=cluster) for each in names)]
        return self._issue(AGENT_SERVING, role, distinguished_name(cluster), public_key, at=at, ttl=ttl, names=parsed)

    def issue_client(
        self,
        user: str,
        groups: Collection[str] = (),
        *,
        public_key: PublicKey,
        at: float,
        ttl: float = defaults.CALLER_HOURS * 3600.0,
    ) -> Issued:
        """A caller's certificate: user as CN, groups as O."""
        role = ClientRole(self.host, check_caller_name(user, host=self.host, what="user"))
        subject = distinguished_name(user, *check_groups(tuple(groups), host=self.host))
        return self._issue(CLIENTS, role, subject, public_key, at=at, ttl=ttl)

    def _issue(
        self,
        issuer: Issuer,
        role: Role,
        subject: x509.Name,
        public_key: PublicKey,
        *,
        at: float,
        ttl: float,
        names: Collection[Address | str] = (),
    ) -> Issued:
        if not MIN_TTL <= ttl <= MAX_CALLER_TTL:
            raise IssueRefused(
                f"a lifetime of {ttl:g} s is out of bounds", f"ask for {MIN_TTL:g} s to {defaults.MAX_CALLER_DAYS} d"
            )
        if len(names) > MAX_SERVER_NAMES:
            raise IssueRefused(f"{len(names)} names are too many", f"name at most {MAX_SERVER_NAMES}")
        signing = self._generations[0].issuers[issuer.name]
        if at + MIN_TTL > signing.ends:
            raise AuthorityError(f"the {issuer.name} issuer of {self.host} has run out", "make a new tower CA")
        return signing.issue(issuer, role, subject, public_key, at=at, until=at + ttl, names=names)
