"""One direction of an SSH connection under AES-GCM (RFC 5647): packets sealed and opened with few calls and copies.

It has what asyncssh asks of its ciphers too, so that both can send over one connection: key exchange and
authentication stay asyncssh's, and what a channel sends does not pass through it. The cipher is made once for each key,
where asyncssh makes one for each packet. The nonce counts up from where the key exchange put it, and is used once.
"""

from __future__ import annotations

import os
from struct import Struct
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TAG: Final = 16
HEAD: Final = 4  # the length of a packet, in the clear and vouched for
BLOCK: Final = 16
LEAST_PADDING: Final = 4
U32: Final = Struct("!I")
_BYTE: Final = tuple(bytes((value,)) for value in range(256))


class _Direction:
    """The key and the count of the nonces."""

    __slots__ = ("_aead", "_count", "_fixed")

    def __init__(self, key: bytes, nonce: bytes) -> None:
        self._aead = AESGCM(key)
        self._fixed = nonce[:4]
        self._count = int.from_bytes(nonce[4:], "big")

    def _nonce(self) -> bytes:
        count = self._count
        self._count = (count + 1) & 0xFFFFFFFFFFFFFFFF
        return self._fixed + count.to_bytes(8, "big")


class Sealer(_Direction):
    """What this end sends."""

    __slots__ = ("_padding",)

    def __init__(self, key: bytes, nonce: bytes) -> None:
        super().__init__(key, nonce)
        self._padding = os.urandom(BLOCK + LEAST_PADDING)  # sealed as well: nobody sees that it is the same each time

    def seal(self, kind: int, parts: tuple[bytes, ...]) -> tuple[bytes, bytes]:
        """A packet of that type: its length, and the rest."""
        padding = -(2 + sum(map(len, parts))) % BLOCK
        if padding < LEAST_PADDING:
            padding += BLOCK
        plain = b"".join((_BYTE[padding], _BYTE[kind], *parts, self._padding[:padding]))
        head = U32.pack(len(plain))
        return head, self._aead.encrypt(self._nonce(), plain, head)

    def encrypt_packet(self, _number: int, head: bytes, packet: bytes) -> tuple[bytes, bytes]:
        """As asyncssh calls its ciphers."""
        sealed = self._aead.encrypt(self._nonce(), packet, head)
        return head + sealed[:-TAG], sealed[-TAG:]


class Opener(_Direction):
    """What the peer sends."""

    __slots__ = ("_opened",)

    def __init__(self, key: bytes, nonce: bytes) -> None:
        super().__init__(key, nonce)
        self._opened: bytes | None = None

    def open(self, head: memoryview, rest: memoryview) -> bytes:
        """A whole packet behind its length: padding's length, type, payload, padding. InvalidTag when it is altered."""
        return self._aead.decrypt(self._nonce(), rest, head)

    def keep(self, opened: bytes) -> None:
        """asyncssh is about to be given this packet: it was opened already, and can be opened once only."""
        self._opened = opened

    def decrypt_header(self, _number: int, first: bytes, length: int) -> tuple[bytes, bytes]:
        """As asyncssh calls its ciphers."""
        return first, first[:length]

    def decrypt_packet(self, _number: int, first: bytes, rest: bytes, length: int, mac: bytes) -> bytes | None:
        """As asyncssh calls its ciphers; None when the packet is altered."""
        opened, self._opened = self._opened, None
        if opened is not None:
            return opened
        try:
            return self._aead.decrypt(self._nonce(), first[length:] + rest + mac, first[:length])
        except InvalidTag:
            return None
