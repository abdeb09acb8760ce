"""The channels that a host of `kubesphere-v1` opens: TCP to one of the two destinations that were announced to it.

Nothing else is ever dialled, whereas a Go agent dials whatever the host names, anywhere in the member. The destination
is dialled before the channel is accepted, so that the host hears why it cannot be reached. Half-close and back-pressure
pass both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from daemon.reminder import Reminder
from daemon.supervisor import Supervisor
from daemon.units import split_address
from protocol import defaults
from protocol.aio.hops import DialError, reason, unnoted
from protocol.aio.splice import Splice, SpliceEnd, Transferred
from protocol.aio.ssh import CONNECT_FAILED, PROHIBITED
from protocol.aio.sshchannel import Channel
from protocol.aio.tcpdial import connect_tcp
from tower_agent.config import KUBERNETES, KUBESPHERE
from tower_agent.shipment import Shipment

_UNREACHABLE: Final = {KUBERNETES: "TWR301", KUBESPHERE: "TWR310"}

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Destination:
    """What was announced, read once: channels come by the hundred a second."""

    service: str
    target: str
    host: str
    port: int
    literal: bool  # an address, as most members announce; names are resolved

    @classmethod
    def of(cls, target: str, service: str) -> _Destination:
        host, port = split_address(target, listener=False)
        try:
            ip_address(host)
        except ValueError:
            return cls(service, target, host, port, literal=False)
        return cls(service, target, host, port, literal=True)

    async def connect(self, factory: Callable[[], SpliceEnd]) -> None:
        """DialError."""
        loop = asyncio.get_running_loop()
        if not self.literal:
            sock = await connect_tcp(self.host, self.port, defaults.DIAL_DEADLINE, unnoted)
            await loop.create_connection(factory, sock=sock)
            return
        try:
            async with asyncio.timeout(defaults.DIAL_DEADLINE):
                await loop.create_connection(factory, self.host, self.port)
        except OSError as error:
            silent = isinstance(error, TimeoutError)
            told = f"no answer within {defaults.DIAL_DEADLINE:g} s" if silent else reason(error)
            raise DialError("tcp", f"cannot connect to {self.target} ({told})") from error


class LegacyChannels:
    """The channels of one agent; `announce` before the host opens any."""

    def __init__(self, *, metrics: AgentMetrics, tasks: Supervisor) -> None:
        self._metrics = metrics
        self._tasks = tasks
        self._announced: Mapping[str, _Destination] = {}
        self._open = {service: metrics.streams.labels(service) for service in _UNREACHABLE}
        self._splices: set[Splice] = set()
        self._said = Reminder()
        self._ended = 0

    def announce(self, shipment: Shipment) -> None:
        """What the host may ask for from now on, word for word."""
        self._announced = {
            shipment.kubesphere: _Destination.of(shipment.kubesphere, KUBESPHERE),
            shipment.kubernetes: _Destination.of(shipment.kubernetes, KUBERNETES),
        }

    @property
    def moved(self) -> int:
        """Bytes that were relayed so far, of all channels."""
        return self._ended + sum(splice.first.received + splice.second.received for splice in self._splices)

    def on_channel(self, channel: Channel, target: str) -> None:
        """Answer one open."""
        destination = self._announced.get(target)
        if destination is None:
            self._refuse(channel, PROHIBITED, f"this agent reaches {' and '.join(self._announced)}, nothing else")
            if self._said.due(""):  # a host may ask as often as it likes
                log.warning("stream-refused", code="TWR226", text=f"the host asked for {target[:200]!r}")
            return
        self._tasks.start(self._relay(channel, destination), name=f"dial {destination.service} {channel.number}")

    def close(self) -> None:
        """Cut what runs."""
        for splice in list(self._splices):
            splice.abort()

    async def _relay(self, channel: Channel, destination: _Destination) -> None:
        service = destination.service
        splice = Splice(on_done=lambda moved: self._done(splice, service, moved))
        try:
            await destination.connect(lambda: splice.second)
        except DialError as error:
            log.warning("stream-refused", service=service, code=_UNREACHABLE[service], text=error.text)
            self._refuse(channel, CONNECT_FAILED, error.text)
            return
        self._splices.add(splice)
        self._open[service].inc()
        channel.accept(splice.first)
        splice.start()  # which drops the destination where the host has gone meanwhile

    def _done(self, splice: Splice, service: str, moved: Transferred) -> None:
        self._splices.discard(splice)
        self._ended += moved.forward + moved.backward
        self._open[service].dec()
        self._metrics.tally.to_member += moved.forward
        self._metrics.tally.from_member += moved.backward
        log.debug(
            "stream-ended",
            service=service,
            bytes_in=moved.forward,
            bytes_out=moved.backward,
            why=str(moved.error) if moved.error else "finished",
        )

    def _refuse(self, channel: Channel, reason: int, text: str) -> None:
        self._metrics.denied.labels("prohibited" if reason == PROHIBITED else "dial_failed").inc()
        channel.refuse(reason, text)
