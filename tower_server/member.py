"""One cluster as the server sees it now: its tunnels, their history, the last probe, the agent's last report.

All of it is in memory; what must survive a restart is on the cluster's record. `changed` is called whenever the verdict
has changed, so that watchers, conditions and metrics need not poll.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from daemon.metrics import ClusterMetrics
from protocol import events
from protocol.aio.tunnel import Closed, Tunnel
from protocol.constants import CHECK_INSTANCE, SUBPROTOCOL, Code
from tower_server.flapping import Flaps
from tower_server.hold import Hold
from tower_server.state import UNHEARD, Ended, Facts, ProbeResult, Verdict, judge

HISTORY: Final = 20
EXPECTED_AFTER: Final = 60.0  # seconds that a number of tunnels must last before it is what is expected
DETACHED: Final = "detached"
"""Key in a tunnel's data: why it has no link at the moment."""
SEEN_FOR: Final = 86400.0  # how long the most tunnels seen stay what is expected
CONDITIONS: Final = "conditions"
"""Key in a tunnel's data: (type, status, reason, message) of what is true of the cluster while the tunnel serves."""
FAREWELLS: Final = frozenset({Code.SHUTDOWN, Code.NONE, Code.DRAINING})
"""How an agent ends its tunnel on purpose."""
_MEANT: Final = frozenset(
    (UNHEARD, *(code.name for code in (*FAREWELLS, Code.REPLACED, Code.REVOKED, Code.EXPIRED, Code.DELETED)))
)
"""Ends of tunnels that somebody wanted, or that are perhaps none (UNHEARD)."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the history. `code` is a protocol code's name for closes, a fault for refusals."""

    at: float
    event: Literal["opened", "detached", "resumed", "closed", "refused"]
    agent: str
    remote: str
    code: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """What the other servers of the host say of a cluster whose tunnels they hold."""

    tunnels: int
    verdict: Verdict
    report: Mapping[str, Any]


class Member:
    """Belongs to one event loop."""

    def __init__(
        self,
        name: str,
        uid: str,
        *,
        connected: float | None,
        expected: int | None,
        metrics: ClusterMetrics,
        hold: Hold,
        changed: Callable[[Member], None],
    ) -> None:
        self.name = name
        self.uid = uid
        self.connected = connected
        self.metrics = metrics
        self.hold = hold
        self.gone = False  # deleted: whatever still runs for it has no effect
        self.tunnels: list[Tunnel] = []
        self.history: deque[Entry] = deque(maxlen=HISTORY)
        self.last_close: Ended | None = None
        self.refused: Ended | None = None
        self.probe: ProbeResult | None = None
        self.last_ok: float | None = None
        self.failures = 0
        self.report: Mapping[str, Any] = {}
        self.reported_at: float | None = None
        self.elsewhere: Elsewhere | None = None
        self.flaps = Flaps()
        self._told_at: float | None = None  # by the server that holds its tunnel
        self._in_vain = ""  # id of the tunnel that a caller waited for in vain, until it no longer stalls
        self.verdict = Verdict("NeverConnected", "Unknown")
        self.since = time.time()
        self._configured = expected
        self._peak = 0
        self._peak_at = time.time()
        self._count_since = time.time()
        self._changed = changed
        self.refresh()

    # ---- tunnels ------------------------------------------------------------------------------------------------

    @property
    def serving(self) -> list[Tunnel]:
        """The tunnels that new streams may go to."""
        return [
            each
            for each in self.tunnels
            if not (each.draining or each.renew_only or DETACHED in each.data or _only_checks(each))
        ]

    @property
    def standing(self) -> int:
        """How many serving tunnels count, those that other servers hold among them."""
        return _standing(self.serving) + (self.elsewhere.tunnels if self.elsewhere is not None else 0)

    def pick(self) -> Tunnel | None:
        """The least loaded healthy tunnel: by its streams, then by what they keep waiting, then by its round trip.

        Taken only when there is nothing better: first those of Go agents, then those whose own probe failed, last those
        that stall.
        """
        found = [each for each in self.serving if each.closed is None]
        if len(found) < 2:
            return found[0] if found else None
        return min(found, key=_load)

    def has_better(self, tunnel: Tunnel) -> bool:
        """Whether another tunnel should be asked for what this one has not answered: it stalls, and the other does not.

        For the apiserver only: callers of raw services may have been heard already, and would be heard twice.
        """
        if not tunnel.stalled:
            return False
        other = self.pick()
        return other is not None and other is not tunnel and not other.stalled

    def waited_in_vain(self, tunnel: Tunnel) -> None:
        """A caller has waited for this silent tunnel as long as for the return of a lost one."""
        self._in_vain = tunnel.id

    def hopeless(self, tunnel: Tunnel) -> bool:
        """Whether a caller would wait in vain again: kubectl asks several times in a row."""
        if self._in_vain == tunnel.id and not tunnel.silent:
            self._in_vain = ""
        return self._in_vain == tunnel.id

    def add(self, tunnel: Tunnel) -> None:
        """A tunnel has opened (after WELCOME)."""
        now = time.time()
        self.tunnels.append(tunnel)
        if _only_checks(tunnel):
            return
        self.history.appendleft(Entry(now, "opened", tunnel.peer.agent, tunnel.remote))
        if tunnel.renew_only:
            self.refused = Ended(
                now, "TWR502", f"the identity of agent {tunnel.peer.agent} has expired; it may only renew"
            )
        else:
            self.connected = now
            self.refused = None
            if len(self.serving) == 1:
                self.probe = self.last_ok = None  # results of earlier tunnels say nothing about this one
                self.failures = 0
            self.hold.release()
        self._counted()
        self.refresh()

    def remove(self, tunnel: Tunnel, closed: Closed) -> None:
        """A tunnel has ended."""
        if tunnel not in self.tunnels:
            return
        now = time.time()
        self.tunnels.remove(tunnel)
        if _only_checks(tunnel):
            return
        self.history.appendleft(Entry(now, "closed", tunnel.peer.agent, tunnel.remote, closed.code.name, closed.text))
        if not tunnel.renew_only:
            self.connected = now
            self.last_close = Ended(now, closed.code.name, closed.text or closed.code.name.lower().replace("_", " "))
            if not self.serving and DETACHED not in tunnel.data:
                self.hold.lost()
        if closed.by_peer and closed.code in FAREWELLS:
            self._expect_no_more()
        self.metrics.closed(closed.code.name)
        self._counted()
        self.refresh()

    def detached(self, tunnel: Tunnel, lost: events.LinkLost) -> None:
        """A tunnel has lost its link: its streams wait for another one, new callers for any tunnel."""
        now, served = time.time(), tunnel in self.serving
        tunnel.data[DETACHED] = lost.text
        self.history.appendleft(Entry(now, "detached", tunnel.peer.agent, tunnel.remote, lost.code.name, lost.text))
        self.connected = now
        self.last_close = Ended(now, lost.code.name, f"{lost.text}; its agent may come back")
        if served and not self.serving:
            self.hold.lost()
        self._counted()
        self.refresh()

    def resumed(self, tunnel: Tunnel, pause: float) -> None:
        """It goes on over another link, and what was known of it holds."""
        now = time.time()
        tunnel.data.pop(DETACHED, None)
        text = f"after {pause:.1f} s"
        self.history.appendleft(Entry(now, "resumed", tunnel.peer.agent, tunnel.remote, text=text))
        self.connected = now
        self.refused = None
        if self.serving:
            self.hold.release()
        self._counted()
        self.refresh()

    def going_away(self, tunnel: Tunnel, text: str) -> None:
        """The agent drains a tunnel: it takes no new streams, and another one is to be expected."""
        if _only_checks(tunnel):
            return
        if not self.serving:
            self.last_close = Ended(time.time(), Code.DRAINING.name, f"its agent is stopping ({text})")
            self.hold.lost()
        self.refresh()

    def refuse(self, agent: str, remote: str, code: str, text: str, *, proven: bool) -> None:
        """A handshake that named this cluster was refused. Refusals that follow one another take one line of the
        history, so that nobody outside can push out what has happened; and what a peer that has not `proven` to be
        one of its agents brings about is no more than that line."""
        now = time.time()
        if self.history and self.history[0].event == "refused":
            self.history.popleft()
        self.history.appendleft(Entry(now, "refused", agent, remote, code, text))
        if proven:
            self.refused = Ended(now, code, text)
            self.refresh()

    @property
    def expected(self) -> int:
        """How many tunnels there should be: as configured, else the most that were seen for a while in the last day."""
        if self._configured is not None:
            return self._configured
        return max(1, self._peak) if self.connected is not None else 1

    def _expect_no_more(self) -> None:
        """What is there now is all that should be: a tunnel was ended on purpose."""
        self._peak, self._peak_at = self.standing, time.time()

    def _counted(self) -> None:
        self._count_since = time.time()
        self.metrics.tunnels.set(sum(not _only_checks(each) and DETACHED not in each.data for each in self.tunnels))

    def tick(self) -> None:
        """Now and then: what only time changes."""
        now, count = time.time(), self.standing
        if now - self._peak_at > SEEN_FOR:
            self._peak, self._peak_at = count, now
        if count > self._peak and now - self._count_since >= EXPECTED_AFTER:
            self._peak, self._peak_at = count, now
        elif count == self._peak:
            self._peak_at = now
        self.refresh()

    # ---- what is known of the far end ---------------------------------------------------------------------------

    def probed(self, result: ProbeResult) -> None:
        self.probe = result
        if result.ok:
            self.last_ok, self.failures = result.at, 0
            self.metrics.probe_ok.inc()
        else:
            self.failures += 1
            self.metrics.probe_failed.inc()
        self.refresh()

    def reported(self, report: Mapping[str, Any]) -> None:
        """The agent's heartbeat."""
        self.report, self.reported_at = report, time.time()
        self.refresh()

    def note_elsewhere(self, found: Elsewhere | None, why: str, *, cut: bool = False, unheard: bool = False) -> None:
        """What other servers hold of it; None: no longer anything, and `why`; `cut`: its tunnel was lost there;
        `unheard`: nobody knows, since nothing more is heard of that server."""
        before, self.elsewhere = self.elsewhere, found
        were, are = (each.tunnels if each is not None else 0 for each in (before, found))
        if are != were:
            self._count_since = time.time()
        missed = cut if found is None else found.verdict.state != "Connected"
        if before is not None and are <= were and not (missed or unheard) and self.standing < self._peak:
            self._expect_no_more()  # the server that saw how they ended misses none
        if found is not None:
            self._told_at = time.time()
            self.connected = self.connected or self._told_at
            if before is None:
                self.hold.release()
        elif before is not None:
            code = UNHEARD if unheard else (Code.TUNNEL_LOST if cut else Code.SHUTDOWN).name
            self.last_close = Ended(time.time(), code, why)
            if not self.serving:
                self.hold.lost()
        self.refresh()

    def noted(self, connected: float) -> None:
        """Some server of the host has written down when it was last seen with a tunnel."""
        if self.connected is None or self.connected < connected:
            self.connected = connected
            self.refresh()

    @property
    def tunnels_of_host(self) -> int:
        """How many tunnels serve it, those that other servers hold among them."""
        return len(self.serving) + (self.elsewhere.tunnels if self.elsewhere is not None else 0)

    @property
    def known_report(self) -> Mapping[str, Any]:
        """What an agent last said, to this server or to the one that holds the tunnel."""
        return self.report if self.serving or self.elsewhere is None else self.elsewhere.report

    @property
    def ended_by_intent(self) -> bool:
        """Whether somebody wanted the last tunnel to end."""
        return self.last_close is not None and self.last_close.code in _MEANT

    @property
    def last_heartbeat(self) -> float | None:
        """When the member was last heard of: its agent's report, a probe that got through, a tunnel."""
        known = (self.reported_at, self.last_ok, self._told_at, self.connected)
        return max((each for each in known if each is not None), default=None)

    @property
    def passthrough(self) -> bool:
        """Whether the member's agent relays callers to its apiserver untouched."""
        services = self.known_report.get("services")
        entry = services.get("kubernetes") if isinstance(services, Mapping) else None
        return isinstance(entry, Mapping) and entry.get("mode") == "passthrough"

    @property
    def rtt(self) -> float | None:
        """Of the best tunnel."""
        return _rtt(self.serving)

    # ---- the verdict --------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Judges by the facts of now, and tells whoever follows when the verdict is another one."""
        if self.gone:
            return
        serving = self.serving  # once: it may be a thousand, whose heartbeats each come here
        elsewhere = self.elsewhere if not serving else None
        verdict = elsewhere.verdict if elsewhere is not None else judge(self._facts(serving))
        before, self.verdict = self.verdict, verdict
        flapped = self._flapped(before)
        if verdict.state != before.state or verdict.ready != before.ready:
            self.since = time.time()
        self.metrics.state(verdict.state, ready=verdict.ready == "True", at=self.since)
        self.metrics.expected.set(self.expected)
        if (rtt := _rtt(serving)) is not None:
            self.metrics.rtt.set(rtt)
        if verdict != before or flapped:
            self._changed(self)

    def _flapped(self, before: Verdict) -> bool:
        """Whether it began or ceased to flap by this verdict."""
        now, was, verdict = time.time(), self.flaps.since, self.verdict
        tunnel = verdict.state == "TunnelDown"
        unwell = before.ready == "True" and verdict.ready == "False" and verdict.state != "AuthFailed"
        if unwell and not (tunnel and self.ended_by_intent):
            self.flaps.lost(now, tunnel=tunnel)
        self.flaps.look(now, well=verdict.ready == "True")
        return self.flaps.since != was

    def _facts(self, serving: Sequence[Tunnel]) -> Facts:
        probe = self.report.get("probe")
        probe = probe if isinstance(probe, Mapping) else {}
        policy = self.report.get("policy")
        drift = policy.get("drift") if isinstance(policy, Mapping) else None
        revocations = self.report.get("revocations")
        stale = revocations.get("stale") if isinstance(revocations, Mapping) else None
        return Facts(
            now=time.time(),
            tunnels=_standing(serving) + (self.elsewhere.tunnels if serving and self.elsewhere is not None else 0),
            expected=self.expected,
            connected=self.connected,
            last_close=self.last_close,
            refused=self.refused,
            probe=self.probe,
            last_ok=self.last_ok,
            failures=self.failures,
            report_code=_text(probe.get("code")) if probe.get("ready") is False else "",
            report_text=_text(probe.get("text")),
            failing=next((text for tunnel in serving if (text := _text(tunnel.data.get("failing")))), ""),
            drift=_text(drift),
            stale=_text(stale),
        )


def is_legacy(tunnel: Tunnel) -> bool:
    """Whether a Go agent holds the other end."""
    return str(tunnel.dialect) != SUBPROTOCOL


def _standing(serving: Sequence[Tunnel]) -> int:
    """Go agents beside native ones do not count: they are being replaced."""
    return sum(not is_legacy(each) for each in serving) or len(serving)


def _rtt(serving: Sequence[Tunnel]) -> float | None:
    return min((tunnel.rtt for tunnel in serving if tunnel.rtt is not None), default=None)


def _load(tunnel: Tunnel) -> tuple[bool, bool, bool, int, int, float]:
    return (
        tunnel.stalled,
        bool(tunnel.data.get("failing")),
        is_legacy(tunnel),
        tunnel.stream_count,
        tunnel.buffered,
        tunnel.rtt or 0.0,
    )


def _only_checks(tunnel: Tunnel) -> bool:
    """`tower-agent check` goes the whole way and hangs up: that is neither the cluster's return nor its loss, and must
    not stand where somebody looks for the cause of an outage."""
    return tunnel.instance.startswith(CHECK_INSTANCE)


def _text(value: object) -> str:
    return value[:300] if isinstance(value, str) else ""
