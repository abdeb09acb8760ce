"""Files of the person who types: each failure says which file, why, and what to do."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from certs.files import read_file, replace_file
from daemon.faults import TowerError
from towerctl.errors import usage


def write_private(path: Path, data: str, *, what: str) -> None:
    """Replaces `path` in one step, mode 0600. Raises `TowerError` (TWR104) naming `what` and the mend."""
    try:
        replace_file(path, data.encode())
    except OSError as error:
        mend = "name a file that you may write, with room on its disk"
        if isinstance(error, FileNotFoundError):
            mend = "make the directory first"
        raise TowerError("TWR104", f"cannot write {what} to {path}: {error.strerror or error}", mend=mend) from error


def read_text(path: Path, *, what: str, limit: int = 1024 * 1024) -> str:
    """Raises `TowerError` (TWR104) when it cannot be read, is not text, or is longer than `limit` bytes.

    `-` is standard input.
    """
    try:
        data = sys.stdin.buffer.read(limit + 1) if str(path) == "-" else read_file(path, limit + 1)
    except OSError as error:
        mend = "check the path, and that you may read it"
        raise TowerError("TWR104", f"cannot read {what} {path}: {error.strerror or error}", mend=mend) from error
    if len(data) > limit:
        raise TowerError("TWR104", f"{what} {path} is larger than {limit} bytes", mend="name the right file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise TowerError("TWR104", f"{what} {path} is not text", mend="name the right file") from error


def home(instead: str) -> Path:
    """This user's own directory. Raises `TowerError` (TWR601) where there is none, as in a container; `instead` is the
    variable by which another place can be named."""
    try:
        return Path.home()
    except RuntimeError as error:
        raise usage("this user has no home directory", mend=f"set HOME, or {instead}") from error


def kubectl_files() -> list[Path]:
    """The kubeconfigs that kubectl itself reads, there or not; the first is the one that it writes to. TowerError."""
    listed = [Path(each) for each in os.environ.get("KUBECONFIG", "").split(os.pathsep) if each]
    return listed or [home("KUBECONFIG") / ".kube" / "config"]
