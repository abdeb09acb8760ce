"""The one Secret in which an agent's identity may lie, read and written as the agent itself.

The manifest makes it empty and lets the agent get and update that name only. The identity is needed before any tunnel
stands, so its failures name the Secret and what RBAC lacks.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from daemon.faults import TowerError
from tower_agent.member import MemberApi, message_of


class Secret:
    """`namespace/name` as `certs.identity_secret.SecretIdentityStore` wants it."""

    def __init__(self, api: MemberApi, namespace: str, name: str) -> None:
        self._api = api
        self._path = f"/api/v1/namespaces/{namespace}/secrets/{name}"
        self.name = f"{namespace}/{name}"
        self._kept: dict[str, Any] = {}

    async def get(self) -> tuple[Mapping[str, bytes], str]:
        """The data and its resourceVersion. TowerError TWR311 where it cannot be had."""
        document = await self._call("GET", None)
        assert document is not None
        self._kept = document
        data = document.get("data") or {}
        try:
            decoded = {str(key): base64.b64decode(value, validate=True) for key, value in data.items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise TowerError("TWR311", f"the Secret {self.name} holds data that is not base64") from error
        return decoded, str(document.get("metadata", {}).get("resourceVersion", ""))

    async def update(self, data: Mapping[str, bytes], resource_version: str) -> bool:
        """Replace all data; False when someone else has changed the Secret since it was read."""
        metadata = {**self._kept.get("metadata", {}), "resourceVersion": resource_version}
        metadata.pop("managedFields", None)
        encoded = {key: base64.b64encode(value).decode("ascii") for key, value in data.items()}
        return await self._call("PUT", {**self._kept, "metadata": metadata, "data": encoded}) is not None

    async def _call(self, method: str, body: Any) -> dict[str, Any] | None:
        answer = await self._api.call(method, self._path, body)
        if answer.status == 409 and method == "PUT":
            return None
        if answer.status in {200, 201}:
            try:
                document = answer.json()
            except ValueError:
                document = None
            if isinstance(document, dict):
                return document
        verb = "read" if method == "GET" else "updated"
        raise TowerError(
            "TWR311", f"the Secret {self.name} cannot be {verb}: {answer.status} {message_of(answer)}", exit_code=1
        )
