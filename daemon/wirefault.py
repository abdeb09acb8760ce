"""Maps the codes of the tunnel's wire to the faults that people look up: one table for server, agent and CLI."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from protocol.constants import Code

WIRE_FAULTS: Final[Mapping[Code, str]] = MappingProxyType(
    {
        Code.INTERNAL: "TWR112",
        Code.PROTOCOL: "TWR219",
        Code.FLOW: "TWR220",
        Code.TOO_LARGE: "TWR220",
        Code.FLOOD: "TWR220",
        Code.UNKNOWN_SERVICE: "TWR226",
        Code.FORBIDDEN: "TWR227",
        Code.DIAL_FAILED: "TWR301",
        Code.DIAL_TIMEOUT: "TWR303",
        Code.BUDGET: "TWR412",
        Code.TOO_MANY: "TWR411",
        Code.DRAINING: "TWR113",
        Code.TUNNEL_LOST: "TWR201",
        Code.DEAD_PEER: "TWR222",
        Code.SHUTDOWN: "TWR113",
        Code.REVOKED: "TWR209",
        Code.EXPIRED: "TWR502",
        Code.DELETED: "TWR203",
        Code.VERSION: "TWR218",
        Code.BAD_SIGNATURE: "TWR217",
        Code.UNTRUSTED: "TWR507",
        Code.WRONG_CLUSTER: "TWR203",
        Code.BUSY: "TWR221",
        Code.TIMEOUT: "TWR217",
        Code.UNKNOWN_TUNNEL: "TWR201",
        Code.STALE_LINK: "TWR201",
        Code.POSITION: "TWR219",
    }
)
"""NONE, CANCELLED and REPLACED are no faults: somebody wanted it so."""


def wire_fault(code: int, default: str) -> str:
    """The fault behind a wire code; `default` for one that is no fault or that only a newer peer knows."""
    return WIRE_FAULTS.get(code, default)  # type: ignore[call-overload,no-any-return]  # an IntEnum equals its number
