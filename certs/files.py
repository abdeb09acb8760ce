"""Writes private files: after a crash too, a reader sees either the old content or the new, and nobody else sees any.
`intruder` finds directories in which another user could put files of theirs; `read_file` waits for no pipe for ever.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

LOCK_DEADLINE: Final = 5.0  # seconds; holders keep it for milliseconds
PIPE_DEADLINE: Final = 60.0  # seconds; who writes to it may have to ask a person for a password first
PIECE_BYTES: Final = 1024 * 1024
_LOCK_RETRY: Final = 0.02
_TEMPORARY: Final = ".tower-"


def replace_file(path: Path, content: bytes) -> None:
    """Write beside (mode 0600), flush to disk, rename over. OSError leaves `path` as it was.

    A pipe or a device (/dev/stdout) in its place is refused: it would be gone for everybody.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=_TEMPORARY)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def read_file(path: Path, limit: int) -> bytes:
    """At most `limit` bytes of a file that a person named, which may be a pipe (`<(gpg -d copy.gpg)`). OSError, also
    where nothing comes through it for `PIPE_DEADLINE`. Blocks the thread."""

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NONBLOCK)  # else it waits for whoever is to write, for ever

    with open(path, "rb", buffering=0, opener=opener) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        data = bytearray()
        while len(data) < limit:
            if not poll.poll(PIPE_DEADLINE * 1000):
                text = f"it is a pipe, and nothing came through it for {PIPE_DEADLINE:g} s"
                raise TimeoutError(errno.ETIMEDOUT, text)
            piece = file.read(min(limit - len(data), PIECE_BYTES))
            if not piece:
                break
            data += piece
        return bytes(data)


def is_there(path: Path) -> bool:
    """Whether something is there. What this user may not even look at counts: whoever then opens it is told why."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        pass
    return True


def intruder(directory: Path, *, public: bool = False) -> str:
    """Who else could put files into `directory` or put another in its place, for a sentence; empty for nobody.

    What lies in a directory that all may write (/tmp) is trusted where root or this user made it. With `public` the
    directory itself may be such a one, as a pod's own volumes are. A group of this process may write.
    """
    trusted, groups = (0, os.geteuid()), (0, os.getegid(), *os.getgroups())
    shared = False
    for place in [*reversed(directory.absolute().parents), directory.absolute()]:
        found = place.stat()
        last = place == directory.absolute()
        if found.st_uid not in trusted and (shared or last):
            return f"{place} belongs to uid {found.st_uid}, who may put other files there"
        shared = bool(found.st_mode & stat.S_IWOTH)
        if last and not public:
            if shared:
                return f"{place} may be written by everybody (mode {stat.S_IMODE(found.st_mode):04o})"
            if found.st_mode & stat.S_IWGRP and found.st_gid not in groups:
                return f"{place} may be written by group {found.st_gid} (mode {stat.S_IMODE(found.st_mode):04o})"
    return ""


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
        if not leftover.is_dir():  # that is none of ours
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
