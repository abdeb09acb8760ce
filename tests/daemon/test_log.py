from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import structlog

from daemon import log


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(False)
    structlog.reset_defaults()


@pytest.fixture
def out() -> io.StringIO:
    return io.StringIO()


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_an_event_is_one_line_of_json(out: io.StringIO) -> None:
    log.configure(stream=out)
    log.get_logger("tower_server.ports").info("port-opened", port=6012, text="two\nlines")
    (line,) = lines(out)
    assert line["event"] == "port-opened"
    assert line["room"] == "tower_server.ports"
    assert line["level"] == "info"
    assert line["port"] == 6012
    assert line["time"].endswith("Z")


def test_a_console_gets_words_without_colour_when_it_is_no_terminal(out: io.StringIO) -> None:
    log.configure(style="console", stream=out)
    log.get_logger("x").warning("tunnel-closed", cluster="edge-1")
    assert "tunnel-closed" in out.getvalue()
    assert "cluster=edge-1" in out.getvalue()
    assert "\x1b" not in out.getvalue()


@pytest.mark.parametrize(
    ("name", "value", "coloured"), [("NO_COLOR", "1", False), ("TERM", "dumb", False), ("TERM", "xterm", True)]
)
def test_a_terminal_gets_colour_where_it_takes_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, coloured: bool
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv(name, value)
    log.configure(stream=(out := Terminal()))
    log.get_logger("x").warning("tunnel-closed")
    assert ("\x1b" in out.getvalue()) is coloured


def test_the_level_is_obeyed_by_ours_and_by_the_standard_library(out: io.StringIO) -> None:
    log.configure(level="warning", stream=out)
    log.get_logger("x").info("no")
    logging.getLogger("library").info("no")
    log.get_logger("x").warning("yes")
    logging.getLogger("library").warning("also %s", "yes")
    assert [line["event"] for line in lines(out)] == ["yes", "library"]
    assert lines(out)[1]["text"] == "also yes"
    assert lines(out)[1]["room"] == "library"


def test_libraries_never_print_what_callers_send(out: io.StringIO) -> None:
    log.configure(level="debug", stream=out)
    logging.getLogger("websockets.client").debug("> Authorization: Bearer abcdefgh")
    assert out.getvalue() == ""


def test_no_secret_gets_through_whatever_carries_it(out: io.StringIO) -> None:
    log.configure(stream=out)
    logger = log.get_logger("x")
    logger.info("a", token="hunter2", nested={"client_key": "hunter2"}, header="Bearer hunter2hunter2")
    logging.getLogger("library").error("got %s", "twr1.hunter2hunter2")
    try:
        raise ValueError("Authorization: Bearer hunter2hunter2")
    except ValueError:
        logger.exception("b")
        logging.getLogger("library").exception("c")
    assert "hunter2" not in out.getvalue()
    assert out.getvalue().count("ValueError") >= 2


def test_lines_that_cannot_be_written_are_counted_and_told() -> None:
    class Full(io.StringIO):
        full = True

        def write(self, text: str) -> int:
            if self.full:
                raise OSError(28, "No space left on device")
            return super().write(text)

    out = Full()
    log.configure(stream=out)
    logger = log.get_logger("x")
    logger.info("one")
    logger.info("two")
    out.full = False
    logger.info("three")
    assert [(line["event"], line.get("count")) for line in lines(out)] == [("log-lines-lost", 2), ("three", None)]


def test_a_library_whose_format_does_not_fit_is_still_heard(out: io.StringIO) -> None:
    log.configure(stream=out)
    logging.getLogger("library").error("%d of %d", "x")
    assert lines(out)[0]["text"] == "%d of %d"


STEERING = "\x1b]0;owned\x07\x9b2J\u202e\u2028\x7f"


def test_nothing_that_a_peer_says_steers_a_terminal_or_begins_a_line(out: io.StringIO) -> None:
    for style in ("console", "json"):
        log.configure(style=style, stream=out)  # type: ignore[arg-type]
        log.get_logger("x").warning("link-failed", text=f"a\r\nforged {STEERING}", bare=STEERING, many=[STEERING])
        logging.getLogger("library").warning("said %s", STEERING)
        try:
            raise ValueError(STEERING)
        except ValueError:
            log.get_logger("x").exception("broken")
    shown = out.getvalue()
    assert [char for char in shown if not char.isprintable() and char not in "\n\x7f"] == []
    assert not [line for line in shown.splitlines() if line.startswith("forged")]
    assert "\\u001b]0;owned" in shown


def test_what_is_escaped_for_terminals_is_the_same_text_to_who_reads_the_json(out: io.StringIO) -> None:
    log.configure(stream=out)
    log.get_logger("x").info("said", text=f"{STEERING} für 東京")
    assert lines(out)[0]["text"] == f"{STEERING} für 東京"
    assert "für 東京" in out.getvalue()


@pytest.mark.slow  # a process of its own: here something else may have loaded structlog first
def test_no_process_pays_for_drawing_tracebacks() -> None:
    code = (
        "import sys, daemon.log; print(sorted(name for name in sys.modules if name.startswith(('rich.', 'pygments'))))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout == "[]\n"  # the linter has brought both along
