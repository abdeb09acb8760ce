"""The replay buffer: what is kept, what is charged, what holds back whom, and what a new link carries."""

from __future__ import annotations

import pytest

from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, HEADER_SIZE, Code, FrameType
from protocol.defaults import KIB, MIB
from protocol.errors import HandshakeRejected, LocalProtocolError, RemoteProtocolError
from protocol.flow import Budget, Limits, ReceiveCredit
from protocol.frames import encode
from protocol.replay import FLOOR, RESERVE, Replay
from protocol.scheduler import CHUNK, FRAME_COST, LEAST_CHUNK, Buffer
from protocol.session import DEAF
from protocol.streams import State, Stream
from tests.protocol.playbook import Playbook, breaks, credit, data, fin, number, ok, opens, rst, spoken


def resumable(**limits: object) -> Playbook:
    return Playbook(opens_odd=True, features={FEATURE_ACK, FEATURE_RESUME}, **limits)


def asking(book: Playbook, *, grant: int = 10 * MIB) -> int:
    """A stream of this end's, accepted by the peer, everything so far acknowledged."""
    stream = book.session.open("kubernetes", book.now)
    book.says()
    book.hears(ok(stream, grant), number(FrameType.ACK, book.session.frames_sent))
    return stream


def replay_of(book: Playbook) -> Replay:
    replay = book.session._replay
    assert replay is not None
    return replay


def cut(book: Playbook) -> None:
    book.session.detach(book.now, "cut")
    assert events.LinkLost(Code.TUNNEL_LOST, "cut") in book.happened()
    assert book.says() == []


# ---- keeping --------------------------------------------------------------------------------------------------------


def test_payloads_are_kept_as_they_were_given_and_let_go_when_acknowledged() -> None:
    book = resumable()
    stream = asking(book)
    base = book.session.budget.used
    payload = bytes(100 * KIB)
    book.session.send(stream, payload)
    book.says()
    pieces = [piece for _, _, frame in replay_of(book).kept for piece in frame[1:]]
    assert all(isinstance(piece, memoryview) and piece.obj is payload for piece in pieces), "a copy was made"
    assert book.session.budget.used == base + 100 * KIB + 2 * FRAME_COST == base + replay_of(book).used
    book.hears(number(FrameType.ACK, book.session.frames_sent - 1))
    assert book.session.budget.used == base + 36 * KIB + FRAME_COST
    book.hears(number(FrameType.ACK, book.session.frames_sent))
    assert book.session.budget.used == base
    assert not replay_of(book).kept


def test_a_full_buffer_holds_data_back_and_nothing_else() -> None:
    book = resumable(replay_bytes=256 * KIB)
    stream = asking(book)
    book.session.send(stream, bytes(MIB))
    sent = [line for line in book.says() if line.startswith("DATA")]
    assert len(sent) == 4
    assert [line.split()[0] for line in book.says()] == ["PING", "ACK"], "how far has the data come?"
    assert not book.session.wants_to_send
    assert book.says() == []
    other = book.session.open("kubernetes", book.now)
    book.hears(encode(FrameType.PING, 0, bytes(8)))
    book.session.ping(book.now)
    book.session.go_away(Code.SHUTDOWN, "restart", deadline=1.0, retry_after=0.0)
    book.session.reset(other, Code.CANCELLED, "gone")
    said = " ".join(book.says())
    for kind in ("OPEN", "RST", "PING", "PONG", "GOAWAY"):
        assert f"{kind} " in said
    assert "DATA" not in said
    book.hears(number(FrameType.ACK, book.session.frames_sent))
    assert [line.split()[0] for line in book.says()].count("DATA") == 4


def test_a_full_buffer_is_no_dead_peer() -> None:
    book = resumable(replay_bytes=64 * KIB)
    book.session.send(asking(book), bytes(MIB))
    for _ in range(7):  # longer than a silent peer would live, and not so long that it passes for a deaf one
        book.says()
        book.hears(encode(FrameType.PING, 0, bytes(8)))
        assert events.LinkLost not in map(type, book.after(4.0))
    assert book.session.detached_at is None
    assert book.session.lost is None
    for _ in range(30):  # nor for ever one that answers PINGs, though it acknowledges nothing
        book.session.ping(book.now)
        pongs = [number(FrameType.PONG, int(line.split()[1])) for line in book.says() if line.startswith("PING")]
        book.hears(*pongs)
        assert events.LinkLost not in map(type, book.after(4.0))
    assert book.session.lost is None


def test_a_peer_whose_answers_take_almost_that_long_is_neither_deaf_nor_dead_however_long_it_goes_on() -> None:
    """What counts is the oldest word without an answer, whatever the age at which a measure is taken anew."""
    book = resumable()
    stream = asking(book)
    for _ in range(20):
        book.session.send(stream, b"x")
        asked = {line.split()[1] for line in book.says() if line.startswith("PING")}
        for _ in range(4):
            assert events.LinkLost not in map(type, book.after(DEAF * book.session.limits.dead_after / 4 - 0.1))
            asked |= {line.split()[1] for line in book.says() if line.startswith("PING")}
            book.hears(encode(FrameType.PING, 0, bytes(8)))
        book.hears(
            number(FrameType.ACK, book.session.frames_sent), *(number(FrameType.PONG, int(each)) for each in asked)
        )
    assert (book.session.detached_at, book.session.overdue(book.now)) == (None, 0.0)
    book.session.send(stream, b"x")
    book.says()
    for _ in range(4):
        assert book.session.detached_at is None
        book.hears(encode(FrameType.PING, 0, bytes(8)))
        book.after(DEAF * book.session.limits.dead_after / 4)
    assert book.session.detached_at is not None, "and one that answers nothing is"


def test_one_that_answers_nothing_is_found_out_at_that_time_and_not_when_the_next_question_is_due() -> None:
    book = resumable(dead_after=9.0)
    deaf_at = book.now + DEAF * book.session.limits.dead_after
    while book.session.detached_at is None:
        book.hears(encode(FrameType.PING, 0, bytes(8)))
        book.says()
        due = book.session.deadline()
        assert due is not None
        book.after(min(due, book.now + 4.0) - book.now)
    assert book.now == pytest.approx(deaf_at)


def test_without_budget_a_tunnel_keeps_no_more_than_the_floor() -> None:
    book = resumable(budget=Budget(8 * MIB))
    stream = asking(book, grant=2**40)
    book.process.charge(8 * MIB)
    book.session.send(stream, bytes(20 * MIB))
    book.says()
    assert FLOOR <= replay_of(book).used <= FLOOR + 2 * 64 * KIB
    book.process.give(8 * MIB)
    book.hears(number(FrameType.ACK, book.session.frames_sent))
    assert book.says(), "and goes on"


def refuse_many(book: Playbook, count: int) -> None:
    for stream in range(1, 2 * count, 2):
        book.hears(opens(stream))
        book.session.refuse(stream, Code.FORBIDDEN, "x" * 500)
        book.session.data_to_send(book.now, 1)


@pytest.mark.slow
def test_a_peer_that_acknowledges_nothing_of_many_frames_is_closed_upon() -> None:
    book = Playbook(features={FEATURE_ACK, FEATURE_RESUME}, replay_bytes=64 * KIB)
    with pytest.raises(RemoteProtocolError, match="does not acknowledge the frames it receives") as flood:
        refuse_many(book, 2 * RESERVE // 400)
    assert flood.value.code is Code.FLOOD


def test_without_the_feature_nothing_is_kept_and_a_lost_link_is_the_end() -> None:
    book = Playbook(opens_odd=True)
    stream = asking(book)
    base = book.session.budget.used
    book.session.send(stream, bytes(1000))
    book.says()
    assert book.session._replay is None
    assert book.session.budget.used == base
    book.session.detach(book.now, "cut")
    assert book.happened()[-1] == events.TunnelLost(Code.TUNNEL_LOST, "cut", False)
    with pytest.raises(RemoteProtocolError, match="unknown type 7"):
        Playbook().hears(encode(FrameType.SKIP, 0))


# ---- detached -------------------------------------------------------------------------------------------------------


def test_a_detached_tunnel_says_nothing_hears_nothing_and_takes_wishes() -> None:
    book = resumable()
    stream = asking(book)
    cut(book)
    assert book.hears(data(stream)) == [], "the older link is fenced off"
    assert book.session.send(stream, b"later")
    other = book.session.open("kubernetes", book.now)
    assert not book.session.wants_to_send
    assert book.session.stream_count == 2
    assert book.after(9.0) == [], "silence is not measured without a link"
    assert book.says() == []
    assert book.session.deadline() == 10.0, "the open's"
    assert book.after(1.0) == [
        events.StreamRefused(other, Code.DIAL_TIMEOUT, "the peer did not answer for 10.0 s: cut")
    ]
    book.session.attach(book.now, book.session.frames_sent)
    assert book.says() == [
        f"OPEN {other} 262144 kubernetes",
        f"RST {other} CANCELLED the peer did not answer for 10.0 s: cut",
        "PING 2",
        f"CREDIT {stream} 262144",
        f'DATA {stream} "later"',
    ]


def test_after_the_window_every_stream_ends_with_the_reason() -> None:
    book = resumable(resume_window=30.0)
    asking(book)
    cut(book)
    assert book.session.deadline() == 30.0
    assert book.after(29.9) == []
    assert book.after(0.1) == [events.TunnelLost(Code.TUNNEL_LOST, "cut; no new link within 30 s", False)]
    assert book.session.budget.used == 0
    assert book.session.deadline() is None
    with pytest.raises(HandshakeRejected, match="the tunnel is over: cut; no new link") as refused:
        book.session.attach(book.now, 0)
    assert refused.value.code is Code.UNKNOWN_TUNNEL
    with pytest.raises(LocalProtocolError):
        book.session.open("kubernetes", book.now)


def test_a_silent_link_is_given_up_and_the_window_starts_then() -> None:
    book = resumable()
    asking(book)
    (lost,) = [event for event in book.after(15.0) if isinstance(event, events.LinkLost)]
    assert (lost.code, lost.text) == (Code.DEAD_PEER, "nothing heard from the peer for 15.0 s")
    assert book.session.deadline() == 55.0
    (over,) = book.after(40.0)
    assert over == events.TunnelLost(
        Code.DEAD_PEER, "nothing heard from the peer for 15.0 s; no new link within 40 s", False
    )


# ---- a new link -----------------------------------------------------------------------------------------------------


def test_what_the_peer_has_not_received_leaves_again_in_order_before_anything_new() -> None:
    book = resumable()
    stream = asking(book)
    received = book.session.frames_sent
    book.session.send(stream, b"one")
    book.says()
    book.session.send(stream, b"two")
    book.says()
    book.session.finish(stream)
    book.says()
    cut(book)
    other = book.session.open("kubernetes", book.now)
    book.session.attach(book.now, received + 1)
    again = book.says()
    assert again == ["PING 2", f"CREDIT {stream} 262144", f'DATA {stream} "two"', f"FIN {stream}"]
    assert book.says() == [f"OPEN {other} 262144 kubernetes"]
    assert book.session.frames_sent == received + 4


def test_half_a_frame_that_came_on_the_old_link_is_forgotten() -> None:
    book = resumable()
    stream = asking(book)
    count = book.session.frames_received
    book.hears(data(stream, b"whole"), data(stream, b"cut in two")[:15])
    cut(book)
    assert book.session.frames_received == count + 1
    book.session.attach(book.now, book.session.frames_sent)
    assert book.hears(data(stream, b"cut in two")) == [(stream, b"cut in two")]


def test_nothing_is_overdue_on_a_new_link_that_the_old_one_left_unanswered() -> None:
    book = resumable()
    stream = asking(book)
    book.session.send(stream, b"more")
    book.says()
    book.now += 3.0
    assert book.session.overdue(book.now) == 3.0
    cut(book)
    book.after(30.0)
    book.session.attach(book.now, book.session.frames_sent)
    assert book.says()[0] == "PING 2"
    assert book.session.overdue(book.now) == 0.0
    assert book.after(0.1) == [], "the silence without a link is no silence of this one"


def test_a_tunnel_without_the_feature_goes_on_over_no_other_link() -> None:
    book = Playbook(opens_odd=True)
    with pytest.raises(HandshakeRejected, match="without the feature resume") as refused:
        book.session.attach(book.now, 0)
    assert refused.value.code is Code.UNKNOWN_TUNNEL
    assert (book.session.epoch, book.session.detached_at, book.session.lost) == (1, None, None)


def test_a_skip_carries_nothing() -> None:
    breaks(resumable(), encode(FrameType.SKIP, 0, b"x"), says="a SKIP with a payload")


def test_a_new_link_is_not_measured_by_the_old_one() -> None:
    book = resumable()
    stream = asking(book, grant=100 * MIB)
    book.session.send(stream, bytes(8 * MIB))
    for _ in range(40):  # 16 KiB in 50 ms, and every PING is answered, until the link is known
        said = book.says(limit=16 * KIB)
        book.now += 0.05
        pongs = [number(FrameType.PONG, int(line.split()[1])) for line in said if line.startswith("PING")]
        book.hears(number(FrameType.ACK, book.session.frames_sent), *pongs)
    while book.session.wants_to_send:
        book.says(limit=16 * KIB)
        book.now += 0.05
    assert book.session.queued(stream), "no more than the old link held may be under way on it"
    assert book.session.chunk == LEAST_CHUNK
    cut(book)
    book.session.attach(book.now, book.session.frames_sent)
    assert book.session.chunk == CHUNK
    assert any(line.startswith("DATA") for line in book.says())
    assert not book.session.queued(stream)


def test_what_is_skipped_leaves_in_pieces_too() -> None:
    replay = Replay(Budget(MIB), MIB)
    gone = Stream(1, State.CLOSED, ReceiveCredit(Budget(MIB), Limits()), send_limit=0)
    gone.cut = True
    replay.kept.extend((FRAME_COST, gone, [b"frame"]) for _ in range(100))
    replay.begin()
    out: list[Buffer] = []
    replay.resend(out, 10 * HEADER_SIZE)
    assert len(out) == 10


@pytest.mark.parametrize("end", ["reset here", "reset by the peer", "refused by the peer"])
def test_data_of_a_stream_that_was_cut_is_skipped_and_counted(end: str) -> None:
    book = resumable()
    stream = asking(book) if end != "refused by the peer" else book.session.open("kubernetes", book.now)
    book.says()
    received = book.session.frames_sent
    book.session.send(stream, b"nobody reads this")
    book.session.finish(stream)
    book.says()
    if end == "reset here":
        book.session.reset(stream, Code.CANCELLED, "gone")
    elif end == "reset by the peer":
        book.hears(rst(stream))
    else:
        book.hears(encode(FrameType.OPEN_ERR, stream, bytes(4)))
    cut(book)
    book.session.attach(book.now, received)
    said = book.says() + book.says()
    assert said[:3] == ["PING 2", "SKIP 0", "SKIP 0"]
    assert said[3:] == ([f"RST {stream} CANCELLED gone"] if end == "reset here" else [])


def test_an_orderly_end_is_sent_again_as_it_was() -> None:
    book = resumable()
    stream = asking(book)
    received = book.session.frames_sent
    book.session.send(stream, b"last words")
    book.session.finish(stream)
    book.says()
    book.session.reset(stream, Code.NONE, "closed")
    book.says()
    cut(book)
    book.session.attach(book.now, received)
    assert book.says()[1:] == [f'DATA {stream} "last words"', f"FIN {stream}", f"RST {stream} NONE closed"]


def test_a_stream_that_the_peer_has_finished_gets_no_credit_on_a_new_link() -> None:
    book = Playbook(features={FEATURE_ACK, FEATURE_RESUME})
    goes_on, finished = book.opened(), book.opened()
    book.hears(fin(finished))
    cut(book)
    book.session.attach(book.now, 2)
    assert book.says() == ["PING 2", f"CREDIT {goes_on} 262144"]


def test_credit_goaway_and_ping_are_made_anew_and_credit_waits_for_its_open_ok() -> None:
    book = Playbook(features={FEATURE_ACK, FEATURE_RESUME})
    old = book.opened()
    book.hears(number(FrameType.ACK, 1), opens(3))
    book.session.accept(3)
    book.session.go_away(Code.SHUTDOWN, "restart", deadline=30.0, retry_after=0.5)
    book.says()
    book.hears(data(3, bytes(16 * KIB)))
    cut(book)
    book.after(10.0)
    book.session.attach(book.now, 1)
    book.session.consume(3, 16 * KIB, book.now)
    first = book.says(limit=1)
    assert first == ["GOAWAY SHUTDOWN 20000 500 restart", "PING 2", f"CREDIT {old} 262144", "OPEN_OK 3 262144"]
    assert book.says() == ["CREDIT 3 262144"]


def test_an_acknowledgement_is_for_this_link_and_never_waits() -> None:
    book = resumable()
    stream = asking(book)
    received = book.session.frames_sent
    for _ in range(3):
        book.session.send(stream, bytes(60 * KIB))
        book.says()
    cut(book)
    book.session.attach(book.now, received)
    book.hears(*[data(stream, b"x")] * 64)
    assert book.says(limit=1) == ["PING 2", f"ACK {book.session.frames_received}", f"CREDIT {stream} 262144",
                                  f"DATA {stream} {60 * KIB}"]  # fmt: skip
    with pytest.raises(
        RemoteProtocolError, match=f"ACK of {received + 2} frames, expected {received} to {received + 1}"
    ):
        book.hears(number(FrameType.ACK, received + 2))


@pytest.mark.parametrize(
    ("received", "epoch", "code", "text"),
    [
        (0, 2, Code.POSITION, "0 frames received, expected 1 to 2"),
        (3, 2, Code.POSITION, "3 frames received, expected 1 to 2"),
        (1, 1, Code.STALE_LINK, "link 1 of the tunnel, which is at 1 already"),
    ],
)
def test_a_position_or_a_link_that_does_not_fit_changes_nothing(
    received: int, epoch: int, code: Code, text: str
) -> None:
    book = resumable()
    stream = asking(book)
    book.session.send(stream, b"x")
    book.says()
    with pytest.raises(HandshakeRejected, match=text) as refused:
        book.session.attach(book.now, received, epoch=epoch)
    assert refused.value.code is code
    assert book.session.detached_at is None
    assert book.session.epoch == 1
    assert book.hears(data(stream)) == [(stream, b"data")]


def test_a_new_link_takes_the_place_of_one_that_seems_alive() -> None:
    book = resumable()
    stream = asking(book)
    book.session.send(stream, b"x")
    book.says()
    book.hears(credit(stream, 11 * MIB), fin(stream))
    book.session.attach(book.now, 1, epoch=7)
    assert book.happened() == [events.LinkLost(Code.TUNNEL_LOST, "a newer link took its place")]
    assert book.session.epoch == 7
    assert f'DATA {stream} "x"' in book.says()


def test_what_was_charged_is_given_back_at_the_end_of_the_tunnel() -> None:
    book = resumable()
    book.session.send(asking(book), bytes(MIB))
    book.says()
    book.session.close(Code.SHUTDOWN, "bye")
    assert book.session.budget.used == book.process.used == 0
    assert spoken(b"".join(book.session.data_to_send(0.0, 1))) == ["CLOSE SHUTDOWN bye"]


def test_a_peer_that_sends_and_never_reads_leaves_one_acknowledgement_behind() -> None:
    book = resumable()
    for _ in range(100):
        book.hears(encode(FrameType.SKIP, 0) * 64)
    assert book.says() == ["ACK 6400"]
