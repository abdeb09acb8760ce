"""What the agent itself asks its member's apiserver, as itself: never on behalf of a caller.

Every way in which that can fail has its own fault, so that a person learns whether the control plane is down, slow, not
the one that was meant, or does not accept the agent.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kube.access import Access
from protocol import defaults
from protocol.aio.hops import DialError
from protocol.aio.tlsfailure import out_of_time
from tower_agent.http import Answer, fetch

_JSON: Final = ("Accept", "application/json")
_METADATA: Final = ("Accept", "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1")


class MemberApi:
    """The member's apiserver as the agent's own credential sees it."""

    def __init__(self, access: Access, *, version: str) -> None:
        self.access = access
        self._target, self._generation = access.target(access.own_context()), access.generation
        self._agent = ("User-Agent", f"tower-agent/{version}")

    async def call(
        self, method: str, path: str, body: Any = None, *, accept: tuple[str, str] = _JSON, deadline: float = 5.0
    ) -> Answer:
        """One request. TowerError TWR301, 303, 304, 306 where no answer comes, TWR305 for 401; others are returned."""
        headers = [self._agent, accept]
        token = await self.access.fresh_token()
        if self._generation != self.access.generation:
            self._target, self._generation = self.access.target(self.access.own_context()), self.access.generation
        if token is not None:
            headers.append(("Authorization", f"Bearer {token}"))
        data = b""
        if body is not None:
            headers.append(("Content-Type", "application/json"))
            data = json.dumps(body).encode()
        try:
            answer = await fetch(self._target, method, path, headers=headers, body=data, deadline=deadline)
        except DialError as error:
            self.access.forget_token()  # what is wrong may have been renewed on disk
            raise apiserver_fault(error, self.access) from error
        if answer.status == 401:
            self.access.forget_token()
            raise TowerError(
                "TWR305", f"{self.access.address} answered 401 to the agent's own credential ({self.access.source})"
            )
        return answer

    async def json(self, method: str, path: str, body: Any = None, *, accept: tuple[str, str] = _JSON) -> Any:
        """As `call`, for an answer of 200 or 201 that is a JSON object; TWR305 for 403, TWR306 for anything else."""
        answer = await self.call(method, path, body, accept=accept)
        if answer.status == 403:
            raise TowerError("TWR305", f"{self.access.address} answered 403 to {method} {path}: {message_of(answer)}")
        try:
            document = answer.json()
        except ValueError as error:
            raise TowerError("TWR306", f"{self.access.address} answered {method} {path} without JSON") from error
        if answer.status not in {200, 201} or not isinstance(document, dict):
            raise TowerError(
                "TWR306", f"{self.access.address} answered {answer.status} to {method} {path}: {message_of(answer)}"
            )
        return document

    async def may(self, verb: str, resource: str, name: str) -> bool:
        """Whether the agent's own rights include `verb` on that cluster-wide resource of the core group."""
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": verb, "resource": resource, "name": name}},
        }
        answer = await self.json("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", review)
        return answer.get("status", {}).get("allowed") is True

    async def node_count(self) -> int:
        """How many nodes the member has, without reading them."""
        nodes = await self.json("GET", "/api/v1/nodes?limit=1", accept=_METADATA)
        return len(nodes.get("items") or ()) + int(nodes.get("metadata", {}).get("remainingItemCount") or 0)


@dataclass(frozen=True, slots=True)
class Readiness:
    """The answer of /readyz: `ok`, or the text that names the failing check."""

    ok: bool
    text: str


async def readiness(api: MemberApi) -> Readiness:
    """Ask /readyz once; TowerError where there is no answer, or TWR305 for 401 and 403."""
    answer = await api.call("GET", "/readyz", accept=("Accept", "*/*"), deadline=defaults.DIAL_DEADLINE)
    if answer.status == 403:
        raise TowerError("TWR305", f"{api.access.address} answered 403 to the agent's own credential on /readyz")
    return Readiness(answer.status == 200, f"/readyz answered {answer.status}: {answer.text()}")


def apiserver_fault(error: DialError, access: Access) -> TowerError:
    """Why the apiserver could not be asked."""
    if out_of_time(error.__cause__):
        mend = "renew the apiserver's certificate (`kubeadm certs renew apiserver`), or correct this machine's clock"
        return TowerError("TWR304", f"the apiserver at {access.address} is not trusted: {error.text}", mend=mend)
    if error.hop == "tls" and error.peer_ca is not None:
        return TowerError("TWR304", f"the apiserver at {access.address} is not trusted: {error.text}")
    if "within" in error.text:
        return TowerError("TWR303", f"the apiserver at {access.address} does not answer: {error.text}")
    if error.hop == "http":
        return TowerError("TWR306", f"the apiserver at {access.address}: {error.text}")
    code = "TWR117" if os.strerror(errno.EMFILE) in error.text else "TWR301"
    return TowerError(code, f"the apiserver at {access.address} cannot be reached: {error.text}")


def message_of(answer: Answer) -> str:
    """What a Kubernetes Status says, or the beginning of whatever came in its place."""
    try:
        message = answer.json().get("message")
    except (ValueError, AttributeError):
        message = None
    return message[:300] if isinstance(message, str) and message else answer.text()
