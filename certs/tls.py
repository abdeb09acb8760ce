"""TLS contexts of every end, so that versions, tickets, ALPN and trust are decided in one place.

Private keys reach OpenSSL through an anonymous file in memory, never through one that a name leads to. All contexts
take TLS 1.2 and newer and offer `http/1.1` only. Servers give no tickets. TLS 1.2 can still take up a session by its
id, out of a cache in memory; such a connection shows the certificate of its first one, so whoever checks that for every
request loses nothing.

The callers' context accepts any certificate that ends at the host's root, whatever its issuer or time, and leaves it to
`TrustBundle.verify_client` to refuse it by a 401 that says why; only what this host never issued ends in an alert.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

from certs.errors import AuthorityError
from certs.pemfile import in_memory
from certs.verify import TrustBundle

ALPN: Final = ["http/1.1"]
CURVE: Final = "prime256v1"
NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


def hardened(side: ssl._SSLMethod) -> ssl.SSLContext:
    """What every context begins with, for `ssl.PROTOCOL_TLS_SERVER` or `ssl.PROTOCOL_TLS_CLIENT`.

    A server agrees on keys by P-256 alone: of a list that Python cannot shorten the peer would choose the group, and
    one of 8192 bits costs a hundred times as much, at no cost of the peer's. Who offers another first is asked again.
    """
    context = _begun(side)
    if side == ssl.PROTOCOL_TLS_SERVER:
        context.set_ecdh_curve(CURVE)
    return context


def _begun(side: ssl._SSLMethod) -> ssl.SSLContext:
    context = ssl.SSLContext(side)
    # In TLS 1.2 a server makes up the Diffie-Hellman group of these: a second of everybody's time.
    kept = (each["name"] for each in context.get_ciphers() if "dhe" not in each["kea"].split("-"))
    context.set_ciphers(":".join(kept))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    # Early releases of Python 3.11, Debian 12's among them, set it: a cut would pass for the end of what was sent.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    context.set_alpn_protocols(ALPN)
    if side == ssl.PROTOCOL_TLS_SERVER:  # no tickets: every connection is checked anew
        context.options |= ssl.OP_NO_TICKET
        context.num_tickets = 0
    return context


def load_pair(context: ssl.SSLContext, *, chain_pem: bytes, key_pem: bytes) -> None:
    """Use this certificate and key from the next handshake on; connections that are open keep the old one."""
    try:
        with in_memory(key_pem.rstrip() + b"\n" + chain_pem) as pair:
            context.load_cert_chain(pair, password="")  # never asks on a terminal
    except ssl.SSLError as exc:
        raise AuthorityError(
            f"a certificate and its key cannot be used ({exc.reason or exc})",
            "give the PEM of both, of one pair",
        ) from exc


def server_context(*, chain_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """For the tunnel port, and for the server's own answers on a cluster's port: asks for no client certificate."""
    context = hardened(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, chain_pem=chain_pem, key_pem=key_pem)
    return context


def callers_context(bundle: TrustBundle, *, chain_pem: bytes, key_pem: bytes) -> ssl.SSLContext:
    """For callers of a cluster: a client certificate is welcome, and must end at this host's root.

    They may choose the group of the key exchange: most offer another one first than P-256, and would wait for a round
    trip more at each connection. Whose group costs too much is refused by `protocol.aio.clienthello`.
    """
    context = _begun(ssl.PROTOCOL_TLS_SERVER)
    load_pair(context, chain_pem=chain_pem, key_pem=key_pem)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= NO_CHECK_TIME
    context.load_verify_locations(cadata=bundle.to_pem().decode())
    return context


def replica_contexts(bundle: TrustBundle, *, chain_pem: bytes, key_pem: bytes) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For the servers of one host among themselves, as the one who is called and the one who calls.

    Either side shows a certificate that ends at the host's root. Of which kind it is, and whose, is for
    `TrustBundle.verify_replica`: certificates of replicas carry no name that OpenSSL could compare.
    """
    called, calling = server_context(chain_pem=chain_pem, key_pem=key_pem), hardened(ssl.PROTOCOL_TLS_CLIENT)
    calling.check_hostname = False
    load_pair(calling, chain_pem=chain_pem, key_pem=key_pem)
    calling.set_ecdh_curve(CURVE)  # what the other takes
    for context in (called, calling):
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(cadata=bundle.root_pem.decode())
    return called, calling


@dataclass(frozen=True, slots=True)
class ClientTrust:
    """Which authorities a client accepts: the system's, those of a file, those given as PEM; more than one adds up."""

    system: bool = False
    ca_file: str | None = None
    ca_pem: bytes | None = None


def client_context(trust: ClientTrust) -> ssl.SSLContext:
    """For dialling out: the name is always checked. AuthorityError when there is nothing to trust, or it is no PEM."""
    context = hardened(ssl.PROTOCOL_TLS_CLIENT)
    if not (trust.system or trust.ca_file or trust.ca_pem):
        raise AuthorityError(
            "no certificate authority is trusted for this connection", "name a CA file, or the system's"
        )
    if trust.system:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    try:
        if trust.ca_pem:
            context.load_verify_locations(cadata=trust.ca_pem.decode())
        if trust.ca_file:
            context.load_verify_locations(cafile=trust.ca_file)
    except (OSError, ValueError) as exc:  # SSLError is an OSError
        what = trust.ca_file or "the CA that was given"
        raise AuthorityError(
            f"{what} cannot be read as a bundle of CA certificates ({exc})", "give PEM certificates"
        ) from exc
    return context
