"""From what broke in another room to the fault that people look up."""

from __future__ import annotations

from typing import Final

from certs.errors import CertsError
from daemon.faults import TowerError
from daemon.wirefault import wire_fault
from protocol.aio.hops import DialError, HopName
from protocol.aio.tlsfailure import out_of_time

_BY_HOP: Final[dict[HopName, str]] = {
    "dns": "TWR210",
    "tcp": "TWR211",
    "proxy": "TWR212",
    "tls": "TWR213",
    "http": "TWR215",
    "subprotocol": "TWR216",
    "handshake": "TWR217",
}


def dial_fault(error: DialError, address: str = "") -> TowerError:
    """The fault of a broken way out; the hop stands at the head of the message, `address` (who answered TCP) behind."""
    text = f"{error} (at {address})" if address and address not in error.text else str(error)
    if out_of_time(error.__cause__):
        mend = "correct this machine's clock if it is wrong; else have the server's certificate renewed"
        return TowerError("TWR502", text, mend=mend)
    code = "TWR214" if error.hop == "tls" and error.peer_ca is not None else _BY_HOP[error.hop]
    if error.hop in ("tls", "handshake") and error.code is not None:
        code = wire_fault(error.code, code)
    return TowerError(code, text, retry_after=error.retry_after)


def certs_fault(error: CertsError) -> TowerError:
    """The fault of a certificate, token or identity that cannot be used."""
    return TowerError(error.fault, error.text, mend=error.mend or None)
