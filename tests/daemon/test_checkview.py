from __future__ import annotations

from daemon import checkview
from daemon.checks import Item, Report


def item(name: str, status: str, message: str = "", **more: object) -> Item:
    fields: dict[str, object] = {"category": "clusters", "subject": "", "title": name, **more}
    return Item(name=name, status=status, message=message, **fields)  # type: ignore[arg-type]


FAILED = item(
    "tunnel",
    "failed",
    "no tunnel for 12m",
    subject="lab",
    code="TWR201",
    evidence=("last close: ping timeout",),
    next="run there: tower-agent check",
)
SKIPPED = item(
    "readyz", "skipped", "not checked (needs TWR201)", subject="lab", title="/readyz", code="TWR302", root="TWR201"
)


def test_what_is_fine_takes_one_line_a_category() -> None:
    items = (item("a", "ok", "store writable", category="server"), item("b", "ok", "skew 12ms", category="server"))
    text = checkview.by_category(Report((*items, item("c", "ok", "3/3 answered")), 1.6))
    assert text.splitlines() == [
        "ok    server    store writable, skew 12ms  2/2",
        "ok    clusters  3/3 answered  1/1",
        "3 passed, 0 warnings, 0 failed in 1.6s",
    ]


def test_what_is_broken_gives_code_evidence_and_next_step() -> None:
    text = checkview.by_category(Report((FAILED, SKIPPED), 3.1))
    assert text.splitlines() == [
        "FAIL  clusters  0/2 fine",
        " x TWR201 lab: no tunnel for 12m",
        "     last close: ping timeout",
        "     next: run there: tower-agent check",
        " - TWR302 lab: /readyz not checked (needs TWR201)",
        "0 passed, 0 warnings, 1 failed, 1 skipped in 3.1s; towerctl explain TWR201",
    ]


def test_the_way_out_is_read_hop_by_hop() -> None:
    items = (
        item("dns", "ok", "203.0.113.9"),
        item("tcp", "ok", "8ms"),
        item("tls", "failed", 'chain ends at "Corp"', code="TWR214", next="exempt it"),
        item("clock", "warning", "it runs behind"),
        item("upgrade", "skipped", root="TWR214"),
        item("apiserver", "skipped", root="TWR214"),
    )
    assert checkview.by_hop(Report(items, 0.5)).splitlines() == [
        "ok dns 203.0.113.9 | ok tcp 8ms",
        ' x TWR214 tls: chain ends at "Corp"',
        "     next: exempt it",
        " ! clock: it runs behind",
        " - not checked: upgrade, apiserver (needs TWR214)",
        "2 passed, 1 warning, 1 failed, 2 skipped in 0.5s; towerctl explain TWR214",
    ]


def test_a_long_way_breaks_between_hops() -> None:
    text = checkview.by_hop(Report(tuple(item(f"hop{index}", "ok", "x" * 20) for index in range(8))))
    assert all(len(line) <= checkview.WIDTH + 2 for line in text.splitlines())
    assert text.count("ok hop") == 8


def test_what_steers_a_terminal_is_not_passed_on() -> None:
    text = checkview.by_category(Report((item("a", "failed", "\x1b[2Jgone\r", code="TWR201", subject="l\nb"),)))
    assert "\x1b" not in text
    assert "\r" not in text
    assert "l?b: ?[2Jgone?" in text


def test_words_stand_beside_colours() -> None:
    plain = checkview.by_category(Report((FAILED,)))
    coloured = checkview.by_category(Report((FAILED,)), paint=lambda word: f"<{word}>")
    assert coloured.replace("<", "").replace(">", "") == plain
    assert "<FAIL>" in coloured


def test_what_could_not_be_checked_is_said() -> None:
    text = checkview.by_category(Report((item("a", "unknown", "nobody to ask", code="TWR602", subject="lab"),)))
    assert " ? TWR602 lab: nobody to ask" in text
    assert "1 could not be checked" in text


def test_of_several_what_all_say_alike_is_said_and_else_their_names() -> None:
    ports = (item(f"port/{name}", "ok", "listening", category="ports", subject=name) for name in ("a", "b"))
    tunnels = (item(f"tunnel/{name}", "ok", f"round trip {name}", subject=name) for name in ("a", "b"))
    own = item("ca", "ok", "CA 9y left", category="pki")
    agents = (item(f"identity/{name}", "ok", f"{name} agents", category="pki", subject=name) for name in ("a", "b"))
    text = checkview.by_category(Report((*ports, *tunnels, own, *agents), 0.1))
    assert text.splitlines()[:3] == [
        "ok    ports     listening  2/2",
        "ok    clusters  a, b  2/2",
        "ok    pki       CA 9y left  3/3",
    ]
