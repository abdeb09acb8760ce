"""SSH as the dialect `kubesphere-v1` speaks it: the one module that knows asyncssh from inside.

asyncssh does key exchange, ciphers, authentication and packets. What differs stands here: version lines that are not
RFC 4253's, two global requests with a raw payload (and a refusal with a text), one channel type whose extra data is raw
`host:port`. Channels are `sshchannel.Channel`, not asyncssh's. PRIVATE lists the private names that are used, and a
test holds them against the installed release: with another asyncssh this module is what has to be looked at.

Nothing but key exchange and authentication is served before the peer has authenticated, and what may be buffered until
then is bounded. No packet is sent without need: asyncssh's MSG_IGNORE before each packet is a defence of CBC ciphers.
Under AES-GCM, which every Go peer takes, packets of an authenticated peer go straight between the wire and the channels
(`sshgcm`); whatever is not theirs, and every other cipher, takes asyncssh's own way.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, Final, Protocol, cast

import asyncssh
from asyncssh.connection import (
    SSHClientConnection,
    SSHClientConnectionOptions,
    SSHConnection,
    SSHServerConnection,
    SSHServerConnectionOptions,
)
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from asyncssh.misc import MACError, ProtocolError, ProtocolNotSupported
from asyncssh.packet import PacketDecodeError, SSHPacket
from cryptography.exceptions import InvalidTag

from protocol.aio.sshchannel import Channel, ChannelLimits
from protocol.aio.sshgcm import BLOCK, HEAD, LEAST_PADDING, TAG, U32, Opener, Sealer
from protocol.defaults import KIB

AGENT_VERSION: Final = b"SSH-kubesphere-v1-client"
SERVER_VERSION: Final = b"SSH-kubesphere-v1-server"
CHANNEL_TYPE: Final = b"kubesphere"
MAX_VERSION_LINE: Final = 255  # without its end, as Go reads it
MAX_PACKET: Final = 32 * KIB  # of channel data, ours and Go's
MAX_WIRE_PACKET: Final = 256 * KIB  # of any packet, as asyncssh has it
MAX_UNAUTHENTICATED_BYTES: Final = 128 * KIB  # of packets that wait for the key exchange
MAX_REQUEST_BYTES: Final = 128 * KIB  # of a global request: `config` carries certificates and a token
MAX_WAITING_REQUESTS: Final = 32  # global requests of ours without an answer
FEED: Final = 64 * KIB  # asyncssh cuts packets off the front of its buffer: larger pieces are copied again and again
PROHIBITED: Final = 1  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
CONNECT_FAILED: Final = 2

# Nothing with SHA-1 or a group below 2048 bits: Go agents of 2020 know the curve by its older name.
KEX: Final = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group14-sha256",
)
# AEAD first, the fastest in front: Go picks by the order of the agent, we by ours where we are that.
CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")
_ALGORITHMS: Final = {"kex_algs": KEX, "encryption_algs": CIPHERS, "mac_algs": MACS, "compression_algs": None}
_AEAD: Final = (b"aes128-gcm@openssh.com", b"aes256-gcm@openssh.com", b"chacha20-poly1305@openssh.com")

_DISCONNECT: Final = 1
_IGNORE: Final = 2
_GLOBAL_REQUEST: Final = 80
_SUCCESS: Final = 81
_FAILURE: Final = 82
_OPEN: Final = 90
_OPEN_OK: Final = 91
_OPEN_FAILED: Final = 92
_DATA: Final = 94
_CHANNELS: Final = range(93, 101)  # packets of a channel that is open
_STRAIGHT: Final = frozenset({_GLOBAL_REQUEST, _SUCCESS, _FAILURE, _OPEN, _OPEN_OK, _OPEN_FAILED, *_CHANNELS})
_DATA_AT: Final = 10  # in an opened packet: padding, type, channel, size
_U32: Final = U32

PRIVATE: Final[Mapping[type, Mapping[str, tuple[str, ...]]]] = {
    SSHConnection: {
        "_force_close": ("exc",),
        "_recv_data": (),
        "_recv_pkthdr": (),
        "_recv_version": (),
        "_send": ("data",),
        "_send_disconnect": ("code", "reason", "lang"),
        "_send_kexinit": (),
        "_send_version": (),
        "add_channel": ("chan",),
        "internal_error": ("exc_info", "error_logger"),
        "log_received_packet": ("pkttype", "pktid", "packet", "note"),
        "log_sent_packet": ("pkttype", "pktid", "packet", "note"),
        "remove_channel": ("recv_chan",),
        "send_newkeys": ("k", "h"),
        "send_packet": ("pkttype", "args", "handler"),
    },
    SSHServerConnection: {"send_server_host_keys": ()},
    GCMEncryption: {
        "decrypt_header": ("seq", "first_block", "header_len"),
        "decrypt_packet": ("seq", "first", "rest", "header_len", "mac"),
        "encrypt_packet": ("seq", "header", "packet"),
    },
    GCMCipher: {},
}
"""Private and undocumented methods that are overridden or called, with the parameters that this module counts on."""

PRIVATE_STATE: Final = (
    "_auth_complete",
    "_auth_final",
    "_channels",
    "_client_version",
    "_enc_alg_cs",
    "_enc_alg_sc",
    "_inpbuf",
    "_kex_complete",
    "_kexinit_sent",
    "_next_recv_encryption",
    "_packet_handlers",
    "_recv_encryption",
    "_recv_handler",
    "_recv_seq",
    "_rekey_bytes",
    "_rekey_bytes_sent",
    "_rekey_seconds",
    "_rekey_time",
    "_send_encryption",
    "_send_seq",
    "_server_version",
    "_transport",
)
"""Attributes of a connection that are read or set."""

PRIVATE_CIPHER: Final = ("_iv", "_key")
"""Attributes of a GCMCipher, which a GCMEncryption holds as `_cipher`."""


class SshOwner(Protocol):
    """Who gets what a connection brings."""

    def ssh_ready(self) -> None:
        """The peer has authenticated (server), or we have (agent)."""

    def ssh_request(self, name: str, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        """A global request; `answer(ok, text)` at most once, or never for a request that wants none."""

    def ssh_opened(self, channel: Channel, target: bytes) -> None:
        """The peer opens a channel of the dialect's type: `accept` or `refuse` it."""

    def ssh_lost(self, reason: str) -> None:
        """The connection is over; `reason` is for people. Called once."""


class _Wire(SSHConnection):
    """What both roles share. Mixed in before asyncssh's own class."""

    VERSION: bytes
    accepts: bool

    def __init__(self, owner: SshOwner, options: Any, limits: ChannelLimits) -> None:
        super().__init__(asyncio.get_running_loop(), options)  # type: ignore[call-arg]  # the role's own constructor
        self._packet_handlers = {
            **type(self)._packet_handlers,
            _DISCONNECT: _Wire._on_disconnect,
            _GLOBAL_REQUEST: _Wire._on_request,
            _SUCCESS: _Wire._on_answer,
            _FAILURE: _Wire._on_answer,
            _OPEN: _Wire._on_open,
            _OPEN_OK: _Wire._on_open_ok,
            _OPEN_FAILED: _Wire._on_open_failed,
        }
        self.owner: SshOwner | None = owner
        self.limits = limits
        self.ready: deque[Channel] = deque()  # channels with something to send, in the order of their turns
        self.room: Callable[[], bool] = lambda: True
        self.refused_opens = 0
        self._aead = False
        self._late = bytearray()  # the beginning of a packet that is `_whole` bytes long
        self._whole = 0
        self._waiting: deque[asyncio.Future[tuple[bool, bytes]]] = deque()

    # ---- version lines ------------------------------------------------------------------------------------------

    def _send_version(self) -> None:
        if self.is_client():
            self._client_version = self.VERSION
        else:
            self._server_version = self.VERSION
        self._send(self.VERSION + b"\r\n")

    def _recv_version(self) -> bool:
        end = self._inpbuf.find(b"\n", 0, MAX_VERSION_LINE + 2)
        if end < 0:
            if len(self._inpbuf) > MAX_VERSION_LINE + 1:
                self._force_close(ProtocolError(f"a version line of more than {MAX_VERSION_LINE} bytes"))
            return False
        line, self._inpbuf = self._inpbuf[:end].removesuffix(b"\r"), self._inpbuf[end + 1 :]
        if not line.startswith(b"SSH-") or len(line) > MAX_VERSION_LINE:
            self._force_close(ProtocolNotSupported("the first line is no SSH version of at most 255 bytes"))
            return False
        if self.is_server():
            self._client_version = line
        else:
            self._server_version = line
        self._send_kexinit()
        self._kexinit_sent = True
        self._recv_handler = self._recv_pkthdr
        return True

    # ---- packets ------------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Bytes off the wire."""
        if self._late:
            self._late += data
            if len(self._late) < self._whole:
                return
            data, self._late = bytes(self._late), bytearray()
        if not self._auth_complete and len(self._inpbuf) + len(data) > MAX_UNAUTHENTICATED_BYTES:
            self._force_close(ProtocolError(f"more than {MAX_UNAUTHENTICATED_BYTES} bytes before authentication"))
            return
        if self._goes_straight():
            self._open_packets(data)
            return
        for at in range(0, len(data), FEED):
            if self._transport is None:
                return
            if self._goes_straight():  # from within these bytes on
                self._open_packets(data[at:])
                return
            self.data_received(data[at : at + FEED])

    def _goes_straight(self) -> bool:
        """Whether packets are opened here: by AES-GCM, behind authentication, with none in asyncssh's hands."""
        encryption: Any = self._recv_encryption
        return (
            type(encryption) is Opener
            and self._auth_complete
            and self._recv_handler == self._recv_pkthdr
            and self._transport is not None
        )

    def _open_packets(self, data: bytes) -> None:
        """As asyncssh's own reading does, for packets of the connection layer; what else comes is left to it."""
        try:
            self._take_packets(self._inpbuf + data if self._inpbuf else data)
        except asyncssh.DisconnectError as error:
            self._send_disconnect(error.code, error.reason, error.lang)
            self._force_close(error)
        except PacketDecodeError as error:
            self._send_disconnect(asyncssh.DISC_PROTOCOL_ERROR, str(error), "en")
            self._force_close(ProtocolError(str(error)))
        except Exception:  # asyncssh's own boundary: a defect ends this connection and no other
            self.internal_error()

    def _take_packets(self, data: bytes) -> None:
        opener: Any = self._recv_encryption
        view, at, end = memoryview(data), 0, len(data)
        self._inpbuf = b""
        while end - at >= HEAD:
            (length,) = U32.unpack_from(data, at)
            body, stop = at + HEAD, at + HEAD + length + TAG
            if not BLOCK <= length <= MAX_WIRE_PACKET:
                raise ProtocolError(f"a packet of {length} bytes")
            if stop > end:
                self._late += view[at:]  # not asyncssh's buffer: it would be copied for each piece that comes
                self._whole = stop - at
                return
            try:
                opened = opener.open(view[at:body], view[body:stop])
            except InvalidTag:
                raise MACError("a packet was altered on its way") from None
            if opened[1] in _STRAIGHT:
                self._take_packet(opened)
                at = stop
                if self._transport is None:
                    return
                continue
            opener.keep(opened)
            self._inpbuf = data[at:stop]
            self._recv_data()
            at = stop
            if self._transport is None:
                return
            if not self._goes_straight():  # asyncssh is busy with it, or another cipher begins
                self._inpbuf += data[at:]
                if self._inpbuf and self._recv_handler == self._recv_pkthdr:
                    self._recv_data()
                return
            opener = self._recv_encryption  # another one behind NEWKEYS
        self._inpbuf = data[at:] if at else data

    def _take_packet(self, opened: bytes) -> None:
        """One packet of the connection layer. ProtocolError, PacketDecodeError."""
        padding, kind = opened[0], opened[1]
        end = len(opened) - padding
        if padding < LEAST_PADDING or end < 2:
            raise ProtocolError("a packet with impossible padding")
        number = self._recv_seq
        self._recv_seq = (number + 1) & 0xFFFFFFFF
        self._auth_final = True
        if kind in _CHANNELS:
            if end < 6:
                raise ProtocolError("an incomplete packet of a channel")
            (name,) = U32.unpack_from(opened, 2)
            found: Mapping[int, Any] = self._channels
            channel = found.get(name)
            if channel is None:
                raise ProtocolError(f"a packet for channel {name}, which is not open")
            if kind == _DATA and end >= _DATA_AT:
                (size,) = U32.unpack_from(opened, 6)
                if _DATA_AT + size > end:
                    raise ProtocolError("an incomplete packet of data")
                channel.received(opened[_DATA_AT : _DATA_AT + size])
            else:
                channel.packet(kind, SSHPacket(opened[6:end]))
            return
        self._packet_handlers[kind](self, kind, number, SSHPacket(opened[2:end]))

    def send_packet(self, pkttype: int, *args: bytes, handler: Any = None) -> None:
        sealer: Any = self._send_encryption
        if (
            type(sealer) is Sealer
            and pkttype in _STRAIGHT
            and self._kex_complete
            and self._auth_complete
            and self._transport is not None
            and self._rekey_bytes_sent < self._rekey_bytes
            and not (self._rekey_seconds and monotonic() >= self._rekey_time)
        ):
            sealed = sealer.seal(pkttype, args)
            self._send_seq = (self._send_seq + 1) & 0xFFFFFFFF
            self._rekey_bytes_sent += len(sealed[1]) - TAG
            self._transport.writelines(sealed)
            return
        if pkttype == _IGNORE and self._aead:
            return
        super().send_packet(pkttype, *args, handler=handler)

    def send_newkeys(self, k: bytes, h: bytes) -> None:
        super().send_newkeys(k, h)
        self._aead = (self._enc_alg_cs if self.is_client() else self._enc_alg_sc) in _AEAD
        if type(self._send_encryption) is GCMEncryption:
            self._send_encryption = cast("Any", Sealer(*_key_of(self._send_encryption)))
        if type(self._next_recv_encryption) is GCMEncryption:
            self._next_recv_encryption = cast("Any", Opener(*_key_of(self._next_recv_encryption)))
        self.pump()  # channels do not send while keys are exchanged: nothing piles up inside asyncssh

    def log_sent_packet(self, *_args: Any, **_more: Any) -> None:
        """Not logged: it would format a line for every packet."""

    def log_received_packet(self, *_args: Any, **_more: Any) -> None:
        """Not logged either."""

    def _on_disconnect(self, _type: int, _id: int, packet: Any) -> None:
        code, text = packet.get_uint32(), packet.get_string()[:512].decode("utf-8", "replace")
        self._force_close(ConnectionError(f"the peer ended the connection: {text or f'reason {code}'}"))

    # ---- global requests ----------------------------------------------------------------------------------------

    def ask(self, name: str, payload: bytes = b"") -> asyncio.Future[tuple[bool, bytes]]:
        """Send a global request; ConnectionError, now or from the future, when no answer can come any more."""
        if self._transport is None or len(self._waiting) >= MAX_WAITING_REQUESTS:
            raise ConnectionError("the SSH connection is closed, or answers no requests")
        waiter: asyncio.Future[tuple[bool, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self.send_packet(_GLOBAL_REQUEST, _string(name.encode()), b"\x01", payload)
        return waiter

    async def request(self, name: str, payload: bytes = b"") -> tuple[bool, bytes]:
        """The same, awaited."""
        return await self.ask(name, payload)

    def _on_request(self, _type: int, _id: int, packet: Any) -> None:
        name, wanted, payload = packet.get_string(), packet.get_boolean(), packet.get_remaining_payload()
        if len(payload) > MAX_REQUEST_BYTES:
            raise ProtocolError(f"a global request of {len(payload)} bytes")
        answered = not wanted

        def answer(ok: bool, text: bytes) -> None:
            nonlocal answered
            if not answered and self._transport is not None:
                answered = True
                self.send_packet(_SUCCESS if ok else _FAILURE, text)

        if self.owner is not None:
            self.owner.ssh_request(name.decode("ascii", "replace"), payload, answer)

    def _on_answer(self, kind: int, _id: int, packet: Any) -> None:
        if not self._waiting:
            raise ProtocolError("an answer to no request")
        waiter = self._waiting.popleft()
        if not waiter.done():
            waiter.set_result((kind == _SUCCESS, packet.get_remaining_payload()))

    # ---- channels -----------------------------------------------------------------------------------------------

    def open(self, target: str, protocol: asyncio.BaseProtocol) -> Channel:
        """Ask the agent for a connection to `target`; the protocol hears the answer as with a stream of a tunnel."""
        if self._transport is None:
            raise ConnectionError("the SSH connection is closed")
        channel = Channel(self, protocol, self.limits)
        channel.number = self.add_channel(cast("Any", channel))
        head = _U32.pack(channel.number) + _U32.pack(channel.credit.granted) + _U32.pack(MAX_PACKET)
        self.send_packet(_OPEN, _string(CHANNEL_TYPE), head, target.encode())
        return channel

    def _on_open(self, _type: int, _id: int, packet: Any) -> None:
        kind, theirs = packet.get_string(), packet.get_uint32()
        window, largest = packet.get_uint32(), packet.get_uint32()
        why = "" if self.accepts and kind == CHANNEL_TYPE else "this end takes no channels of that kind"
        if not why and len(self._channels) >= self.limits.most:
            why = f"{self.limits.most} channels are open already"
        if not why and not self.limits.room():
            why = "no memory is left for another channel"
        if why or not largest or self.owner is None:
            self.refused_opens += 1
            if self.refused_opens > self.limits.refused:
                raise ProtocolError(f"{self.refused_opens} channels were asked for that are not taken")
            self.refuse(theirs, PROHIBITED, why or "a channel without packets")
            return
        channel = Channel(self, None, self.limits)
        channel.theirs, channel.window, channel.largest = theirs, window, min(largest, MAX_PACKET)
        channel.number = self.add_channel(cast("Any", channel))
        self.owner.ssh_opened(channel, packet.get_remaining_payload())

    def refuse(self, theirs: int, reason: int, text: str) -> None:
        """Answer an open with no."""
        self.send_packet(_OPEN_FAILED, _U32.pack(theirs), _U32.pack(reason), _string(text.encode()), _string(b""))

    def confirm(self, channel: Channel) -> None:
        """Answer an open with yes."""
        numbers = (channel.theirs, channel.number, channel.credit.granted, MAX_PACKET)
        self.send_packet(_OPEN_OK, *map(_U32.pack, numbers))

    def _on_open_ok(self, _type: int, _id: int, packet: Any) -> None:
        channel = self._opening(packet.get_uint32())
        theirs, window, largest = packet.get_uint32(), packet.get_uint32(), packet.get_uint32()
        if not largest:
            raise ProtocolError("a channel without packets")
        channel.opened(theirs, window, min(largest, MAX_PACKET))

    def _on_open_failed(self, _type: int, _id: int, packet: Any) -> None:
        channel, _reason = self._opening(packet.get_uint32()), packet.get_uint32()
        channel.turned_away(packet.get_string()[:512].decode("utf-8", "replace"))

    def _opening(self, number: int) -> Channel:
        channel = cast("Channel | None", self._channels.get(number))
        if channel is None or not channel.opening:
            raise ProtocolError("an answer to no open")
        return channel

    def channel_packet(self, kind: int, channel: Channel, *args: bytes) -> None:
        """Send a packet of a channel."""
        if self._transport is not None:
            self.send_packet(kind, _U32.pack(channel.theirs), *args)

    def forget(self, channel: Channel) -> None:
        """Both ends have closed it."""
        if channel.number in self._channels:
            self.remove_channel(channel.number)

    @property
    def known(self) -> bool:
        """Whether authentication is behind it."""
        return bool(self._auth_complete)

    @property
    def channel_count(self) -> int:
        return len(self._channels)

    @property
    def can_send(self) -> bool:
        """Whether channel data may leave now: not while keys are exchanged, nor into a full link."""
        return self._kex_complete and self._transport is not None and self.room()

    def pump(self) -> None:
        """Send what channels hold, a packet a turn, for as long as the link takes it."""
        while self.ready and self.can_send:
            channel = self.ready.popleft()
            if channel.send_some():
                self.ready.append(channel)

    # ---- the end ------------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """Drop the connection; nothing is called back but the channels' ends. Idempotent."""
        self.owner = None
        self._force_close(ConnectionError(reason))

    def bye(self, text: str) -> None:
        """Say why, as SSH says it."""
        if self._transport is not None:
            self._send_disconnect(asyncssh.DISC_BY_APPLICATION, text, "en")

    def finished(self, error: Exception | None) -> None:
        """asyncssh's last word."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(ConnectionError("the SSH connection ended"))
                waiter.exception()  # whoever stopped waiting has its own reason
        owner, self.owner = self.owner, None
        if owner is not None:
            owner.ssh_lost(_why(error))

    def authenticated(self) -> None:
        if self.owner is not None:
            self.owner.ssh_ready()


class ServerConnection(_Wire, SSHServerConnection):
    """The host's end: opens channels, takes none."""

    VERSION = SERVER_VERSION
    accepts = False

    def send_server_host_keys(self) -> None:
        """Go's mux answers requests in their order, and the first one has to be the agent's `config`."""


class AgentConnection(_Wire, SSHClientConnection):
    """The member's end: takes channels, opens none."""

    VERSION = AGENT_VERSION
    accepts = True


class _Callbacks:
    """What asyncssh tells the object that it takes for its application."""

    _wire: _Wire

    def connection_made(self, conn: Any) -> None:
        self._wire = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.finished(exc)

    def auth_completed(self) -> None:
        self._wire.authenticated()


class _ServerSide(_Callbacks, asyncssh.SSHServer):
    """Anybody is let in by SSH itself: the token in `config` is what authenticates."""

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return True


class _AgentSide(_Callbacks, asyncssh.SSHClient):
    """Go's host key is a new one at every start: there is nothing to hold it against, unless `trusted` knows one."""

    trusted: Callable[[str], bool] | None = None

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return self.trusted is None or self.trusted(key.get_fingerprint())


async def server_options(**more: Any) -> SSHServerConnectionOptions:
    """For all connections of one server: a host key of its own, as Go's server has."""
    made: SSHServerConnectionOptions = await SSHServerConnectionOptions.construct(
        None,
        config=None,
        server_factory=_ServerSide,
        server_host_keys=[asyncssh.generate_private_key("ecdsa-sha2-nistp256")],
        login_timeout=0,
        keepalive_interval=0,
        gss_host=None,
        **{**_ALGORITHMS, **more},
    )
    return made


async def agent_options(*, trusted: Callable[[str], bool] | None = None, **more: Any) -> SSHClientConnectionOptions:
    """For connections of an agent. `trusted` judges the fingerprint (`SHA256:...`) of the server's key."""
    side = type("_Side", (_AgentSide,), {"trusted": staticmethod(trusted) if trusted is not None else None})
    made: SSHClientConnectionOptions = await SSHClientConnectionOptions.construct(
        None,
        config=None,
        client_factory=side,
        host="tower",
        username="",
        password="",
        known_hosts=((), (), ()),
        client_keys=None,
        agent_path=None,
        gss_host=None,
        login_timeout=0,
        keepalive_interval=0,
        **{**_ALGORITHMS, **more},
    )
    return made


def _key_of(encryption: Any) -> tuple[bytes, bytes]:
    """Key and next nonce."""
    cipher = encryption._cipher
    return cipher._key, cipher._iv


def _string(data: bytes) -> bytes:
    return _U32.pack(len(data)) + data


def _why(error: Exception | None) -> str:
    if error is None:
        return "the peer ended the SSH connection"
    if isinstance(error, (asyncssh.DisconnectError, PacketDecodeError)):
        return f"SSH: {str(error)[:300]}"
    return str(error)[:300] or type(error).__name__
