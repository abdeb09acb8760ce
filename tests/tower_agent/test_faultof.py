"""Every hop has its fault."""

from __future__ import annotations

from typing import get_args

import pytest

from certs.errors import FingerprintMismatch
from protocol.aio.hops import DialError, HopName
from protocol.constants import Code
from tower_agent.faultof import certs_fault, dial_fault


@pytest.mark.parametrize("hop", get_args(HopName))
def test_each_hop_is_named_and_has_a_mend(hop: HopName) -> None:
    fault = dial_fault(DialError(hop, "it broke", retry_after=3.0))
    assert fault.code.startswith("TWR21")
    assert fault.message == f"{hop}: it broke"
    assert fault.mend
    assert fault.retry_after == 3.0


def test_a_foreign_chain_and_a_refused_agent_are_told_apart() -> None:
    assert dial_fault(DialError("tls", "no", peer_ca="Corp")).code == "TWR214"
    assert dial_fault(DialError("tls", "no")).code == "TWR213"
    assert dial_fault(DialError("tls", "no", code=int(Code.BUSY))).code == "TWR221"
    assert dial_fault(DialError("handshake", "no", code=int(Code.REVOKED))).code == "TWR209"
    assert dial_fault(DialError("handshake", "no", code=int(Code.BUSY))).code == "TWR221"
    assert certs_fault(FingerprintMismatch("a is not b", "look again")).mend == "look again"
