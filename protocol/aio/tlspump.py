"""TLS over any asyncio transport, as the server (a caller's TLS ends here) or as the client (towards an apiserver).

Why not the loop's own TLS: it wants a socket where callers come as streams of a tunnel, cannot half-close, and gives
every connection read buffers of its own. Here all connections of a loop share one for ciphertext and one for plaintext.

The pump is the protocol of the raw transport below and the transport of the application protocol above. Invariants:
- `data_received` hands the application a view that is valid until it returns; plaintext is never decrypted from inside
  `resume_reading` (that would overwrite a view in use), always from a fresh callback.
- Ciphertext passes OpenSSL's memory buffers in small pieces: they keep the size that they once had for as long as their
  connection lives.
- Reads are short while those who have shown no need have used up their part of the memory: each may be the last before
  a reader stops. Where much has come already they stay long, which costs less, until memory is pressed.
- Each write is encrypted at once, straight from where it lies, and handed to the raw transport, which gathers the
  writes of a loop turn. So whoever writes small pieces joins them first.
- `_read` and `_write` are the methods below `ssl.SSLObject`'s, which only pass them on: two calls a record.
- While the application has paused reading, ciphertext waits undecrypted and the raw transport is paused: the wait is
  bounded by what one read brings.
- A peer whose records hold nothing, again and again, is cut off: each costs as much as one that does (`tlsrecords`).
- A server's OpenSSL sees nothing before the ClientHello is whole and found to be one that costs no more than others.
- Nothing reaches the application before the handshake is done. It has one deadline; each failure is a `TlsFailure`.
- A peer that ends without close_notify is reported as `tls_truncated`, since a cut must not pass for an end.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, cast
from weakref import WeakKeyDictionary

from protocol import defaults
from protocol.aio.buffers import SHORT_READ, budget_of, shared_buffer
from protocol.aio.clienthello import REFUSED_ALERT, refusal
from protocol.aio.tlsfailure import PLAIN_HTTP_ANSWER, TlsError, TlsFailure, explained
from protocol.aio.tlsrecords import RecordCounter
from protocol.flow import PROVEN

PLAIN_BUFFER_BYTES: Final = defaults.READ_BUFFER_BYTES
PIECE_BYTES: Final = 64 * defaults.KIB  # that pass through OpenSSL's memory at a time
NOTHING: Final = memoryview(b"")
RECORD_BYTES: Final = 16 * defaults.KIB  # of plaintext in one TLS record, at most
SEALED_BYTES: Final = RECORD_BYTES + 256 + 5  # of a record as it is sent, at most (RFC 8446 §5.2)


class AppProtocol(Protocol):
    """What stands above the pump: an asyncio.Protocol whose `data_received` takes a borrowed view."""

    def connection_made(self, transport: Any, /) -> None: ...
    def data_received(self, data: Any, /) -> None: ...
    def eof_received(self) -> bool | None: ...
    def connection_lost(self, exc: Exception | None, /) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


_plain_buffers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[bool, memoryview]] = WeakKeyDictionary()


def _plain_buffer(loop: asyncio.AbstractEventLoop, *, outer: bool) -> memoryview:
    """The loop's buffer for plaintext; the shared one holds the ciphertext that it is made from. What comes out of
    `outer` connections may be TLS again, and decrypted while their buffer is in use."""
    found = _plain_buffers.setdefault(loop, {})
    if outer not in found:
        found[outer] = memoryview(bytearray(PLAIN_BUFFER_BYTES))
    return found[outer]


class TlsPump(asyncio.Transport):
    """Both ends; use `TlsServerPump`, or one of the `...SocketPump` classes on a socket of the loop."""

    __slots__ = (
        "__weakref__",
        "_app",
        "_broken",
        "_budget",
        "_came",
        "_cipher",
        "_closing",
        "_deadline",
        "_eof_delivered",
        "_established",
        "_factory",
        "_filled",
        "_hello",
        "_incoming",
        "_loop",
        "_lost",
        "_lower",
        "_on_failure",
        "_outgoing",
        "_peer_done",
        "_plain",
        "_pump_due",
        "_read",
        "_reading",
        "_records",
        "_ssl",
        "_start",
        "_timer",
        "_truncated",
        "_write",
        "_write_shut",
    )

    def __init__(
        self,
        context: ssl.SSLContext,
        app_protocol_factory: Callable[[], AppProtocol],
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
        handshake_deadline: float = defaults.HANDSHAKE_DEADLINE,
        on_failure: Callable[[TlsError], None] | None = None,
        outer: bool = False,
    ) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._cipher = shared_buffer(self._loop)
        self._budget = budget_of(self._loop)
        self._came = 0  # bytes that were read
        self._plain = _plain_buffer(self._loop, outer=outer)
        self._records = RecordCounter()
        self._filled = 0  # records that held something
        self._broken: TlsError | None = None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_hostname
        )
        below: Any = self._ssl._sslobj  # type: ignore[attr-defined]  # see the module's docstring
        self._read: Callable[[int, memoryview], int] = below.read
        self._write: Callable[[Any], int] = below.write
        self._factory: Callable[[], AppProtocol] | None = app_protocol_factory
        self._on_failure = on_failure
        self._deadline = handshake_deadline
        self._app: AppProtocol | None = None
        self._lower: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._hello = b"" if server_side else None  # what came of a ClientHello, until it is whole
        self._start: bytes | None = None  # of it
        self._established = False
        self._reading = True
        self._closing = False
        self._lost = False
        self._write_shut = False
        self._peer_done = False
        self._eof_delivered = False
        self._truncated = False
        self._pump_due = False

    # -- the protocol of the raw transport ---------------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        self._lower = transport
        if self._closing:  # aborted before it began
            transport.abort()
            return
        self._timer = self._loop.call_later(self._deadline, self._too_slow)
        self._handshake()

    def get_buffer(self, _sizehint: int) -> memoryview:
        budget = self._budget
        if budget is None or budget.spare or (self._came >= PROVEN and not budget.pressed):
            return self._cipher
        return self._cipher[:SHORT_READ]

    def buffer_updated(self, nbytes: int) -> None:
        self._came += nbytes
        if self._established and not self._closing:
            if self._reading:
                self._pump(self._cipher[:nbytes])
            else:
                self._keep(self._cipher[:nbytes])
        else:
            self.data_received(self._cipher[:nbytes])

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing:
            return
        if self._hello is not None:
            self._hello += data
            if (why := refusal(self._hello)) is None:
                return
            if why:
                self._refuse(why)
                return
            data, self._start, self._hello = self._hello, self._hello[:4], None
        rest = memoryview(data)
        while rest and not self._established and not self._closing:
            size = self._records.piece(rest, PIECE_BYTES)
            self._incoming.write(rest[:size])
            rest = rest[size:]
            self._handshake()
        if not rest or self._closing:
            return
        if self._reading:
            self._pump(rest)
        else:
            self._keep(rest)

    def eof_received(self) -> bool:
        if not self._established:
            self._fail(TlsError(TlsFailure.CUT, "the peer closed the connection during the TLS handshake"))
            return False
        self._incoming.write_eof()
        if self._reading:
            self._pump()
        return not self._closing

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = self._closing = True
        self._stop_timer()
        if not self._established and self._on_failure is not None:
            report, self._on_failure = self._on_failure, None
            report(TlsError(TlsFailure.CUT, "the connection was lost during the TLS handshake"))
        self._factory = self._on_failure = None  # they hold what is above, which may hold this: see daemon.memory
        app, self._app = self._app, None
        if app is not None:
            app.connection_lost(self._broken or exc)

    def pause_writing(self) -> None:
        if self._app is not None:
            self._app.pause_writing()

    def resume_writing(self) -> None:
        if self._app is not None:
            self._app.resume_writing()

    # -- handshake ---------------------------------------------------------------------------------------------------

    def _handshake(self) -> None:
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            self._send_outgoing()
            return
        except (ssl.SSLError, ssl.CertificateError) as error:
            self._fail(explained(error, self._start))
            return
        self._established = True
        self._on_failure = None
        self._stop_timer()
        self._send_outgoing()
        assert self._factory is not None
        app = self._app = self._factory()
        self._factory = None
        app.connection_made(self)
        # A pipelined first request came with the last flight.
        if self._incoming.pending and self._reading and not self._closing:
            self._pump()

    def _refuse(self, why: str) -> None:
        if self._lower is not None:
            self._lower.write(REFUSED_ALERT)
        self._fail(TlsError(TlsFailure.OTHER, f"the peer's TLS handshake was refused: {why}"))

    def _too_slow(self) -> None:
        self._timer = None
        self._fail(TlsError(TlsFailure.DEADLINE, f"the TLS handshake was not done within {self._deadline:g} s"))

    def _fail(self, error: TlsError) -> None:
        """End a connection whose TLS is broken: the alert leaves, the reason is reported once."""
        if self._lost or self._closing:
            return
        lower = self._lower
        assert lower is not None
        if error.failure is TlsFailure.PLAIN_HTTP:
            self._outgoing.read()
            lower.write(PLAIN_HTTP_ANSWER)
        else:
            self._send_outgoing()
        self._closing = True
        self._stop_timer()
        if self._on_failure is not None:
            report, self._on_failure = self._on_failure, None
            report(error)
        lower.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- reading -----------------------------------------------------------------------------------------------------

    def _keep(self, data: memoryview) -> None:
        """To be decrypted later."""
        self._incoming.write(data)
        while data:
            data = data[self._records.piece(data, len(data)) :]

    def _pump(self, rest: memoryview = NOTHING) -> None:
        """Hand up all that can be decrypted now, of `rest` too, a shared buffer full at a time."""
        incoming, plain, records = self._incoming, self._plain, self._records
        if rest and not incoming.pending and records.only(rest):
            incoming.write(rest)
            rest = NOTHING
        while self._reading and not self._closing:
            filled = 0
            try:
                # A read gives one record; there is always room for a whole one, so that nothing decrypted stays behind
                # in the TLS object.
                while filled <= PLAIN_BUFFER_BYTES - RECORD_BYTES:
                    # In time for the next record to be whole: reading half of one costs an exception.
                    if rest and (left := incoming.pending) < SEALED_BYTES:
                        if records.wasteful(self._filled, left):
                            self._cut_off()
                            return
                        size = records.piece(rest, PIECE_BYTES - left)
                        incoming.write(rest[:size])
                        rest = rest[size:]
                    try:
                        count = self._read(PLAIN_BUFFER_BYTES - filled, plain[filled:] if filled else plain)
                    except ssl.SSLWantReadError:
                        if rest:
                            continue
                        if records.wasteful(self._filled, incoming.pending):
                            self._cut_off()
                            return
                        break
                    filled += count
                    self._filled += 1
                    self._peer_done = not count
                    if not count or not (rest or incoming.pending or incoming.eof):
                        break
            except ssl.SSLZeroReturnError:
                self._peer_done = True
            except ssl.SSLError as error:
                # The end of the raw connection without close_notify: cut, or an old client that just hangs up.
                self._peer_done = self._truncated = True
                if "EOF" not in (error.reason or "") and not isinstance(error, ssl.SSLEOFError):
                    self._send_outgoing()
            if filled and self._app is not None:
                self._app.data_received(plain[:filled])
            if self._peer_done or not filled or not (rest or incoming.pending or incoming.eof):
                break
        if rest:
            self._keep(rest)  # the application reads no more for now
        if self._outgoing.pending:
            self._send_outgoing()
        if self._peer_done and self._reading:
            self._deliver_eof()

    def _cut_off(self) -> None:
        text = "its TLS records hold nothing, again and again (new keys are asked for, say), which costs too much"
        self._broken = TlsError(TlsFailure.OTHER, f"the peer was cut off: {text}")
        self.abort()

    def _deliver_eof(self) -> None:
        if self._eof_delivered or self._app is None:
            return
        self._eof_delivered = True
        if not self._app.eof_received() or self._write_shut:
            self.close()

    def _pump_later(self) -> None:
        self._pump_due = False
        if self._reading and not self._closing:
            if self._lower is not None:
                self._lower.resume_reading()
            self._pump()

    # -- the transport of the application ----------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._write_shut or not data:
            return
        if len(data) > PIECE_BYTES:
            whole = memoryview(data)
            for at in range(0, len(data), PIECE_BYTES):
                self.write(whole[at : at + PIECE_BYTES])
            return
        try:
            self._write(data)
        except ssl.SSLError:
            self._truncated = True
            if self._lower is not None and not self._lost:
                self._lower.abort()
            return
        if self._lower is not None:
            self._lower.write(self._outgoing.read())

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def _send_outgoing(self) -> None:
        if self._outgoing.pending and self._lower is not None and not self._lost:
            self._lower.write(self._outgoing.read())

    @property
    def established(self) -> bool:
        """Whether the handshake is done."""
        return self._established

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Send close_notify; the other direction stays open."""
        if self._write_shut or self._closing:
            return
        self._write_shut = True
        try:
            self._ssl.unwrap()
        except ssl.SSLError:
            pass  # WantRead: the peer's own close_notify is still to come; anything else is seen when reading
        self._send_outgoing()
        if self._eof_delivered:
            self.close()

    def close(self) -> None:
        if self._closing:
            return
        if self._established:
            self.write_eof()
        if not self._closing:
            self._closing = True
            self._stop_timer()
            if self._lower is not None:
                self._lower.close()

    def abort(self) -> None:
        self._closing = True
        if self._lower is not None and not self._lost:
            self._lower.abort()

    def is_closing(self) -> bool:
        return self._closing

    def is_reading(self) -> bool:
        return self._reading

    def pause_reading(self) -> None:
        if self._reading:
            self._reading = False
            if self._lower is not None and not self._closing:
                self._lower.pause_reading()

    def resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            if not self._pump_due and not self._closing:
                self._pump_due = True
                self._loop.call_soon(self._pump_later)

    def get_write_buffer_size(self) -> int:
        below = self._lower.get_write_buffer_size() if self._lower is not None else 0
        return below + self._outgoing.pending

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert self._lower is not None
        self._lower.set_write_buffer_limits(high, low)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._app = cast("AppProtocol", protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return cast("asyncio.BaseProtocol", self._app)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "ssl_object":
            return self._ssl
        if name == "peercert_der":
            leaf = self._ssl.getpeercert(binary_form=True)
            return [leaf] if leaf else []
        if name == "tls_truncated":
            return self._truncated
        return self._lower.get_extra_info(name, default) if self._lower is not None else default


class TlsServerPump(TlsPump, asyncio.Protocol):
    """The server's end on a transport that pushes (`data_received`), such as a stream of a tunnel."""


class TlsServerSocketPump(TlsPump, asyncio.BufferedProtocol):
    """The server's end on a socket of the loop, reading into the loop's shared buffer."""


class TlsClientSocketPump(TlsPump, asyncio.BufferedProtocol):
    """The client's end on a socket of the loop."""

    def __init__(
        self,
        context: ssl.SSLContext,
        app_protocol_factory: Callable[[], AppProtocol],
        *,
        server_hostname: str,
        handshake_deadline: float = defaults.DIAL_DEADLINE,
        on_failure: Callable[[TlsError], None] | None = None,
    ) -> None:
        super().__init__(
            context,
            app_protocol_factory,
            server_side=False,
            server_hostname=server_hostname,
            handshake_deadline=handshake_deadline,
            on_failure=on_failure,
        )
