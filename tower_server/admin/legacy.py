"""Calls of the admin API about Go agents: the token by which they register, and the window for a move."""

from __future__ import annotations

import secrets
import time
from typing import Any, Final

from pydantic import Field

from certs.token import hash_secret
from daemon.faults import TowerError
from protocol import defaults
from tower_server.admin.body import Body, checked
from tower_server.admin.services import Services
from tower_server.admin.views import Object, moment, object_of
from tower_server.member import is_legacy
from tower_server.records import LEGACY_TOKEN

TOKEN_BYTES: Final = 32  # as hexadecimal digits, which is how Go Tower writes its own
MAX_WINDOW: Final = 30 * 86400.0


class LegacyTokenBody(Body):
    token: str | None = None


class LegacyWindowBody(Body):
    ttl: float = Field(default=defaults.LEGACY_WINDOW, gt=0, le=MAX_WINDOW)


async def create_token(services: Services, cluster: str, document: dict[str, Any]) -> Object:
    """Makes or takes over the token of a cluster; Go agents that used another one are closed."""
    asked = checked(LegacyTokenBody, document)
    services.clusters.get(cluster)
    _spoken(services)
    token = secrets.token_hex(TOKEN_BYTES) if asked.token is None else asked.token
    if not LEGACY_TOKEN.fullmatch(token):
        raise TowerError("TWR605", "the token is not one of 32 to 512 printable characters without spaces")
    await services.clusters.set_legacy(cluster, legacy_token=hash_secret(token))
    return object_of(
        "LegacyToken",
        {"cluster": cluster, "token": token, "address": services.legacy_address, "dialect": "kubesphere-v1"},
    )


async def delete_token(services: Services, cluster: str) -> Object:
    """Go agents of the cluster are closed and cannot come back."""
    _, member = services.clusters.get(cluster)
    closed = sum(is_legacy(tunnel) for tunnel in member.tunnels)
    await services.clusters.set_legacy(cluster, legacy_token=None, legacy_until=None)
    return object_of("LegacyToken", {"cluster": cluster, "token": None, "closed": closed})


async def create_window(services: Services, cluster: str, document: dict[str, Any]) -> Object:
    """Lets a Go agent register beside native ones, for a while."""
    until = time.time() + checked(LegacyWindowBody, document).ttl
    services.clusters.get(cluster)
    _spoken(services)
    await services.clusters.set_legacy(cluster, legacy_until=until)
    return object_of("LegacyWindow", {"cluster": cluster, "until": moment(until)})


async def delete_window(services: Services, cluster: str) -> Object:
    """Closes it again; Go agents that are there stay until their link ends."""
    await services.clusters.set_legacy(cluster, legacy_until=None)
    return object_of("LegacyWindow", {"cluster": cluster, "until": None})


def _spoken(services: Services) -> None:
    if not services.legacy_address:
        raise TowerError(
            "TWR605",
            "this server does not speak the dialect kubesphere-v1, so that no Go agent could register",
            mend="set `kubesphere_v1.enabled: true` in the server's configuration and restart it",
        )
