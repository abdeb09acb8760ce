"""The upstream end: where the apiserver is, how its certificate is verified, and what certificate we show it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass

from certs.tls import ClientTrust, client_context


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
    pem = apiserver.ca_pem.encode()
    context = client_context(ClientTrust(system=not pem, ca_pem=pem or None))
    if certificate_file is not None:
        context.load_cert_chain(certificate_file, key_file)
    return context
