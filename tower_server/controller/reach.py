"""The controller's own way into a member, as the admin whom the member's owner let in.

It calls the cluster's port on this server as any other caller does, so it needs nothing of its own: a tunnel that
another server holds, an agent of either dialect, the policy and the RBAC of the member all count as they do for people,
and the audit lines of both ends name it.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from certs.ca import Authority
from certs.keys import generate_key, key_to_pem
from certs.names import member_name
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.kubeconfig import Kubeconfig
from protocol import defaults

CALL_DEADLINE: Final = 10.0  # of one request to a member, all tries included
LOOPBACK: Final = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class Reach:
    """`bind` is the address on which this server's ports listen."""

    def __init__(self, authority: Authority, *, bind: str) -> None:
        self._authority = authority
        self._address = LOOPBACK.get(bind, bind)
        self._renew_at = 0.0
        self._number = 0
        self._pair = (b"", b"")

    @asynccontextmanager
    async def client(self, cluster: str, port: int) -> AsyncIterator[Client]:
        """A client of the member's apiserver; what it raises is a KubeError, as of any apiserver."""
        address = f"[{self._address}]" if ":" in self._address else self._address
        chain, key = self._credential()
        access = Access(
            Kubeconfig(
                source=f"the port of cluster {cluster}",
                server=f"https://{address}:{port}",
                ca_pem=self._authority.bundle.root_pem,
                server_name=member_name(cluster),
                certificate_pem=chain,
                key_pem=key,
                token=None,
                token_file=None,
                plugin=None,
            )
        )
        client = Client(access, user_agent="tower-controller", deadline=CALL_DEADLINE)
        try:
            yield client
        finally:
            client.close()

    def _credential(self) -> tuple[bytes, bytes]:
        now, authority = time.time(), self._authority
        if now >= self._renew_at or self._number != authority.number:
            key = generate_key()
            user, group = f"tower:{authority.host}:admin", f"tower:{authority.host}:cluster-admins"
            issued = authority.issue_client(user, (group,), public_key=key.public_key(), at=now)
            self._pair = issued.chain_pem, key_to_pem(key)
            self._number = authority.number
            self._renew_at = now + (issued.not_after - now) * defaults.RENEW_AT
        return self._pair
