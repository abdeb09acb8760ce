"""The exceptions of the room. Each knows the fault and the HTTP status with which a caller is answered.

GatewayError
├── RemoteError           a peer broke HTTP's rules
│   ├── RequestError      the caller did: answered 400, 408 or 431, and its connection ends
│   └── AnswerError       the apiserver did: the caller is answered 502
├── UpstreamError         the apiserver could not be reached: answered 502, 504 or 429
└── PolicyError           a policy cannot be loaded
"""

from __future__ import annotations

from daemon.faults import Fault, fault


class GatewayError(Exception):
    """Root. `message` says what is wrong, for a caller or an operator; it never quotes what may hold a secret."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.fault: Fault = fault(code)
        self.message = message

    @property
    def http_status(self) -> int:
        return self.fault.http_status

    @property
    def code(self) -> str:
        return self.fault.code


class RemoteError(GatewayError):
    """A peer sent what HTTP does not allow, or what two readers could understand differently."""


class RequestError(RemoteError):
    """The caller's request cannot be read in exactly one way."""

    def __init__(self, message: str, code: str = "TWR409") -> None:
        super().__init__(code, message)


class AnswerError(RemoteError):
    """The apiserver's answer cannot be relayed safely."""

    def __init__(self, message: str, code: str = "TWR306") -> None:
        super().__init__(code, message)


class UpstreamError(GatewayError):
    """No connection to the apiserver, or none in time."""


class PolicyError(GatewayError):
    """A policy names something that it may not."""

    def __init__(self, message: str) -> None:
        super().__init__("TWR101", message)
