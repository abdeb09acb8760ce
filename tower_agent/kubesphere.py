"""What a host asks about the member's KubeSphere: whether its ks-apiserver answers, and a proof of its `jwtSecret`.

The secret is read for each answer, used here and never kept, logged or sent: `daemon.kubesphere` says what goes out.
"""

from __future__ import annotations

import base64
import secrets
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kubesphere import CONFIG, NONCE_BYTES, SPACE, jwt_secret, proof
from daemon.units import split_address
from protocol.aio.hops import DialError
from protocol.aio.proxydial import DialTarget
from tower_agent.http import fetch
from tower_agent.member import MemberApi

DEADLINE: Final = 5.0


class KubeSphere:
    """`address` is the declared service's."""

    def __init__(self, api: MemberApi, address: str) -> None:
        self._api = api
        self._address = address

    async def answer(self, nonce: bytes, *, host: str, cluster: str) -> dict[str, Any]:
        """As it stands in a status: `nonce` and `mac`, or `text` saying why there is none. Never raises TowerError."""
        try:
            await self._present()
            secret = await self._secret()
        except TowerError as error:
            return {"text": error.message}
        own = secrets.token_bytes(NONCE_BYTES)
        made = proof(secret, host=host, cluster=cluster, server_nonce=nonce, agent_nonce=own)
        return {"nonce": base64.b64encode(own).decode(), "mac": base64.b64encode(made).decode()}

    async def _present(self) -> None:
        host, port = split_address(self._address)
        target = DialTarget(host=host, port=port, ssl_context=None, proxy_env=False)
        try:
            answer = await fetch(target, "GET", "/kapis/version", deadline=DEADLINE)
        except DialError as error:
            raise TowerError(
                "TWR125", f"the member's ks-apiserver at {self._address} does not answer: {error}"
            ) from error
        if answer.status >= 500:
            raise TowerError("TWR125", f"the member's ks-apiserver at {self._address} answers {answer.status}")

    async def _secret(self) -> str:
        where = f"the member's ConfigMap {SPACE}/{CONFIG}"
        try:
            found = await self._api.json("GET", f"/api/v1/namespaces/{SPACE}/configmaps/{CONFIG}")
        except TowerError as error:
            raise TowerError("TWR125", f"{where} cannot be read: {error.message}") from error
        try:
            return jwt_secret(found)
        except ValueError as error:
            raise TowerError("TWR125", f"{where}: {error}") from error
