"""Where an enrolment token comes from: standard input or a file, never the command line, where others could read it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from daemon.faults import TowerError

MAX_INPUT: Final = 64 * 1024


def read_token_file(path: Path) -> str:
    """The text of a token file. Raises TowerError TWR104."""
    try:
        with path.open("rb") as file:
            return _text(file.read(MAX_INPUT + 1), str(path))
    except OSError as error:
        raise TowerError("TWR104", f"the token file {path} cannot be read: {error.strerror}") from error


def read_token_input() -> str:
    """The token from standard input, which ends at its first line; a person is told what is waited for."""
    if sys.stdin.isatty():
        print("paste the enrolment token, then press Enter:", file=sys.stderr)
    return _text(sys.stdin.buffer.readline(MAX_INPUT + 1), "standard input")


def _text(data: bytes, source: str) -> str:
    if len(data) > MAX_INPUT:
        raise TowerError("TWR207", f"{source} holds more than any token")
    try:
        return data.decode("ascii")
    except UnicodeDecodeError:
        raise TowerError("TWR207", f"{source} holds characters that no token has") from None
