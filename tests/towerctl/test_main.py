"""The programs as processes: names, exit codes, start-up time, and what ends them."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.towerctl.kit import Shell, http, peer

BIN = Path(sys.executable).parent


def process(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{BIN}:{os.environ['PATH']}", "HOME": "/nonexistent"} | environment
    return subprocess.run([str(BIN / argv[0]), *argv[1:]], env=env, capture_output=True, text=True, timeout=30)


def test_no_arguments_print_help_and_are_a_usage_error(shell: Shell) -> None:
    ran = shell()
    assert ran.code == 2
    assert "Commands:" in ran.err + ran.out


@pytest.mark.parametrize("verb", ["foo", "gett"])
def test_an_unknown_verb_is_a_usage_error(shell: Shell, verb: str) -> None:
    shell(verb).refused("No such command", verb, code=2)


def test_a_verb_that_is_nearly_right_gets_a_suggestion(shell: Shell) -> None:
    shell("descibe").refused("Did you mean 'describe'?", code=2)


def test_an_unknown_option_is_a_usage_error(shell: Shell) -> None:
    shell("get", "clusters", "--frobnicate").refused("No such option", code=2)


def test_global_options_are_taken_before_and_after_the_verb(shell: Shell, folder: Path) -> None:
    with peer(folder / "other", http("200 OK", '{"items": []}')):
        other = str(folder / "other")
        assert shell("--socket", other, "get", "clusters").code == 0
        assert shell("get", "--socket", other, "clusters").code == 0
        assert shell("get", "clusters", "--socket", other).code == 0
        assert shell("--socket", "/nowhere", "get", "clusters", "--socket", other).code == 0


@pytest.mark.parametrize("verb", [("get", "clusters"), ("describe", "cluster"), ("get", "agents"), ("revoke", "token")])
def test_a_name_that_is_no_text_is_a_sentence(live: Shell, verb: tuple[str, str]) -> None:
    ran = live(*verb, "\udcff\udcfe")  # how Python has the bytes ff fe of a command line
    assert ran.code in (1, 2)
    assert "udcff" in ran.err
    assert "Traceback" not in ran.err


def test_a_token_that_was_given_for_its_id_is_not_shown(live: Shell) -> None:
    secret = "twr1.a-whole-token-with-its-secret"
    for arguments in (("revoke", "token", secret), ("get", "tokens", secret), ("get", secret), ("explain", secret)):
        ran = live(*arguments)
        assert ran.code in (1, 2)
        assert secret not in ran.err


def test_an_empty_option_is_one_that_was_not_given(live: Shell) -> None:
    assert live("get", "clusters", "--socket", "", "--context", "").code == 0


@pytest.mark.parametrize("timeout", ["x", "0", "1ms", "2d", "9" * 400])
def test_a_timeout_that_is_none_is_a_usage_error(shell: Shell, timeout: str) -> None:
    shell("get", "clusters", "--timeout", timeout).refused("--timeout", code=2)


def test_help_does_not_load_what_it_does_not_need() -> None:
    code = "import sys, towerctl.main; towerctl.main.run(['--help']); print(sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True).stdout
    modules = loaded.splitlines()[-1]
    for heavy in ("'pydantic'", "'yaml'", "'cryptography'", "'asyncio'", "'http.client'", "'rich'", "'kubernetes'"):
        assert heavy not in modules


def test_an_interrupted_watch_ends_quietly(folder: Path) -> None:
    def forever(connection: object) -> None:
        connection.recv(65536)  # type: ignore[attr-defined]
        line = b'{"type": "ADDED", "object": {"name": "edge-1", "ready": "True", "state": "Connected"}}\n'
        head = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
        connection.sendall(head + line)  # type: ignore[attr-defined]
        connection.recv(1)  # type: ignore[attr-defined]

    with peer(folder / "s", forever):
        watching = subprocess.Popen(
            [str(BIN / "towerctl"), "get", "clusters", "-w", "--socket", str(folder / "s")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert watching.stdout is not None
        assert watching.stdout.readline().startswith("NAME")
        assert watching.stdout.readline().startswith("edge-1")
        watching.send_signal(signal.SIGINT)
        _, told = watching.communicate(timeout=30)
    assert watching.returncode == 130
    assert "Traceback" not in told


@pytest.mark.slow
def test_help_is_there_before_anybody_notices() -> None:
    """Of the processor's time, beside what Python and click take by themselves on this machine, busy or slow as it is;
    the first start writes bytecode."""

    def spent(*argv: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process(*argv)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    helped = least = math.inf  # what others on the processors add comes and goes: the least of some rounds lacks it
    for _ in range(20):
        helped = min(helped, spent("towerctl", "--help"))
        least = min(least, spent("python", "-c", "import click"))
        if helped < 1.75 * least:
            break
    assert helped < 1.75 * least
