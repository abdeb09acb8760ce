"""ClientHellos byte by byte, such as no library sends."""

from __future__ import annotations


def sized(width: int, body: bytes) -> bytes:
    return len(body).to_bytes(width, "big") + body


def hello(*extensions: tuple[int, bytes], pieces: int = 1, after: bytes = b"") -> bytes:
    """In so many records."""
    listed = b"".join(kind.to_bytes(2, "big") + sized(2, body) for kind, body in extensions)
    body = b"\x03\x03" + bytes(32) + sized(1, b"") + sized(2, b"\x13\x02") + sized(1, b"\0") + sized(2, listed) + after
    whole = b"\x01" + sized(3, body)
    step = -(-len(whole) // pieces)
    cut = [whole[at : at + step] for at in range(0, len(whole), step)]
    return b"".join(b"\x16\x03\x01" + sized(2, piece) for piece in cut)


def groups(*numbers: int) -> tuple[int, bytes]:
    return 10, sized(2, b"".join(number.to_bytes(2, "big") for number in numbers))


def shares(*numbers: int) -> tuple[int, bytes]:
    return 51, sized(2, b"".join(number.to_bytes(2, "big") + sized(2, b"k" * 32) for number in numbers))
