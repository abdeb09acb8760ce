"""Identities in one Kubernetes Secret, which the manifest makes empty: the agent may get and update that name only.

Keys are `<host>.<entry>`; a host is a DNS label, so the first dot parts them. Keys that are not ours are left alone.
Every update carries the resourceVersion that was read; when somebody else was faster, everything is decided anew on
what they wrote, so of several replicas the first writer wins and the others adopt its keys and identity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, Protocol, TypeVar

from certs.errors import IdentityError
from certs.identity import ENTRIES, Entries, IdentityStore
from certs.names import is_label

MAX_ATTEMPTS: Final = 10
SECRET_DEADLINE: Final = 15.0  # seconds for all attempts together
T = TypeVar("T")


class SecretClient(Protocol):
    """The one Secret; what daemon.kube gives. Its failures pass through as they are."""

    @property
    def name(self) -> str:
        """`namespace/name`, for messages."""

    async def get(self) -> tuple[Mapping[str, bytes], str]:
        """The data and its resourceVersion."""

    async def update(self, data: Mapping[str, bytes], resource_version: str) -> bool:
        """Replace all data; False when `resource_version` is no longer the newest."""


class SecretIdentityStore(IdentityStore):
    """Identities in a Secret."""

    def __init__(self, client: SecretClient) -> None:
        self._client = client

    def place(self, host: str, name: str) -> str:
        return f"key {host}.{name} of Secret {self._client.name}"

    async def _change(self, change: Callable[[Entries], T]) -> T:
        try:
            async with asyncio.timeout(SECRET_DEADLINE):
                for _ in range(MAX_ATTEMPTS):
                    data, version = await self._client.get()
                    before = _entries(data)
                    after = dict(before)
                    result = change(after)
                    if after == before or await self._client.update(_merged(data, before, after), version):
                        return result
        except TimeoutError as exc:
            raise IdentityError(
                f"Secret {self._client.name} could not be read or written within {SECRET_DEADLINE:g} s",
                "look at the member's apiserver",
            ) from exc
        raise IdentityError(
            f"Secret {self._client.name} was changed by others at each of {MAX_ATTEMPTS} attempts",
            "see who else writes it: it belongs to the agents of one cluster",
        )


def _entries(data: Mapping[str, bytes]) -> dict[tuple[str, str], bytes]:
    split = {key: key.partition(".") for key in data}
    return {(host, name): data[key] for key, (host, _, name) in split.items() if is_label(host) and name in ENTRIES}


def _merged(data: Mapping[str, bytes], before: Entries, after: Entries) -> dict[str, bytes]:
    foreign = {key: value for key, value in data.items() if tuple(key.split(".", 1)) not in before}
    return foreign | {f"{host}.{name}": value for (host, name), value in after.items()}
