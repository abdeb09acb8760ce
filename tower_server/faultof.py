"""From what broke in another room to the fault that people look up."""

from __future__ import annotations

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
