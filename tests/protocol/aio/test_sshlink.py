from __future__ import annotations

import asyncio
from typing import Final, cast

import pytest
from websockets.speedups import apply_mask

from protocol.aio.link import Link
from protocol.aio.ssh import ServerConnection
from protocol.aio.sshlink import MOST_UNSENT, WRITE_AT, SshLink
from protocol.aio.sshoptions import server_options
from tests.protocol.aio.sshpeers import MIB, Collect, Echo, Owner, channel_limits, connected
from tests.waiting import until

pytestmark = pytest.mark.asyncio
OLD_OFFER: Final = (b"diffie-hellman-group14-sha1", b"ssh-rsa", *2 * [b"aes128-ctr"], *2 * [b"hmac-sha1"], *4 * [b""])


class Recording(Link):
    """A link without a socket."""

    def __init__(self) -> None:
        super().__init__(client=False, private=True, owner=None)  # type: ignore[arg-type]
        self.messages: list[bytes] = []
        self.ended = ""

    def write(self, buffers: object) -> None:
        self.messages.append(b"".join(buffers))  # type: ignore[arg-type]

    def close(self, reason: str) -> None:
        self.ended = self.ended or reason

    abort = close


async def made() -> tuple[Recording, SshLink, ServerConnection]:
    link = Recording()
    wire = ServerConnection(Owner(), await server_options(), channel_limits())
    return link, SshLink(link, wire, remote="[::1]:9"), wire


async def test_what_is_written_in_one_turn_is_one_message() -> None:
    link, ssh_link, wire = await made()
    ssh_link.write(b"one")
    ssh_link.write(b"two")
    assert not link.messages
    await asyncio.sleep(0)
    assert link.messages == [b"SSH-kubesphere-v1-server\r\nonetwo"]
    ssh_link.write(b"x" * WRITE_AT)
    assert len(link.messages) == 2
    wire.end("done")
    await asyncio.sleep(0)


async def test_what_a_stranger_sends_in_one_turn_reaches_ssh_at_once() -> None:
    link, ssh_link, wire = await made()
    fed: list[bytes] = []
    wire.feed = fed.append  # type: ignore[method-assign]
    for byte in b"SSH-2.0-Go\r\n":
        ssh_link.link_received(memoryview(bytes((byte,))))
    assert not fed  # so that all it has sent is read before it is refused
    await asyncio.sleep(0)
    assert fed == [b"SSH-2.0-Go\r\n"]
    ssh_link.link_received(memoryview(b"last words"))
    ssh_link.link_lost("gone")
    assert fed[1:] == [b"last words"]
    assert link.messages
    wire.end("done")
    await asyncio.sleep(0)


async def test_what_a_known_peer_sends_reaches_ssh_in_the_same_turn_fragments_joined() -> None:
    async with connected() as pair:
        ssh_link, fed = pair.server_link.owner, bytearray()
        counts: list[int] = []

        def feed(data: bytes) -> None:
            counts.append(len(data))
            fed.extend(data)

        pair.server.feed = feed  # type: ignore[method-assign]
        read = Link(client=False, private=False, owner=ssh_link)
        words = bytes(i % 251 for i in range(212))
        raw = b"".join(
            bytes((first, 0xFE)) + len(piece).to_bytes(2, "big") + b"KEYS" + apply_mask(piece, b"KEYS")
            for first, piece in ((0x02, words[:200]), (0x80, words[200:]))
        )
        read.received(memoryview(raw))
        read.received(memoryview(raw[:210]))
        read.received(memoryview(raw[210:]))
        assert counts[0] == len(words)
        assert fed == 2 * words


async def test_answers_to_a_peer_that_reads_nothing_are_bounded() -> None:
    link, ssh_link, wire = await made()
    link.writable = False
    for _ in range(MOST_UNSENT // WRITE_AT + 2):
        ssh_link.write(b"y" * WRITE_AT)
    assert "reads nothing" in link.ended
    wire.end("done")
    await asyncio.sleep(0)


async def test_a_full_link_stops_channels_and_goes_on_when_it_has_room() -> None:
    async with connected(take=lambda channel, _: channel.accept(Echo())) as pair:
        end = Collect()
        channel = pair.server.open("echo", end)
        end.connection_made(channel)
        async with asyncio.timeout(30):
            await end.accepted.wait()
        pair.server_link.pause_writing()
        channel.write(b"w" * MIB)
        await asyncio.sleep(0.05)
        assert channel.get_write_buffer_size() == MIB
        assert not end.writable.is_set()
        pair.server_link.resume_writing()
        await until(lambda: len(end.data) >= MIB)


async def test_the_loss_of_the_link_is_the_loss_of_the_connection() -> None:
    async with connected() as pair:
        pair.server_link.abort("the cable was cut")
        async with asyncio.timeout(30):
            await pair.server_owner.lost.wait()
            await pair.agent_owner.lost.wait()
        assert "cable" in pair.server_owner.reason


async def test_a_stranger_that_leaves_behind_its_first_words_is_told_of_by_what_ssh_found_in_them() -> None:
    """A Go host that sees no algorithm in common hangs up at once, and so does a Go agent."""
    _link, ssh_link, wire = await made()
    owner = cast("Owner", wire.owner)
    offer = b"\x14" + b"k" * 16 + b"".join(len(each).to_bytes(4, "big") + each for each in OLD_OFFER) + bytes(5)
    padding = 8 - (len(offer) + 5) % 8 + 8
    packet = (len(offer) + 1 + padding).to_bytes(4, "big") + bytes((padding,)) + offer + bytes(padding)
    ssh_link.link_received(memoryview(b"SSH-2.0-Go\r\n" + packet))
    ssh_link.link_lost("the peer closed the connection")
    async with asyncio.timeout(30):
        await owner.lost.wait()
    assert "No matching key exchange" in owner.reason
