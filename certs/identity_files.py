"""Identities in a directory: one sub-folder of mode 0700 for each host, files of mode 0600, every write atomic.

Entries that others can read are refused, not mended in silence: their keys may be known by then. A lock keeps the
agent and a `join` beside it apart. The base directory may be readable (service managers make it so), not writable, by
others.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from certs.errors import IdentityError
from certs.files import intruder, locked, remove_leftovers, replace_file, sync_directory
from certs.identity import ENTRIES, IDENTITY, MAX_ENTRY_BYTES, Entries, IdentityStore
from certs.names import is_label

_LOCK: Final = ".lock"
T = TypeVar("T")


class DirectoryIdentityStore(IdentityStore):
    """Identities under `base`, for example `/var/lib/tower-agent`. Files are touched in a thread, never on the loop."""

    def __init__(self, base: Path) -> None:
        self._base = base

    def place(self, host: str, name: str) -> str:
        return str(self._base / host / name)

    async def _change(self, change: Callable[[Entries], T]) -> T:
        return await asyncio.to_thread(self._change_in_thread, change)

    def _change_in_thread(self, change: Callable[[Entries], T]) -> T:
        try:
            self._base.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_mode(self._base, forbidden=0o022)
            _refuse_intruder(self._base)
            with locked(self._base / _LOCK):
                before = self._read()
                after = dict(before)
                result = change(after)
                self._write(before, after)
        except TimeoutError as exc:
            raise IdentityError(
                f"the identities in {self._base} are locked: {exc}", "see which process holds it, and stop it"
            ) from exc
        except OSError as exc:
            raise IdentityError(
                f"the identities in {self._base} cannot be read or written: {exc}",
                "give this user the directory, writable and with room on its disk, or name another one (--state-dir)",
            ) from exc
        return result

    def _read(self) -> dict[tuple[str, str], bytes]:
        entries: dict[tuple[str, str], bytes] = {}
        for folder in sorted(self._base.iterdir()):
            if not is_label(folder.name) or not folder.is_dir():
                continue
            _check_mode(folder, forbidden=0o077)
            _refuse_intruder(folder)
            for name in ENTRIES:
                content = _read_private(folder / name)
                if content is not None:
                    entries[folder.name, name] = content
        return entries

    def _write(self, before: Entries, after: Entries) -> None:
        for (host, name), content in after.items():
            if before.get((host, name)) != content:
                folder = self._base / host
                if not folder.exists():
                    folder.mkdir(mode=0o700)
                    sync_directory(self._base)
                remove_leftovers(folder)
                replace_file(folder / name, content)
        # The identity last: whoever is killed in between has a host still to leave, and no key lies where nobody looks.
        for host, name in sorted(before.keys() - after.keys(), key=lambda gone: gone[1] == IDENTITY):
            (self._base / host / name).unlink(missing_ok=True)
            sync_directory(self._base / host)
        for host in {host for host, _ in before} - {host for host, _ in after}:
            remove_leftovers(self._base / host)
            (self._base / host).rmdir()


def _read_private(path: Path) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        _refuse_open_mode(path, os.fstat(file.fileno()).st_mode, 0o077)
        content = file.read(MAX_ENTRY_BYTES + 1)
    if len(content) > MAX_ENTRY_BYTES:
        raise IdentityError(f"{path} has more than {MAX_ENTRY_BYTES} bytes: it is not one of Tower's", "move it away")
    return content


def _refuse_intruder(path: Path) -> None:
    """Root may look after the directory of an agent that runs as another user."""
    who = intruder(path) if os.geteuid() else ""
    if who:
        raise IdentityError(
            f"another user could put an identity of theirs in the place of this agent's: {who}",
            f"`chown {os.geteuid()} {path}`, or name another directory",
        )


def _check_mode(path: Path, *, forbidden: int) -> None:
    _refuse_open_mode(path, path.stat().st_mode, forbidden)


def _refuse_open_mode(path: Path, mode: int, forbidden: int) -> None:
    if mode & forbidden:
        may, wanted = ("read or change", "go-rwx") if forbidden & 0o044 else ("change", "go-w")
        raise IdentityError(
            f"{path} has mode {stat.S_IMODE(mode):04o}: other users may {may} what is in it",
            f"`chmod {wanted} {path}`; if someone else may have read its keys, revoke the agent and join again",
        )
