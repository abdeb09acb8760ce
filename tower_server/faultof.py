"""From what broke in another room to the fault that people look up, and to the document that they get over HTTP."""

from __future__ import annotations

import json
import math

from certs.errors import CertsError
from daemon.faults import TowerError
from tower_server.store.base import Conflict, Expired, Invalid, NotFound, StoreError


def certs_fault(error: CertsError) -> TowerError:
    """The fault of a certificate, token or message that is refused."""
    return TowerError(error.fault, error.text, mend=error.mend or None)


def store_fault(error: StoreError) -> TowerError:
    """The fault of a record that is not as somebody thought it was."""
    match error:
        case NotFound():
            return TowerError("TWR603", f"there is no {error.kind} {error.name!r}")
        case Conflict() | Expired():
            return TowerError("TWR108", str(error))
        case Invalid():
            return TowerError("TWR605", str(error))
    return TowerError("TWR105", str(error))


def error_body(error: TowerError) -> bytes:
    """The Error of every HTTP answer of a server."""
    said = {"code": error.code, "message": error.message, "mend": error.mend}
    document = {"apiVersion": "tower/v1", "kind": "Error", **said}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def retry_after(error: TowerError) -> dict[str, str]:
    """The header that says when, where a retry is of use."""
    return {} if error.retry_after is None else {"Retry-After": str(max(1, math.ceil(error.retry_after)))}
