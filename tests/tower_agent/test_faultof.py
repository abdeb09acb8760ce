"""Every hop has its fault."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from typing import get_args

import pytest

from certs.errors import FingerprintMismatch
from certs.tls import ClientTrust, client_context
from protocol.aio.hops import DialError, HopName
from protocol.aio.proxydial import DialTarget
from protocol.constants import Code
from tests.tower_agent.backend import Pki, backend
from tower_agent.faultof import certs_fault, dial_fault
from tower_agent.http import fetch


@pytest.mark.parametrize("hop", get_args(HopName))
def test_each_hop_is_named_and_has_a_mend(hop: HopName) -> None:
    fault = dial_fault(DialError(hop, "it broke", retry_after=3.0))
    assert fault.code.startswith("TWR21")
    assert fault.message == f"{hop}: it broke"
    assert fault.mend
    assert fault.retry_after == 3.0


def test_a_foreign_chain_and_a_refused_agent_are_told_apart() -> None:
    assert dial_fault(DialError("tls", "no", peer_ca="Corp")).code == "TWR214"
    silent = dial_fault(DialError("tls", "did not finish the TLS handshake within 10 s"))
    assert (silent.code, "MTU" in silent.mend) == ("TWR213", True)
    assert dial_fault(DialError("tls", "no", code=int(Code.BUSY))).code == "TWR221"
    assert dial_fault(DialError("handshake", "no", code=int(Code.REVOKED))).code == "TWR209"
    assert dial_fault(DialError("handshake", "no", code=int(Code.BUSY))).code == "TWR221"
    assert certs_fault(FingerprintMismatch("a is not b", "look again")).mend == "look again"


@pytest.mark.asyncio
async def test_a_certificate_out_of_its_time_is_no_foreign_chain(tmp_path: Path) -> None:
    """A clock that is wrong showed as a proxy in the way, with the mend for that."""
    old = Pki(tmp_path, lasts=timedelta(minutes=-1))
    async with backend(lambda _request: (200, {}), old.server) as served:
        context = client_context(ClientTrust(ca_pem=old.ca_pem))
        with pytest.raises(DialError) as caught:
            await fetch(DialTarget(host="127.0.0.1", port=served.port, ssl_context=context), "GET", "/")
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        target = DialTarget(host="127.0.0.1", port=served.port, ssl_context=context)
        assert (await fetch(target, "GET", "/")).status == 200, "the time is all that is wrong"
    fault = dial_fault(caught.value)
    assert fault.code == "TWR502"
    assert "certificate has expired" in fault.message
    assert "the clock here says 20" in fault.message
    assert "correct this machine's clock" in fault.mend
