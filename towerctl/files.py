"""Writing files for the person who typed the command: whole or not at all, 0600 where secrets are in them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from daemon.faults import TowerError


def write_private(path: Path, data: str, *, what: str) -> None:
    """Replaces `path` in one step, mode 0600. Raises `TowerError` (TWR104) naming `what` and the mend."""
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _cannot_write(path, what, error) from error
    try:
        with os.fdopen(handle, "w") as file:  # mkstemp makes it 0600
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.is_dir():
            raise IsADirectoryError(21, "it is a directory")
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path, what, error) from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def read_text(path: Path, *, what: str, limit: int = 1024 * 1024) -> str:
    """Raises `TowerError` (TWR104) when it cannot be read, is not text, or is longer than `limit` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except OSError as error:
        mend = "check the path, and that you may read it"
        raise TowerError("TWR104", f"cannot read {what} {path}: {error.strerror or error}", mend=mend) from error
    if len(data) > limit:
        raise TowerError("TWR104", f"{what} {path} is larger than {limit} bytes", mend="name the right file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TowerError("TWR104", f"{what} {path} is not text", mend="name the right file") from error


def _cannot_write(path: Path, what: str, error: OSError) -> TowerError:
    mend = "make the directory first" if isinstance(error, FileNotFoundError) else "name a file that you may write"
    return TowerError("TWR104", f"cannot write {what} to {path}: {error.strerror or error}", mend=mend)
