"""The streams of a session by playbook: every rule that a frame or a wish of one can keep or break."""

from __future__ import annotations

import contextlib

import pytest

from protocol import events
from protocol.constants import FEATURE_ACK, FEATURE_RESUME, HEADER, Code, FrameType
from protocol.defaults import KIB, MAX_FRAME_PAYLOAD, MIB
from protocol.errors import LocalProtocolError, RemoteProtocolError
from protocol.flow import PROVEN, Budget
from protocol.frames import encode
from protocol.multiplex import MAX_STREAM_ID, RESET_BURST, RESET_RATE, STALLED
from protocol.streams import State
from tests.protocol.playbook import (
    Playbook,
    breaks,
    credit,
    data,
    err,
    fin,
    kinds,
    number,
    ok,
    opens,
    rst,
)

# ---- opening -------------------------------------------------------------------------------------------------------


def test_a_stream_that_is_accepted() -> None:
    book = Playbook()
    assert book.hears(opens(1, "kubernetes")) == [events.StreamOpened(1, "kubernetes", "", "")]
    book.session.accept(1)
    assert book.says() == ["OPEN_OK 1 262144", "ACK 1"]
    assert book.hears(data(1, b"GET /")) == [(1, b"GET /")]
    assert book.session.send(1, b"200")
    assert book.says()[-1] == 'DATA 1 "200"'


def test_a_stream_that_is_refused_leaves_nothing() -> None:
    book = Playbook()
    book.hears(opens(1, "redis"), data(1), fin(1))
    book.session.refuse(1, Code.UNKNOWN_SERVICE, "no service 'redis' here")
    assert book.says()[0] == "OPEN_ERR 1 UNKNOWN_SERVICE no service 'redis' here"
    assert book.session.budget.used == 0
    assert book.hears(data(1), fin(1)) == [], "what crossed the refusal is discarded"


def test_data_may_follow_open_at_once_up_to_the_reserve() -> None:
    book = Playbook(opens_odd=True)
    stream = book.session.open("kubernetes", book.now, caller="192.0.2.1:5", connection_id="c1")
    assert book.session.send(stream, bytes(20 * KIB))
    assert book.says() == ["OPEN 1 262144 kubernetes 192.0.2.1:5 c1", "DATA 1 16384"]
    assert book.hears(ok(1, 100_000)) == [events.StreamAccepted(1)]
    assert book.says() == ["DATA 1 4096", "ACK 1"] or book.says() == []


def test_a_refusal_frees_what_followed_the_open() -> None:
    book = Playbook(opens_odd=True)
    stream = book.session.open("kubernetes", book.now)
    book.session.send(stream, bytes(200 * KIB))
    book.session.finish(stream)
    assert book.hears(err(1, Code.DIAL_FAILED, "connection refused")) == [
        events.StreamRefused(1, Code.DIAL_FAILED, "connection refused")
    ]
    assert book.session.budget.used == 0
    assert [line for line in book.says() if line.startswith("DATA")] == []


def test_an_open_that_nobody_answers_is_cancelled_and_told() -> None:
    book = Playbook(opens_odd=True, open_deadline=10.0, dead_after=30.0)
    book.session.open("kubernetes", 0.0)
    book.says()
    book.after(6.0)
    book.session.open("kubernetes", book.now)
    book.says()
    assert book.session.deadline() == pytest.approx(10.0)
    assert book.after(3.9) == []
    (refused,) = book.after(0.2)
    assert refused == events.StreamRefused(1, Code.DIAL_TIMEOUT, "the peer did not answer for 10.1 s")
    assert "RST 1 CANCELLED the peer did not answer for 10.1 s" in book.says()
    assert book.hears(ok(1)) == [], "the answer that comes too late is discarded"
    assert book.hears(ok(3)) == [events.StreamAccepted(3)]


@pytest.mark.parametrize(
    ("limits", "code", "says"),
    [
        ({"max_streams": 3}, Code.TOO_MANY, "its 3 streams"),
        ({"open_backlog": 3}, Code.TOO_MANY, "3 opens wait"),
        ({"tunnel_budget": 60 * KIB, "initial_credit": 16 * KIB}, Code.BUDGET, "no room for another stream"),
    ],
)
def test_limits_of_streams_refuse_at_both_ends_and_recover(limits: dict, code: Code, says: str) -> None:
    asked = Playbook(**limits)
    asked.hears(*(opens(stream) for stream in (1, 3, 5)))
    assert asked.hears(opens(7)) == []
    assert f"OPEN_ERR 7 {code.name}" in asked.says()[0]
    asked.hears(rst(5))
    assert kinds(asked.hears(opens(9))) == [events.StreamOpened]

    asking = Playbook(opens_odd=True, **limits)
    for _ in range(3):
        asking.session.open("kubernetes", 0.0)
    used = asking.session.budget.used
    with pytest.raises(LocalProtocolError, match=says) as refused:
        asking.session.open("kubernetes", 0.0)
    assert refused.value.code is code
    assert asking.session.budget.used == used
    asking.says()
    asking.hears(err(1))
    assert asking.session.open("kubernetes", 0.0) == 7


def test_the_process_budget_holds_across_tunnels() -> None:
    process = Budget(40 * KIB)
    first, second = (Playbook(budget=process, initial_credit=16 * KIB) for _ in range(2))
    first.hears(opens(1))
    second.hears(opens(1))
    assert process.used == 32 * KIB
    second.hears(opens(3))
    assert "OPEN_ERR 3 BUDGET" in second.says()[0]
    first.session.lose(Code.TUNNEL_LOST, "cut")
    assert kinds(second.hears(opens(5))) == [events.StreamOpened]


def test_an_end_that_accepts_nothing_says_so_and_stays() -> None:
    book = Playbook(opens_odd=True, accepts=False)
    for stream in range(2, 2002, 2):
        assert book.hears(opens(stream)) == []
        assert f"OPEN_ERR {stream} FORBIDDEN this end accepts no streams" in book.says()
    assert book.session.budget.used == 0


@pytest.mark.parametrize("name", ["x" * 256, "a\nb"])
def test_a_name_that_cannot_be_sent_is_refused_here(name: str) -> None:
    book = Playbook(opens_odd=True)
    with pytest.raises(LocalProtocolError, match="a name") as refused:
        book.session.open(name, 0.0)
    assert refused.value.code is Code.PROTOCOL
    assert book.session.budget.used == 0
    assert book.says() == []
    assert book.session.open("kubernetes", 0.0) == 1


def test_used_up_ids_make_the_peer_move() -> None:
    book = Playbook(opens_odd=True)
    book.session._next_id = MAX_STREAM_ID
    assert book.session.open("kubernetes", 0.0) == MAX_STREAM_ID
    with pytest.raises(LocalProtocolError) as refused:
        book.session.open("kubernetes", 0.0)
    assert refused.value.code is Code.DRAINING
    assert book.says()[-1] == "GOAWAY DRAINING 3600000 0 the tunnel's stream ids are used up"


def test_an_open_is_not_queued_behind_a_link_that_takes_nothing() -> None:
    book = Playbook(opens_odd=True, control_backlog=10)
    for _ in range(5):
        book.session.reset(book.session.open("kubernetes", 0.0), Code.CANCELLED)
    with pytest.raises(LocalProtocolError, match="wait for the link") as refused:
        book.session.open("kubernetes", 0.0)
    assert refused.value.code is Code.TOO_MANY
    book.says()
    assert book.session.open("kubernetes", 0.0) == 11


# ---- the peer breaks a rule ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "code", "says"),
    [
        ([opens(2)], Code.PROTOCOL, "OPEN with stream id 2"),
        ([opens(0)], Code.PROTOCOL, "OPEN with stream id 0"),
        ([opens(MAX_STREAM_ID + 2)], Code.PROTOCOL, "OPEN with stream id"),
        ([opens(3), opens(3)], Code.PROTOCOL, "OPEN with stream id 3"),
        ([opens(3), opens(1)], Code.PROTOCOL, "OPEN with stream id 1"),
        ([encode(FrameType.OPEN, 1, b"short")], Code.PROTOCOL, "cut short"),
        ([data(1)], Code.PROTOCOL, "stream 1, which was never opened"),
        ([fin(5)], Code.PROTOCOL, "never opened"),
        ([rst(2)], Code.PROTOCOL, "never opened"),
        ([credit(7, 1)], Code.PROTOCOL, "never opened"),
        ([ok(4)], Code.PROTOCOL, "never opened"),
        ([err(0)], Code.PROTOCOL, "never opened"),
        ([data(2**32 - 1)], Code.PROTOCOL, "never opened"),
        ([opens(1), data(1, b"")], Code.PROTOCOL, "0 bytes of DATA"),
        ([opens(1), ok(1)], Code.PROTOCOL, "cannot receive OPEN_OK on stream 1: it is asked"),
        ([opens(1), err(1)], Code.PROTOCOL, "cannot receive OPEN_ERR on stream 1"),
        ([opens(1), fin(1), fin(1)], Code.PROTOCOL, "cannot receive FIN"),
        ([opens(1), fin(1), data(1)], Code.PROTOCOL, "DATA on a stream that is asked, peer finished"),
        ([opens(1), encode(FrameType.FIN, 1, b"x")], Code.PROTOCOL, "a FIN with a payload"),
        ([opens(1), encode(FrameType.RST, 1, b"x")], Code.PROTOCOL, "a reason of 1 bytes"),
        ([opens(1), encode(FrameType.CREDIT, 1, b"x")], Code.PROTOCOL, "CREDIT of 1 bytes"),
        ([number(FrameType.ACK, 1)], Code.PROTOCOL, "ACK of 1 frames, expected 0 to 0"),
        ([encode(FrameType.PING, 0, b"x" * 9)], Code.PROTOCOL, "PING of 9 bytes"),
        ([encode(FrameType.PONG, 0)], Code.PROTOCOL, "PONG of 0 bytes"),
        ([encode(FrameType.GOAWAY, 0, b"x" * 11)], Code.PROTOCOL, "GOAWAY of 11 bytes"),
        ([encode(FrameType.CLOSE, 0)], Code.PROTOCOL, "a reason of 0 bytes"),
        ([HEADER.pack(FrameType.DATA, 0, 0, 1, MAX_FRAME_PAYLOAD + 1)], Code.TOO_LARGE, "at most 65536"),
        ([HEADER.pack(FrameType.DATA, 0, 1, 1, 1)], Code.PROTOCOL, "reserved bits"),
        ([HEADER.pack(99, 0, 0, 0, 0)], Code.PROTOCOL, "a frame of unknown type 99"),
        ([HEADER.pack(9, 0, 0, 0, 0)], Code.PROTOCOL, "a frame of unknown type 9"),
        ([HEADER.pack(FrameType.HELLO, 0, 0, 0, 0)], Code.PROTOCOL, "a frame of unknown type 32"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_a_broken_rule_ends_the_tunnel(frames: list[bytes], code: Code, says: str) -> None:
    breaks(Playbook(), *frames, code=code, says=says)


def test_the_first_byte_above_the_credit_ends_the_tunnel() -> None:
    book = Playbook(initial_credit=16 * KIB)
    book.opened()
    assert len(book.hears(data(1, bytes(16 * KIB)))) == 1
    breaks(book, data(1, b"x"), code=Code.FLOW, says="stream 1: 1 bytes more than were granted")


def test_the_first_data_above_the_credit_registers_nothing() -> None:
    book = Playbook(initial_credit=16 * KIB)
    breaks(book, opens(1), data(1, bytes(16 * KIB + 1)), code=Code.FLOW, says="1 bytes more than were granted")


@pytest.mark.parametrize("answer", [data(1), fin(1), credit(1, 1)])
def test_nothing_comes_before_the_answer_to_an_open(answer: bytes) -> None:
    book = Playbook(opens_odd=True)
    book.session.open("kubernetes", 0.0)
    book.says()
    breaks(book, answer, says="it is opening|that is opening|CREDIT before OPEN_OK")


def test_a_stream_is_accepted_once() -> None:
    book = Playbook(opens_odd=True)
    book.session.open("kubernetes", 0.0)
    book.says()
    breaks(book, ok(1), ok(1), says="cannot receive OPEN_OK on stream 1: it is open")


def test_frames_of_unknown_optional_types_are_skipped_and_counted_where_numbered() -> None:
    book = Playbook()
    assert book.hears(HEADER.pack(99, 0x80, 0, 7, 3) + b"abc", HEADER.pack(9, 0x80, 0, 7, 0)) == []
    assert book.session.frames_received == 1
    assert kinds(book.hears(opens(1))) == [events.StreamOpened]


def test_what_came_before_the_broken_rule_is_still_told() -> None:
    book = Playbook()
    book.opened()
    with pytest.raises(RemoteProtocolError):
        book.hears(data(1, b"whole"), data(3))
    assert book.happened()[0] == (1, b"whole")


def test_a_peer_that_asks_and_never_reads_the_answers_is_cut_off() -> None:
    book = Playbook(control_backlog=100)
    pings = [number(FrameType.PING, n) for n in range(101)]
    book.hears(*pings[:100])
    breaks(book, pings[100], code=Code.FLOOD, says="asks faster than it reads")


def test_refusals_that_nobody_reads_count_too() -> None:
    book = Playbook(control_backlog=100)
    for stream in range(1, 203, 2):
        book.hears(opens(stream))
        book.session.refuse(stream, Code.UNKNOWN_SERVICE, "no")
    with pytest.raises(RemoteProtocolError, match="asks faster") as broken:
        book.hears(opens(203))
    assert broken.value.code is Code.FLOOD


def test_what_this_end_wants_to_say_is_no_flood_of_the_peer() -> None:
    book = Playbook(control_backlog=100)
    for _ in range(150):
        book.hears(opens(book.session._highest_peer_id + 2 if book.session._highest_peer_id else 1))
        book.session.accept(book.session._highest_peer_id)
        book.says()
    for stream in range(1, 301, 2):
        book.session.reset(stream, Code.SHUTDOWN, "the service ends")
    assert book.hears(number(FrameType.PING, 1)) == []
    assert len([line for line in book.says() if line.startswith("RST")]) == 150


def test_refusals_of_an_end_that_accepts_nothing_count_too() -> None:
    book = Playbook(control_backlog=100, accepts=False)
    book.hears(*[opens(stream) for stream in range(1, 201, 2)])
    breaks(book, opens(201), code=Code.FLOOD, says="asks faster than it reads")


def test_opening_and_cancelling_as_fast_as_possible_is_a_flood() -> None:
    book = Playbook()
    for stream in range(1, 2 * int(RESET_BURST), 2):
        book.hears(opens(stream), rst(stream))
        book.says()
    next_one = 2 * int(RESET_BURST) + 1
    breaks(book, opens(next_one), rst(next_one), code=Code.FLOOD, says="opened and cancelled faster")


def test_cancelling_at_a_human_rate_is_none() -> None:
    book = Playbook()
    for stream in range(1, 6001, 2):
        book.now += 0.005
        book.hears(opens(stream), rst(stream))
        book.says()
    assert book.session.lost is None


def test_a_clock_that_was_set_back_makes_no_flood_of_it() -> None:
    book = Playbook()
    book.now = 1000.0
    book.hears(opens(1), rst(1))
    book.now = 940.0
    book.hears(opens(3), rst(3))
    assert book.session.lost is None


def test_what_was_cancelled_in_a_pause_and_comes_at_once_after_it_is_no_flood() -> None:
    book = Playbook(features=(FEATURE_ACK, FEATURE_RESUME))
    pause, allowed = 20.0, int(RESET_BURST + 20.0 * RESET_RATE)
    book.now += pause
    book.session.detach(book.now, "the plug")
    book.session.attach(book.now, 0)
    for stream in range(1, 2 * allowed, 2):
        book.hears(opens(stream), rst(stream))
        book.says()
    assert book.session.lost is None
    breaks(book, opens(2 * allowed + 1), rst(2 * allowed + 1), code=Code.FLOOD, says="opened and cancelled faster")


@pytest.mark.slow
def test_a_hundred_thousand_opens_leave_a_bounded_session() -> None:
    book = Playbook(open_backlog=256)
    for first in range(1, 200_001, 2000):
        book.hears(*(opens(stream) for stream in range(first, first + 2000, 2)))
        answers = book.says()
        assert all("TOO_MANY" in line for line in answers if line.startswith("OPEN_ERR"))
    assert book.session.stream_count == 256
    assert book.session.budget.used <= 48 * MIB
    book.session.close(Code.SHUTDOWN, "")
    assert book.process.used == 0


# ---- data and credit -----------------------------------------------------------------------------------------------


def test_consumed_bytes_come_back_as_credit() -> None:
    book = Playbook(initial_credit=64 * KIB)
    book.opened()
    book.hears(data(1, bytes(40 * KIB)))
    book.session.consume(1, 20 * KIB, 1.0)
    assert [line for line in book.says() if line.startswith("CREDIT")] == []
    book.session.consume(1, 20 * KIB, 1.0)
    assert f"CREDIT 1 {104 * KIB}" in book.says()


def test_bytes_that_are_not_consumed_earn_no_credit() -> None:
    book = Playbook(initial_credit=64 * KIB)
    book.opened()
    book.hears(data(1, bytes(64 * KIB)))
    book.after(1.0)
    assert [line for line in book.says() if line.startswith("CREDIT")] == []


def test_consuming_before_the_answer_is_told_by_the_answer() -> None:
    book = Playbook(initial_credit=16 * KIB)
    book.hears(opens(1), data(1, bytes(16 * KIB)))
    book.session.consume(1, 16 * KIB, 1.0)
    assert not [line for line in book.says() if line.startswith("CREDIT")], "the peer takes none before OPEN_OK"
    book.session.accept(1)
    assert f"OPEN_OK 1 {32 * KIB}" in book.says()


def test_consuming_more_than_came_is_refused() -> None:
    book = Playbook()
    book.opened()
    book.hears(data(1, b"four"))
    with pytest.raises(LocalProtocolError, match="more consumed than was received"):
        book.session.consume(1, 5, 0.0)


def test_a_writer_is_paused_and_woken_once() -> None:
    book = Playbook(send_high=60 * KIB, send_low=30 * KIB)
    book.opened(grant=0)
    assert book.session.send(1, bytes(60 * KIB))
    assert not book.session.send(1, b"x")
    book.hears(credit(1, 10 * KIB))
    book.says()
    assert book.happened() == []
    book.hears(credit(1, 40 * KIB))
    book.says()
    assert book.happened() == [events.WritableAgain(1)]
    book.hears(credit(1, 1000 * KIB))
    book.says()
    assert book.happened() == []
    assert book.session.send(1, b"more")


def test_who_writes_for_a_reader_that_stopped_is_paused_long_before_who_only_waits_for_the_link() -> None:
    book = Playbook()
    book.opened(grant=MIB)
    book.opened(grant=0)
    assert book.session.send(1, bytes(300 * KIB))
    assert book.session.send(3, bytes(STALLED))
    assert not book.session.send(3, b"x")


def test_who_writes_for_a_reader_that_stopped_gets_its_reserve_alone_when_others_need_the_budget() -> None:
    book = Playbook(tunnel_budget=400 * KIB)
    book.opened(grant=0)  # whose own window takes the first quarter
    assert book.session.send(1, bytes(book.session.limits.reserved_credit))
    assert not book.session.send(1, b"x")


def test_who_writes_for_a_reader_that_took_much_keeps_its_pace_while_memory_is_short() -> None:
    book = Playbook(tunnel_budget=8 * MIB)
    proven, fresh = book.opened(grant=1 << 40), book.opened(grant=1 << 40)
    for _ in range(PROVEN // (64 * KIB)):
        book.session.send(proven, bytes(64 * KIB))
        book.says()
    book.happened()
    book.session.budget.charge(4 * MIB)
    assert book.session.send(proven, bytes(2 * STALLED))
    assert not book.session.send(fresh, bytes(2 * STALLED))


def test_a_full_budget_pauses_writers_without_stopping_them() -> None:
    book = Playbook(tunnel_budget=64 * KIB, initial_credit=16 * KIB)
    book.opened(grant=10 * MIB)
    assert book.session.send(1, bytes(40 * KIB))
    assert not book.session.send(1, bytes(10 * KIB))
    book.says()
    assert book.happened() == [events.WritableAgain(1)]
    assert book.session.budget.used == 16 * KIB


def test_credit_that_goes_back_is_ignored() -> None:
    book = Playbook()
    book.opened(grant=100)
    book.hears(credit(1, 50))
    book.session.send(1, bytes(200))
    assert book.says()[-1] == "DATA 1 100"


# ---- ending --------------------------------------------------------------------------------------------------------


def test_each_direction_ends_on_its_own() -> None:
    book = Playbook()
    book.opened()
    assert book.hears(data(1), fin(1)) == [(1, b"data"), events.StreamFinished(1)]
    book.session.send(1, b"still")
    book.session.finish(1)
    book.session.finish(1)
    assert book.says() == ['DATA 1 "still"', "FIN 1"] or book.says() == []
    assert book.session.stream_count == 1, "four bytes wait for their reader"
    book.session.consume(1, 4, 0.0)
    assert book.happened() == [events.StreamClosed(1)]
    assert book.session.budget.used == 0
    assert book.hears(rst(1), credit(1, 99999)) == [], "late frames of a stream that was open once"


def test_fin_waits_behind_data_that_waits_for_credit() -> None:
    book = Playbook()
    book.opened(grant=0)
    book.hears(fin(1))
    book.session.send(1, b"answer")
    book.session.finish(1)
    assert not book.session.flushed(1)
    assert [line for line in book.says() if line[:3] in ("FIN", "DAT")] == []
    book.hears(credit(1, 3))
    assert 'DATA 1 "ans"' in book.says()
    book.hears(credit(1, 100))
    assert [line for line in book.says() if line[:3] in ("FIN", "DAT")] == ['DATA 1 "wer"', "FIN 1"]
    assert book.happened() == [events.StreamClosed(1)]


def test_nothing_is_sent_after_finish() -> None:
    book = Playbook()
    book.opened()
    book.session.finish(1)
    with pytest.raises(LocalProtocolError, match="takes no more data"):
        book.session.send(1, b"late")


@pytest.mark.parametrize("by_peer", [True, False])
def test_a_reset_drops_a_stream_that_both_have_finished_but_that_still_waits(by_peer: bool) -> None:
    book = Playbook()
    book.opened(grant=0)
    book.hears(fin(1))
    book.session.send(1, bytes(1000))
    book.session.finish(1)
    if by_peer:
        assert book.hears(rst(1, Code.CANCELLED, "no longer")) == [events.StreamReset(1, Code.CANCELLED, "no longer")]
    else:
        book.session.reset(1, Code.CANCELLED, "no longer")
        assert "RST 1 CANCELLED no longer" in book.says()
    assert book.session.lost is None
    assert book.session.stream_count == 0
    assert book.session.budget.used == 0


def test_an_orderly_close_of_the_peer_leaves_what_it_sent_to_be_read() -> None:
    book = Playbook(send_high=100)
    book.opened(grant=0)
    assert not book.session.send(1, bytes(200))
    happened = book.hears(data(1, b"last words"), fin(1), rst(1, Code.NONE, "closed"))
    assert happened == [(1, b"last words"), events.StreamFinished(1), events.WritableAgain(1)]
    assert book.session.queued(1) == 0, "nobody reads it any more"
    with pytest.raises(LocalProtocolError):
        book.session.send(1, b"x")
    book.session.finish(1)
    book.session.consume(1, 10, 0.0)
    assert book.happened() == [events.StreamClosed(1)]
    assert book.session.budget.used == 0


def test_a_reset_without_a_reason_before_fin_is_a_cut() -> None:
    book = Playbook()
    book.opened()
    assert book.hears(data(1), rst(1, Code.NONE, ""))[-1] == events.StreamReset(1, Code.NONE, "")


def test_a_reset_overtakes_queued_data_and_frees_it() -> None:
    book = Playbook()
    book.opened()
    book.session.send(1, bytes(100 * KIB))
    book.session.reset(1, Code.INTERNAL, "broken")
    book.session.reset(1, Code.INTERNAL, "twice")
    assert [line for line in book.says() if line[:3] in ("RST", "DAT")] == ["RST 1 INTERNAL broken"]
    assert book.session.budget.used == 0


def test_nothing_is_said_of_a_stream_after_its_reset() -> None:
    book = Playbook(initial_credit=16 * KIB)
    book.opened()
    book.hears(data(1, bytes(16 * KIB)))
    book.session.consume(1, 16 * KIB, 1.0)
    book.session.send(1, b"x")
    book.session.finish(1)
    book.session.reset(1, Code.CANCELLED, "")
    assert [line for line in book.says() if not line.startswith("ACK")] == ["RST 1 CANCELLED"]
    assert not book.session.wants_to_send


def test_what_was_sent_before_the_answer_is_not_flushed_yet() -> None:
    """A reset would cancel the open together with the data that followed it."""
    book = Playbook(opens_odd=True)
    stream = book.session.open("kubernetes", 0.0)
    book.session.send(stream, b"fire and forget")
    book.session.finish(stream)
    book.says()
    assert not book.session.flushed(stream)
    book.hears(ok(stream))
    assert book.session.flushed(stream)


def test_a_reset_of_a_stream_that_is_asked_for_makes_room_in_the_backlog() -> None:
    book = Playbook(open_backlog=1)
    for stream in range(1, 101, 2):
        assert kinds(book.hears(opens(stream))) == [events.StreamOpened]
        book.session.reset(stream, Code.INTERNAL, "")
    assert book.session._asked == 0


def test_a_cancelled_open_frees_both_ends() -> None:
    asking, asked = Playbook(opens_odd=True), Playbook()
    stream = asking.session.open("kubernetes", 0.0)
    asked.session.receive(memoryview(b"".join(asking.session.data_to_send(0.0, MIB))), 0.0)
    asking.session.reset(stream, Code.CANCELLED, "the caller went away")
    gone = asked.session.receive(memoryview(b"".join(asking.session.data_to_send(0.0, MIB))), 0.0)
    assert gone == [events.StreamReset(1, Code.CANCELLED, "the caller went away")]
    for book in (asking, asked):
        assert book.session.budget.used == 0
        assert book.session.stream_count == 0
    with pytest.raises(LocalProtocolError, match="cannot send OPEN_OK on stream 1: it is closed"):
        asked.session.accept(1)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("wish", ["accept", "refuse", "finish", "reset", "send"])
def test_a_wish_in_any_state_is_done_or_refused_and_never_harms_the_tunnel(state: State, wish: str) -> None:
    book = Playbook()
    stream = in_state(book, state)
    arguments = {"refuse": (Code.INTERNAL, ""), "reset": (Code.INTERNAL, ""), "send": (b"x",)}.get(wish, ())
    with contextlib.suppress(LocalProtocolError):
        getattr(book.session, wish)(stream, *arguments)
    assert book.session.lost is None
    book.says()
    book.session.reset(stream, Code.CANCELLED)
    assert book.session.budget.used == 0
    assert book.session._asked == 0


def in_state(book: Playbook, state: State) -> int:
    """A stream in this state, seen from the book's end."""
    if state in (State.OPENING, State.OPENING_FINISHED):
        stream = book.session.open("kubernetes", 0.0)
        if state is State.OPENING_FINISHED:
            book.session.finish(stream)
    elif state in (State.ASKED, State.ASKED_FINISHED):
        stream = 1
        book.hears(opens(1), *([fin(1)] if state is State.ASKED_FINISHED else []))
    else:
        stream = book.opened(grant=0)
        book.session.send(stream, b"waits")
        if state in (State.PEER_FINISHED, State.BOTH_FINISHED):
            book.hears(fin(stream))
        if state in (State.FINISHED, State.BOTH_FINISHED):
            book.session.finish(stream)
        if state is State.CLOSED:
            book.session.reset(stream, Code.CANCELLED)
            return stream
    assert book.session._streams[stream].state is state
    return stream


def test_a_stalled_stream_takes_nothing_from_another() -> None:
    book = Playbook()
    book.opened(grant=0)
    book.opened(grant=10 * MIB)
    book.session.send(1, bytes(100 * KIB))
    book.session.send(3, b"flows")
    assert book.says()[-1] == 'DATA 3 "flows"'
    book.hears(data(1, bytes(64 * KIB)))
    grant = book.session._streams[3].credit.granted
    assert grant == 256 * KIB
