"""Errors know whose fault it is and how a caller is answered."""

from __future__ import annotations

from gateway.errors import AnswerError, GatewayError, PolicyError, RemoteError, RequestError, UpstreamError


def test_statuses() -> None:
    assert RequestError("x").http_status == 400
    assert RequestError("x", "TWR410").http_status == 431
    assert AnswerError("x").http_status == 502
    assert UpstreamError("TWR303", "x").http_status == 504
    assert PolicyError("x").code == "TWR101"


def test_whose_fault_is_in_the_type() -> None:
    assert isinstance(RequestError("x"), RemoteError)
    assert isinstance(AnswerError("x"), RemoteError)
    assert not isinstance(UpstreamError("TWR301", "x"), RemoteError)
    assert isinstance(UpstreamError("TWR301", "x"), GatewayError)
