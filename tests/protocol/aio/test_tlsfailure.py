"""What OpenSSL says of a handshake, and what we make of it. Real handshakes are in test_tlspump."""

from __future__ import annotations

import ssl

import pytest

from protocol.aio.tlsfailure import TlsFailure, explained


def error(reason: str) -> ssl.SSLError:
    made = ssl.SSLError(1, f"[SSL: {reason}] what OpenSSL says")
    made.reason = reason
    return made


@pytest.mark.parametrize(
    ("reason", "start", "failure", "said"),
    [
        ("HTTP_REQUEST", b"GET ", TlsFailure.PLAIN_HTTP, "plain HTTP"),
        ("WRONG_VERSION_NUMBER", b"SSH-", TlsFailure.GARBAGE, "not TLS"),
        ("UNSUPPORTED_PROTOCOL", b"\x16\x03\x01", TlsFailure.NO_COMMON_VERSION, "unsupported_protocol"),
        ("TLSV1_ALERT_UNKNOWN_CA", None, TlsFailure.REFUSED_BY_PEER, "tlsv1_alert_unknown_ca"),
        ("DECRYPTION_FAILED_OR_BAD_RECORD_MAC", b"\x16\x03\x01", TlsFailure.OTHER, "TLS handshake failed"),
    ],
)
def test_each_failure_has_its_label_and_says_what_it_is(
    reason: str, start: bytes | None, failure: TlsFailure, said: str
) -> None:
    made = explained(error(reason), start)
    assert made.failure is failure
    assert said in str(made)


@pytest.mark.parametrize(("code", "failure"), [(20, TlsFailure.UNKNOWN_ISSUER), (10, TlsFailure.BAD_CERTIFICATE)])
def test_a_refused_certificate_tells_an_unknown_issuer_from_the_rest(code: int, failure: TlsFailure) -> None:
    refused = ssl.SSLCertVerificationError(1, "certificate verify failed")
    refused.verify_code, refused.verify_message, refused.reason = (
        code,
        "why it was not taken",
        "CERTIFICATE_VERIFY_FAILED",
    )
    made = explained(refused, None)
    assert made.failure is failure
    assert str(made) == "the peer's certificate was refused: why it was not taken"
