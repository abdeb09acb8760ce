"""What an apiserver refuses or does not answer, by what the caller can do about it.

All of them are TowerErrors, so that whatever nobody handles still names what was asked, what came back and the mend.
`Unreachable` after a write says that nobody knows whether it was done: read before writing again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from daemon.faults import TowerError
from daemon.kube.resources import Resource
from protocol.jsontext import parse_object

# The verb that RBAC knows, by ours.
_RBAC: Final = {"replace": "update", "apply": "patch"}
UNKNOWN_TO_IT: Final = (
    "the apiserver does not know this credential: renew the token or certificate in the kubeconfig, or make the pod's "
    "ServiceAccount again and restart the pod"
)


@dataclass(frozen=True, slots=True)
class Ask:
    """What was asked: for messages, and for the RBAC rule that allows it."""

    verb: str
    resource: Resource
    namespace: str | None = None
    name: str | None = None
    subresource: str = ""

    def __str__(self) -> str:
        named = f" {self.name}" if self.name else ""
        place = f" in namespace {self.namespace}" if self.namespace else ""
        sub = f"/{self.subresource}" if self.subresource else ""
        return f"{self.verb} {self.resource}{sub}{named}{place}"

    def rule(self) -> str:
        """The line that a Role (ClusterRole for what has no namespace) lacks."""
        sub = f"/{self.subresource}" if self.subresource else ""
        verb = _RBAC.get(self.verb, self.verb)
        return (
            f'{{apiGroups: ["{self.resource.group}"], resources: ["{self.resource.plural}{sub}"], verbs: ["{verb}"]}}'
        )


class KubeError(TowerError):
    """The root. `status` is the HTTP status (None without an answer), `word` the apiserver's reason for it."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        ask: Ask | None = None,
        status: int | None = None,
        word: str = "",
        retry_after: float | None = None,
        mend: str | None = None,
    ) -> None:
        super().__init__(code, message, mend=mend, retry_after=retry_after)
        self.ask, self.status, self.word = ask, status, word
        self.again = False
        """Whether the client itself may try again: nothing was done, or doing it twice is as good as once."""


class Unreachable(KubeError):
    """No answer, or one that is none: dial, TLS, cut, deadline, 5xx. A write may or may not have been done."""


class Throttled(KubeError):
    """429 for longer than the call may last; nothing was done. `retry_after` says when to come back."""


class Forbidden(KubeError):
    """401 or 403: the credential is not accepted, or RBAC lacks what the mend names."""


class NotFound(KubeError):
    """404 for an object."""


class NotServed(NotFound):
    """404 for the kind itself: its CRD is not installed (or just being so)."""


class Conflict(KubeError):
    """409: another writer was first. Read again, decide again."""


class AlreadyExists(Conflict):
    """409 for a create."""


class Gone(KubeError):
    """410: the version to watch or to page on from is no longer held. List anew."""


class Invalid(KubeError):
    """400, 413, 415, 422: the object itself is refused; the message says which field and why."""


def refusal(ask: Ask, address: str, status: int, body: bytes, *, retry_after: float | None = None) -> KubeError:
    """The error for an answer that is not a success."""
    said = _status_of(body)
    word = str(said.get("reason") or "")
    text = str(said.get("message") or " ".join(body[:200].decode("utf-8", "replace").split()) or "no text")
    message = f"{address} answered {status} to {ask}: {text[:600]}"
    told: dict[str, Any] = {"ask": ask, "status": status, "word": word}
    if status in (401, 403):
        return Forbidden("TWR115", message, mend=_mend_of(ask, text) if status == 403 else UNKNOWN_TO_IT, **told)
    if status == 404:
        details = said.get("details") or {}
        if not details.get("name"):
            missing = f"the kind {ask.resource} is not served there: {message}"
            return NotServed("TWR116", missing, mend=f"install its CRD: {ask.resource}", **told)
        return NotFound("TWR116", message, **told)
    if status == 409:
        return (AlreadyExists if word == "AlreadyExists" else Conflict)("TWR116", message, **told)
    if status == 410:
        return Gone("TWR116", message, **told)
    if status == 429:
        return Throttled("TWR114", message, retry_after=retry_after, **told)
    if status >= 500:
        return Unreachable("TWR114", message, retry_after=retry_after, **told)
    return Invalid("TWR116", message, **told)


def _mend_of(ask: Ask, text: str) -> str:
    """Admission answers 403 too, where no rule would help; only the authorizer says "cannot"."""
    if "exceeded quota" in text:
        return f"raise the ResourceQuota that the message names, in namespace {ask.namespace}, or make room in it"
    if "being terminated" in text:
        return f"namespace {ask.namespace} is being deleted: wait until it is gone, make it again, restore the backup"
    if "admission webhook" in text or ("is forbidden" in text and " cannot " not in text):
        return "no RBAC rule allows it: mend or remove the admission policy or webhook that the message names"
    where = f"the Role in namespace {ask.namespace}" if ask.namespace else "the ClusterRole"
    return f"add to {where} of this account: {ask.rule()}"


def _status_of(body: bytes) -> dict[str, Any]:
    try:
        return parse_object(body)
    except ValueError:
        return {}
