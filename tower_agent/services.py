"""What a host may reach in the member: the declared services, checked for every stream.

`kubernetes` ends in the gateway, or in plain TCP to the apiserver where the owner chose `passthrough`; every other
declared service is a TCP relay to its address. Nothing else is ever dialled. Raw services are refused on a link whose
TLS does not end at the tower, since whoever ends it could read and change them; for `kubernetes` a middle sees
ciphertext only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from daemon.kube.access import Access
from daemon.log import get_logger
from daemon.metrics import AgentMetrics
from daemon.reminder import Reminder
from daemon.supervisor import Supervisor
from daemon.units import split_address
from gateway.proxy import Gateway
from protocol import defaults
from protocol.aio.hops import DialError, unnoted
from protocol.aio.splice import Splice, Transferred
from protocol.aio.stream import IncomingStream
from protocol.aio.tcpdial import connect_tcp
from protocol.constants import CONTROL_SERVICE, Code
from tower_agent.config import KUBERNETES, Service

END_AT_TOWER = "ends_at_tower"  # key in Tunnel.data: whether the link's TLS ends at the tower

log = get_logger(__name__)


class Services:
    """The streams of one host."""

    def __init__(
        self,
        declared: Mapping[str, Service],
        *,
        access: Access,
        gateway: Gateway,
        control: Callable[[IncomingStream], None],
        raw_anywhere: bool,
        metrics: AgentMetrics,
        tasks: Supervisor,
        unreachable: Callable[[], None],
    ) -> None:
        self._declared = {KUBERNETES: Service(), **declared}
        self._access = access
        self._gateway = gateway
        self._control = control
        self._raw_anywhere = raw_anywhere
        self._metrics = metrics
        self._tasks = tasks
        self._unreachable = unreachable
        self._splices: set[Splice] = set()
        # What a host can bring about as often as it likes: counted always, said now and then.
        self._said = {Code.UNKNOWN_SERVICE: Reminder(), Code.FORBIDDEN: Reminder()}

    def report(self) -> dict[str, Any]:
        """The declared services, as a status message names them."""
        return {
            name: {"mode": service.mode} if name == KUBERNETES else {"address": service.address}
            for name, service in self._declared.items()
        }

    def on_stream(self, incoming: IncomingStream) -> None:
        """Answer one OPEN."""
        name = incoming.service
        if name == CONTROL_SERVICE:
            self._control(incoming)
            return
        service = self._declared.get(name)
        if service is None:
            offered = ", ".join(sorted(self._declared))
            self._refuse(incoming, Code.UNKNOWN_SERVICE, f"the member declares no service {name!r}; it has {offered}")
        elif name == KUBERNETES and service.mode == "gateway":
            incoming.accept(self._gateway.serve(caller_address=incoming.caller, connection_id=incoming.connection_id))
        elif name == KUBERNETES:
            self._start(incoming, self._access.host, self._access.port)
        elif not self._raw_anywhere and not incoming.tunnel.data.get(END_AT_TOWER):
            self._refuse(
                incoming,
                Code.FORBIDDEN,
                f"the link's TLS does not end at the tower, so that a middle could open {name!r}; "
                "the member's owner can accept that with `raw_services_over_foreign_tls: true`",
            )
        else:
            assert service.address is not None
            self._start(incoming, *split_address(service.address, listener=False))

    def close(self) -> None:
        """Cut the relays that run."""
        for splice in list(self._splices):
            splice.abort()

    def _start(self, incoming: IncomingStream, host: str, port: int) -> None:
        self._tasks.start(self._relay(incoming, host, port), name=f"dial {incoming.service} {incoming.connection_id}")

    async def _relay(self, incoming: IncomingStream, host: str, port: int) -> None:
        try:
            sock = await connect_tcp(host, port, defaults.DIAL_DEADLINE, unnoted)
        except DialError as error:
            if incoming.service == KUBERNETES:
                self._unreachable()
            late = isinstance(error.__cause__, TimeoutError)
            self._refuse(incoming, Code.DIAL_TIMEOUT if late else Code.DIAL_FAILED, error.text)
            return
        if incoming.cancelled:
            sock.close()
            return
        splice = Splice(on_done=lambda moved: self._ended(incoming, splice, moved))
        self._splices.add(splice)
        self._metrics.streams.labels(incoming.service).inc()
        await asyncio.get_running_loop().create_connection(lambda: splice.second, sock=sock)
        incoming.accept(splice.first)
        splice.start()

    def _ended(self, incoming: IncomingStream, splice: Splice, moved: Transferred) -> None:
        self._splices.discard(splice)
        self._metrics.streams.labels(incoming.service).dec()
        self._metrics.tally.to_member += moved.forward
        self._metrics.tally.from_member += moved.backward
        log.info(
            "stream-ended",
            service=incoming.service,
            connection=incoming.connection_id,
            caller=incoming.caller,
            bytes_in=moved.forward,
            bytes_out=moved.backward,
            why=str(moved.error) if moved.error else "finished",
        )

    def _refuse(self, incoming: IncomingStream, code: Code, text: str) -> None:
        said = self._said.get(code)
        if said is None or said.due(""):
            log.warning(
                "stream-refused", service=incoming.service, connection=incoming.connection_id, code=code.name, text=text
            )
        self._metrics.denied.labels(code.name.lower()).inc()
        incoming.refuse(code, text)
