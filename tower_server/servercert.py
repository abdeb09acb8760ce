"""The server's own certificate: for the tunnel port, the handshake, the seal key of enrolments and its own answers.

One key, made at each start and never written down. The certificate carries the names under which the server is reached
and `*.members.tower`, under which it answers for a cluster without a tunnel. Contexts live as long as the process;
a renewed certificate is loaded into them and serves from the next handshake on.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cryptography import x509

from certs.ca import Authority
from certs.errors import IssueRefused
from certs.generation import Issued
from certs.keys import PrivateKey, generate_key, key_to_pem, signer
from certs.names import MEMBERS_DOMAIN, parse_host
from certs.published import published
from certs.tls import hardened, load_pair
from daemon.faults import TowerError
from protocol import defaults
from protocol.aio.listener import Credentials

SERVER_NAME: Final = "tower-server"
MAX_FURTHER_NAMES: Final = 16  # of addresses that come and go, the oldest are forgotten


class ServerCertificate:
    """Call `renew` when `renew_at` has passed."""

    def __init__(self, authority: Authority, *, names: Iterable[str], at: float) -> None:
        self._authority = authority
        self._names = tuple(dict.fromkeys([*names, f"*.{MEMBERS_DOMAIN}"]))
        self._also: tuple[str, ...] = ()
        self.key: PrivateKey = generate_key()
        self.tunnel_context = hardened(ssl.PROTOCOL_TLS_SERVER)
        self.answer_context = hardened(ssl.PROTOCOL_TLS_SERVER)
        self.issued: Issued
        self.credentials: Credentials
        self.renew(at=at)

    @property
    def renew_at(self) -> float:
        return self.issued.not_before + (self.issued.not_after - self.issued.not_before) * defaults.RENEW_AT

    def name_also(self, names: Iterable[str]) -> bool:
        """Whether a name was not carried yet; `renew` then makes the certificate that carries it."""
        new = [name for name in names if name not in (*self._names, *self._also)]
        self._also = (*self._also, *new)[-MAX_FURTHER_NAMES:]
        return bool(new)

    def renew(self, *, at: float) -> None:
        public = self.key.public_key()
        self.issued = self._authority.issue_server(SERVER_NAME, (*self._names, *self._also), public_key=public, at=at)
        self.credentials = Credentials(self.issued.chain_der, signer(self.key))
        for context in (self.tunnel_context, self.answer_context):
            load_pair(context, chain_pem=self.issued.chain_pem, key_pem=key_to_pem(self.key))


class FileCertificate:
    """The certificate of the tunnel port where the operator brings one; read again when its files have changed."""

    def __init__(self, cert: Path, key: Path) -> None:
        self._cert = cert
        self._key = key
        self._seen: tuple[int, ...] = ()
        self.context = hardened(ssl.PROTOCOL_TLS_SERVER)
        self.reload()

    def reload(self) -> bool:
        """Whether the files had changed. TowerError TWR104 when they cannot be used; what was in force stays so."""
        try:
            seen = tuple(path.stat().st_mtime_ns for path in (self._cert, self._key))
            if seen == self._seen:
                return False
            # A pair that does not fit must not half replace the old.
            hardened(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
            whose = published(x509.load_pem_x509_certificates(self._cert.read_bytes()))
            if whose is not None:
                raise TowerError(
                    "TWR104",
                    f"the certificate of the port, {self._cert}, is of {whose}: anybody could pass for this server",
                    mend="have a certificate made by an authority of your own, or leave `tls` out",
                )
            self.context.load_cert_chain(self._cert, self._key)
        except (OSError, ssl.SSLError, ValueError) as error:
            why = getattr(error, "strerror", None) or getattr(error, "reason", None) or error
            raise TowerError(
                "TWR104",
                f"the certificate of the tunnel port cannot be used: {why} (cert: {self._cert}, key: {self._key})",
                mend="give the PEM chain, leaf first, and its unencrypted key, both readable by this user",
            ) from error
        self._seen = seen
        return True


def own_names(*candidates: str) -> list[str]:
    """Names and addresses for the server's certificate: those given and what this machine calls itself.

    What cannot stand in a certificate (an odd machine name) is left out: nobody can verify such a name anyway.
    """
    found = []
    for name in (*candidates, "localhost", "127.0.0.1", "::1", socket.gethostname()):
        with contextlib.suppress(IssueRefused):
            parsed = parse_host(name) if name else ""
            if parsed and (isinstance(parsed, str) or not parsed.is_unspecified):
                found.append(str(parsed))
    return list(dict.fromkeys(found))
