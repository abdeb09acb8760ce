from __future__ import annotations

import asyncio
import inspect
import struct
from collections.abc import Callable
from typing import Any

import asyncssh
import pytest
from asyncssh.encryption import GCMEncryption

from protocol.aio import ssh
from protocol.aio.ssh import AGENT_VERSION, MAX_REQUEST_BYTES, ServerConnection, agent_options, server_options
from protocol.aio.sshchannel import Channel
from protocol.aio.sshgcm import Sealer
from protocol.errors import TunnelLost
from protocol.flow import Limits
from tests.protocol.aio.sshpeers import Collect, Echo, Owner, Pair, channel_limits, connected

pytestmark = pytest.mark.asyncio


# ---- the contract with asyncssh -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [(owner, name, found) for owner, names in ssh.PRIVATE.items() for name, found in names.items()],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
async def test_asyncssh_still_has_the_methods_that_are_overridden(
    owner: type, name: str, parameters: tuple[str, ...]
) -> None:
    where = f"asyncssh {asyncssh.__version__}: {owner.__name__}.{name}"
    assert hasattr(owner, name), f"{where} is gone; protocol/aio/ssh.py overrides or calls it and must follow"
    found = tuple(inspect.signature(getattr(owner, name)).parameters)[1:]
    assert found == parameters, f"{where} takes {found}, protocol/aio/ssh.py counts on {parameters}"


async def test_asyncssh_still_keeps_the_state_that_is_read() -> None:
    connection = ServerConnection(Owner(), await server_options(), channel_limits())
    missing = [name for name in ssh.PRIVATE_STATE if not hasattr(connection, name)]
    cipher = GCMEncryption.new("aes128-gcm", bytes(16), bytes(12))._cipher
    missing += [name for name in ssh.PRIVATE_CIPHER if not hasattr(cipher, name)]
    assert not missing, f"asyncssh {asyncssh.__version__} no longer has {missing}, on which protocol/aio/ssh.py rests"
    assert (cipher._key, cipher._iv) == (bytes(16), bytes(12))


async def test_no_other_module_reaches_into_asyncssh() -> None:
    used = set(ssh.PRIVATE_STATE) | {name for names in ssh.PRIVATE.values() for name in names}
    source = inspect.getsource(ssh)
    inherited = {name for name in dir(asyncssh.SSHServerConnection) if name.startswith("_") and name[1] != "_"}
    # Every private attribute of a connection that the module's text names is one that the contract lists.
    named = {name for name in inherited if f"self.{name}" in source or f"def {name}(" in source}
    assert named <= used, f"not in the contract of protocol/aio/ssh.py: {sorted(named - used)}"


# ---- handshake ------------------------------------------------------------------------------------------------------


async def test_both_ends_agree_on_what_go_agrees_on() -> None:
    async with connected() as pair:
        for end in (pair.server, pair.agent):
            assert end.get_extra_info("send_cipher") == end.get_extra_info("recv_cipher") == "aes128-gcm@openssh.com"


class Wire(asyncio.Transport):
    """Takes what a connection writes, and nothing more."""

    def __init__(self) -> None:
        super().__init__()
        self.out = bytearray()
        self.ended = asyncio.Event()

    def write(self, data: Any) -> None:
        self.out += data

    def abort(self) -> None:
        self.ended.set()

    def is_closing(self) -> bool:
        return self.ended.is_set()


async def fresh() -> tuple[ServerConnection, Wire, Owner]:
    owner, wire = Owner(), Wire()
    connection = ServerConnection(owner, await server_options(), channel_limits())
    connection.connection_made(wire)
    return connection, wire, owner


async def ended(owner: Owner) -> str:
    async with asyncio.timeout(30):
        await owner.lost.wait()
    return owner.reason


async def test_the_server_says_go_towers_version() -> None:
    connection, wire, _ = await fresh()
    assert bytes(wire.out) == b"SSH-kubesphere-v1-server\r\n"
    connection.end("done")


@pytest.mark.parametrize("line", [AGENT_VERSION, b"SSH-2.0-Go", b"SSH-" + b"x" * 251, b"SSH-"])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
async def test_version_lines_of_up_to_255_bytes_are_taken(line: bytes, end: bytes) -> None:
    connection, wire, owner = await fresh()
    before = len(wire.out)
    for byte in line + end:
        connection.feed(bytes((byte,)))
    assert len(wire.out) > before, "no key exchange was begun"
    assert not owner.lost.is_set()
    connection.end("done")


@pytest.mark.parametrize(
    "line", [b"SSH-" + b"x" * 252 + b"\r\n", b"SSH-" + b"x" * 5000, b"GET / HTTP/1.1\r\n", b"\n", b"\0" * 300]
)
async def test_other_first_lines_end_the_connection(line: bytes) -> None:
    connection, wire, owner = await fresh()
    connection.feed(line)
    assert "version" in await ended(owner)
    assert wire.ended.is_set()


async def test_what_waits_before_authentication_is_bounded() -> None:
    connection, _, owner = await fresh()
    connection.feed(AGENT_VERSION + b"\r\n")
    connection.feed(struct.pack("!I", 30000) + b"\x04" + b"z" * ssh.MAX_UNAUTHENTICATED_BYTES)
    assert "before authentication" in await ended(owner)


async def test_a_peer_with_weak_key_exchanges_only_is_told_so() -> None:
    weak = {"kex_algs": ("diffie-hellman-group1-sha1", "diffie-hellman-group14-sha1")}
    async with connected(agent=weak, authenticated=False) as pair:
        assert "No matching key exchange" in await ended(pair.server_owner)
        assert "No matching key exchange" in await ended(pair.agent_owner)


async def test_the_server_key_can_be_held_against_a_pin() -> None:
    options = await agent_options(trusted=lambda fingerprint: fingerprint == "SHA256:other")
    side = options.protocol_factory()
    key = asyncssh.generate_private_key("ecdsa-sha2-nistp256")
    assert side.validate_host_public_key("tower", "", 0, key) is False
    assert (await agent_options()).protocol_factory().validate_host_public_key("tower", "", 0, key) is True


# ---- global requests ------------------------------------------------------------------------------------------------


async def test_requests_carry_raw_payloads_and_refusals_their_text() -> None:
    async with connected() as pair:
        pair.server_owner.answer = lambda name, payload: (False, b"Unauthorized agent")
        assert await pair.agent.request("config", b'{"Name":"m"}') == (False, b"Unauthorized agent")
        assert pair.server_owner.requests == [("config", b'{"Name":"m"}')]
        pair.server_owner.answer = lambda name, payload: (True, b"")
        assert await pair.agent.request("ping") == (True, b"")
        # Go's agents refuse every request of the server, which is as good a sign of life.
        pair.agent_owner.answer = lambda name, payload: (False, b"")
        assert await pair.server.request("ping") == (False, b"")


async def test_the_first_request_that_an_agent_sees_is_an_answer_to_its_own() -> None:
    async with connected() as pair:
        await pair.agent.request("config")
        assert pair.agent_owner.requests == []


async def test_a_request_above_the_bound_ends_the_connection() -> None:
    async with connected() as pair:
        with pytest.raises(ConnectionError):
            await pair.agent.request("config", b"x" * (MAX_REQUEST_BYTES + 1))
        assert pair.server_owner.requests == []
        assert await ended(pair.server_owner)


async def test_requests_without_an_answer_are_bounded() -> None:
    async with connected() as pair:
        pair.agent_owner.ssh_request = lambda *_: None  # type: ignore[method-assign]
        waiting = [asyncio.ensure_future(pair.server.request("ping")) for _ in range(ssh.MAX_WAITING_REQUESTS)]
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError):
            await pair.server.request("ping")
        pair.agent.end("gone")
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in results} == {ConnectionError}


# ---- channels -------------------------------------------------------------------------------------------------------


async def test_an_agent_gets_the_raw_target() -> None:
    targets: list[bytes] = []

    def take(channel: Channel, target: bytes) -> None:
        targets.append(target)
        channel.accept(Echo())

    async with connected(take=take) as pair:
        end = Collect()
        pair.server.open("10.0.0.1:443", end)
        async with asyncio.timeout(30):
            await end.accepted.wait()
    assert targets == [b"10.0.0.1:443"]


async def test_channels_that_an_agent_opens_are_refused_and_thousands_end_its_connection() -> None:
    async with connected() as pair:
        refused = 0
        for _ in range(1000):
            end = Collect()
            pair.agent.open("127.0.0.1:22", end)
            async with asyncio.timeout(30):
                error = await end.lost
            if pair.server_owner.lost.is_set() or "tunnel" in str(error).lower():
                break
            assert "takes no channels" in str(error)
            refused += 1
        assert refused <= pair.server.limits.refused
        assert "not taken" in await ended(pair.server_owner)
        assert pair.server.channel_count == 0


async def test_rekeying_under_load_loses_and_alters_nothing() -> None:
    async with connected(
        take=lambda channel, _: channel.accept(Echo()), server={"rekey_bytes": 300_000}, agent={"rekey_bytes": 500_000}
    ) as pair:
        ends = [Collect() for _ in range(4)]
        sent = [bytes([number]) * 3_000_000 for number in range(4)]
        for end, data in zip(ends, sent, strict=True):
            channel = pair.server.open("echo", end)
            for at in range(0, len(data), 100_000):
                channel.write(data[at : at + 100_000])
        async with asyncio.timeout(40):
            while any(len(end.data) < 3_000_000 for end in ends):
                await asyncio.sleep(0.02)
        assert [bytes(end.data) for end in ends] == sent


# ---- packets of an authenticated peer -------------------------------------------------------------------------------


async def echoed(pair: Pair, data: bytes) -> bytes:
    """What comes back of it through a channel of its own."""
    end = Collect()
    pair.server.open("echo", end).write(data)
    async with asyncio.timeout(20):
        while len(end.data) < len(data):
            await asyncio.sleep(0.005)
    return bytes(end.data)


@pytest.mark.parametrize("cipher", ssh.CIPHERS)
async def test_every_cipher_that_a_go_peer_may_take_carries_channels(cipher: str) -> None:
    data = bytes(range(256)) * 1200
    algorithms = {"encryption_algs": (cipher,)}
    async with connected(
        take=lambda channel, _: channel.accept(Echo()), server=algorithms, agent={**algorithms, "rekey_bytes": 200_000}
    ) as pair:
        assert pair.server.get_extra_info("send_cipher") == cipher
        assert isinstance(pair.server._send_encryption, Sealer) is ("gcm" in cipher)
        assert await echoed(pair, data) == data
        assert await pair.agent.request("ping") == (True, b"")


async def test_packets_may_come_in_any_pieces() -> None:
    data = bytes(range(256)) * 20
    async with connected(
        take=lambda channel, _: channel.accept(Echo()), agent={"rekey_bytes": 2000}, authenticated=False
    ) as pair:
        whole = pair.server.feed

        def cut(received: bytes) -> None:
            for at in range(0, len(received), 3):
                whole(received[at : at + 3])

        pair.server.feed = cut  # type: ignore[method-assign,assignment]
        async with asyncio.timeout(20):
            await asyncio.gather(pair.server_owner.ready.wait(), pair.agent_owner.ready.wait())
        assert await echoed(pair, data) == data


def sealed(plain: bytes, *, length: int | None = None, altered: bool = False) -> Callable[[Pair], bytes]:
    """A packet of the agent's, sealed as it is."""

    def made(pair: Pair) -> bytes:
        sealer: Any = pair.agent._send_encryption
        head = (len(plain) if length is None else length).to_bytes(4, "big")
        rest: bytes = sealer._aead.encrypt(sealer._nonce(), plain, head)
        return head + (rest[:-1] + bytes((rest[-1] ^ 1,)) if altered else rest)

    return made


def channel_zero(kind: int, rest: bytes = b"") -> bytes:
    return bytes((kind, 0, 0, 0, 0)) + rest


def padded(payload: bytes) -> bytes:
    padding = 4 + -(5 + len(payload)) % 16
    return bytes((padding,)) + payload + bytes(padding)


@pytest.mark.parametrize(
    ("packet", "said"),
    [
        (sealed(padded(channel_zero(94)), altered=True), "altered"),
        (sealed(padded(b"x"), length=0), "a packet of 0 bytes"),
        (sealed(b"", length=0xFFFFFFF0), "a packet of 4294967280 bytes"),
        (sealed(b"\x00" + channel_zero(94) + bytes(10)), "padding"),
        (sealed(b"\x0f" + bytes((94,)) + bytes(14)), "padding"),
        (sealed(b"\xff" + channel_zero(94) + bytes(10)), "padding"),
        (sealed(b"\x0c" + bytes((94, 0, 0)) + bytes(12)), "incomplete"),
        (sealed(padded(channel_zero(94, b"\0\0\1\0short"))), "incomplete"),
        (sealed(padded(channel_zero(94, b"\0\0"))), "ncomplete"),
        (sealed(padded(channel_zero(93, b"\0"))), "ncomplete"),
        (sealed(padded(b"\x5b" + bytes(7))), "an answer to no open"),
        (sealed(padded(b"\x50\0\0\0\xffping")), "ncomplete"),
        (sealed(padded(bytes((94, 0, 0, 0, 9)) + bytes(4))), "channel 9"),
    ],
)
async def test_broken_packets_end_the_connection_with_a_word(packet: Callable[[Pair], bytes], said: str) -> None:
    held: list[Channel] = []
    async with connected(take=lambda channel, _: held.append(channel)) as pair:
        end = Collect()
        pair.server.open("first", end)
        await pair.agent.request("ping")
        held[0].accept(Collect())
        await pair.agent.request("ping")
        pair.agent._transport.write(packet(pair))  # type: ignore[union-attr]
        assert said in await ended(pair.server_owner)
        assert said in await ended(pair.agent_owner)  # the peer is told
        assert isinstance(await end.lost, TunnelLost)
        assert pair.server.channel_count == 0


async def test_packets_that_nobody_knows_are_answered_and_left() -> None:
    async with connected(take=lambda channel, _: channel.accept(Echo())) as pair:
        pair.agent._transport.write(sealed(padded(b"\xc8unknown"))(pair))  # type: ignore[union-attr]
        pair.agent._transport.write(sealed(padded(b"\x02\0\0\0\x06ignore"))(pair))  # type: ignore[union-attr]
        assert await echoed(pair, b"still here") == b"still here"


async def test_what_follows_the_peers_goodbye_is_not_looked_at() -> None:
    async with connected() as pair:
        pair.agent.bye("leaving")
        pair.agent._transport.write(sealed(padded(b"\x50\0\0\0\x04ping\1"))(pair))  # type: ignore[union-attr]
        assert "leaving" in await ended(pair.server_owner)
        assert pair.server_owner.requests == []


@pytest.mark.parametrize("cipher", [name for name in ssh.CIPHERS if "ctr" not in name])
async def test_no_packet_is_sent_without_need_under_aead_ciphers(cipher: str) -> None:
    algorithms = {"encryption_algs": (cipher,)}
    held: list[Channel] = []
    async with connected(take=lambda channel, _: held.append(channel), server=algorithms, agent=algorithms) as pair:
        end = Collect()
        channel = pair.server.open("somewhere", end)
        await pair.server.request("ping")
        before = pair.agent._recv_seq
        held[0].accept(Collect())
        for _ in range(5):
            channel.write(b"a packet")
            await pair.server.request("ping")
        assert pair.agent._recv_seq - before == 10, "five of data, five pings, and nothing else"


async def test_channels_above_what_an_agent_takes_are_refused_and_the_others_go_on() -> None:
    limits = channel_limits(most=3)
    async with connected(take=lambda channel, _: channel.accept(Echo()), agent_limits=limits) as pair:
        ends = [Collect() for _ in range(5)]
        channels = [pair.server.open("echo", end) for end in ends]
        async with asyncio.timeout(10):
            refused = [str(await end.lost) for end in ends[3:]]
        assert all("3 channels are open already" in text for text in refused)
        for channel in channels[:3]:
            channel.write(b"well")
        async with asyncio.timeout(10):
            while any(bytes(end.data) != b"well" for end in ends[:3]):
                await asyncio.sleep(0.005)
            channels[0].close()
            await ends[0].lost
        assert await echoed(pair, b"another") == b"another"
    assert limits.budget.used == 0


async def test_without_memory_a_channel_is_refused_before_anything_is_kept_for_it() -> None:
    limits = channel_limits(budget=4 * Limits().reserved_credit)
    async with connected(take=lambda channel, _: channel.accept(Echo()), agent_limits=limits) as pair:
        ends = [Collect() for _ in range(6)]
        for end in ends:
            pair.server.open("echo", end)
        async with asyncio.timeout(10):
            assert "no memory is left" in str(await ends[-1].lost)
        assert limits.budget.used <= 4 * Limits().reserved_credit
        assert await pair.server.request("ping") == (True, b"")


@pytest.mark.slow
async def test_channels_by_the_thousand_leave_nothing() -> None:
    limits, theirs = channel_limits(), channel_limits()
    async with connected(take=lambda channel, _: channel.accept(Echo()), limits=limits, agent_limits=theirs) as pair:

        async def one_after_the_other(count: int) -> None:
            for number in range(count):
                end = Collect()
                channel = pair.server.open("echo", end)
                channel.write(b"%d" % number)
                channel.write_eof()
                assert await end.lost is None
                assert bytes(end.data) == b"%d" % number

        async with asyncio.timeout(50):
            await asyncio.gather(*(one_after_the_other(250) for _ in range(12)))
            while pair.server.channel_count or pair.agent.channel_count:
                await asyncio.sleep(0.01)
        assert limits.budget.used == theirs.budget.used == 0
        assert not pair.server.ready
        assert not pair.agent.ready
