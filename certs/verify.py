"""Whether a certificate chain is that of a peer of one host, and who the peer is.

Paths here are always leaf, pinned issuer, pinned root, so verification is direct: the issuer is found by key id among
those of the bundle (which were checked against the root when the bundle was read), must be the one of the wanted role,
and must have signed the leaf; then the leaf's extensions must be exactly those that the authority writes, and the time
and the revocations must allow it. What else a peer sends along in its chain is not looked at. The order matters: only
what this host signed is described in a message. Nothing here reads a clock; times are Unix seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtensionOID, NameOID

from certs.errors import AuthorityError, Reason, Untrusted
from certs.issuers import AGENT_SERVING, AGENTS, CLIENTS, ISSUERS, REPLICAS, TOWER_SERVERS, Issuer, leaf_key_usage
from certs.keys import UNREADABLE, PublicKey, elliptic_key
from certs.names import (
    AgentRole,
    ClientRole,
    IssuerRole,
    ReplicaRole,
    Role,
    RootRole,
    ServerRole,
    ServingRole,
    is_user,
    parse_role,
)
from certs.peers import AgentIdentity, ClientIdentity, ReplicaIdentity, ServerIdentity, ServingIdentity, Validity
from certs.revocation import RevocationList

MAX_CERTIFICATE_BYTES: Final = 16 * 1024
MAX_BUNDLE_BYTES: Final = 64 * 1024
MAX_ROOTS: Final = 2  # while the CA is rotated
_UNFIT: Final = (*UNREADABLE, x509.ExtensionNotFound, x509.DuplicateExtension, x509.UnsupportedGeneralNameType)
_KNOWN_EXTENSIONS: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
)


@dataclass(frozen=True, slots=True)
class _Leaf:
    certificate: x509.Certificate
    role: Role
    validity: Validity


class TrustBundle:
    """The root and issuers of one host. Immutable; agents keep one per host, so hosts cannot pass for each other.

    While the CA is rotated there are two roots, each with issuers of its own: the first is the one that signs now, and
    what is under the other is good all the same.
    """

    def __init__(
        self,
        *,
        host: str,
        roots: tuple[x509.Certificate, ...],
        issuers: tuple[tuple[Issuer, x509.Certificate], ...],
    ) -> None:
        self.host = host
        self.roots = roots
        self.issuers = issuers
        self._by_key_id = {_key_id(certificate): (issuer, certificate) for issuer, certificate in issuers}

    @classmethod
    def from_certificates(cls, certificates: Sequence[x509.Certificate]) -> TrustBundle:
        """AuthorityError unless there are one or two roots of one host and all else are issuers under them."""
        try:
            roots, host = _find_roots(certificates)
            issuers = tuple(_check_issuer(each, roots, host) for each in certificates if each not in roots)
        except UNREADABLE as exc:  # parsed lazily, field by field
            raise AuthorityError(f"a certificate of the trust bundle cannot be read ({exc})") from exc
        return cls(host=host, roots=roots, issuers=issuers)

    @classmethod
    def from_pem(cls, pem: bytes) -> TrustBundle:
        if len(pem) > MAX_BUNDLE_BYTES:
            raise AuthorityError(f"the trust bundle has {len(pem)} bytes, more than the {MAX_BUNDLE_BYTES} allowed")
        try:
            certificates = x509.load_pem_x509_certificates(pem)
        except UNREADABLE as exc:
            raise AuthorityError(f"the trust bundle cannot be read ({exc})", "restore or fetch it again") from exc
        return cls.from_certificates(certificates)

    def to_pem(self) -> bytes:
        """Roots first. It holds no secret."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in (*self.roots, *(c for _, c in self.issuers)))

    @property
    def root(self) -> x509.Certificate:
        """The root under which certificates are made now."""
        return self.roots[0]

    @property
    def root_pem(self) -> bytes:
        """What a caller's kubeconfig trusts: every root."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.roots)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the root in hex: what a token pins and people compare."""
        return fingerprint(self.root)

    def issuers_under(self, root: x509.Certificate) -> dict[str, x509.Certificate]:
        """The issuers that `root` has signed, by name."""
        return {issuer.name: each for issuer, each in self.issuers if _stands_under(each, root)}

    def is_current(self, chain: Sequence[bytes]) -> bool:
        """Whether the leaf of `chain`, which has been verified, is under the root that signs now."""
        _, above = self._signed_by(_load(chain, caller=False))
        return above is not None and _is_signed_by(above, self.root)

    def root_keys(self) -> tuple[PublicKey, ...]:
        """The keys that may announce another bundle of this host."""
        return tuple(_p256(root) for root in self.roots)

    def revocation_keys(self) -> tuple[PublicKey, ...]:
        """The keys that may sign this host's revocation lists; first the one that does now."""
        return tuple(_p256(certificate) for issuer, certificate in self.issuers if issuer is CLIENTS)

    def verify_server(self, chain: Sequence[bytes], at: float) -> ServerIdentity:
        leaf = self._verify(chain, TOWER_SERVERS)
        assert isinstance(leaf.role, ServerRole)
        identity = ServerIdentity(self.host, leaf.role.name, leaf.validity, _p256(leaf.certificate))
        identity.check(at)
        return identity

    def verify_replica(self, chain: Sequence[bytes], at: float) -> ReplicaIdentity:
        """Only of `Authority.inner_bundle`: the bundle that others have does not know the issuer."""
        leaf = self._verify(chain, REPLICAS)
        assert isinstance(leaf.role, ReplicaRole)
        identity = ReplicaIdentity(self.host, leaf.role.name, leaf.validity)
        identity.check(at)
        return identity

    def verify_serving(self, chain: Sequence[bytes], at: float) -> ServingIdentity:
        identity = self.identify_serving(chain)
        identity.validity.check_time(at, noun=AGENT_SERVING.noun)
        return identity

    def identify_serving(self, chain: Sequence[bytes]) -> ServingIdentity:
        """Whose certificate it is, whatever the time is."""
        leaf = self._verify(chain, AGENT_SERVING)
        assert isinstance(leaf.role, ServingRole)
        return ServingIdentity(self.host, leaf.role.cluster, leaf.validity, _p256(leaf.certificate))

    def verify_agent(self, chain: Sequence[bytes], at: float) -> AgentIdentity:
        identity = self.identify_agent(chain)
        identity.check(at, None)
        return identity

    def identify_agent(self, chain: Sequence[bytes]) -> AgentIdentity:
        """Whose certificate it is, whatever the time is and without revocations: a peer's is to be `check`ed."""
        leaf = self._verify(chain, AGENTS)
        role = leaf.role
        assert isinstance(role, AgentRole)
        return AgentIdentity(self.host, role.cluster, role.agent, leaf.validity, _p256(leaf.certificate))

    def verify_client(
        self, chain: Sequence[bytes], at: float, *, revocations: RevocationList | None = None
    ) -> ClientIdentity:
        leaf = self._verify(chain, CLIENTS)
        assert isinstance(leaf.role, ClientRole)
        user, groups = _caller_names(leaf, self.host)
        identity = ClientIdentity(self.host, user, groups, leaf.validity)
        identity.check(at, revocations)
        return identity

    def _verify(self, chain: Sequence[bytes], wanted: Issuer) -> _Leaf:
        caller = wanted is CLIENTS
        certificate = _load(chain, caller=caller)
        issuer, _ = self._signed_by(certificate)
        if issuer is None:
            raise Untrusted(
                Reason.UNKNOWN_ISSUER,
                f"the certificate was not issued by the tower CA of {self.host} (root {self.fingerprint[:16]}…)",
                "use one that this host issued",
                caller=caller,
            )
        if issuer is not wanted:
            raise Untrusted(
                Reason.WRONG_ROLE,
                f"{issuer.noun} was shown where {wanted.noun} is needed",
                "use the certificate made for that purpose",
                caller=caller,
            )
        return _check_leaf(certificate, wanted, self.host)

    def _signed_by(self, certificate: x509.Certificate) -> tuple[Issuer, x509.Certificate] | tuple[None, None]:
        try:
            authority = certificate.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
        except _UNFIT:
            return None, None
        found = self._by_key_id.get(authority.key_identifier or b"")
        return found if found is not None and _is_signed_by(certificate, found[1]) else (None, None)


def certificate_names(chain: Sequence[bytes]) -> frozenset[str]:
    """The names and addresses that a leaf of a verified chain carries."""
    names = x509.load_der_x509_certificate(chain[0]).extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return frozenset(
        [*names.value.get_values_for_type(x509.DNSName), *map(str, names.value.get_values_for_type(x509.IPAddress))]
    )


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of the DER in hex, as `openssl x509 -fingerprint -sha256` prints it but for colons and case."""
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def _load(chain: Sequence[bytes], *, caller: bool) -> x509.Certificate:
    if not chain:
        raise Untrusted(Reason.MALFORMED, "no certificate was shown", caller=caller)
    if len(chain[0]) > MAX_CERTIFICATE_BYTES:
        raise Untrusted(Reason.MALFORMED, f"the certificate has {len(chain[0])} bytes", caller=caller)
    try:
        return x509.load_der_x509_certificate(chain[0])
    except UNREADABLE as exc:
        raise Untrusted(Reason.MALFORMED, f"the certificate cannot be read ({exc})", caller=caller) from exc


def _is_signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (*UNREADABLE, InvalidSignature):
        return False
    return True


@lru_cache(maxsize=64)
def _stands_under(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    """Of those in a bundle: the same few are read again with every tunnel and enrolment."""
    return _is_signed_by(certificate, root)


def _check_leaf(certificate: x509.Certificate, wanted: Issuer, host: str) -> _Leaf:
    """The leaf's role, when its extensions are those that the authority writes for `wanted` and nothing more."""
    caller = wanted is CLIENTS
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extended = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        unknown = [each.oid.dotted_string for each in extensions if each.critical and each.oid not in _KNOWN_EXTENSIONS]
    except _UNFIT as exc:
        raise Untrusted(Reason.MALFORMED, f"the certificate lacks what a tower writes ({exc})", caller=caller) from exc
    if constraints.ca or usage != leaf_key_usage() or unknown:
        raise Untrusted(Reason.MALFORMED, "the certificate is not one that a tower makes for a peer", caller=caller)
    role = parse_role(uris[0]) if len(uris) == 1 else None
    if frozenset(extended) != frozenset(wanted.usages) or not isinstance(role, wanted.role) or role.host != host:
        raise Untrusted(
            Reason.WRONG_ROLE,
            f"the certificate is not {wanted.noun} of {host}: its usages or its URI name another role",
            caller=caller,
        )
    start, end = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    return _Leaf(certificate, role, Validity(certificate.serial_number, start, end))


def _caller_names(leaf: _Leaf, host: str) -> tuple[str, tuple[str, ...]]:
    subject = leaf.certificate.subject
    users = [str(each.value) for each in subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    groups = tuple(str(each.value) for each in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME))
    for name in (*users, *groups):
        if not is_user(name) or (name.lower().startswith("tower:") and not name.startswith(f"tower:{host}:")):
            raise Untrusted(
                Reason.BAD_NAME, f"the certificate names {name[:80]!r}, which this host may not certify", caller=True
            )
    assert isinstance(leaf.role, ClientRole)
    if users != [leaf.role.user]:
        raise Untrusted(Reason.WRONG_ROLE, "the certificate's CN and its URI name different users", caller=True)
    return users[0], groups


def _find_roots(certificates: Sequence[x509.Certificate]) -> tuple[tuple[x509.Certificate, ...], str]:
    roots = tuple(each for each in certificates if each.subject == each.issuer)
    if not 1 <= len(roots) <= MAX_ROOTS:
        text = f"the trust bundle holds {len(roots)} roots, not 1 to {MAX_ROOTS}"
        raise AuthorityError(text, "restore or fetch it again")
    hosts = {role.host if isinstance(role := _role_of(root), RootRole) else "" for root in roots}
    if "" in hosts or not all(_may_sign(root) and _stands_under(root, root) for root in roots):
        raise AuthorityError("the root of the trust bundle is not that of a tower")
    if len(set(roots)) != len(roots):
        raise AuthorityError("the trust bundle holds a root twice", "restore or fetch it again")
    if len(hosts) != 1:
        raise AuthorityError("the trust bundle holds roots of two hosts", "restore or fetch it again")
    return roots, hosts.pop()


def _check_issuer(
    certificate: x509.Certificate, roots: tuple[x509.Certificate, ...], host: str
) -> tuple[Issuer, x509.Certificate]:
    role = _role_of(certificate)
    issuer = ISSUERS.get(role.issuer) if isinstance(role, IssuerRole) and role.host == host else None
    if issuer is None or not _may_sign(certificate) or not any(_stands_under(certificate, root) for root in roots):
        raise AuthorityError(f"the trust bundle of {host} holds a certificate that is not an issuer under its root")
    return issuer, certificate


def _may_sign(certificate: x509.Certificate) -> bool:
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except _UNFIT:
        return False
    return constraints.ca and usage.key_cert_sign and elliptic_key(certificate) is not None


def _role_of(certificate: x509.Certificate) -> Role | None:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except _UNFIT:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return parse_role(uris[0]) if len(uris) == 1 else None


def _key_id(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def _p256(certificate: x509.Certificate) -> PublicKey:
    key = elliptic_key(certificate)
    if key is None or not isinstance(key.curve, ec.SECP256R1):
        raise Untrusted(Reason.MALFORMED, "the certificate holds a key of another kind than ECDSA P-256")
    return key


def load_chain(pem: bytes | Iterable[bytes]) -> tuple[bytes, ...]:
    """PEM to the DER sequence that verifiers and the handshake take; AuthorityError when it is not PEM."""
    joined = pem if isinstance(pem, bytes) else b"".join(pem)
    try:
        return tuple(each.public_bytes(Encoding.DER) for each in x509.load_pem_x509_certificates(joined))
    except UNREADABLE as exc:
        raise AuthorityError(f"a certificate chain cannot be read ({exc})") from exc
