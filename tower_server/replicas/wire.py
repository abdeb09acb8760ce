"""What two servers of a host say to each other, as JSON lines inside their mutual TLS.

Whoever calls says first what it wants: `follow` (to be told what the other holds), `pass` (one caller's connection,
to be carried into a tunnel) or `ask` (one question, see `asking`). A connection is passed on once: the head counts the
hops, and a second one is refused, so that servers that each believe in the other never send a caller round in circles.
After `accepted` a passed connection is bytes. Every line has a bound, and what does not fit its form is refused with
what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from certs.names import is_label
from protocol.constants import Code
from protocol.defaults import MAX_CONTROL_LINE_BYTES
from protocol.errors import ProtocolError, RemoteProtocolError, StreamRefused
from protocol.messages import encode_message, parse_message
from tower_server.state import Verdict

MAX_HEAD_BYTES: Final = 4096
MAX_NAME: Final = 253
MAX_TEXT: Final = 1024
MAX_AGENTS: Final = 64  # named of one cluster; what is not named only waits for its window
HOPS: Final = 1
_VERDICT: Final = ("state", "ready", "code", "cause")
_UNTOLD: Final = frozenset({"requests"})
"""Of an agent's report: figures that change all the time, which only its own server counts."""

FOLLOW: Final = encode_message("follow")
ACCEPTED: Final = encode_message("accepted")


@dataclass(frozen=True, slots=True)
class Passing:
    """The head of one caller's connection. `caller` and `connection` are those of whoever called the first server."""

    cluster: str
    service: str
    caller: str
    connection: str
    hop: int = HOPS

    def line(self) -> bytes:
        return encode_message(
            "pass",
            cluster=self.cluster,
            service=self.service,
            caller=self.caller,
            connection=self.connection,
            hop=self.hop,
        )


@dataclass(frozen=True, slots=True)
class Asking:
    """A question about what only this server knows; `cluster` is empty for all of them."""

    call: str
    cluster: str

    def line(self) -> bytes:
        return encode_message("ask", call=self.call, cluster=self.cluster)


@dataclass(frozen=True, slots=True)
class Carrying:
    """An agent's connection for a tunnel of the server that is called, and where the agent comes from."""

    tunnel: str
    remote: str
    hop: int = HOPS

    @property
    def connection(self) -> str:
        return self.tunnel

    def line(self) -> bytes:
        return encode_message("carry", tunnel=self.tunnel, remote=self.remote, hop=self.hop)


@dataclass(frozen=True, slots=True)
class Held:
    """What an owner says of a cluster."""

    tunnels: int
    verdict: Verdict
    report: Mapping[str, Any]
    agents: tuple[str, ...] = ()
    """The agents' processes that the tunnels are with, see `process_of`."""


def read_head(line: bytes) -> Passing | Asking | Carrying | None:
    """What a caller wants: None to follow. RemoteProtocolError for anything else."""
    message = _object(line)
    kind = message.get("type")
    if kind == "follow":
        return None
    if kind == "ask":
        return Asking(_name(message, "call"), _name(message, "cluster"))
    if kind not in ("pass", "carry"):
        raise RemoteProtocolError(Code.PROTOCOL, f"a connection of a replica that asks for {str(kind)[:80]!r}")
    hop = message.get("hop")
    if hop != HOPS:
        raise RemoteProtocolError(Code.PROTOCOL, f"a connection that was passed on before (hop {str(hop)[:20]})")
    if kind == "carry":
        return Carrying(_name(message, "tunnel"), _name(message, "remote"))
    cluster, service, caller, connection = (
        _name(message, key) for key in ("cluster", "service", "caller", "connection")
    )
    if not is_label(service):  # as members declare them, and unlike the one by which an agent hears from its host
        raise RemoteProtocolError(Code.PROTOCOL, f"a caller for {service[:80]!r}, which no member can declare")
    return Passing(cluster, service, caller, connection)


def refused(error: ProtocolError) -> bytes:
    """The line that answers a head in place of ACCEPTED."""
    return encode_message("refused", code=int(error.code), text=error.text[:MAX_TEXT])


def read_answer(line: bytes) -> StreamRefused | None:
    """None when the connection was accepted."""
    message = _object(line)
    if message.get("type") == "accepted":
        return None
    if message.get("type") != "refused":
        raise RemoteProtocolError(Code.PROTOCOL, "a replica gave no answer to a connection")
    try:
        code = Code(int(message.get("code", Code.INTERNAL)))
    except (TypeError, ValueError):
        code = Code.INTERNAL
    return StreamRefused(code, str(message.get("text", ""))[:MAX_TEXT])


def alive(*, ready: bool) -> bytes:
    """The heartbeat. Not `ready`: it stops, and takes no callers."""
    return encode_message("alive", ready=ready)


def holds(cluster: str, held: Held) -> bytes:
    """A report that is too long for a line is left out: the verdict counts."""
    verdict = {key: getattr(held.verdict, key) for key in _VERDICT}
    fields = {"cluster": cluster, "tunnels": held.tunnels, "agents": held.agents[:MAX_AGENTS], "verdict": verdict}
    try:
        return encode_message("holds", **fields, report=dict(held.report))
    except ValueError:
        return encode_message("holds", **fields, report={})


def lost(cluster: str, *, meant: bool = False) -> bytes:
    """It is held no more; `meant` where somebody wanted that, as its agent that stops."""
    return encode_message("lost", cluster=cluster, meant=meant)


def told(report: Mapping[str, Any]) -> dict[str, Any]:
    """What others are told of an agent's report."""
    return {key: value for key, value in report.items() if key not in _UNTOLD}


def read_holding(message: Mapping[str, Any]) -> tuple[str, Held | None]:
    """The cluster, and what is said of it; None when it is held no more."""
    cluster = _name(message, "cluster")
    if message["type"] == "lost":
        return cluster, None
    verdict, tunnels, report = message.get("verdict"), message.get("tunnels"), message.get("report")
    agents = message.get("agents", [])
    if not (isinstance(verdict, dict) and isinstance(report, dict) and isinstance(agents, list)) or not isinstance(
        tunnels, int
    ):
        raise RemoteProtocolError(Code.PROTOCOL, f"what a replica says of cluster {cluster} is not of its form")
    said = Verdict(*(str(verdict.get(key, "")) for key in _VERDICT))  # type: ignore[arg-type]
    return cluster, Held(max(0, tunnels), said, report, tuple(map(str, agents)))


def read_line(line: bytes) -> Mapping[str, Any]:
    """One line of a replica that is followed."""
    if len(line) > MAX_CONTROL_LINE_BYTES:
        raise RemoteProtocolError(Code.TOO_LARGE, f"a line of a replica above {MAX_CONTROL_LINE_BYTES} bytes")
    return _object(line)


def _object(line: bytes) -> dict[str, Any]:
    return parse_message(line, what="a line of a replica")


def _name(message: Mapping[str, Any], key: str) -> str:
    value = message.get(key)
    if not isinstance(value, str) or len(value) > MAX_NAME or not value.isprintable():
        raise RemoteProtocolError(Code.PROTOCOL, f"a line of a replica whose {key!r} is no name")
    return value
