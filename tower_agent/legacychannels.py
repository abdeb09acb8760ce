"""The channels that a host of `kubesphere-v1` opens: TCP to one of the two destinations that were announced to it.

Nothing else is ever dialled: a Go agent dials whatever the host names, anywhere in the member. The destination is
dialled before the channel is taken, so that the host hears why it cannot be had. Half-close and back-pressure pass both
ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Final

from daemon.log import get_logger
from daemon.metrics import AgentMetrics
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


class LegacyChannels:
    """The channels of one agent; `announce` before the host opens any."""

    def __init__(self, *, metrics: AgentMetrics, tasks: Supervisor) -> None:
        self._metrics = metrics
        self._tasks = tasks
        self._announced: Mapping[str, str] = {}
        self._open = {service: metrics.streams.labels(service) for service in _UNREACHABLE}
        self._splices: set[Splice] = set()
        self._ended = 0

    def announce(self, shipment: Shipment) -> None:
        """What the host may ask for from now on, word for word."""
        self._announced = {shipment.kubesphere: KUBESPHERE, shipment.kubernetes: KUBERNETES}

    @property
    def moved(self) -> int:
        """Bytes that were relayed so far, of all channels."""
        return self._ended + sum(splice.first.received + splice.second.received for splice in self._splices)

    def on_channel(self, channel: Channel, target: str) -> None:
        """Answer one open."""
        service = self._announced.get(target)
        if service is None:
            self._refuse(channel, PROHIBITED, f"this agent reaches {' and '.join(self._announced)}, nothing else")
            log.warning("stream-refused", code="TWR226", text=f"the host asked for {target[:200]!r}")
            return
        self._tasks.start(self._relay(channel, service, target), name=f"dial {service} {channel.number}")

    def close(self) -> None:
        """Cut what runs."""
        for splice in list(self._splices):
            splice.abort()

    async def _relay(self, channel: Channel, service: str, target: str) -> None:
        splice = Splice(on_done=lambda moved: self._done(splice, service, moved))
        try:
            await _connect(target, lambda: splice.second)
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


async def _connect(target: str, factory: Callable[[], SpliceEnd]) -> None:
    """The destination, by its name or straight by its address: in most members that is what was announced."""
    loop = asyncio.get_running_loop()
    host, port = split_address(target, listener=False)
    try:
        ip_address(host)
    except ValueError:
        sock = await connect_tcp(host, port, defaults.DIAL_DEADLINE, unnoted)
        await loop.create_connection(factory, sock=sock)
        return
    try:
        async with asyncio.timeout(defaults.DIAL_DEADLINE):
            await loop.create_connection(factory, host, port)
    except OSError as error:
        silent = isinstance(error, TimeoutError)
        told = f"no answer within {defaults.DIAL_DEADLINE:g} s" if silent else reason(error)
        raise DialError("tcp", f"cannot connect to {target} ({told})") from error
