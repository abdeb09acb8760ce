"""One cluster's live view: which tunnel is picked, how many are expected, what its history says."""

import time
from types import SimpleNamespace

import pytest

from daemon.metrics import ServerMetrics
from protocol import events
from protocol.aio.tunnel import Closed
from protocol.constants import Code
from tower_server import member as module
from tower_server.hold import Hold
from tower_server.member import Elsewhere, Member
from tower_server.state import ProbeResult, Verdict

pytestmark = pytest.mark.asyncio
BROKEN = events.LinkLost(Code.TUNNEL_LOST, "the connection broke")


def tunnel(
    agent="a1",
    *,
    streams=0,
    draining=False,
    renew_only=False,
    instance="pod-1",
    stalled=False,
    buffered=0,
    rtt=0.01,
    dialect="tower.v1",
):
    """A stand-in for the far end: what a member looks at of a tunnel."""
    return SimpleNamespace(
        id=f"t-{agent}",
        peer=SimpleNamespace(agent=agent),
        remote="192.0.2.1:1",
        stream_count=streams,
        draining=draining,
        renew_only=renew_only,
        instance=instance,
        closed=None,
        rtt=rtt,
        dialect=dialect,
        stalled=stalled,
        silent=stalled,
        buffered=buffered,
        data={},
    )


def closed(code=Code.TUNNEL_LOST, text="reset by peer", *, by_peer=False):
    return Closed(code, text, by_peer, 0.0)


@pytest.fixture
def metrics():
    return ServerMetrics(version="0")


async def made(metrics, *, connected=None, expected=None, changed=lambda _: None):
    bound = metrics.cluster("edge-1")
    hold = Hold(seconds=2, waiters=4, window=40, metrics=bound)
    return Member("edge-1", "u", connected=connected, expected=expected, metrics=bound, hold=hold, changed=changed)


async def test_draining_renewing_and_closed_tunnels_get_no_streams(metrics):
    member = await made(metrics)
    busy, free, failing = tunnel("busy", streams=5), tunnel("free", streams=1), tunnel("failing")
    failing.data["failing"] = "its apiserver is away"
    for each in (busy, free, failing, tunnel("draining", draining=True), tunnel("old", renew_only=True)):
        member.add(each)
    assert member.pick() is free
    member.remove(free, closed())
    assert member.pick() is busy
    member.remove(busy, closed())
    assert member.pick() is failing
    failing.closed = closed()
    assert member.pick() is None


async def test_new_streams_go_to_the_least_loaded_tunnel_and_around_one_that_stalls(metrics):
    member = await made(metrics)
    stalled, full, far, near, busy = (
        tunnel("stalled", stalled=True),
        tunnel("full", streams=2, buffered=2_000_000),
        tunnel("far", streams=2, rtt=0.3),
        tunnel("near", streams=2, rtt=0.02),
        tunnel("busy", streams=9),
    )
    for each in (stalled, full, far, near, busy):
        member.add(each)
    for expected in (near, far, full, busy, stalled):
        assert member.pick() is expected
        member.remove(expected, closed())
    assert member.pick() is None


async def test_a_stalled_tunnel_is_left_only_for_one_that_does_not_stall(metrics):
    member = await made(metrics)
    stalled, other = tunnel("stalled", stalled=True), tunnel("other", stalled=True)
    member.add(stalled)
    assert not member.has_better(stalled), "it is the only one"
    member.add(other)
    assert not member.has_better(stalled), "they are alike"
    other.stalled = False
    assert member.has_better(stalled)
    assert not member.has_better(other)


async def test_what_is_expected_is_what_was_there_for_a_while(metrics, monkeypatch):
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    member = await made(metrics)
    assert member.expected == 1
    pair = [tunnel("a1"), tunnel("a2")]
    for each in pair:
        member.add(each)
    member.tick()
    assert member.expected == 1  # a restart has two for a moment
    now += module.EXPECTED_AFTER
    member.tick()
    assert member.expected == 2
    member.remove(pair[0], closed())
    member.tick()
    assert member.expected == 2
    now += module.SEEN_FOR + 1
    member.tick()
    assert member.expected == 1


async def test_a_farewell_lowers_what_is_expected_and_a_cut_does_not(metrics, monkeypatch):
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    member = await made(metrics)
    three = [tunnel(f"a{number}") for number in range(3)]
    for each in three:
        member.add(each)
    now += module.EXPECTED_AFTER
    member.tick()
    member.remove(three[0], closed(Code.SHUTDOWN, "scaled down", by_peer=True))
    assert member.expected == 2
    member.remove(three[1], closed())
    assert member.expected == 2


async def test_a_check_from_the_member_leaves_the_cause_of_an_outage_as_it_is(metrics):
    told = []
    member = await made(metrics, changed=lambda member: told.append(member.verdict))
    member.add(lost := tunnel())
    member.remove(lost, closed(text="the connection was closed"))
    before, history = member.verdict, list(member.history)
    assert before.state == "TunnelDown"
    told.clear()
    member.add(check := tunnel(instance="check:0a1b2c3d"))
    assert member.pick() is None
    assert member.serving == []
    check.draining = True
    member.going_away(check, "only a check")
    member.remove(check, closed(Code.NONE, "only a check", by_peer=True))
    assert (member.verdict, list(member.history), told) == (before, history, [])
    assert member.tunnels == []


async def test_a_configured_number_is_what_is_expected(metrics):
    assert (await made(metrics, expected=3)).expected == 3


async def test_the_history_is_bounded_newest_first_and_repeats_no_refusal(metrics):
    member = await made(metrics)
    member.add(first := tunnel("a0"))
    for number in range(30):  # a stranger may name any agent and fail in any way
        member.refuse(f"a{number}", "192.0.2.1:1", ("TWR209", "TWR507")[number % 2], "revoked", proven=number % 2 == 0)
    assert [(entry.event, entry.agent) for entry in member.history] == [("refused", "a29"), ("opened", "a0")]
    member.remove(first, closed())
    for number in range(30):
        each = tunnel(f"a{number}")
        member.add(each)
        member.remove(each, closed())
    assert len(member.history) == module.HISTORY
    assert (member.history[0].event, member.history[0].agent, member.history[0].code) == (
        "closed",
        "a29",
        "TUNNEL_LOST",
    )


async def test_since_moves_only_with_the_state_and_whoever_follows_is_told(metrics):
    told = []
    member = await made(metrics, changed=lambda each: told.append(each.verdict.state))
    member.add(tunnel())
    since = member.since
    for _ in range(3):
        member.probed(ProbeResult(time.time(), True))
    assert told == ["NeverConnected", "Unknown", "Connected"]
    assert member.since >= since
    before = member.since
    member.refresh()
    assert member.since == before


async def test_a_new_tunnel_after_none_is_not_taken_for_ready_by_an_old_probe(metrics):
    member = await made(metrics)
    first = tunnel()
    member.add(first)
    member.probed(ProbeResult(time.time(), True))
    member.remove(first, closed())
    member.add(tunnel())
    assert member.verdict.ready == "Unknown"


async def test_a_deleted_member_changes_nothing_any_more(metrics):
    member = await made(metrics)
    member.gone = True
    metrics.forget("edge-1")
    member.probed(ProbeResult(time.time(), True))
    assert b'tower_cluster_ready{member_cluster="edge-1"}' not in metrics.render()


async def test_an_agent_that_drains_its_last_tunnel_is_waited_for(metrics):
    member = await made(metrics)
    each = tunnel()
    member.add(each)
    each.draining = True
    member.going_away(each, "upgrade")
    assert member.hold.return_likely
    assert "upgrade" in member.verdict.cause


async def test_a_tunnel_without_a_link_gets_no_streams_and_its_callers_are_held(metrics):
    member = await made(metrics, expected=1)
    each = tunnel()
    member.add(each)
    member.detached(each, BROKEN)
    assert member.pick() is None
    assert member.hold.return_likely
    assert (member.verdict.state, member.verdict.code) == ("TunnelDown", "TWR201")
    assert "the connection broke; its agent may come back" in member.verdict.cause
    member.resumed(each, 1.24)
    assert member.pick() is each
    assert [(entry.event, entry.text) for entry in member.history][:2] == [
        ("resumed", "after 1.2 s"),
        ("detached", "the connection broke"),
    ]


async def test_a_link_given_up_for_silence_is_told_from_one_that_broke(metrics):
    member = await made(metrics)
    silent, broken = tunnel("silent"), tunnel("broken")
    member.add(silent)
    member.add(broken)
    member.detached(silent, events.LinkLost(Code.DEAD_PEER, "nothing heard from the peer for 15.0 s"))
    member.detached(broken, BROKEN)
    assert [(entry.event, entry.code) for entry in member.history][:2] == [
        ("detached", "TUNNEL_LOST"),
        ("detached", "DEAD_PEER"),
    ]


async def test_a_link_that_does_not_come_back_is_one_outage_and_not_two(metrics):
    member = await made(metrics, expected=1)
    each = tunnel()
    member.add(each)
    member.detached(each, BROKEN)
    lost_at = member.hold._lost_at
    member.remove(each, closed(text="the connection broke; no new link within 40 s"))
    assert member.hold._lost_at == lost_at
    assert member.history[0].event == "closed"


async def test_links_of_a_draining_tunnel_neither_prolong_the_hold_nor_end_it(metrics):
    member = await made(metrics, expected=1)
    each, ends = tunnel(), []
    member.add(each)
    each.draining = True
    member.going_away(each, "upgrade")
    assert member.hold.wait("caller", ends.append)
    until = member.hold._ends
    member.detached(each, BROKEN)
    assert member.hold._ends == until
    member.resumed(each, 0.1)
    assert ends == [], "there is still nowhere to go"
    member.add(tunnel(instance="pod-2"))
    assert ends == [True]


async def test_another_tunnel_goes_on_while_one_has_no_link(metrics):
    member = await made(metrics)
    cut, well = tunnel("cut"), tunnel("well", streams=9)
    member.add(cut)
    member.add(well)
    member.detached(cut, BROKEN)
    assert member.pick() is well
    assert not member.hold.return_likely


def of_another_server(ready="True", *, tunnels=1, **report):
    return Elsewhere(tunnels, Verdict("Connected", ready), report)


async def test_a_member_whose_tunnels_another_server_holds_is_what_that_one_says(metrics):
    told = []
    member = await made(metrics, changed=lambda member: told.append(member.verdict.state))
    waited = []
    member.hold.lost()
    assert member.hold.wait("caller", waited.append)
    member.note_elsewhere(of_another_server(uid="u-1", services={"kubernetes": {"mode": "passthrough"}}), "")
    assert (member.verdict.state, member.tunnels_of_host, member.serving) == ("Connected", 1, [])
    assert member.known_report["uid"] == "u-1"
    assert member.passthrough
    assert waited == [True], "whoever waited goes on"
    member.note_elsewhere(None, "server b, which held its tunnel, is gone")
    assert member.verdict.state == "TunnelDown"
    assert "server b" in member.verdict.cause
    assert member.hold.return_likely
    assert told[-2:] == ["Connected", "TunnelDown"]


async def test_what_this_server_holds_itself_counts_more_and_both_together(metrics):
    member = await made(metrics, expected=2)
    member.add(tunnel("here"))
    member.reported({"uid": "mine"})
    member.probed(ProbeResult(time.time(), True))
    assert member.verdict.state == "Degraded", "one of two tunnels"
    member.note_elsewhere(of_another_server(uid="theirs"), "")
    assert member.verdict.state == "Connected"
    assert member.tunnels_of_host == 2
    assert member.known_report["uid"] == "mine"


async def test_a_tunnel_that_another_server_lost_is_missed_here_and_one_that_was_ended_is_not(metrics, monkeypatch):
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)

    def lacking():
        return Elsewhere(1, Verdict("Degraded", "True", "TWR202"), {})

    async def spread(*, elsewhere):
        nonlocal now
        member = await made(metrics)
        member.add(tunnel("here"))
        member.note_elsewhere(Elsewhere(elsewhere, Verdict("Connected", "True"), {}), "")
        member.tick()
        assert member.expected == 1, "a server that stops has them twice for a moment"
        now += module.EXPECTED_AFTER
        member.tick()
        member.probed(ProbeResult(now, True))
        assert (member.expected, member.verdict.state) == (1 + elsewhere, "Connected")
        return member

    for how in ({"cut": True}, {"unheard": True}):
        member = await spread(elsewhere=1)
        member.note_elsewhere(None, "server b lost its tunnel", **how)
        assert (member.verdict.state, member.verdict.cause) == ("Degraded", "1 of 2 expected tunnels are up")
        member.note_elsewhere(None, "something else was said of it")
        assert member.expected == 2
    member = await spread(elsewhere=1)
    member.note_elsewhere(None, "its agents have left")
    assert (member.expected, member.verdict.state) == (1, "Connected")

    member = await spread(elsewhere=2)
    member.note_elsewhere(lacking(), "it lost its tunnels")
    assert (member.expected, member.verdict.cause) == (3, "2 of 3 expected tunnels are up")
    member.note_elsewhere(of_another_server(), "that was its agent's wish, it now says")
    assert (member.expected, member.verdict.state) == (2, "Connected")


async def lost_and_back(member, monkeypatch, now, how=None):
    """Ready, lost, and Ready again; the moment of the last."""
    each = tunnel()
    member.add(each)
    member.probed(ProbeResult(now, True))
    assert member.verdict.ready == "True"
    member.remove(each, how or closed())
    assert member.verdict.ready == "False"
    monkeypatch.setattr(module.time, "time", lambda: now + 10)
    return now + 10


async def test_a_cluster_that_comes_and_goes_is_told_of_once_while_callers_see_the_truth(metrics, monkeypatch):
    told = []
    member = await made(metrics, changed=lambda each: told.append(each.flaps.since is not None))
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    at = now
    for _ in range(3):
        assert member.flaps.since is None
        at = await lost_and_back(member, monkeypatch, at)
    assert member.flaps.since is not None
    assert told[-1]
    each = tunnel()
    member.add(each)
    member.probed(ProbeResult(at, True))
    assert member.verdict == Verdict("Connected", "True"), "what is shown is the truth"
    told.clear()
    for seconds in range(0, 70, 10):
        monkeypatch.setattr(module.time, "time", lambda at=at, seconds=seconds: at + seconds)
        member.probed(ProbeResult(at + seconds, True))
        member.tick()
    assert member.flaps.since is None
    assert told == [False], "that it has settled is told, and nothing else"


@pytest.mark.parametrize("code", [Code.SHUTDOWN, Code.REPLACED, Code.REVOKED])
async def test_what_somebody_meant_to_end_does_not_flap(metrics, monkeypatch, code):
    member, at = await made(metrics), time.time()
    monkeypatch.setattr(module.time, "time", lambda now=at: now)
    for _ in range(5):
        at = await lost_and_back(member, monkeypatch, at, closed(code, by_peer=True))
    assert member.flaps.since is None


async def test_an_apiserver_that_comes_and_goes_is_no_matter_of_the_tunnel(metrics, monkeypatch):
    member, at = await made(metrics), time.time()
    each = tunnel()
    member.add(each)
    for _ in range(3):
        member.probed(ProbeResult(at, True))
        for _ in range(2):
            member.probed(ProbeResult(at, False, "TWR301", "refused"))
        assert member.verdict.state == "ApiserverDown"
    assert member.flaps.since is not None
    assert not member.flaps.of_tunnel


@pytest.mark.parametrize(
    ("cut", "unheard", "flaps"), [(True, False, True), (False, False, False), (False, True, False)]
)
async def test_a_tunnel_that_another_server_lost_counts_and_a_server_that_goes_does_not(metrics, cut, unheard, flaps):
    member = await made(metrics)
    for _ in range(4):
        member.note_elsewhere(Elsewhere(1, Verdict("Connected", "True"), {}), "")
        assert member.verdict.ready == "True"
        member.note_elsewhere(None, "server b is gone", cut=cut, unheard=unheard)
        assert (member.verdict.state, member.verdict.code) == ("TunnelDown", "TWR118" if unheard else "TWR201")
    assert (member.flaps.since is not None) is flaps


async def test_the_last_heartbeat_is_the_last_of_all_that_was_heard(metrics, monkeypatch):
    now = time.time()
    monkeypatch.setattr(module.time, "time", lambda: now)
    member = await made(metrics)
    assert member.last_heartbeat is None
    member.add(tunnel())
    assert member.last_heartbeat == now
    monkeypatch.setattr(module.time, "time", lambda: now + 5)
    member.reported({})
    assert member.last_heartbeat == now + 5
    member.probed(ProbeResult(now + 7, True))
    assert member.last_heartbeat == now + 7
    member.probed(ProbeResult(now + 9, False, "TWR301", "refused"))
    assert member.last_heartbeat == now + 7, "a failure is no sign of life"
    far = await made(metrics)
    far.note_elsewhere(Elsewhere(1, Verdict("Connected", "True"), {}), "")
    assert far.last_heartbeat == now + 5


async def test_a_heartbeat_looks_at_each_of_many_tunnels_once(metrics):
    """Each of a thousand tunnels reports; looked at time and again for each report they would keep a core busy."""
    member = await made(metrics)
    looks = []

    class Looked(SimpleNamespace):
        @property
        def draining(self):
            looks.append(self)
            return False

    for number in range(5):
        like = vars(tunnel(f"a{number}"))
        del like["draining"]
        member.add(Looked(**like))
    looks.clear()
    member.reported({"probe": {"ready": True}})
    assert len(looks) == 5
