"""The agent's way to a host that speaks `kubesphere-v1`: the hops below (`proxydial`), the upgrade, SSH, registration.

The host's key proves nothing (a Go host makes a new one at each start), so whoever stands behind the address gets what
is registered. The upgrade's answer need not name the subprotocol, since Go's never does. Every step has a deadline, and
every failure is a DialError that names the hop, but for a refused registration, which carries the host's own words.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Final

from protocol.aio.dial import UpgradingLink
from protocol.aio.hops import DialError, Hop, OnHop, unnoted
from protocol.aio.link import Link
from protocol.aio.proxydial import DialTarget, open_connection
from protocol.aio.ssh import AgentConnection
from protocol.aio.sshchannel import Channel, ChannelLimits
from protocol.aio.sshlink import SshLink
from protocol.aio.sshoptions import agent_options
from protocol.aio.upgrade import ClientUpgrade
from protocol.defaults import DEAD_AFTER, HANDSHAKE_DEADLINE
from protocol.frames import printable

DIALECT: Final = "kubesphere-v1"
REGISTRATION_DEADLINE: Final = 30.0  # a Go host makes an RSA key before it answers, and none at all to what it dislikes
MAX_REFUSAL: Final = 500  # characters of the host's words that are kept

OnChannel = Callable[[Channel, str], None]


class RegistrationRefused(Exception):
    """The host said no; the text is the host's."""


class HostSession:
    """One session with a host, from SSH's authentication on. Made by `dial_host`; ends with `close` or the link."""

    def __init__(self, remote: str, on_channel: OnChannel) -> None:
        loop = asyncio.get_running_loop()
        self.remote: Final = remote
        self.opened_at: Final = monotonic()
        self.rtt: float | None = None
        self._on_channel = on_channel
        self._ready: asyncio.Future[None] = loop.create_future()
        self._closed: asyncio.Future[str] = loop.create_future()
        self._wire: AgentConnection | None = None
        self._link: SshLink | None = None

    def attach(self, wire: AgentConnection, link: SshLink) -> None:
        """Take what `dial_host` has made."""
        self._wire, self._link = wire, link

    @property
    def closed(self) -> bool:
        return self._closed.done()

    @property
    def version(self) -> str:
        """The host's version line."""
        assert self._wire is not None
        return str(self._wire.get_extra_info("peer_version", ""))

    @property
    def streams(self) -> int:
        """Channels that are open."""
        return 0 if self._wire is None or self.closed else self._wire.channel_count

    @property
    def silent_for(self) -> float:
        """Seconds since the last byte of the host."""
        assert self._link is not None
        return asyncio.get_running_loop().time() - self._link.heard_at

    async def authenticated(self) -> None:
        """Until SSH's own authentication is over. DialError when the host ends it before."""
        await self._ready

    async def register(self, registration: bytes) -> None:
        """Send the `config` request. Raises RegistrationRefused, DialError."""
        try:
            async with asyncio.timeout(REGISTRATION_DEADLINE):
                taken, said = await self.ask("config", registration)
        except TimeoutError as error:
            text = f"{self.remote} did not answer the registration within {REGISTRATION_DEADLINE:g} s"
            raise DialError("handshake", text) from error
        except ConnectionError as error:
            text = f"{self.remote} ended the session instead of answering the registration: {error}"
            raise DialError("handshake", text) from error
        if not taken or said:  # Go's agents look at the text alone; a refusal without one is meant as one all the same
            raise RegistrationRefused(printable(said.decode("utf-8", "replace"))[:MAX_REFUSAL] or "no reason was given")

    async def ping(self, deadline: float = DEAD_AFTER) -> float:
        """Seconds of a round trip; ConnectionError when the host does not answer within `deadline`."""
        started = monotonic()
        try:
            async with asyncio.timeout(deadline):
                await self.ask("ping")
        except TimeoutError as error:
            raise ConnectionError(f"no answer to a ping within {deadline:g} s") from error
        self.rtt = monotonic() - started
        return self.rtt

    def close(self, text: str) -> None:
        """Say why, and end the session with every channel. Idempotent."""
        if self._wire is not None and not self.closed:
            wire, self._wire = self._wire, None
            wire.bye(text)
            wire.end(text)
        self.ssh_lost(text)

    async def wait_closed(self) -> str:
        """Why the session ended."""
        return await asyncio.shield(self._closed)

    async def ask(self, name: str, payload: bytes = b"") -> tuple[bool, bytes]:
        """A global request and its answer; ConnectionError when none can come."""
        if self._wire is None:
            raise ConnectionError("the session is closed")
        return await self._wire.request(name, payload)

    # ---- what the connection tells its owner --------------------------------------------------------------------

    def ssh_ready(self) -> None:
        if not self._ready.done():
            self._ready.set_result(None)

    def ssh_request(self, name: str, payload: bytes, answer: Callable[[bool, bytes], None]) -> None:
        answer(name == "ping", b"")

    def ssh_opened(self, channel: Channel, target: bytes) -> None:
        self._on_channel(channel, target.decode("utf-8", "replace"))

    def ssh_lost(self, reason: str) -> None:
        if not self._closed.done():
            self._closed.set_result(reason)
        if not self._ready.done():
            self._ready.set_exception(DialError("handshake", f"{self.remote} ended the SSH handshake: {reason}"))
            self._ready.exception()  # nobody may be waiting any more


async def dial_host(
    target: DialTarget,
    *,
    limits: ChannelLimits,
    on_channel: OnChannel,
    on_hop: OnHop | None = None,
    deadline: float = HANDSHAKE_DEADLINE,
) -> HostSession:
    """Dial a host and authenticate as SSH wants it; what comes next is `register`. Raises DialError."""
    note = on_hop or unnoted
    loop = asyncio.get_running_loop()
    session = HostSession(target.authority, on_channel)
    try:
        async with asyncio.timeout(deadline):
            options = await agent_options()  # made in a thread, which others may keep busy
    except TimeoutError as error:
        text = f"SSH could not be set up within {deadline:g} s: every thread of this process is busy"
        raise DialError("handshake", text) from error

    def take_over(link: Link) -> None:
        wire = AgentConnection(session, options, limits)
        session.attach(wire, SshLink(link, wire, remote=target.authority))

    _transport, client = await open_connection(target, lambda: _Upgrading(target, take_over), on_hop=on_hop)
    started = loop.time()
    try:
        async with asyncio.timeout(deadline):
            await client.opened
            await session.authenticated()
    except TimeoutError as error:
        failure = client.overdue(_STEP[client.hop], deadline)
        session.close("the handshake took too long")
        client.abort("the handshake took too long")
        raise failure from error
    except BaseException:
        session.close("the handshake failed")
        client.abort("the handshake failed")
        raise
    note(Hop("handshake", f"SSH with {session.version}", loop.time() - started))
    return session


_STEP: Final = {"http": "WebSocket upgrade", "handshake": "SSH handshake"}


class _Upgrading(UpgradingLink[None]):
    """What follows the upgrade is the SSH connection's."""

    def __init__(self, target: DialTarget, take_over: Callable[[Link], None]) -> None:
        super().__init__(target, ClientUpgrade(target, DIALECT, echoed=False))
        self._take_over = take_over

    def upgraded(self) -> None:
        if not self.opened.done():
            self.opened.set_result(None)
        self._take_over(self)
