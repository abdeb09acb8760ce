"""One session by playbook: links, liveness, acknowledgements and ends, as docs/PROTOCOL.md has them."""

from __future__ import annotations

import pytest

from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, HEADER, Code, FrameType
from protocol.defaults import KIB, MIB
from protocol.errors import LocalProtocolError
from protocol.frames import encode
from protocol.session import ACK_EVERY_FRAMES
from tests.protocol.playbook import (
    Playbook,
    breaks,
    data,
    is_over,
    kinds,
    number,
    opens,
)

# ---- the tunnel ----------------------------------------------------------------------------------------------------


def test_a_ping_is_answered_and_measured() -> None:
    book = Playbook()
    assert book.hears(number(FrameType.PING, 77)) == []
    assert book.says() == ["PONG 77"]
    book.now = 0.03
    assert book.hears(number(FrameType.PONG, 1)) == [events.RoundTrip(1, pytest.approx(0.03))]
    assert book.session.rtt == pytest.approx(0.03)
    assert book.hears(number(FrameType.PONG, 1), number(FrameType.PONG, 99)) == [], "answers to nothing"


def test_a_ping_that_no_link_carried_is_not_owed_once_there_is_one() -> None:
    book = Playbook(features=(FEATURE_ACK, FEATURE_RESUME))
    book.session.detach(book.now, "the plug")
    book.session.ping(book.now)
    book.session.attach(book.now, 0)
    assert book.says() == ["PING 3"]
    book.hears(number(FrameType.PONG, 3))
    book.now += 4.0
    assert book.session.overdue(book.now) == 0.0


def test_a_silent_link_is_pinged_and_then_dead_never_earlier() -> None:
    book = Playbook()
    assert book.session.deadline() == pytest.approx(5.0)
    assert book.after(4.99) == []
    assert book.says() == []
    book.after(0.02)
    assert book.says() == ["PING 2"]
    book.after(9.9)
    assert book.session.lost is None
    (lost,) = book.after(0.1)
    assert lost == events.TunnelLost(Code.DEAD_PEER, "nothing heard from the peer for 15.0 s", False)
    is_over(book)


def test_what_the_peer_owes_is_overdue_until_it_makes_progress() -> None:
    book = Playbook()
    book.hears(number(FrameType.PONG, 1))
    assert book.session.overdue(book.now + 3.0) == 0, "nothing was asked"
    book.opened(grant=10 * MIB)
    book.hears(number(FrameType.ACK, 1))
    assert book.session.overdue(book.now + 3.0) == 0
    book.session.send(1, b"data")
    book.says()
    book.session.send(1, b"more")
    book.says()
    assert book.session.overdue(book.now + 3.0) == pytest.approx(3.0)
    book.now += 3.0
    book.hears(number(FrameType.ACK, 2))
    assert book.session.overdue(book.now + 1.0) == pytest.approx(1.0), "progress, and one more is owed"
    book.hears(number(FrameType.ACK, 2))
    assert book.session.overdue(book.now + 1.0) == pytest.approx(1.0), "the same again is none"
    book.hears(number(FrameType.ACK, 3))
    assert book.session.overdue(book.now + 9.0) == 0
    book.session.ping(book.now)
    assert book.session.overdue(book.now + 2.0) == pytest.approx(2.0)


def test_a_peer_without_acknowledgements_owes_none() -> None:
    book = Playbook()
    book.session.features = frozenset()
    book.hears(number(FrameType.PONG, 1))
    book.opened(grant=10 * MIB)
    book.session.send(1, b"data")
    book.says()
    assert book.session.overdue(book.now + 60.0) == 0


def test_any_byte_is_life() -> None:
    book = Playbook()
    for _ in range(7):
        book.after(4.0)
        book.hears(b"")
        book.session.receive(memoryview(HEADER.pack(FrameType.PING, 0, 0, 0, 8)[:1]), book.now)
        book.session._decoder = type(book.session._decoder)()
    assert book.session.lost is None


def test_a_peer_that_talks_and_does_not_read_is_dead_too_and_one_that_reads_slowly_is_not() -> None:
    book = Playbook(features=(FEATURE_ACK, FEATURE_RESUME))
    stream = book.opened()
    book.hears(number(FrameType.PONG, 1), number(FrameType.ACK, 1))
    for size in range(2, 12):  # twenty seconds between two answers, for minutes
        book.session.send(stream, b"more")
        book.says()
        for _ in range(4):
            assert book.after(5.0) == []
            book.hears(number(FrameType.PING, size))
        book.hears(number(FrameType.ACK, size))
    book.session.send(stream, b"more")
    book.says()
    waited, happened = 0.0, []
    while not happened and waited < 100:
        book.hears(number(FrameType.PING, 7))
        waited += 1.0
        happened = book.after(1.0)
    (lost,) = happened
    assert isinstance(lost, events.LinkLost)
    assert lost.code is Code.DEAD_PEER
    assert "the peer sends, but has answered nothing for 30.0 s" in lost.text
    assert waited == 30.0


def test_an_owner_that_only_obeys_the_deadline_does_everything_in_time() -> None:
    book = Playbook()
    pings = 0
    while book.session.lost is None:
        due = book.session.deadline()
        assert due is not None
        assert due > book.now or book.now == 0, "no spinning"
        book.after(due - book.now)
        pings += book.says().count(f"PING {pings + 2}")
    assert book.now == pytest.approx(15.0)
    assert pings == 2


def test_numbered_frames_are_acknowledged_by_count_or_by_time() -> None:
    book = Playbook()
    book.opened()
    book.hears(*[data(1)] * (ACK_EVERY_FRAMES - 1))
    assert not [line for line in book.says() if line.startswith("ACK")]
    assert book.session.deadline() == pytest.approx(0.25)
    book.hears(data(1))
    assert book.says() == [f"ACK {ACK_EVERY_FRAMES + 1}"]
    book.hears(data(1))
    book.after(0.25)
    assert book.says() == [f"ACK {ACK_EVERY_FRAMES + 2}"]
    book.after(1.0)
    assert book.says() == []


def test_large_frames_are_acknowledged_by_their_bytes_before_there_are_many() -> None:
    """A peer whose memory is short keeps 2 MiB: by count alone it would stand still for most of a quarter second."""
    book = Playbook(initial_credit=4 * MIB)
    book.opened()
    large = data(1, bytes(64 * KIB))
    book.hears(*[large] * 15)
    assert not [line for line in book.says() if line.startswith("ACK")]
    book.hears(large)
    assert book.says() == ["ACK 17"]


def test_the_peers_acknowledgements_are_kept_and_checked() -> None:
    book = Playbook(opens_odd=True)
    book.session.open("kubernetes", 0.0)
    book.says()
    book.hears(number(FrameType.ACK, 1), number(FrameType.ACK, 1))
    assert book.session.frames_acked == 1
    breaks(book, number(FrameType.ACK, 0), says="ACK of 0 frames, expected 1 to 1")


def test_an_acknowledgement_of_more_than_was_sent_ends_the_tunnel() -> None:
    book = Playbook(opens_odd=True)
    book.session.open("kubernetes", 0.0)
    book.says()
    breaks(book, number(FrameType.ACK, 2), says="ACK of 2 frames, expected 0 to 1")


def test_going_away_refuses_new_streams_and_keeps_the_old() -> None:
    leaving, other = Playbook(), Playbook(opens_odd=True)
    leaving.opened()
    leaving.session.go_away(Code.SHUTDOWN, "restart", deadline=30.0, retry_after=1.5)
    leaving.session.go_away(Code.SHUTDOWN, "again", deadline=30.0, retry_after=1.5)
    assert leaving.says() == ["GOAWAY SHUTDOWN 30000 1500 restart"]
    assert leaving.hears(opens(3)) == []
    assert leaving.says()[0] == "OPEN_ERR 3 DRAINING draining: open it on another tunnel"
    assert leaving.hears(data(1)) == [(1, b"data")]
    with pytest.raises(LocalProtocolError) as refused:
        leaving.session.open("kubernetes", 0.0)
    assert refused.value.code is Code.DRAINING

    goaway = encode(FrameType.GOAWAY, 0, bytes([0, 0, 0, 26, 0, 0, 0x75, 0x30, 0, 0, 5, 0xDC]) + b"restart")
    assert other.hears(goaway, goaway) == [events.GoingAway(Code.SHUTDOWN, "restart", 30.0, 1.5)]
    with pytest.raises(LocalProtocolError) as refused:
        other.session.open("kubernetes", 0.0)
    assert refused.value.code is Code.DRAINING


def test_times_that_do_not_fit_are_cut_to_what_does() -> None:
    book = Playbook()
    book.session.go_away(Code.SHUTDOWN, "", deadline=1e12, retry_after=-1)
    assert book.says() == [f"GOAWAY SHUTDOWN {2**32 - 1} 0"]


def test_the_peers_close_ends_the_tunnel_with_its_words() -> None:
    book = Playbook()
    book.opened()
    close = encode(FrameType.CLOSE, 0, int(Code.REVOKED).to_bytes(4, "big") + b"revoked by an operator")
    assert book.hears(close, data(99)) == [events.TunnelLost(Code.REVOKED, "revoked by an operator", True)]
    is_over(book)


def test_closing_says_why_and_nothing_else() -> None:
    book = Playbook()
    book.opened()
    book.session.send(1, b"dropped")
    book.session.close(Code.DELETED, "the cluster was deleted")
    book.session.close(Code.INTERNAL, "twice")
    assert book.says() == ["CLOSE DELETED the cluster was deleted"]
    assert book.happened() == [events.TunnelLost(Code.DELETED, "the cluster was deleted", False)]
    is_over(book)


def test_a_lost_link_ends_the_tunnel_silently() -> None:
    book = Playbook()
    book.opened()
    book.session.lose(Code.TUNNEL_LOST, "reset by peer")
    assert kinds(book.happened()) == [events.TunnelLost]
    is_over(book)


def test_an_acknowledgement_waits_for_no_data_and_a_grant_for_nothing() -> None:
    book = Playbook()
    book.opened(grant=10 * MIB)
    book.session.send(1, bytes(MIB))
    book.says(limit=1000)
    book.hears(*[data(1, bytes(4 * KIB))] * ACK_EVERY_FRAMES)
    assert book.says(limit=1000)[0] == f"ACK {ACK_EVERY_FRAMES + 1}"
    while book.says():
        pass
    assert not book.session.wants_to_send
    book.session.consume(1, 256 * KIB, book.now)
    assert book.session.wants_to_send
    assert [line.split()[0] for line in book.says()] == ["CREDIT"]


def test_control_leaves_before_data() -> None:
    book = Playbook()
    book.opened(grant=10 * MIB)
    book.session.send(1, bytes(100 * KIB))
    book.hears(number(FrameType.PING, 5))
    assert book.says(limit=1000)[0] == "PONG 5"
