"""Where an enrolment token comes from: standard input or a file, never the command line, where others could read it.

A file must be the agent's alone. One that root owns may also be readable by a group of the agent's: that is how root
(a configuration system, or a kubelet that mounts a Secret with `fsGroup`) hands a file to a user who is not root.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path
from typing import Final

from daemon.faults import TowerError

MAX_INPUT: Final = 64 * 1024


def read_token_file(path: Path) -> str:
    """The text of a token file. Raises TowerError TWR104."""
    try:
        with path.open("rb") as file:
            _check_private(os.fstat(file.fileno()), path)
            return _text(file.read(MAX_INPUT + 1), str(path))
    except OSError as error:
        raise TowerError("TWR104", f"the token file {path} cannot be read: {error.strerror}") from error


def _check_private(found: os.stat_result, path: Path) -> None:
    handed = found.st_uid == 0 and found.st_gid in {os.getegid(), *os.getgroups()}
    if stat.S_ISREG(found.st_mode) and found.st_mode & (0o027 if handed else 0o077):
        raise TowerError(
            "TWR104",
            f"the token file {path} is open to others than this agent (mode {stat.S_IMODE(found.st_mode):04o})",
            mend=f"`chmod 600 {path}`, or `defaultMode: 0440` where it is a mounted Secret; if others may have read "
            "the token, revoke it and make a new one",
        )


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
