"""One request to a Go agent's member: every answer is one, and whatever is none is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tower_server.legacy.test_binding import upstreams
from tower_server.legacy import asking as module
from tower_server.legacy.asking import Answer, NotAnswered, ask

pytestmark = pytest.mark.asyncio


async def test_it_asks_as_the_agent_and_on_a_connection_of_its_own(tmp_path: Path) -> None:
    async with upstreams(tmp_path) as (backend, pools):
        backend.answer = b'{"gitVersion": "v1.33.1"}'
        answer = await ask(pools.impersonation, "GET", "/version", accept="application/json;as=Table")
        assert (answer.status, answer.object()) == (200, {"gitVersion": "v1.33.1"})
        (seen,) = backend.requests
        assert seen.headers["authorization"] == "Bearer shipped"
        assert seen.headers["accept"] == "application/json;as=Table"
        assert pools.impersonation.open_count == 0


async def test_silence_ends_at_the_deadline_and_leaves_no_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.3)
    async with upstreams(tmp_path) as (backend, pools):
        backend.silent = True
        with pytest.raises(NotAnswered, match=r"within 0\.3 s"):
            await ask(pools.impersonation, "GET", "/version")
        assert pools.impersonation.open_count == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [(b'{"message": "not\\n allowed"}', "not allowed"), (b"[1]", "[1]"), (b"plain text", "plain text")],
)
async def test_an_answer_that_is_no_object_has_its_words_all_the_same(body: bytes, message: str) -> None:
    assert Answer(403, body).message == message
