"""What `towerctl check` adds on a Kubernetes host: what the controller has found inside each member.

The leader looks into the members and writes what it finds as conditions; any server reads those from the apiserver.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Final

from daemon.checks import Check, Result, fail, ok, unknown, warn
from daemon.faults import FAULTS
from daemon.kube.client import Client
from daemon.kube.errors import KubeError, NotFound
from daemon.kube.resources import MEMBERS
from daemon.units import format_age
from protocol import defaults
from tower_server.controller.conditions import find

_CODED: Final = re.compile(r"(TWR\d{3}): (.+?)(?:; (.+))?", re.DOTALL)
_AT_REST: Final = frozenset({"Left", "NotAccepted", "Passthrough"})
"""Reasons why a cluster is not federated that are nobody's fault, or another check's."""
_OBJECTS: Final = ("PortReady", "Initialized", "ResourceWritable")


def clock_check(client: Client, *, needs: tuple[str, ...]) -> Check:
    """Whether this server and its apiserver, and so perhaps agents and other servers, agree on what is valid now."""
    return Check("clock", partial(_clock, client), needs=needs, category="server", title="clock", code="TWR502")


async def _clock(client: Client) -> Result:
    ahead = client.ahead
    if abs(ahead) <= defaults.CERTIFICATE_BACKDATE:
        return ok("the clock is the apiserver's")
    far = f"the clock here is {format_age(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} that of {client.address}"
    whose = (
        "certificates made here are not valid yet"
        if ahead > 0
        else "certificates made elsewhere are not valid yet here"
    )
    return warn("TWR502", f"{far}: where that one is right, {whose}", next_step="correct the clock of this machine")


def host_checks(client: Client, name: str, *, needs: tuple[str, ...]) -> Iterator[Check]:
    """The first reads the Member for all of them."""
    found = _Conditions(client, name)
    yield Check(
        f"objects/{name}", partial(_objects, found), category="objects", subject=name, title="port and Service",
        code="TWR122",
    )  # fmt: skip
    yield Check(
        f"accepted/{name}", partial(_accepted, found), needs=(*needs, f"objects/{name}"), category="objects",
        subject=name, title="accepted", code="TWR124",
    )  # fmt: skip
    yield Check(
        f"federation/{name}", partial(_federation, found), needs=(f"accepted/{name}",), category="objects",
        subject=name, title="federation", code="TWR127",
    )  # fmt: skip


class _Conditions:
    """Of one cluster's Member."""

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._listed: object = None

    async def read(self) -> None:
        """KubeError."""
        try:
            self._listed = ((await self._client.get(MEMBERS, self._name)).get("status") or {}).get("conditions")
        except NotFound:
            return  # deleted just now

    def get(self, kind: str) -> Mapping[str, Any] | None:
        return find(self._listed, kind)


async def _objects(conditions: _Conditions) -> Result:
    """What keeps callers away however well the tunnel is; what is only under way has no code."""
    try:
        await conditions.read()
    except KubeError as error:
        return unknown(error.code, error.message, next_step=error.mend)
    for kind in _OBJECTS:
        found = conditions.get(kind)
        if found is not None and found.get("status") == "False" and _CODED.fullmatch(_text(found)):
            return _failed(found, "TWR122")
    return ok("port and Service are there")


async def _accepted(conditions: _Conditions) -> Result:
    found = conditions.get("Accepted")
    if found is None:
        return ok("no Cluster resource asks for it")
    if found.get("status") == "True":
        return ok(_text(found) or "its member is this cluster's")
    if found.get("status") == "Unknown":
        return warn("TWR308", f"not looked at yet: {_text(found)}")
    return _failed(found, "TWR124")


async def _federation(conditions: _Conditions) -> Result:
    found = conditions.get("FederationReady")
    if found is None or found.get("reason") in _AT_REST:
        return ok("not asked for")
    if found.get("reason") == "LeftBehind":
        return warn("TWR127", _text(found))
    return ok(_text(found)) if found.get("status") != "False" else _failed(found, "TWR127")


def _text(found: Mapping[str, Any]) -> str:
    return str(found.get("message") or "")


def _failed(found: Mapping[str, Any], otherwise: str) -> Result:
    """The condition's own code, text and mend."""
    told = _CODED.fullmatch(_text(found))
    if told is None or told[1] not in FAULTS:
        return fail(otherwise, _text(found))
    return fail(told[1], told[2], next_step=told[3] or "")
