"""The verdict on a cluster: which state it is in, whether it is Ready, and the root cause if it is not.

Pure: facts in, verdict out. Ready rests on one thing only, a request of the server's own that went through the tunnel
and back within the last `PROBE_FRESH_FOR` seconds; what the agent reports only explains a failure. One failed probe
after a good one makes the cluster Degraded; a second one, sent a second later, ends Ready.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from certs.peers import rfc3339
from protocol import defaults

Ready = Literal["True", "False", "Unknown"]
State = Literal["NeverConnected", "TunnelDown", "ApiserverDown", "AuthFailed", "Degraded", "Connected", "Unknown"]

FAILURES_UNTIL_NOT_READY: Final = 2

# What the member's apiserver (or the agent's policy) says to the server's own probe, by fault.
_AUTH_FAULTS: Final = frozenset({"TWR305", "TWR401", "TWR402", "TWR403", "TWR404", "TWR405", "TWR406", "TWR407"})
# The probe found no room on its way, nor would a new caller: that says nothing about the apiserver.
_FULL: Final = frozenset({"TWR117", "TWR411", "TWR412"})


UNHEARD: Final = "TWR118"
"""The code of an end that is none, maybe: the server that held the last tunnel is not heard of any more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the last tunnel ended, or how the last handshake was refused; `at` is wall-clock time."""

    at: float
    code: str
    text: str


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """One probe. `code` and `text` name the fault when `ok` is False; the times are seconds, None where not reached."""

    at: float
    ok: bool
    code: str = ""
    text: str = ""
    status: int | None = None
    stream: float | None = None
    readyz: float | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What a verdict rests on. Times are wall-clock seconds."""

    now: float
    tunnels: int
    expected: int
    connected: float | None
    """When a tunnel was last known to be up; None for never."""
    last_close: Ended | None = None
    refused: Ended | None = None
    """The last refused handshake, if none has succeeded since."""
    probe: ProbeResult | None = None
    last_ok: float | None = None
    failures: int = 0
    """Probes that failed in a row."""
    report_code: str = ""
    report_text: str = ""
    """The fault that the agent itself reports of its apiserver; empty for none."""
    failing: str = ""
    """What is wrong with one of several tunnels, while another serves."""
    drift: str = ""
    """How policy and RBAC are apart, in the agent's words."""
    stale: str = ""
    """Why the agent takes its revocation list for one that is withheld, in its words."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`code` is empty when there is nothing to say. `cause` is one sentence without a full stop."""

    state: State
    ready: Ready
    code: str = ""
    cause: str = ""


def judge(facts: Facts) -> Verdict:
    if facts.tunnels == 0:
        return _without_tunnel(facts)
    fresh = facts.probe is not None and facts.now - facts.probe.at <= defaults.PROBE_FRESH_FOR
    if not fresh:
        return Verdict("Unknown", "Unknown", "TWR308", "the tunnel is up, but no probe of /readyz has ended lately")
    assert facts.probe is not None
    if not facts.probe.ok:
        return _failed(facts, facts.probe)
    if facts.failing:
        return Verdict("Degraded", "True", "TWR202", f"one of {facts.tunnels} tunnels does not serve: {facts.failing}")
    if facts.stale:
        return Verdict("Degraded", "True", "TWR508", facts.stale)
    if facts.drift:
        return Verdict("Degraded", "True", "TWR307", facts.drift)
    if facts.tunnels < facts.expected:
        return Verdict("Degraded", "True", "TWR202", f"{facts.tunnels} of {facts.expected} expected tunnels are up")
    return Verdict("Connected", "True")


def _without_tunnel(facts: Facts) -> Verdict:
    refused, closed = facts.refused, facts.last_close
    if refused is not None and (closed is None or refused.at >= closed.at):
        ready: Ready = "Unknown" if facts.connected is None else "False"
        return Verdict(
            "AuthFailed", ready, refused.code, f"the agent was refused at {rfc3339(refused.at)}: {refused.text}"
        )
    if facts.connected is None:
        return Verdict("NeverConnected", "Unknown", "TWR200", "no agent of this cluster has ever connected")
    if closed is None:  # the server restarted; the store knows when a tunnel was last up
        return Verdict(
            "TunnelDown", "False", "TWR201", f"no tunnel since the server last saw one ({rfc3339(facts.connected)})"
        )
    code = UNHEARD if closed.code == UNHEARD else "TWR201"
    return Verdict("TunnelDown", "False", code, f"no tunnel since {rfc3339(closed.at)}: {closed.text}")


def _failed(facts: Facts, probe: ProbeResult) -> Verdict:
    lately = facts.last_ok is not None and facts.now - facts.last_ok <= defaults.PROBE_FRESH_FOR
    if lately and facts.failures < FAILURES_UNTIL_NOT_READY:
        return Verdict("Degraded", "True", probe.code, f"the last probe failed: {probe.text}")
    code, text = probe.code, probe.text
    if facts.report_code and code not in _AUTH_FAULTS:
        code, text = facts.report_code, facts.report_text  # the agent stands next to the apiserver and knows better why
    state: State = "AuthFailed" if code in _AUTH_FAULTS else "Degraded" if code in _FULL else "ApiserverDown"
    return Verdict(state, "False", code, text)
