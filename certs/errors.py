"""The exceptions of the room. Each says what is wrong and how to mend it, and carries its fault code and HTTP status.

CertsError
├── Untrusted        a certificate chain, signature or peer is not accepted; `reason` says why
├── IssueRefused     the authority will not sign what it was asked to sign
├── AuthorityError   the stored authority or trust bundle cannot be used
├── TokenError       an enrolment token cannot be read
├── SealError        a sealed enrolment message cannot be opened or does not belong here
│   └── FingerprintMismatch  the server's chain ends at another root than the token names
├── MessageError     a message of this room is malformed or over its bound
├── ListRefused      a revocation list is not signed by this host, or older than the one held
├── IdentityError    an agent's stored identity cannot be read or written
└── KubeconfigError  a kubeconfig cannot be read, locked or merged
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class CertsError(Exception):
    """Root of the room's exceptions.

    Attributes:
        text: what is wrong, a sentence without a full stop at its end.
        mend: what to do about it; empty where there is nothing to do.
    """

    fault: str = "TWR501"
    http_status: int = 500

    def __init__(self, text: str, mend: str = "") -> None:
        super().__init__(text, mend)
        self.text = text
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.text}; {self.mend}" if self.mend else self.text


class Reason(StrEnum):
    """Why a chain is not trusted: one word each for logs and metrics."""

    UNKNOWN_ISSUER = "unknown-issuer"  # not signed by an issuer of this host
    WRONG_ROLE = "wrong-role"  # signed by this host, for something else
    EXPIRED = "expired"
    NOT_YET_VALID = "not-yet-valid"
    REVOKED = "revoked"
    MALFORMED = "malformed"  # not a certificate, or not one that an authority of ours makes
    BAD_NAME = "bad-name"  # the user or a group cannot stand in an HTTP header
    BAD_SIGNATURE = "bad-signature"  # the peer does not hold the key of its certificate


_PEER_FAULTS: Final = {Reason.EXPIRED: "TWR502", Reason.NOT_YET_VALID: "TWR502", Reason.REVOKED: "TWR209"}
_CALLER_FAULTS: Final = {
    Reason.EXPIRED: "TWR402",
    Reason.NOT_YET_VALID: "TWR402",
    Reason.REVOKED: "TWR403",
    Reason.WRONG_ROLE: "TWR404",
    Reason.BAD_NAME: "TWR407",
}


class Untrusted(CertsError):
    """A chain or signature is refused. The fault follows from the reason, and from whether a caller showed it."""

    fault = "TWR507"
    http_status = 401

    def __init__(self, reason: Reason, text: str, mend: str = "", *, caller: bool = False) -> None:
        super().__init__(text, mend)
        self.reason = reason
        self.fault = (_CALLER_FAULTS if caller else _PEER_FAULTS).get(reason, "TWR507")
        if reason is Reason.BAD_NAME:
            self.http_status = 403


class IssueRefused(CertsError):
    """The authority will not sign this: a bad name, a weak key, a CSR that its holder did not sign."""

    fault = "TWR505"
    http_status = 400


class AuthorityError(CertsError):
    """The stored authority or trust bundle is damaged or not what it claims to be."""

    fault = "TWR501"


class ListRefused(CertsError):
    """A revocation list is damaged, not this host's, or older than the one held."""

    fault = "TWR506"


class IdentityError(CertsError):
    """An agent's stored identity cannot be read or written."""

    fault = "TWR104"


class MessageError(CertsError):
    """A message is malformed or over its bound."""

    fault = "TWR224"
    http_status = 400


class TokenError(CertsError):
    """An enrolment token cannot be read."""

    fault = "TWR207"
    http_status = 400


class SealError(CertsError):
    """A sealed message cannot be opened, or the seal key is not vouched for."""

    fault = "TWR224"
    http_status = 400


class FingerprintMismatch(SealError):
    """The server's chain ends at another root than the token names; nothing was sent."""

    fault = "TWR223"


class KubeconfigError(CertsError):
    """A kubeconfig cannot be read, locked or merged."""

    fault = "TWR610"
