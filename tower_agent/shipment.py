"""What an agent of the dialect `kubesphere-v1` hands to its host: where the member's servers are, and a credential.

In this dialect the host itself speaks to the member's apiserver, so it needs the address, the authority and a whole
credential: a token, or a certificate with its private key. Hence a person has to agree to it explicitly, and should
choose a ServiceAccount for it. The credential is read again whenever it may have changed; the host learns of a new one
only by another registration.
"""

from __future__ import annotations

import base64
import json
import os
from dataclasses import dataclass
from pathlib import Path

from daemon.faults import TowerError
from daemon.kube.access import Access
from protocol.defaults import LEGACY_REGISTRATION


@dataclass(frozen=True, slots=True)
class Shipment:
    """Both destinations as `host:port`, and what the host shall verify and show at the first of them."""

    kubernetes: str
    kubesphere: str
    ca: bytes
    certificate: bytes
    key: bytes
    token: str

    @property
    def what(self) -> str:
        """The credential in words."""
        kinds = ["a token"] if self.token else []
        kinds += ["a client certificate with its private key"] if self.certificate else []
        return " and ".join(kinds)

    def registration(self, *, cluster: str, token: str, version: str) -> bytes:
        """The JSON of the `config` request: Go's names, base64, nothing for what there is none of."""
        document = {
            "Version": version,
            "Name": cluster,
            "Token": token,
            "KubernetesSvcHost": self.kubernetes,
            "KubeSphereSvcHost": self.kubesphere,
        }
        more = {
            "CertData": self.certificate,
            "KeyData": self.key,
            "CAData": self.ca,
            "BearerToken": self.token.encode(),
        }
        document |= {name: base64.b64encode(value).decode() for name, value in more.items() if value}
        return json.dumps(document).encode()


class Credential:
    """The access that is shipped, read again as its file changes."""

    def __init__(self, kubeconfig: Path | None, context: str | None, kubesphere: str) -> None:
        self._kubeconfig = kubeconfig
        self._context = context
        self._kubesphere = kubesphere
        self._stamp = self._look()
        self.access = Access.find(kubeconfig, context)

    async def read(self) -> Shipment:
        """As it is now. Raises TowerError TWR309 for what no host of the dialect could use."""
        stamp = self._look()
        if stamp != self._stamp or self._kubeconfig is None:  # a pod's authority lies in a file of its own
            self.access = Access.find(self._kubeconfig, self._context)
            self._stamp = stamp
        access = self.access
        token = await access.fresh_token() or ""
        certificate, key = access.certificate or (b"", b"")
        made = Shipment(access.address, self._kubesphere, access.ca_pem, certificate, key, token)
        if not made.what:
            raise TowerError("TWR309", f"{access.source} holds neither a token nor a client certificate to ship")
        if access.server_name not in (None, access.host):
            raise TowerError(
                "TWR309",
                f"{access.source} asks for the TLS name {access.server_name!r}, which no host of kubesphere-v1 can use",
                mend=f"name a server whose certificate holds {access.host}, and leave tls-server-name out",
            )
        if len(made.registration(cluster="", token="", version="")) > LEGACY_REGISTRATION:
            raise TowerError("TWR309", f"{access.source}: its certificates are too large to be registered")
        return made

    def _look(self) -> tuple[int, int, int] | None:
        if self._kubeconfig is None:
            return None
        try:
            found = os.stat(self._kubeconfig)
        except OSError:
            return None  # `Access.find` says it
        return found.st_mtime_ns, found.st_ino, found.st_size
