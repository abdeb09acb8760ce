"""What operators may say about silence, and what is refused."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from daemon.liveness import Liveness
from daemon.memory import Memory
from protocol.flow import Limits


def test_without_a_word_the_limits_are_the_protocols() -> None:
    assert Liveness().limits(Memory()) == Limits()


def test_what_is_said_reaches_every_tunnel_beside_its_memory() -> None:
    limits = Liveness.model_validate({"ping": "1s", "dead_after": "5s"}).limits(Memory(tunnel=1 << 20))
    assert (limits.ping_interval, limits.dead_after, limits.tunnel_budget) == (1.0, 5.0, 1 << 20)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ({"dead_after": "20s"}, "must stay below 60 s, after which kubectl gives up"),
        ({"resume_window": "45s"}, "must stay below 60 s, after which kubectl gives up"),
        ({"resume_window": "30s"}, r"too short: noticing .* \(15 s\), .* raise it to 32.8 s, or lower dead_after"),
    ],
)
def test_a_window_that_no_agent_or_no_caller_can_keep_to_is_refused(said: dict[str, str], why: str) -> None:
    with pytest.raises(ValidationError, match=why):
        Liveness.model_validate(said)


def test_a_window_that_fits_reaches_every_tunnel() -> None:
    said = Liveness.model_validate({"ping": "1500ms", "dead_after": "5s", "resume_window": "50s"})
    assert said.limits(Memory()).resume_window == 50.0


@pytest.mark.parametrize("said", [{"ping": "0s"}, {"ping": "10s"}, {"dead_after": "9s"}])
def test_a_peer_that_could_be_given_up_for_one_late_answer_is_refused(said: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="at least twice ping"):
        Liveness.model_validate(said)
