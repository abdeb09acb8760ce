"""One root with the issuers under it, and how the certificates that they sign are built.

A host has one generation, and two while its CA is rotated: see `certs.ca`, which also decides what may be issued, to
whom and for how long. Certificates begin `CERTIFICATE_BACKDATE` before their time of issue, so that a peer whose clock
runs behind accepts them; what counts as their time of issue for a revocation is `not_before` plus that.
"""

from __future__ import annotations

import datetime as dt
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from certs.issuers import INNER, ISSUERS, Issuer, ca_key_usage, leaf_key_usage
from certs.keys import PrivateKey, PublicKey, generate_key
from certs.names import Address, IssuerRole, Role, RootRole
from protocol import defaults

DAY: Final = 86400.0


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and the issuer's above it."""

    certificate: x509.Certificate
    issuer: x509.Certificate

    @property
    def chain_pem(self) -> bytes:
        """Leaf first; the root is not in it, whoever verifies has it."""
        return self.certificate.public_bytes(Encoding.PEM) + self.issuer.public_bytes(Encoding.PEM)

    @property
    def chain_der(self) -> tuple[bytes, ...]:
        return self.certificate.public_bytes(Encoding.DER), self.issuer.public_bytes(Encoding.DER)

    @property
    def serial(self) -> int:
        return self.certificate.serial_number

    @property
    def not_before(self) -> float:
        return self.certificate.not_valid_before_utc.timestamp()

    @property
    def not_after(self) -> float:
        return self.certificate.not_valid_after_utc.timestamp()


@dataclass(frozen=True, slots=True)
class Signing:
    """A certificate that signs others, and its key."""

    certificate: x509.Certificate
    key: PrivateKey

    @property
    def ends(self) -> float:
        return self.certificate.not_valid_after_utc.timestamp()

    def issue(
        self,
        issuer: Issuer,
        role: Role,
        subject: x509.Name,
        public_key: PublicKey,
        *,
        at: float,
        until: float,
        names: Collection[Address | str] = (),
    ) -> Issued:
        """A certificate of that kind, which ends with this one at the latest."""
        alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(str(role))]
        alternatives += [x509.DNSName(n) if isinstance(n, str) else x509.IPAddress(n) for n in dict.fromkeys(names)]
        builder = (
            _builder(public_key, subject, at, min(until, self.ends))
            .issuer_name(self.certificate.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(leaf_key_usage(), critical=True)
            .add_extension(x509.ExtendedKeyUsage(issuer.usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(_authority_key(self.certificate), critical=False)
        )
        return Issued(builder.sign(self.key, SHA256()), self.certificate)


@dataclass(frozen=True, slots=True)
class Generation:
    """The issuers are under their names, as in `certs.issuers.ISSUERS`."""

    root: Signing
    issuers: Mapping[str, Signing]

    @classmethod
    def create(cls, host: str, at: float) -> Generation:
        """A new root and its issuers."""
        key = generate_key()
        name = distinguished_name("tower root", host)
        builder = _builder(key.public_key(), name, at, at + defaults.CA_DAYS * DAY).issuer_name(name)
        builder = _with_ca(builder, RootRole(host), path_length=1)
        ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        builder = builder.add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), False)
        root = Signing(builder.sign(key, SHA256()), key)
        return cls(root, {issuer.name: _make_issuer(root, host, issuer, at) for issuer in ISSUERS.values()})

    @property
    def signing(self) -> tuple[Signing, ...]:
        return self.root, *self.issuers.values()

    @property
    def published(self) -> tuple[Signing, ...]:
        """Those that peers outside of the host's servers are told of."""
        return self.root, *(signing for name, signing in self.issuers.items() if name not in INNER)

    @property
    def complete(self) -> bool:
        """Whether it has every issuer; one that was made before there was an issuer *replicas* lacks that."""
        return self.issuers.keys() == ISSUERS.keys()

    def completed(self, host: str, at: float) -> Generation:
        """With the issuers that it lacks, under the same root."""
        made = {name: _make_issuer(self.root, host, ISSUERS[name], at) for name in ISSUERS if name not in self.issuers}
        return Generation(self.root, {**self.issuers, **made})


def distinguished_name(common_name: str, *organizations: str) -> x509.Name:
    """The subject of a certificate."""
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, each) for each in organizations]
    return x509.Name([*attributes, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(public_key: PublicKey, subject: x509.Name, at: float, until: float) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(secrets.randbits(128) or 1)
        .not_valid_before(_date(at - defaults.CERTIFICATE_BACKDATE))
        .not_valid_after(_date(until))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _with_ca(builder: x509.CertificateBuilder, role: Role, *, path_length: int) -> x509.CertificateBuilder:
    alternatives = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(role))])
    return (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(ca_key_usage(), critical=True)
        .add_extension(alternatives, critical=False)
    )


def _make_issuer(root: Signing, host: str, issuer: Issuer, at: float) -> Signing:
    key = generate_key()
    until = min(at + defaults.ISSUER_DAYS * DAY, root.ends)
    subject = distinguished_name(f"tower {issuer.name}", host)
    builder = _builder(key.public_key(), subject, at, until)
    builder = _with_ca(builder.issuer_name(root.certificate.subject), IssuerRole(host, issuer.name), path_length=0)
    builder = builder.add_extension(x509.ExtendedKeyUsage(issuer.usages), critical=False)
    builder = builder.add_extension(_authority_key(root.certificate), critical=False)
    return Signing(builder.sign(root.key, SHA256()), key)


def _authority_key(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    ski = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def _date(at: float) -> dt.datetime:
    return dt.datetime.fromtimestamp(int(at), dt.UTC)
