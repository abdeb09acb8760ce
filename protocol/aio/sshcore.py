"""SSH connections of asyncssh as the dialect needs them: the one module where asyncssh's private names stand.

asyncssh does key exchange, ciphers, authentication and packets. What differs below the dialect's own messages stands
here: version lines that are not RFC 4253's, packets, how a connection ends, which channels it knows. PRIVATE lists the
private names that are used, and tests hold them against the installed release and look for them in every other module:
with another asyncssh this module is what has to be looked at.

Nothing but key exchange and authentication is served before the peer has authenticated, and what may be buffered until
then is bounded. No packet is sent without need: asyncssh's MSG_IGNORE before each packet is a defence of CBC ciphers.
Under AES-GCM, which every Go peer takes, packets of an authenticated peer go straight between the wire and the channels
(`sshgcm`); whatever is not theirs, and every other cipher, takes asyncssh's own way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, ClassVar, Final, cast

import asyncssh
from asyncssh.channel import SSHChannel
from asyncssh.connection import SSHConnection, SSHServerConnection
from asyncssh.crypto.cipher import GCMCipher
from asyncssh.encryption import GCMEncryption
from asyncssh.misc import MACError, ProtocolError, ProtocolNotSupported
from asyncssh.packet import PacketDecodeError, SSHPacket
from cryptography.exceptions import InvalidTag

from protocol.aio.sshchannel import DATA, Channel
from protocol.aio.sshgcm import BLOCK, HEAD, LEAST_PADDING, TAG, U32, Opener, Sealer
from protocol.defaults import KIB
from protocol.frames import printable

MAX_VERSION_LINE: Final = 255  # without its end, as Go reads it
MAX_WIRE_PACKET: Final = 256 * KIB  # of any packet, as asyncssh has it
MAX_UNAUTHENTICATED_BYTES: Final = 128 * KIB  # of packets that wait for the key exchange
KEY_EXCHANGE: Final = 60.0  # seconds: whatever the peer had under way stands in front of its answer
FEED: Final = 64 * KIB  # asyncssh cuts packets off the front of its buffer: larger pieces are copied again and again

GLOBAL_REQUEST: Final = 80
SUCCESS: Final = 81
FAILURE: Final = 82
OPEN: Final = 90
OPEN_OK: Final = 91
OPEN_FAILED: Final = 92
_DISCONNECT: Final = 1
_IGNORE: Final = 2
_CHANNELS: Final = range(93, 101)  # packets of a channel that is open
_STRAIGHT: Final = frozenset({GLOBAL_REQUEST, SUCCESS, FAILURE, OPEN, OPEN_OK, OPEN_FAILED, *_CHANNELS})
_DATA_AT: Final = 10  # in an opened packet: padding, type, channel, size
_AEAD: Final = (b"aes128-gcm@openssh.com", b"aes256-gcm@openssh.com", b"chacha20-poly1305@openssh.com")

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
    SSHChannel: {
        "log_received_packet": ("pkttype", "pktid", "packet", "note"),
        "process_connection_close": ("exc",),
        "process_packet": ("pkttype", "pktid", "packet"),
    },
    GCMEncryption: {
        "decrypt_header": ("seq", "first_block", "header_len"),
        "decrypt_packet": ("seq", "first", "rest", "header_len", "mac"),
        "encrypt_packet": ("seq", "header", "packet"),
    },
    GCMCipher: {},
}
"""Private and undocumented methods that are overridden, called or answered to, with the parameters counted on."""

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


class Core(SSHConnection):
    """A connection of either role, without what is said over it. Mixed in before asyncssh's own class."""

    VERSION: bytes
    HANDLERS: ClassVar[Mapping[int, Callable[[Any, int, int, Any], None]]] = {}
    """What takes packets of the connection layer: (connection, type, number, packet)."""

    def __init__(self, options: Any) -> None:
        super().__init__(asyncio.get_running_loop(), options)  # type: ignore[call-arg]  # the role's own constructor
        self._packet_handlers = {**type(self)._packet_handlers, _DISCONNECT: Core._on_disconnect, **self.HANDLERS}
        self.room: Callable[[], bool] = lambda: True
        self._aead = False
        self._late = bytearray()  # the beginning of a packet that is `_whole` bytes long
        self._whole = 0
        self._exchange_due: asyncio.TimerHandle | None = None

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
        self.set_extra_info(peer_version=printable(line.decode("ascii", "replace")))
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
            if kind == DATA and end >= _DATA_AT:
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
        self._exchange_over()
        self._aead = (self._enc_alg_cs if self.is_client() else self._enc_alg_sc) in _AEAD
        if type(self._send_encryption) is GCMEncryption:
            self._send_encryption = cast("Any", Sealer(*_key_of(self._send_encryption)))
        if type(self._next_recv_encryption) is GCMEncryption:
            self._next_recv_encryption = cast("Any", Opener(*_key_of(self._next_recv_encryption)))
        self.pump()  # channels do not send while keys are exchanged: nothing piles up inside asyncssh

    def _send_kexinit(self) -> None:
        super()._send_kexinit()
        if self._auth_complete and self._exchange_due is None:  # before that, whoever waits for it has a deadline
            self._exchange_due = asyncio.get_running_loop().call_later(KEY_EXCHANGE, self._exchange_late)

    def _exchange_late(self) -> None:
        """Channels would stand still for as long as the peer likes, and its own packets would show it to be alive."""
        self._exchange_due = None
        self._force_close(ConnectionError(f"the peer did not exchange keys anew within {KEY_EXCHANGE:g} s"))

    def _exchange_over(self) -> None:
        if self._exchange_due is not None:
            self._exchange_due.cancel()
            self._exchange_due = None

    def log_sent_packet(self, *_args: Any, **_more: Any) -> None:
        """Not logged: it would format a line for every packet."""

    def log_received_packet(self, *_args: Any, **_more: Any) -> None:
        """Not logged either."""

    def _on_disconnect(self, _type: int, _id: int, packet: Any) -> None:
        code, text = packet.get_uint32(), packet.get_string()[:512].decode("utf-8", "replace")
        self._force_close(ConnectionError(f"the peer ended the connection: {text or f'reason {code}'}"))

    # ---- channels and the end -----------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether anything can still be sent."""
        return self._transport is not None

    @property
    def known(self) -> bool:
        """Whether authentication is behind it."""
        return bool(self._auth_complete)

    @property
    def can_send(self) -> bool:
        """Whether channel data may leave now: not while keys are exchanged, nor into a full link."""
        return self._kex_complete and self._transport is not None and self.room()

    def pump(self) -> None:
        """Send what waited for the key exchange."""

    @property
    def channel_count(self) -> int:
        return len(self._channels)

    def channel(self, number: int) -> Channel | None:
        """The one of that number."""
        return cast("Channel | None", self._channels.get(number))

    def know(self, channel: Channel) -> None:
        """Give it its number. Only while the connection is alive."""
        channel.number = self.add_channel(cast("Any", channel))

    def channel_packet(self, kind: int, channel: Channel, *args: bytes) -> None:
        """Send a packet of a channel."""
        if self._transport is not None:
            self.send_packet(kind, U32.pack(channel.theirs), *args)

    def forget(self, channel: Channel) -> None:
        """Both ends have closed it."""
        if channel.number in self._channels:
            self.remove_channel(channel.number)

    def send_server_host_keys(self) -> None:
        """Go's mux answers requests in their order, and the first one has to be the agent's `config`."""

    def _force_close(self, exc: Exception | None) -> None:
        self._exchange_over()
        super()._force_close(exc)

    def drop(self, reason: str) -> None:
        """End the connection; channels and owner hear of it from the loop. Idempotent."""
        self._force_close(ConnectionError(reason))

    def bye(self, text: str) -> None:
        """Say why, as SSH says it."""
        if self._transport is not None:
            self._send_disconnect(asyncssh.DISC_BY_APPLICATION, text, "en")


def _key_of(encryption: Any) -> tuple[bytes, bytes]:
    """Key and next nonce."""
    cipher = encryption._cipher
    return cipher._key, cipher._iv


def reason_of(error: Exception | None) -> str:
    if error is None:
        return "the peer ended the SSH connection"
    if isinstance(error, (asyncssh.DisconnectError, PacketDecodeError)):
        return f"SSH: {str(error)[:300]}"
    return str(error)[:300] or type(error).__name__
