"""Writing a private file: a reader sees the old content or the new, after a crash too, and nobody else sees any."""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK_DEADLINE: Final = 5.0  # seconds; holders keep it for milliseconds
_LOCK_RETRY: Final = 0.02
_TEMPORARY: Final = ".tower-"


def replace_file(path: Path, content: bytes, *, mode: int = 0o600) -> None:
    """Write beside, flush to disk, rename over. OSError leaves `path` as it was."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make a rename or removal in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(directory: Path) -> None:
    """Temporary files of writers that were killed; only under the lock that all writers take."""
    for leftover in directory.glob(f"{_TEMPORARY}*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, *, deadline: float = LOCK_DEADLINE) -> Iterator[None]:
    """Hold an advisory lock on `path` (made when missing); TimeoutError after `deadline` seconds. Blocks the thread."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        until = time.monotonic() + deadline
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= until:
                    raise TimeoutError(f"{path} is held by another process for {deadline:g} s") from None
                time.sleep(_LOCK_RETRY)
        yield
    finally:
        os.close(descriptor)
