"""A peer that asks for new TLS keys, which `ssl` cannot: RFC 8446 §4.6.3, by the OpenSSL that Python itself uses."""

from __future__ import annotations

import _ssl
import ctypes
import ssl
from typing import Any

_OPENSSL = ctypes.CDLL(_ssl.__file__)
_OPENSSL.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
_OPENSSL.SSL_do_handshake.argtypes = [ctypes.c_void_p]
_REQUESTED = 1
_BEHIND = 3 * ctypes.sizeof(ctypes.c_void_p)  # in CPython's PySSLSocket: two words of any object, the socket, the SSL


def ask_for_new_keys(end: ssl.SSLObject, times: int) -> None:
    """What is to be sent waits in the object's outgoing buffer, and leaves with whatever is written next."""
    below: Any = end._sslobj  # type: ignore[attr-defined]
    address = ctypes.c_void_p.from_address(id(below) + _BEHIND).value
    for _ in range(times):
        assert _OPENSSL.SSL_key_update(address, _REQUESTED) == 1
        assert _OPENSSL.SSL_do_handshake(address) == 1
