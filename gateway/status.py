"""Kubernetes `Status` answers as HTTP/1.1 bytes, ready to write.

kubectl and client-go show `message`, so it names the cause, the fault code and the mend. Where they look for what the
apiserver serves (`/api`, `/apis`, `/version`, `/openapi`) they drop the body of an error and print a sentence of their
own; a `Warning` header they print in any case, so it says the same. `Retry-After` is set only where a retry makes
sense: client-go repeats every answer that carries it.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus
from typing import Final

from daemon.faults import Fault, fault

# What apimachinery calls these; other statuses take their HTTP phrase in the same spelling.
_REASONS: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    408: "Timeout",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}


_WARNING_LENGTH: Final = 2000


def reason_for(status: int) -> str:
    """The `reason` of a Status, by its HTTP status."""
    return _REASONS.get(status) or HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def status_body(
    status: int, message: str, *, code: str, reason: str | None = None, mend: str = "", retry_after: float | None = None
) -> bytes:
    """The JSON of a Status; `code` is the fault's, and stands in the message and among the causes."""
    details: dict[str, object] = {"causes": [{"reason": code, "message": mend or message}]}
    if retry_after is not None:
        details["retryAfterSeconds"] = max(1, math.ceil(retry_after))
    document = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": _sentence(message, code, mend),
        "reason": reason or reason_for(status),
        "details": details,
        "code": status,
    }
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


def _sentence(message: str, code: str, mend: str) -> str:
    return f"{message} ({code}); {mend}" if mend else f"{message} ({code})"


def warning_of(text: str) -> str:
    """The value of a `Warning` header (RFC 7234, section 5.5): one line, quoted, ASCII."""
    line = " ".join(text.split())[:_WARNING_LENGTH]
    plain = "".join(char if " " <= char <= "~" else "?" for char in line)
    return '299 - "{}"'.format(plain.replace("\\", "\\\\").replace('"', '\\"'))


def status_response(
    status: int,
    message: str,
    *,
    code: str,
    reason: str | None = None,
    mend: str = "",
    retry_after: float | None = None,
    head_only: bool = False,
    close: bool = True,
    audit_id: str = "",
) -> bytes:
    """A whole answer. `head_only` for HEAD requests; `close` False where the connection can carry another request."""
    body = status_body(status, message, code=code, reason=reason, mend=mend, retry_after=retry_after)
    lines = [
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        f"Warning: {warning_of(_sentence(message, code, mend))}",
    ]
    if retry_after is not None:
        lines.append(f"Retry-After: {max(1, math.ceil(retry_after))}")
    if audit_id:
        lines.append(f"Audit-Id: {audit_id}")
    if close:
        lines.append("Connection: close")
    head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    return head if head_only else head + body


def fault_response(
    what: str | Fault,
    message: str = "",
    *,
    mend: str | None = None,
    retry_after: float | None = None,
    head_only: bool = False,
    audit_id: str = "",
    status: int | None = None,
) -> bytes:
    """The answer for an entry of the fault table; without a message its title is used, without a status its own."""
    entry = fault(what) if isinstance(what, str) else what
    return status_response(
        entry.http_status if status is None else status,
        message or entry.title,
        code=entry.code,
        mend=entry.mend if mend is None else mend,
        retry_after=retry_after,
        head_only=head_only,
        audit_id=audit_id,
    )
