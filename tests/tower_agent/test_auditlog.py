"""Audit lines: valid JSON whatever callers call themselves, few writes, none lost in silence."""

from __future__ import annotations

import io
import json

import pytest

from gateway.audit import RequestRecord
from tests.waiting import until
from tower_agent.auditlog import MAX_LINES, AuditLog


def record(**changes: object) -> RequestRecord:
    base = RequestRecord(
        "a-1", "c1", "203.0.113.9:5", "jane", "get", "GET", "/api", 200, "", 10, 20, 0.0123456789, 0.01
    )
    return base._replace(**changes)


class Counting(io.StringIO):
    writes = 0
    broken = False

    def write(self, text: str) -> int:
        if self.broken:
            raise OSError("disk full")
        self.writes += 1
        return super().write(text)


@pytest.mark.asyncio
async def test_lines_are_json_and_leave_together() -> None:
    stream = Counting()
    audit = AuditLog("east", stream=stream)
    audit.write(record())
    audit.write(record(who='"},{"\n\x1b[31m', path='/a"b\\', code=401, fault="TWR401"))
    assert stream.writes == 0
    await until(lambda: stream.writes)
    assert stream.writes == 1
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first["event"] == "request"
    assert (first["host"], first["who"], first["code"], first["duration"]) == ("east", "jane", 200, 0.012346)
    assert first["time"].endswith("Z")
    assert (second["who"], second["path"], second["fault"]) == ('"},{"\n\x1b[31m', '/a"b\\', "TWR401")


@pytest.mark.asyncio
async def test_many_lines_do_not_wait() -> None:
    stream = Counting()
    audit = AuditLog("east", stream=stream)
    for _ in range(MAX_LINES + 1):
        audit.write(record())
    assert len(stream.getvalue().splitlines()) == MAX_LINES
    audit.flush()
    assert len(stream.getvalue().splitlines()) == MAX_LINES + 1


@pytest.mark.asyncio
async def test_what_looks_like_a_secret_is_not_written() -> None:
    stream = Counting()
    audit = AuditLog("east", stream=stream)
    audit.write(record(path="/api/twr1.c2VjcmV0c2VjcmV0"))
    audit.flush()
    assert "c2VjcmV0" not in stream.getvalue()
    assert json.loads(stream.getvalue())["path"] == "/api/[redacted]"


@pytest.mark.asyncio
async def test_a_full_disk_costs_lines_and_nothing_else(capsys: pytest.CaptureFixture[str]) -> None:
    stream = Counting()
    audit = AuditLog("east", stream=stream)
    stream.broken = True
    audit.write(record())
    audit.flush()
    stream.broken = False
    audit.write(record())
    audit.flush()
    assert len(stream.getvalue().splitlines()) == 1
    said = capsys.readouterr()
    assert "audit-lines-lost" in said.out + said.err
