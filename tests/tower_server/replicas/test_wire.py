from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.constants import CONTROL_SERVICE, Code
from protocol.defaults import MAX_CONTROL_LINE_BYTES
from protocol.errors import RemoteProtocolError, StreamRefused
from tower_server.replicas.wire import (
    ACCEPTED,
    FOLLOW,
    MAX_HEAD_BYTES,
    Asking,
    Carrying,
    Held,
    Passing,
    alive,
    holds,
    lost,
    read_answer,
    read_head,
    read_holding,
    read_line,
    refused,
    told,
)
from tower_server.state import Verdict

HEAD = Passing("edge", "kubernetes", "192.0.2.1:5", "c-1")


def test_a_head_comes_back_and_fits_its_bound():
    assert read_head(HEAD.line()) == HEAD
    assert read_head(FOLLOW) is None
    longest = Passing("c" * 253, "s" * 63, "a" * 253, "i" * 253)
    assert read_head(longest.line()) == longest
    assert len(longest.line()) < MAX_HEAD_BYTES


def test_an_agents_connection_for_a_tunnel_is_read_as_it_was_carried():
    head = Carrying("ab12", "192.0.2.1:5")
    assert read_head(head.line()) == head
    assert len(Carrying("t" * 253, "a" * 253).line()) < MAX_HEAD_BYTES
    with pytest.raises(RemoteProtocolError, match="'tunnel' is no name"):
        read_head(b'{"type": "carry", "hop": 1, "remote": "x"}')


@pytest.mark.parametrize("hop", [0, 2, None, "1", 1.5])
@pytest.mark.parametrize("head", [HEAD, Carrying("ab12", "192.0.2.1:5")])
def test_what_was_passed_on_before_is_refused(head, hop):
    line = json.dumps({**json.loads(head.line()), "hop": hop}).encode()
    with pytest.raises(RemoteProtocolError, match="passed on before"):
        read_head(line)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "not JSON"),
        (b"[]", "not an object"),
        (b'{"type": 1}', "not an object"),
        (b'{"type": "dance"}', "asks for 'dance'"),
        (b'{"type": "pass", "hop": 1}', "'cluster' is no name"),
        (
            b'{"type":"pass","hop":1,"cluster":"a","service":"b","caller":"x\\ny","connection":"c"}',
            "'caller' is no name",
        ),
        (json.dumps({"type": "pass", "hop": 1, "cluster": "a" * 300}).encode(), "'cluster' is no name"),
        (Passing("edge", CONTROL_SERVICE, "192.0.2.1:5", "c-1").line(), "which no member can declare"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_head_that_does_not_fit_its_form_is_refused_with_what_is_wrong(line, says):
    with pytest.raises(RemoteProtocolError, match=says):
        read_head(line)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_being_refused(line):
    for read in (read_head, read_answer, read_line):
        with contextlib.suppress(RemoteProtocolError):
            read(line)


def test_answers():
    assert read_answer(ACCEPTED) is None
    found = read_answer(refused(StreamRefused(Code.BUDGET, "no memory")))
    assert found is not None
    assert (found.code, found.text) == (Code.BUDGET, "no memory")
    assert read_answer(b'{"type":"refused","code":"?"}').code is Code.INTERNAL
    assert read_answer(b'{"type":"refused","code":9999}').code is Code.INTERNAL
    with pytest.raises(RemoteProtocolError):
        read_answer(alive(ready=True))


def test_what_is_held_comes_back():
    verdict = Verdict("Degraded", "True", "TWR202", "1 of 2")
    held = Held(2, verdict, {"uid": "u", "services": {"kubernetes": {}}}, ("a1/pod-1", "a2/pod-2"))
    assert read_holding(read_line(holds("edge", held))) == ("edge", held)
    assert read_holding(read_line(lost("edge"))) == ("edge", None)


def test_a_report_that_is_too_long_is_left_out_and_figures_that_always_change_are():
    held = Held(1, Verdict("Connected", "True"), {"long": "x" * MAX_CONTROL_LINE_BYTES})
    assert read_holding(read_line(holds("edge", held))) == ("edge", Held(1, held.verdict, {}))
    assert told({"uid": "u", "requests": 7}) == {"uid": "u"}


@pytest.mark.parametrize("fields", [{}, {"verdict": {}, "report": []}, {"verdict": {}, "report": {}, "tunnels": "1"}])
def test_a_holding_that_does_not_fit_its_form_is_refused(fields):
    with pytest.raises(RemoteProtocolError, match="not of its form"):
        read_holding({"type": "holds", "cluster": "edge", **fields})


def test_a_line_has_a_bound():
    with pytest.raises(RemoteProtocolError) as caught:
        read_line(b'{"type":"' + b"x" * MAX_CONTROL_LINE_BYTES + b'"}')
    assert caught.value.code is Code.TOO_LARGE


def test_a_question_is_read_as_it_was_asked_and_a_strange_one_is_refused() -> None:
    asking = Asking("tunnels", "edge")
    assert read_head(asking.line().rstrip(b"\n")) == asking
    for line in (b'{"type": "ask"}', b'{"type": "ask", "call": 1, "cluster": ""}', b'{"type": "ask", "call": "\\n"}'):
        with pytest.raises(RemoteProtocolError):
            read_head(line)
