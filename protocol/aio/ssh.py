"""The messages of the dialect `kubesphere-v1` over SSH: global requests with a raw payload (refusals carry a text), and
one type of channel, whose extra data is a raw `host:port`.

What is asyncssh's own (version lines, packets) is in `sshcore`; channels are `sshchannel.Channel` in place of
asyncssh's. The host opens channels and accepts none; the agent accepts them and opens none.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, Final, Protocol

import asyncssh

from protocol.aio.sshchannel import Channel, ChannelLimits
from protocol.aio.sshcore import FAILURE, GLOBAL_REQUEST, OPEN, OPEN_FAILED, OPEN_OK, SUCCESS, Core, reason_of
from protocol.aio.sshgcm import U32
from protocol.defaults import KIB

AGENT_VERSION: Final = b"SSH-kubesphere-v1-client"
SERVER_VERSION: Final = b"SSH-kubesphere-v1-server"
CHANNEL_TYPE: Final = b"kubesphere"
MAX_PACKET: Final = 32 * KIB  # of channel data, ours and Go's
MAX_REQUEST_BYTES: Final = 248 * KIB  # of a global request: a `config` that is too large is refused in words
MAX_WAITING_REQUESTS: Final = 32  # global requests of ours without an answer
PROHIBITED: Final = 1  # SSH_OPEN_ADMINISTRATIVELY_PROHIBITED
CONNECT_FAILED: Final = 2


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


class Wire(Core):
    """What both roles share."""

    accepts: bool

    def __init__(self, owner: SshOwner, options: Any, limits: ChannelLimits) -> None:
        super().__init__(options)
        self.owner: SshOwner | None = owner
        self.limits = limits
        self.ready: deque[Channel] = deque()  # channels with something to send, in the order of their turns
        self.refused_opens = 0
        self._waiting: deque[asyncio.Future[tuple[bool, bytes]]] = deque()

    # ---- global requests ----------------------------------------------------------------------------------------

    def ask(self, name: str, payload: bytes = b"") -> asyncio.Future[tuple[bool, bytes]]:
        """Send a global request; ConnectionError, now or from the future, when no answer can come any more."""
        if not self.alive or len(self._waiting) >= MAX_WAITING_REQUESTS:
            raise ConnectionError("the SSH connection is closed, or answers no requests")
        waiter: asyncio.Future[tuple[bool, bytes]] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self.send_packet(GLOBAL_REQUEST, _string(name.encode()), b"\x01", payload)
        return waiter

    async def request(self, name: str, payload: bytes = b"") -> tuple[bool, bytes]:
        """The same, awaited."""
        return await self.ask(name, payload)

    def _on_request(self, _type: int, _id: int, packet: Any) -> None:
        name, wanted, payload = packet.get_string(), packet.get_boolean(), packet.get_remaining_payload()
        if len(payload) > MAX_REQUEST_BYTES:
            raise asyncssh.ProtocolError(f"a global request of {len(payload)} bytes")
        answered = not wanted

        def answer(ok: bool, text: bytes) -> None:
            nonlocal answered
            if not answered and self.alive:
                answered = True
                self.send_packet(SUCCESS if ok else FAILURE, text)

        if self.owner is not None:
            self.owner.ssh_request(name.decode("ascii", "replace"), payload, answer)

    def _on_answer(self, kind: int, _id: int, packet: Any) -> None:
        if not self._waiting:
            raise asyncssh.ProtocolError("an answer to no request")
        waiter = self._waiting.popleft()
        if not waiter.done():
            waiter.set_result((kind == SUCCESS, packet.get_remaining_payload()))

    # ---- channels -----------------------------------------------------------------------------------------------

    def open(self, target: str, protocol: asyncio.BaseProtocol) -> Channel:
        """Ask the agent for a connection to `target`; the protocol hears the answer as with a stream of a tunnel."""
        if not self.alive:
            raise ConnectionError("the SSH connection is closed")
        channel = Channel(self, protocol, self.limits)
        self.know(channel)
        head = U32.pack(channel.number) + U32.pack(channel.credit.granted) + U32.pack(MAX_PACKET)
        self.send_packet(OPEN, _string(CHANNEL_TYPE), head, target.encode())
        return channel

    def _on_open(self, _type: int, _id: int, packet: Any) -> None:
        kind, theirs = packet.get_string(), packet.get_uint32()
        window, largest = packet.get_uint32(), packet.get_uint32()
        why = "" if self.accepts and kind == CHANNEL_TYPE else "this end takes no channels of that kind"
        if not why and not largest:
            why = "a channel without packets"
        if why:
            self.refused_opens += 1
            if self.refused_opens > self.limits.refused:
                raise asyncssh.ProtocolError(f"{self.refused_opens} channels were asked for that are not taken")
        if not why and self.channel_count >= self.limits.most:
            why = f"{self.limits.most} channels are open already"
        if not why and not self.limits.room():
            why = "no memory is left for another channel"
        if why or self.owner is None:
            self.refuse(theirs, PROHIBITED, why or "this end is closing")
            return
        channel = Channel(self, None, self.limits)
        channel.theirs, channel.window, channel.largest = theirs, window, min(largest, MAX_PACKET)
        self.know(channel)
        self.owner.ssh_opened(channel, packet.get_remaining_payload())

    def refuse(self, theirs: int, reason: int, text: str) -> None:
        """Answer an open with no."""
        self.send_packet(OPEN_FAILED, U32.pack(theirs), U32.pack(reason), _string(text.encode()), _string(b""))

    def confirm(self, channel: Channel) -> None:
        """Answer an open with yes."""
        numbers = (channel.theirs, channel.number, channel.credit.granted, MAX_PACKET)
        self.send_packet(OPEN_OK, *map(U32.pack, numbers))

    def _on_open_ok(self, _type: int, _id: int, packet: Any) -> None:
        channel = self._opening(packet.get_uint32())
        theirs, window, largest = packet.get_uint32(), packet.get_uint32(), packet.get_uint32()
        if not largest:
            raise asyncssh.ProtocolError("a channel without packets")
        channel.opened(theirs, window, min(largest, MAX_PACKET))

    def _on_open_failed(self, _type: int, _id: int, packet: Any) -> None:
        channel, _reason = self._opening(packet.get_uint32()), packet.get_uint32()
        channel.turned_away(packet.get_string()[:512].decode("utf-8", "replace"))

    def _opening(self, number: int) -> Channel:
        channel = self.channel(number)
        if channel is None or not channel.opening:
            raise asyncssh.ProtocolError("an answer to no open")
        return channel

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
        self.drop(reason)

    def finished(self, error: Exception | None) -> None:
        """asyncssh's last word."""
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(ConnectionError("the SSH connection ended"))
                waiter.exception()  # whoever stopped waiting has its own reason
        owner, self.owner = self.owner, None
        if owner is not None:
            try:
                owner.ssh_lost(reason_of(error))
            except Exception as failure:  # the boundary to asyncssh, which would not say a word of it
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "the end of an SSH connection was not dealt with", "exception": failure}
                )

    def authenticated(self) -> None:
        if self.owner is not None:
            self.owner.ssh_ready()

    HANDLERS: ClassVar = {
        GLOBAL_REQUEST: _on_request,
        SUCCESS: _on_answer,
        FAILURE: _on_answer,
        OPEN: _on_open,
        OPEN_OK: _on_open_ok,
        OPEN_FAILED: _on_open_failed,
    }


class ServerConnection(Wire, asyncssh.SSHServerConnection):
    """The host's end: opens channels, takes none."""

    VERSION = SERVER_VERSION
    accepts = False


class AgentConnection(Wire, asyncssh.SSHClientConnection):
    """The member's end: takes channels, opens none."""

    VERSION = AGENT_VERSION
    accepts = True


def _string(data: bytes) -> bytes:
    return U32.pack(len(data)) + data
