"""How this agent dials a tower server: addresses, proxies and which authorities it believes.

Two ways with different needs. The tunnel's TLS is verified against the tower's own CA, the system's and a given file.
Enrolment does not rest on TLS at all: what it says is sealed to a key that the token's fingerprint vouches for, so a
middle that ends TLS can neither read nor change it, and an agent that does not know the tower's CA yet can still ask.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

from certs.errors import AuthorityError
from certs.tls import ClientTrust, client_context, hardened
from certs.verify import TrustBundle
from daemon.faults import TowerError
from protocol import defaults
from protocol.aio.proxydial import DialTarget, Url, parse_url
from tower_agent.config import AgentConfig


@dataclass(frozen=True, slots=True)
class WayOut:
    """The settings of the way to one host."""

    ca_file: Path | None = None
    proxy: str | None = None
    proxy_env: bool = True
    insecure_transport: bool = False
    url: str | None = None
    """The server's address where it is no longer the one that the agent enrolled with."""

    @classmethod
    def of(cls, config: AgentConfig, host: str | None = None) -> WayOut:
        """What the configuration says for `host`; None: for one that has no entry yet."""
        entry = next((each for each in config.hosts if each.name == host), None)
        return cls(
            ca_file=(entry.ca_file if entry else None) or config.ca_file,
            proxy=(entry.proxy if entry else None) or config.proxy,
            proxy_env=config.proxy_from_environment,
            insecure_transport=config.insecure_transport,
            url=entry.url if entry else None,
        )

    def enrolment(self, url: str) -> DialTarget:
        """Where to enrol. Raises TowerError TWR227 for a plain address that was not asked for."""
        context = hardened(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return self._target(self._address(url), context, "")

    def tunnel(self, url: str, bundle: TrustBundle) -> DialTarget:
        """Where to open the tunnel; `url` is the one of the enrolment. Raises TowerError TWR227, TWR104."""
        context = self._trusting(bundle.root_pem)
        expected = f"the tower CA sha256:{bundle.fingerprint[:16]}.., one of the system's authorities"
        return self._target(
            self._address(self.url or url), context, expected + (f" or of {self.ca_file}" if self.ca_file else "")
        )

    def _address(self, url: str) -> Url:
        try:
            address = parse_url(url)
        except ValueError as error:
            raise TowerError("TWR101", f"the server's address cannot be used: {error}") from error
        if not address.tls and not self.insecure_transport:
            raise TowerError(
                "TWR227",
                f"the server's address {url} is without TLS",
                mend="use wss://, or accept it by name with `insecure_transport: true` (--insecure-transport)",
            )
        return address

    def _target(self, address: Url, context: ssl.SSLContext, expected: str) -> DialTarget:
        return DialTarget(
            host=address.host,
            port=address.port,
            path=address.path + defaults.TUNNEL_PATH,
            ssl_context=context if address.tls else None,
            proxy=self.proxy,
            proxy_env=self.proxy_env,
            proxy_ssl_context=self._proxy_context(),
            expected_ca=expected,
        )

    def _proxy_context(self) -> ssl.SSLContext | None:
        return None if self.ca_file is None else self._trusting(None)

    def _trusting(self, ca_pem: bytes | None) -> ssl.SSLContext:
        try:
            return client_context(
                ClientTrust(system=True, ca_file=str(self.ca_file) if self.ca_file else None, ca_pem=ca_pem)
            )
        except AuthorityError as error:
            raise TowerError("TWR104", error.text) from error
