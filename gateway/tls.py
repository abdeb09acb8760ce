"""The TLS contexts of both sides: the end that callers see, and the way to the apiserver."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import Final

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name


def caller_context(*, certificate_file: str, key_file: str, client_ca_pem: str) -> ssl.SSLContext:
    """For callers: HTTP/1.1, a certificate is asked for but not demanded, no tickets, no renegotiation.

    OpenSSL refuses only what no issuer of this host signed (a TLS alert). Its time check is off, so that an expired
    certificate reaches the gateway, which can say so in a 401. `client_ca_pem` holds the host's root and issuers:
    callers send their leaf alone. Without tickets every connection shows its certificate anew.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags = ssl.VerifyFlags(
        context.verify_flags | _NO_CHECK_TIME | ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    )
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.num_tickets = 0
    context.load_verify_locations(cadata=client_ca_pem)
    context.load_cert_chain(certificate_file, key_file)
    return context


@dataclass(frozen=True, slots=True)
class Apiserver:
    """Where the member's apiserver is and what proves it."""

    host: str
    port: int
    server_name: str = ""
    """The name that its certificate must carry, where that is not `host`."""
    ca_pem: str = ""
    """Empty: the system's roots."""

    @property
    def authority(self) -> bytes:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}".encode()

    def __str__(self) -> str:
        return self.authority.decode()


def upstream_context(
    apiserver: Apiserver, *, certificate_file: str | None = None, key_file: str | None = None
) -> ssl.SSLContext:
    """Towards the apiserver: its certificate is verified always; ours is shown only if one is named."""
    context = ssl.create_default_context(cadata=apiserver.ca_pem or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if certificate_file is not None:
        context.load_cert_chain(certificate_file, key_file)
    return context
