from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from daemon.checks import AT_ONCE, Check, Graph, Report, Result, fail, ok, unknown, warn
from daemon.faults import TowerError, fault

Run = Callable[[], Awaitable[Result]]


def gives(result: Result) -> Run:
    async def run() -> Result:
        return result

    return run


def raises(exc: Exception) -> Run:
    async def run() -> Result:
        raise exc

    return run


@pytest.mark.asyncio
async def test_only_the_root_cause_fails_and_dependants_point_at_it() -> None:
    report = await Graph(
        [
            Check("api", gives(ok()), needs=("auth",), code="TWR301"),
            Check("dns", gives(ok("203.0.113.9"))),
            Check("tls", gives(fail("TWR214", "other chain")), needs=("dns",)),
            Check("auth", gives(ok()), needs=("tls", "dns")),
            Check("clock", gives(ok())),
        ]
    ).run()
    seen = {item.name: (item.status, item.root) for item in report.items}
    assert seen == {
        "api": ("skipped", "TWR214"),
        "dns": ("ok", ""),
        "tls": ("failed", ""),
        "auth": ("skipped", "TWR214"),
        "clock": ("ok", ""),
    }
    assert [item.name for item in report.items] == ["api", "dns", "tls", "auth", "clock"]
    assert report.items[0].message == "not checked (needs TWR214)"
    assert report.items[2].next == fault("TWR214").mend
    assert report.exit_code() == 1


@pytest.mark.asyncio
async def test_a_warning_does_not_stop_what_needs_it() -> None:
    report = await Graph([Check("a", gives(warn("TWR503", "soon"))), Check("b", gives(ok()), needs=("a",))]).run()
    assert [item.status for item in report.items] == ["warning", "ok"]
    assert (report.exit_code(), report.exit_code(fail_on_warning=True)) == (0, 1)


@pytest.mark.asyncio
async def test_what_a_check_raises_becomes_a_finding() -> None:
    report = await Graph(
        [
            Check("known", raises(TowerError("TWR211", "refused", mend="open the port"))),
            Check("blind", raises(TowerError("TWR602", "no socket", exit_code=3))),
            Check("broken", raises(ValueError("oops"))),
        ]
    ).run()
    known, blind, broken = report.items
    assert (known.status, known.code, known.next) == ("failed", "TWR211", "open the port")
    assert (blind.status, blind.code) == ("unknown", "TWR602")
    assert (broken.status, broken.code) == ("failed", "TWR112")
    assert "oops" in broken.message


@pytest.mark.asyncio
async def test_nothing_failed_but_not_everything_could_be_checked() -> None:
    checks = [
        Check("a", gives(ok())),
        Check("b", gives(unknown("TWR602", "nobody to ask"))),
        Check("c", gives(fail("TWR201", "made all the same")), needs=("b",)),
    ]
    report = await Graph(checks).run()
    assert [(item.status, item.root) for item in report.items] == [("ok", ""), ("unknown", ""), ("skipped", "TWR602")]
    assert report.exit_code() == 3
    assert Report(()).exit_code() == 3


@pytest.mark.asyncio
async def test_a_check_that_hangs_is_a_failure_with_its_deadline() -> None:
    async def hangs() -> Result:
        await asyncio.Event().wait()
        return ok()

    report = await Graph([Check("readyz", hangs, code="TWR303", title="/readyz", deadline=0.05)]).run()
    assert report.items[0].code == "TWR303"
    assert report.items[0].message == "/readyz: no result within 0.05s"


@pytest.mark.asyncio
async def test_checks_run_side_by_side_but_not_all_at_once() -> None:
    now = most = 0

    async def counted() -> Result:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.01)
        now -= 1
        return ok()

    report = await Graph([Check(f"c{index}", counted) for index in range(3 * AT_ONCE)]).run()
    assert report.counts["ok"] == 3 * AT_ONCE
    assert most == AT_ONCE


def test_a_graph_that_cannot_be_walked_is_refused() -> None:
    run = gives(ok())
    with pytest.raises(ValueError, match="'a' stands twice"):
        Graph([Check("a", run), Check("a", run)])
    with pytest.raises(ValueError, match="'a' needs 'b', which is not there"):
        Graph([Check("a", run, needs=("b",))])
    with pytest.raises(ValueError, match="circle: a -> b -> a"):
        Graph([Check("a", run, needs=("b",)), Check("b", run, needs=("a",))])


@pytest.mark.asyncio
async def test_the_json_form_reads_back_and_bears_new_keys() -> None:
    report = await Graph(
        [
            Check("a", gives(fail("TWR201", "x", evidence=("one", "two"))), subject="lab"),
            Check("b", gives(ok()), needs=("a",)),
        ]
    ).run()
    document = report.document()
    assert (document["apiVersion"], document["kind"]) == ("tower/v1", "CheckList")
    document["items"][0]["later"] = 1
    again = Report.of(document)
    assert again.document()["items"] == report.document()["items"]
    assert again.exit_code() == report.exit_code()


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"items": [{}]},
        {"items": [{"status": "fine"}]},
        {"items": 3},
        {"items": [{"status": "ok"}]},
        {"items": [{"category": 1, "name": "n", "status": "ok", "message": "m"}]},
        {"items": [{"category": "c", "name": "n", "status": "ok", "message": "m", "code": ["TWR201"]}]},
        {"items": [], "seconds": 10**400},
    ],
)
def test_a_report_that_is_none_is_refused(document: dict[str, object]) -> None:
    with pytest.raises(TowerError, match="TWR611: the report of checks cannot be read"):
        Report.of(document)
