from __future__ import annotations

import ast
import asyncio
import inspect
import re
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncssh
import pytest
from asyncssh.encryption import GCMEncryption

from protocol.aio import sshcore
from protocol.aio.ssh import AGENT_VERSION, AgentConnection, ServerConnection
from protocol.aio.sshchannel import Channel
from protocol.aio.sshcore import Core
from protocol.aio.sshgcm import Sealer
from protocol.aio.sshoptions import CIPHERS, server_options
from protocol.errors import TunnelLost
from tests.protocol.aio.sshpeers import Collect, Echo, Owner, Pair, channel_limits, connected, echoed, ended
from tests.waiting import until

pytestmark = pytest.mark.asyncio
ROOT = Path(__file__).parents[3]
PRODUCT = ("protocol", "certs", "gateway", "daemon", "tower_server", "tower_agent", "towerctl")


# ---- the contract with asyncssh -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [(owner, name, found) for owner, names in sshcore.PRIVATE.items() for name, found in names.items()],
    ids=lambda each: getattr(each, "__name__", str(each)),
)
async def test_asyncssh_still_has_the_methods_that_are_overridden(
    owner: type, name: str, parameters: tuple[str, ...]
) -> None:
    where = f"asyncssh {asyncssh.__version__}: {owner.__name__}.{name}"
    assert hasattr(owner, name), f"{where} is gone; protocol/aio/sshcore.py counts on it and must follow"
    found = tuple(inspect.signature(getattr(owner, name)).parameters)[1:]
    assert found == parameters, f"{where} takes {found}, protocol/aio/sshcore.py counts on {parameters}"


async def test_asyncssh_still_keeps_the_state_that_is_read() -> None:
    connection = ServerConnection(Owner(), await server_options(), channel_limits())
    missing = [name for name in sshcore.PRIVATE_STATE if not hasattr(connection, name)]
    cipher = GCMEncryption.new("aes128-gcm", bytes(16), bytes(12))._cipher
    missing += [name for name in sshcore.PRIVATE_CIPHER if not hasattr(cipher, name)]
    assert not missing, f"asyncssh {asyncssh.__version__} no longer has {missing}, on which sshcore.py rests"
    assert (cipher._key, cipher._iv) == (bytes(16), bytes(12))


def private_of_asyncssh() -> set[str]:
    """Every underscored name of a connection, methods and state, and of its ciphers."""
    source = inspect.getsource(asyncssh.connection)  # state has no other list
    names = set(re.findall(r"\bself\.(_[a-z]\w*)", source)) | set(sshcore.PRIVATE_CIPHER)
    for role in (asyncssh.SSHServerConnection, asyncssh.SSHClientConnection):
        names |= {name for name in dir(role) if name.startswith("_") and not name.startswith("__")}
    return names


def reached(source: str, private: set[str], *, by_self: bool) -> set[str]:
    """Names of `private` that a module's text reaches for or overrides; by `self` only where that is asyncssh's."""
    found = set()
    for each in ast.walk(ast.parse(source)):
        if isinstance(each, ast.Attribute) and each.attr in private:
            own = isinstance(each.value, ast.Name) and each.value.id in ("self", "cls")
            if by_self or not own:
                found.add(each.attr)
        elif by_self and isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef) and each.name in private:
            found.add(each.name)
    return found


def product() -> Iterator[tuple[Path, str]]:
    for room in PRODUCT:
        for path in sorted((ROOT / room).rglob("*.py")):
            yield path.relative_to(ROOT), path.read_text()


async def test_every_private_name_of_asyncssh_that_is_used_stands_in_the_contract() -> None:
    listed = {
        *sshcore.PRIVATE_STATE,
        *sshcore.PRIVATE_CIPHER,
        *(n for names in sshcore.PRIVATE.values() for n in names),
    }
    used = reached(inspect.getsource(sshcore), private_of_asyncssh(), by_self=True)
    own = {name for name in vars(Core) if name.startswith("_")} | {"_aead", "_late", "_whole"}
    assert used - own <= listed, f"not in the contract of protocol/aio/sshcore.py: {sorted(used - own - listed)}"


async def test_no_other_module_reaches_into_asyncssh() -> None:
    private = private_of_asyncssh()
    found = []
    for path, source in product():
        if path.name == "sshcore.py" or not ("asyncssh" in source or "protocol.aio.ssh" in source):
            continue
        inherits = path.name == "ssh.py"  # its classes are asyncssh's too
        found += [f"{path}: {name}" for name in sorted(reached(source, private, by_self=inherits))]
        found += [f"{path}: import of {line}" for line in source.splitlines() if line.startswith("from asyncssh.")]
    assert not found, f"private names of asyncssh belong into protocol/aio/sshcore.py alone: {found}"


@pytest.mark.parametrize("role", [ServerConnection, AgentConnection])
async def test_asyncssh_has_taken_no_name_that_is_ours(role: type) -> None:
    theirs = set(dir(role.__mro__[-1])) | {
        name for each in role.__mro__ for name in vars(each) if "asyncssh" in each.__module__
    }
    meant = {name for names in sshcore.PRIVATE.values() for name in names}
    ours = {name for each in role.__mro__ if each.__module__.startswith("protocol.") for name in vars(each)}
    clash = {name for name in ours & theirs if not name.startswith("__")} - meant
    assert not clash, (
        f"asyncssh {asyncssh.__version__} has {sorted(clash)} itself: ours would take their place unawares"
    )


# ---- version lines --------------------------------------------------------------------------------------------------


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
    connection.feed(struct.pack("!I", 30000) + b"\x04" + b"z" * sshcore.MAX_UNAUTHENTICATED_BYTES)
    assert "before authentication" in await ended(owner)


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
        await until(lambda: all(len(end.data) >= 3_000_000 for end in ends))
        assert [bytes(end.data) for end in ends] == sent


@pytest.mark.slow
@pytest.mark.parametrize("goes_on", [True, False])
async def test_a_peer_that_does_not_exchange_keys_anew_is_left(monkeypatch: pytest.MonkeyPatch, goes_on: bool) -> None:
    """It may go on speaking, and so be alive for whoever only listens, while no channel can send."""
    monkeypatch.setattr(sshcore, "KEY_EXCHANGE", 0.2)
    async with connected(
        take=lambda channel, _: channel.accept(Echo()), server={"rekey_bytes": 20_000}, agent={"rekey_bytes": 1 << 40}
    ) as pair:
        if not goes_on:
            pair.agent._packet_handlers = {**pair.agent._packet_handlers, 20: lambda *_: None}  # KEXINIT, unheard
        end = Collect()
        channel = pair.server.open("echo", end)
        for _ in range(50):
            channel.write(b"bulk" * 1000)
        if goes_on:
            await until(lambda: len(end.data) >= 200_000)
            await asyncio.sleep(0.25)  # the time that it has had
            assert await pair.server.request("ping") == (True, b"")
        else:
            async with asyncio.timeout(20):
                while pair.server.can_send:
                    await asyncio.sleep(0)
            ping = pair.agent.ask("ping")
            assert "did not exchange keys anew" in await ended(pair.server_owner)
            assert pair.server_owner.requests == [("ping", b"")], "it was alive"
            assert isinstance(await end.lost, TunnelLost)
            with pytest.raises(ConnectionError):
                await ping


# ---- packets of an authenticated peer -------------------------------------------------------------------------------


@pytest.mark.parametrize("cipher", CIPHERS)
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


@pytest.mark.parametrize("cipher", [name for name in CIPHERS if "ctr" not in name])
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
