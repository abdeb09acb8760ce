"""What waits for the link: what outlives it, and what must not overtake what."""

from __future__ import annotations

from protocol.constants import Code, FrameType
from protocol.frames import encode, encode_reason
from protocol.outbox import Outbox
from protocol.scheduler import Buffer
from tests.protocol.playbook import number, ok, spoken

OK, PONG, ACK = ok(1), number(FrameType.PONG, 7), number(FrameType.ACK, 3)


def test_frames_leave_in_their_order_and_once() -> None:
    outbox = Outbox()
    outbox.frames += [OK, PONG]
    outbox.answers = 2
    assert outbox.take() == [OK, PONG]
    assert outbox.take() == []
    assert outbox.answers == 0


def test_of_acknowledgements_in_a_row_the_newest_is_kept() -> None:
    outbox = Outbox()
    outbox.put_ack(ACK)
    outbox.put_ack(number(FrameType.ACK, 4))
    outbox.frames.append(PONG)
    outbox.put_ack(number(FrameType.ACK, 5))
    assert spoken(b"".join(outbox.take())) == ["ACK 4", "PONG 7", "ACK 5"]


def test_a_lost_link_leaves_numbered_frames_alone() -> None:
    outbox = Outbox()
    rst = encode_reason(FrameType.RST, 3, Code.CANCELLED, "gone")
    outbox.frames += [PONG, OK, ACK, rst]
    outbox.grants[1] = 1000
    outbox.link_lost()
    assert outbox.take() == [OK, rst]
    assert not outbox.grants


def test_what_is_sent_again_goes_before_numbered_frames_and_after_the_others() -> None:
    outbox = Outbox()
    outbox.frames += [PONG, ok(3), ACK]
    outbox.answers = 2
    outbox.send_again([OK])
    assert outbox.take_unnumbered() == [PONG, ACK]
    assert outbox.answers == 1, "the OPEN_OK that waits is still owed"
    assert outbox.take_unnumbered() == []
    outbox.caught_up()
    assert outbox.take() == [ok(3)]


def test_no_grant_overtakes_the_answer_of_its_stream() -> None:
    outbox = Outbox()
    outbox.frames.append(ok(3))
    outbox.send_again([OK, encode(FrameType.DATA, 9, b"x")])
    outbox.accepted(5)  # queued only now
    outbox.grants.update({1: 10, 3: 30, 5: 50, 9: 90})
    assert told(outbox) == ["CREDIT 9 90"]
    assert told(outbox) == []
    outbox.grants[3] = 31
    outbox.caught_up()
    assert told(outbox) == ["CREDIT 1 10", "CREDIT 3 31", "CREDIT 5 50"]
    outbox.accepted(7)
    outbox.grants[7] = 70
    assert told(outbox) == ["CREDIT 7 70"], "with nothing to be sent again its OPEN_OK leaves first by itself"


def told(outbox: Outbox) -> list[str]:
    out: list[Buffer] = []
    outbox.take_grants(out)
    return spoken(b"".join(out))
