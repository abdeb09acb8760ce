"""What ends a command line: an exit code and a message, the same for every program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from daemon.commandline import run_line
from daemon.faults import TowerError

BIN = Path(sys.executable).parent
BUFFERED = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}  # as with most people
CHECK = "tower-agent check --dialect kubesphere-v1 --server ws://127.0.0.1:1 --cluster c --token-file /dev/null"
LISTS = pytest.mark.parametrize("words", ["tower-server version", "tower-agent version", "towerctl explain", CHECK])


def line(end: Callable[[], object]) -> int:
    """How a command that ends like this ends its program."""
    told: list[str] = []

    @click.command()
    def command() -> object:
        return end()

    def tell(error: TowerError) -> int:
        told.append(error.code)
        return error.exit_code

    code = run_line(command, [], program="p", complete_var="_P_COMPLETE", told=tell)
    if told:
        assert (told, code) == (["TWR101"], TowerError("TWR101", "").exit_code)
    return code


def raising(error: BaseException) -> Callable[[], object]:
    def end() -> object:
        raise error

    return end


@pytest.mark.parametrize(
    ("end", "code"),
    [
        (lambda: None, 0),
        (lambda: 7, 7),
        (raising(click.UsageError("no such thing")), 2),
        (raising(click.ClickException("it failed")), 1),
        (raising(KeyboardInterrupt()), 130),
        (raising(TowerError("TWR101", "no such key")), 1),
    ],
    ids=["nothing", "a number", "usage", "failure", "interrupt", "fault"],
)
def test_each_end_has_its_exit_code(end: Callable[[], object], code: int) -> None:
    assert line(end) == code


def test_a_token_in_a_message_is_not_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert line(raising(click.UsageError("no such command 'twr1.eyJzZWNyZXQiOiAiYSBzZWNyZXQifQ'"))) == 2
    told = capsys.readouterr().err
    assert "no such command" in told
    assert "eyJzZWNyZXQi" not in told


def test_a_defect_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        line(lambda: 1 // 0)


@pytest.mark.slow
@LISTS
def test_output_that_finds_no_room_is_a_sentence(words: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = ended(words, full.fileno())
    assert done.returncode == 1
    assert b"the output could not be written: No space left on device\n  mend: make room where it goes" in done.stderr


@pytest.mark.slow
@LISTS
def test_a_reader_that_has_read_enough_is_no_failure_to_report(words: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as closed:
        done = ended(words, closed.fileno())
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("tower-agent join <&-", 1, b"TWR207: there is no token: the input is empty"),
        ("towerctl explain TWR201 >&-", 0, b""),
        ("towerctl get clusters --socket /nowhere 2>&-", 1, b""),
        ("tower-server rum 2>&-", 2, b""),
    ],
)
def test_a_stream_that_the_shell_closed_is_an_empty_one(words: str, code: int, said: bytes) -> None:
    done = subprocess.run(["sh", "-c", f"{BIN}/{words}"], stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert b"Traceback" not in done.stderr


def ended(words: str, output: int) -> subprocess.CompletedProcess[bytes]:
    name, *rest = words.split()
    done = subprocess.run([str(BIN / name), *rest], stdout=output, stderr=subprocess.PIPE, env=BUFFERED, timeout=30)
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr
    return done
