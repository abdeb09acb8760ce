"""TLS over a transport: both ends against each other and against the loop's own TLS, with every way it can fail."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
from pathlib import Path
from typing import Self

import pytest

from protocol.aio import tlspump
from protocol.aio.buffers import SHORT_READ, read_by
from protocol.aio.clienthello import REFUSED_ALERT
from protocol.aio.tlsfailure import PLAIN_HTTP_ANSWER, TlsError, TlsFailure
from protocol.aio.tlspump import (
    PIECE_BYTES,
    PLAIN_BUFFER_BYTES,
    TlsClientSocketPump,
    TlsServerPump,
    TlsServerSocketPump,
)
from protocol.aio.tlsrecords import SPARE_RECORDS
from protocol.defaults import MIB, READ_BUFFER_BYTES
from protocol.flow import PRESSURE, Budget
from tests.lab.pki import ClusterCA
from tests.protocol.aio.hellos import groups, hello, shares
from tests.protocol.aio.newkeys import ask_for_new_keys
from tests.waiting import until

pytestmark = pytest.mark.asyncio


class App:
    """An application protocol that notes what happens to it."""

    def __init__(self, *, echo: bool = False, keep_open: bool = False) -> None:
        self.echo = echo
        self.keep_open = keep_open
        self.transport: asyncio.Transport | None = None
        self.data = b""
        self.events: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._note("made")

    def data_received(self, data: memoryview) -> None:
        self.data += data
        if self.echo:
            self.transport.write(data)
        self.changed.set()

    def eof_received(self) -> bool:
        self._note("eof")
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self._note("lost")
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def _note(self, what: str) -> None:
        self.events.append(what)
        self.changed.set()

    async def until(self, condition) -> None:
        async with asyncio.timeout(30):
            while not condition():
                self.changed.clear()
                await self.changed.wait()


async def until_made(ends: Ends) -> None:
    async with asyncio.timeout(30):
        while not ends.apps:
            await asyncio.sleep(0.005)


class Pki:
    def __init__(self, folder: Path) -> None:
        self.ca = ClusterCA(folder, "ca")
        self.other = ClusterCA(folder, "other")
        server = self.ca.server("server", ["localhost"])
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.server.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # as the product's
        self.server.load_cert_chain(server.certificate, server.key)
        self.client_pair = self.ca.client("client", "alice")
        self.foreign_pair = self.other.client("foreign", "eve")
        self.asking = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.asking.load_cert_chain(server.certificate, server.key)
        self.asking.verify_mode = ssl.CERT_OPTIONAL
        self.asking.load_verify_locations(cadata=self.ca.pem.decode())

    def client(self, pair=None, ca=None) -> ssl.SSLContext:
        context = ssl.create_default_context(cadata=(ca or self.ca).pem.decode())
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # as the product's
        if pair is not None:
            context.load_cert_chain(pair.certificate, pair.key)
        return context


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


class Ends:
    """A pump that serves on a socket, and what it reported."""

    def __init__(self, context: ssl.SSLContext, *, deadline: float = 5.0, **app: bool) -> None:
        self.context, self.deadline, self.app = context, deadline, app
        self.apps: list[App] = []
        self.failures: list[TlsError] = []
        self.failed = asyncio.Event()
        self.port = 0

    def _app(self) -> App:
        self.apps.append(App(**self.app))
        return self.apps[-1]

    def _failed(self, error: TlsError) -> None:
        self.failures.append(error)
        self.failed.set()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: TlsServerSocketPump(
                self.context, self._app, handshake_deadline=self.deadline, on_failure=self._failed
            ),
            "127.0.0.1",
            0,
        )
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        for app in self.apps:
            app.transport.abort()
        self.server.close()
        await self.server.wait_closed()
        await asyncio.sleep(0.01)

    async def dial(self, context: ssl.SSLContext, **app: bool) -> App:
        made = App(**app)
        loop = asyncio.get_running_loop()
        failed: asyncio.Future[None] = loop.create_future()
        await loop.create_connection(
            lambda: TlsClientSocketPump(
                context, lambda: made, server_hostname="localhost", on_failure=lambda e: failed.set_exception(e)
            ),
            "127.0.0.1",
            self.port,
        )
        waiting = asyncio.ensure_future(made.until(lambda: made.events))
        await asyncio.wait({waiting, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            waiting.cancel()
            failed.result()
        await waiting
        return made

    async def served(self, count: int = 1) -> App:
        """The last of the first `count` connections at this end; it stands a moment after the client's."""
        await until(lambda: len(self.apps) >= count and self.apps[count - 1].events)
        return self.apps[count - 1]

    async def raw(self, data: bytes) -> bytes:
        """What a peer without TLS gets for `data`."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(data)
        try:
            async with asyncio.timeout(30):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.close()


async def test_bytes_pass_both_ways_in_order(pki: Pki) -> None:
    async with Ends(pki.server, echo=True) as ends:
        client = await ends.dial(pki.client())
        sent = b""
        for size in (1, 100, 8191, 8192, 16384, 16385, 65536, 1_000_000):
            block = bytes(size % 251 for _ in range(100)) * (size // 100) + b"." * (size % 100)
            client.transport.write(block)
            client.transport.writelines([block[:3], memoryview(block[3:7])])
            sent += block + block[:3] + block[3:7]
        await client.until(lambda: len(client.data) == len(sent))
        assert client.data == sent
        client.transport.close()
        assert await asyncio.wait_for(client.lost, 30) is None


async def test_lines_written_together_leave_as_one_record(pki: Pki) -> None:
    sizes: list[int] = []
    async with Ends(pki.server) as ends:
        client = await ends.dial(pki.client())
        server = await ends.served()
        received = server.data_received
        server.data_received = lambda data: (sizes.append(len(data)), received(data))
        client.transport.writelines([b"x" * 10] * 100)
        await server.until(lambda: len(server.data) == 1000)
        client.transport.abort()
        await client.lost
    assert sizes == [1000]


async def test_either_end_half_closes_and_the_other_goes_on(pki: Pki) -> None:
    async with Ends(pki.server, keep_open=True) as ends:
        client = await ends.dial(pki.client(), keep_open=True)
        server = await ends.served()
        client.transport.write(b"request")
        client.transport.write_eof()
        await server.until(lambda: "eof" in server.events)
        assert server.data == b"request"
        assert server.transport.get_extra_info("tls_truncated") is False
        server.transport.write(b"a late answer" * 10_000)
        await client.until(lambda: len(client.data) == 130_000)
        server.transport.close()
        await asyncio.wait_for(asyncio.gather(client.lost, server.lost), 30)


async def test_a_cut_is_told_from_an_end(pki: Pki) -> None:
    async with Ends(pki.server, keep_open=True) as ends:
        client = await ends.dial(pki.client())
        raw = client.transport._lower
        client.transport.write(b"half")
        await asyncio.sleep(0)
        raw.write_eof()
        server = await ends.served()
        await server.until(lambda: "eof" in server.events)
        assert server.transport.get_extra_info("tls_truncated") is True
        client.transport.abort()
        await client.lost


async def test_the_loops_own_tls_understands_it(pki: Pki) -> None:
    async with Ends(pki.server, echo=True) as ends:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", ends.port, ssl=pki.client(), server_hostname="localhost"
        )
        writer.write(b"x" * 300_000)
        async with asyncio.timeout(30):
            assert await reader.readexactly(300_000) == b"x" * 300_000
        writer.close()
        await writer.wait_closed()


async def test_a_paused_reader_stops_the_writer_and_loses_nothing(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        client = await ends.dial(pki.client())
        server = await ends.served()
        server.transport.pause_reading()
        sent = 0
        while "pause" not in client.events and sent < 64 << 20:
            client.transport.write(b"y" * 65536)
            sent += 65536
            await asyncio.sleep(0)
        assert "pause" in client.events
        assert len(server.data) <= 65536
        server.transport.resume_reading()
        await server.until(lambda: len(server.data) == sent)
        assert client.events[-1] == "resume"
        client.transport.abort()
        await client.lost


async def test_pausing_inside_data_received_holds_what_is_decrypted_next(pki: Pki) -> None:
    class Picky(App):
        def data_received(self, data: memoryview) -> None:
            super().data_received(data)
            self.transport.pause_reading()

    async with Ends(pki.server) as ends:
        ends._app = lambda: ends.apps.append(Picky()) or ends.apps[-1]
        client = await ends.dial(pki.client())
        server = await ends.served()
        client.transport.write(b"z" * 1_000_000)
        client.transport.write_eof()
        while len(server.data) < 1_000_000:
            before = len(server.data)
            await server.until(lambda before=before: len(server.data) > before)
            await asyncio.sleep(0.001)
            assert len(server.data) - before <= PLAIN_BUFFER_BYTES
            assert "eof" not in server.events or len(server.data) == 1_000_000
            server.transport.resume_reading()
        await server.until(lambda: "eof" in server.events)


async def test_the_callers_certificate_is_handed_up(pki: Pki) -> None:
    async with Ends(pki.asking) as ends:
        with_one = await ends.dial(pki.client(pki.client_pair))
        without = await ends.dial(pki.client())
        await ends.served(2)
        chains = [app.transport.get_extra_info("peercert_der") for app in ends.apps]
        assert [len(chain) for chain in chains] == [1, 0]
        assert chains[0][0][:1] == b"\x30"
        for app in (with_one, without):
            app.transport.abort()
            await app.lost


async def test_plain_http_is_told_so(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        for request in (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PATCH / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"):
            assert await ends.raw(request) == PLAIN_HTTP_ANSWER
        assert [each.failure for each in ends.failures] == [TlsFailure.PLAIN_HTTP] * 3
        assert ends.apps == []


async def test_garbage_is_counted_as_garbage(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        await ends.raw(b"\x00\x01\x02 not TLS at all, whatever comes")
        assert ends.failures[0].failure is TlsFailure.GARBAGE
        assert ends.apps == []


async def test_a_hello_that_would_cost_too_much_is_refused_by_an_alert(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        assert await ends.raw(hello(groups(29, 0x0104), shares(0x0104))) == REFUSED_ALERT
        assert "finite field, which costs too much" in str(ends.failures[0])
        assert ends.apps == []


async def test_half_a_hello_ends_at_the_deadline(pki: Pki) -> None:
    async with Ends(pki.server, deadline=0.2) as ends:
        await ends.raw(b"\x16\x03\x01\x02\x00\x01\x00\x01")
        assert ends.failures[0].failure is TlsFailure.DEADLINE


async def test_who_asks_for_new_keys_again_and_again_is_cut_off_and_told_of(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        _, writer = await asyncio.open_connection("127.0.0.1", ends.port, ssl=pki.client(), server_hostname="localhost")
        ask_for_new_keys(writer.get_extra_info("ssl_object"), 2000)
        writer.write(b"and more")
        await until_made(ends)
        (app,) = ends.apps
        async with asyncio.timeout(30):
            error = await app.lost
        assert isinstance(error, TlsError)
        assert "hold nothing" in str(error)
        assert app.data == b""
        writer.transport.abort()


async def test_who_asks_for_new_keys_one_at_a_time_is_cut_off_as_well(pki: Pki) -> None:
    async with Ends(pki.server) as ends, asyncio.timeout(30):
        reader, writer = await asyncio.open_connection("127.0.0.1", ends.port)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        end = pki.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
        step, asked = end.do_handshake, 0
        with contextlib.suppress(ConnectionError):
            while asked < 1000:
                try:
                    step()
                except ssl.SSLWantReadError:
                    pass
                else:
                    step = functools.partial(end.read, 1)
                    continue
                if step != end.do_handshake:
                    ask_for_new_keys(end, 1)
                    asked += 1
                writer.write(outgoing.read())
                if not (answer := await reader.read(65536)):
                    break
                incoming.write(answer)
        writer.transport.abort()
        assert "hold nothing" in str(await ends.apps[0].lost)
        assert asked <= SPARE_RECORDS


async def test_who_asks_for_new_keys_between_much_that_is_meant_is_heard(pki: Pki) -> None:
    async with Ends(pki.server, echo=True) as ends:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", ends.port, ssl=pki.client(), server_hostname="localhost"
        )
        for number in range(3000):
            if number % 50 == 0:
                ask_for_new_keys(writer.get_extra_info("ssl_object"), 1)
            writer.write(b"x")
        async with asyncio.timeout(30):
            assert await reader.readexactly(3000) == b"x" * 3000
        writer.transport.abort()


async def test_one_that_is_aborted_before_its_connection_is_made_ends_with_it(pki: Pki) -> None:
    failures: list[TlsError] = []
    pump = TlsServerSocketPump(pki.server, App, on_failure=failures.append)
    pump.abort()
    near, far = socket.socketpair()
    with far:
        far.settimeout(30)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: pump, near)
        assert await asyncio.to_thread(far.recv, 1) == b""
        assert [each.failure for each in failures] == [TlsFailure.CUT]


async def test_hanging_up_in_the_handshake_is_a_cut(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        for linger in (True, False):
            ends.failed.clear()
            with socket.create_connection(("127.0.0.1", ends.port)) as raw:
                raw.sendall(b"\x16\x03\x01\x02\x00")
                if linger:
                    raw.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(ends.failed.wait(), 30)
        assert {each.failure for each in ends.failures} == {TlsFailure.CUT}
        assert len(ends.failures) == 2


async def test_a_certificate_of_an_unknown_issuer_gets_an_alert(pki: Pki) -> None:
    async with Ends(pki.asking) as ends:
        client = await ends.dial(pki.client(pki.foreign_pair))  # in TLS 1.3 the client is done before it is judged
        await asyncio.wait_for(client.lost, 30)
        assert ends.failures[0].failure is TlsFailure.UNKNOWN_ISSUER
        assert ends.apps == []


async def test_a_server_that_is_not_trusted_is_named_on_both_ends(pki: Pki) -> None:
    async with Ends(pki.server) as ends:
        with pytest.raises(TlsError) as caught:
            await ends.dial(pki.client(ca=pki.other))
        assert caught.value.failure is TlsFailure.UNKNOWN_ISSUER
        await asyncio.wait_for(ends.failed.wait(), 30)
        assert ends.failures[0].failure is TlsFailure.REFUSED_BY_PEER


async def test_an_old_version_is_refused(pki: Pki) -> None:
    server, client = pki.client(), pki.client()
    del server
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    newest = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    newest.minimum_version = ssl.TLSVersion.TLSv1_3
    async with Ends(newest) as ends:
        with pytest.raises(TlsError):
            await ends.dial(client)
        assert ends.failures[0].failure is TlsFailure.NO_COMMON_VERSION


async def test_a_stream_without_a_socket_can_carry_it(pki: Pki) -> None:
    """The pump on a transport that pushes: what comes is fed, what goes is caught."""

    class Wire(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.out = b""
            self.closed = False

        def write(self, data) -> None:
            self.out += data

        def close(self) -> None:
            self.closed = True

        def abort(self) -> None:
            self.closed = True

        def get_write_buffer_size(self) -> int:
            return len(self.out)

    app = App(echo=True)
    pump, wire = TlsServerPump(pki.server, lambda: app), Wire()
    pump.connection_made(wire)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = pki.client().wrap_bio(incoming, outgoing, server_hostname="localhost")

    def turn() -> None:
        if outgoing.pending:
            pump.data_received(memoryview(outgoing.read()))
        incoming.write(wire.out)
        wire.out = b""

    for _ in range(4):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            turn()
    client.write(b"over a stream")
    turn()
    await asyncio.sleep(0)
    turn()
    assert client.read() == b"over a stream"
    pump.close()
    turn()
    assert client.read() == b""
    assert wire.closed
    pump.connection_lost(None)
    await app.lost


class WatchedBio:
    """One of OpenSSL's memory buffers, and the most that was in it."""

    def __init__(self, bio: ssl.MemoryBIO) -> None:
        self.bio, self.most = bio, 0

    def write(self, data: memoryview) -> None:
        self.bio.write(data)
        self.most = max(self.most, self.bio.pending)

    def read(self) -> bytes:
        self.most = max(self.most, self.bio.pending)
        return self.bio.read()

    def __getattr__(self, name: str) -> object:
        return getattr(self.bio, name)


async def test_a_connection_that_carried_much_keeps_little_memory(pki: Pki) -> None:
    """OpenSSL's memory buffers never shrink: 256 KiB at once cost a kept connection 700 KiB for ever."""
    size = PLAIN_BUFFER_BYTES
    async with Ends(pki.server) as ends:
        client = await ends.dial(pki.client())
        server = await ends.served()
        sent = client.transport._outgoing = WatchedBio(client.transport._outgoing)
        got = server.transport._incoming = WatchedBio(server.transport._incoming)
        for turn in range(1, 9):
            client.transport.write(b"w" * size)
            await server.until(lambda turn=turn: len(server.data) == turn * size)
        assert server.data == b"w" * (8 * size)
        for bio in (sent, got):
            assert PIECE_BYTES <= bio.most <= PIECE_BYTES + 1024
        client.transport.abort()
        await client.lost


async def test_who_has_brought_much_is_read_in_large_pieces_until_memory_is_pressed(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tlspump, "PROVEN", MIB)
    budget = Budget(64 * MIB)
    read_by(asyncio.get_running_loop(), budget)
    async with Ends(pki.server) as ends:
        client = await ends.dial(pki.client())
        served = await ends.served()
        pump = served.transport
        assert len(pump.get_buffer(-1)) == READ_BUFFER_BYTES
        budget.charge(budget.limit // 4)
        assert len(pump.get_buffer(-1)) == SHORT_READ, "nobody knows yet that it goes on"
        client.transport.write(bytes(MIB))
        await served.until(lambda: len(served.data) == MIB)
        assert len(pump.get_buffer(-1)) == READ_BUFFER_BYTES
        budget.charge(int(PRESSURE * budget.limit) - budget.used + 1)
        assert len(pump.get_buffer(-1)) == SHORT_READ
        client.transport.abort()
        await client.lost
