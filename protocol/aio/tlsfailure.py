"""Why a TLS handshake came to nothing, as a label for counters and as a sentence for people."""

from __future__ import annotations

import ssl
from enum import StrEnum
from typing import Final

PLAIN_HTTP_ANSWER: Final = (
    b"HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n"
    b"Client sent an HTTP request to an HTTPS server.\n"
)
BUSY_ALERT: Final = bytes((21, 3, 3, 0, 2, 2, 80))
"""`internal_error` (RFC 8446, 6.2: a failure unrelated to the peer), sent in place of a handshake that there is no room
for: whoever is turned away hears so without costing a key exchange."""
BUSY_REASON: Final = "TLSV1_ALERT_INTERNAL_ERROR"  # what OpenSSL calls it at the peer
_HTTP_STARTS: Final = (b"GET ", b"HEAD", b"POST", b"PUT ", b"PATC", b"DELE", b"OPTI", b"CONN", b"PRI ")
_WITHOUT_ISSUER: Final = frozenset({2, 18, 19, 20, 21, 24})  # codes of X509_verify_cert
_OUT_OF_TIME: Final = frozenset({9, 10})  # X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED
_NOTHING_IN_COMMON: Final = frozenset(
    {"UNSUPPORTED_PROTOCOL", "NO_SHARED_CIPHER", "VERSION_TOO_LOW", "NO_SHARED_GROUP"}
)


class TlsFailure(StrEnum):
    """Why a handshake came to nothing; the label of a counter."""

    PLAIN_HTTP = "plain_http"
    GARBAGE = "garbage"
    UNKNOWN_ISSUER = "unknown_issuer"
    BAD_CERTIFICATE = "bad_certificate"
    NO_COMMON_VERSION = "no_common_version"
    REFUSED_BY_PEER = "refused_by_peer"
    DEADLINE = "deadline"
    CUT = "cut"
    OTHER = "other"


class TlsError(ConnectionError):
    """The handshake failed, or the peer broke the record layer later on."""

    def __init__(self, failure: TlsFailure, text: str) -> None:
        super().__init__(text)
        self.failure = failure


def out_of_time(error: BaseException | None) -> bool:
    """Whether it is the time that a certificate was refused for: it has run out, or a clock is wrong."""
    return isinstance(error, ssl.SSLCertVerificationError) and error.verify_code in _OUT_OF_TIME


def explained(error: ssl.SSLError | ssl.CertificateError, start: bytes | None) -> TlsError:
    """What OpenSSL said, in our words. `start` is what the peer sent first, None at the client's end."""
    if start is not None and start.startswith(_HTTP_STARTS):
        return TlsError(TlsFailure.PLAIN_HTTP, "the peer sent plain HTTP to a TLS port")
    reason = getattr(error, "reason", None) or ""
    text = str(getattr(error, "verify_message", "") or error)
    if isinstance(error, ssl.SSLCertVerificationError):
        unknown = error.verify_code in _WITHOUT_ISSUER
        failure = TlsFailure.UNKNOWN_ISSUER if unknown else TlsFailure.BAD_CERTIFICATE
        return TlsError(failure, f"the peer's certificate was refused: {text}")
    if "ALERT" in reason:
        return TlsError(TlsFailure.REFUSED_BY_PEER, f"the peer refused the handshake: {reason.lower()}")
    if start is not None and start[:1] != b"\x16":
        return TlsError(TlsFailure.GARBAGE, "what the peer sent is not TLS")
    if reason in _NOTHING_IN_COMMON:
        return TlsError(TlsFailure.NO_COMMON_VERSION, f"no common TLS version or cipher: {reason.lower()}")
    return TlsError(TlsFailure.OTHER, f"TLS handshake failed: {text}")
