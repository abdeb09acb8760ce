from __future__ import annotations

import os

import pytest
from asyncssh.encryption import GCMEncryption
from cryptography.exceptions import InvalidTag

from protocol.aio.sshgcm import HEAD, TAG, Opener, Sealer

KEY, NONCE = bytes(range(16)), b"same" + bytes(8)


def asyncssh_of(nonce: bytes = NONCE) -> GCMEncryption:
    return GCMEncryption.new("aes128-gcm", KEY, nonce)


@pytest.mark.parametrize("size", [0, 1, 2, 9, 10, 11, 14, 15, 16, 100, 32768])
def test_what_is_sealed_here_asyncssh_opens_and_the_other_way_round(size: int) -> None:
    sealer, theirs = Sealer(KEY, NONCE), asyncssh_of()
    payload = os.urandom(size)
    for _ in range(3):  # the nonces keep step
        head, rest = sealer.seal(94, (payload[:7], payload[7:]))
        assert (int.from_bytes(head, "big"), len(rest) % 16) == (len(rest) - TAG, 0)
        opened = theirs.decrypt_packet(0, head + rest[:12], rest[12:-TAG], 4, rest[-TAG:])
        assert opened is not None
        assert opened[0] >= 4
        assert opened[1 : -opened[0]] == b"\x5e" + payload
    opener, theirs = Opener(KEY, NONCE), asyncssh_of()
    for _ in range(3):
        plain = b"\x04\x5e" + payload + bytes(4)
        packet = b"".join(theirs.encrypt_packet(0, len(plain).to_bytes(4, "big"), plain))
        assert opener.open(memoryview(packet)[:HEAD], memoryview(packet)[HEAD:]) == plain


def test_packets_of_both_kinds_share_one_count() -> None:
    sealer, opener = Sealer(KEY, NONCE), Opener(KEY, NONCE)
    sent = [
        b"".join(sealer.seal(94, (b"ours",))),
        b"".join(sealer.encrypt_packet(1, b"\0\0\0\x10", b"\x04" + b"asyncssh's own.")),
        b"".join(sealer.seal(94, (b"ours again",))),
    ]
    assert b"ours" in opener.open(memoryview(sent[0])[:4], memoryview(sent[0])[4:])
    first, length = opener.decrypt_header(1, sent[1][:16], 4)
    assert length == b"\0\0\0\x10"
    assert opener.decrypt_packet(1, first, sent[1][16:-TAG], 4, sent[1][-TAG:]) == b"\x04asyncssh's own."
    opened = opener.open(memoryview(sent[2])[:4], memoryview(sent[2])[4:])
    opener.keep(opened)
    assert opener.decrypt_packet(2, b"not looked at", b"", 4, b"") == opened


def test_no_nonce_is_used_twice_and_the_count_wraps_as_the_rfc_says() -> None:
    sealer = Sealer(KEY, b"same" + b"\xff" * 8)
    sent = [sealer.seal(94, (b"the same",)) for _ in range(3)]
    assert len({rest for _, rest in sent}) == 3
    following = asyncssh_of()  # the count that comes after the largest is nought
    head, rest = sent[1]
    assert following.decrypt_packet(0, head + rest[:12], rest[12:-TAG], 4, rest[-TAG:]) is not None


@pytest.mark.parametrize("at", [0, 3, 4, 20, -1])
def test_an_altered_packet_is_not_opened_length_included(at: int) -> None:
    packet = bytearray(b"".join(Sealer(KEY, NONCE).seal(94, (b"payload",))))
    packet[at] ^= 1
    with pytest.raises(InvalidTag):
        Opener(KEY, NONCE).open(memoryview(packet)[:4], memoryview(packet)[4:])
    assert (
        Opener(KEY, NONCE).decrypt_packet(0, bytes(packet[:16]), bytes(packet[16:-TAG]), 4, bytes(packet[-TAG:]))
        is None
    )
