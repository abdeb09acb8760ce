"""A host's apiserver as far as a login asks it: requests that it holds, and what it allows whom."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from certs.keys import PrivateKey, generate_key, make_csr, signer
from certs.login import NAMESPACE_LABEL, SIGNER_NAME, login_statement
from daemon.kube.errors import NotFound

NAMESPACE = "tower-system"
SERVER = "tower-server-0"


class Apiserver:
    def __init__(self) -> None:
        self.requests: dict[str, dict[str, Any]] = {}
        self.allowed: set[tuple[str, str, str]] = set()  # name, verb, resource/subresource
        self.asked: list[dict[str, Any]] = []

    async def get(self, _resource: Any, name: str) -> dict[str, Any]:
        if name not in self.requests:
            raise NotFound("TWR603", f"no {name}")
        return self.requests[name]

    async def create(self, _resource: Any, body: dict[str, Any]) -> dict[str, Any]:
        spec = body["spec"]
        self.asked.append(spec)
        attributes = spec["resourceAttributes"]
        what = "/".join(filter(None, (attributes["resource"], attributes.get("subresource"))))
        return {"status": {"allowed": (spec["user"], attributes["verb"], what) in self.allowed}}

    def person(self, user: str, *, name: str = "alices", key: PrivateKey | None = None, **spec: Any) -> PrivateKey:
        """A request as the apiserver holds it after `user` made it."""
        key = key or generate_key()
        self.requests[name] = {
            "metadata": {
                "name": name,
                "labels": {NAMESPACE_LABEL: NAMESPACE},
                "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            },
            "spec": {
                "signerName": SIGNER_NAME,
                "request": base64.b64encode(make_csr(key)).decode(),
                "username": user,
                "uid": "u-1",
                "groups": ["system:authenticated", "ops"],
                "extra": {"example.com/team": ["edge"]},
                **spec,
            },
        }
        return key


def answer(
    challenge: dict[str, Any], key: PrivateKey, *, request: str = "alices", server: str = SERVER
) -> dict[str, Any]:
    nonce = base64.b64decode(challenge["nonce"])
    statement = login_statement(namespace=NAMESPACE, server=server, request=request, nonce=nonce)
    signature = base64.b64encode(signer(key)(statement)).decode()
    return {"request": request, "nonce": challenge["nonce"], "signature": signature}
