"""What the lab needs of Debian: installed by apt-get where that is allowed (root), said so; else the one line to run.

`python3 -m tests.lab.debian PACKAGE ...`, of the standard library alone: it runs before there is a virtual environment.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

APT_DEADLINE = 600.0


def _program(name: str) -> Callable[[], bool]:
    return lambda: shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is not None


# package -> whether it is there. The programs differ from the packages' names, and one is no program at all.
PACKAGES: Mapping[str, Callable[[], bool]] = {
    "iproute2": _program("ip"),
    "nftables": _program("nft"),
    "nginx-light": _program("nginx"),
    "wrk": _program("wrk"),
    "curl": _program("curl"),
    "systemd": _program("systemd-analyze"),
    "fish": _program("fish"),
    "zsh": _program("zsh"),
    "libfaketime": lambda: any(Path("/usr/lib").glob("*/faketime/libfaketime.so.1")),
    "python3-venv": lambda: importlib.util.find_spec("ensurepip") is not None,
}


def require(packages: Sequence[str]) -> bool:
    """Whether all of them are there in the end; says on stderr what it does, or what to run."""
    missing = [name for name in packages if not PACKAGES[name]()]
    if not missing:
        return True
    command = ["apt-get", "install", "-y", "--no-install-recommends", *missing]
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        who = "as root " if os.geteuid() != 0 else ""
        print(f"error: this needs {', '.join(missing)}; run {who}once: {' '.join(command)}", file=sys.stderr)
        return False
    print(f"installing from Debian, as root: {' '.join(command)}", file=sys.stderr, flush=True)
    environment = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
    for step in (["apt-get", "update", "-qq"], [*command, "-qq"]):
        try:
            done = subprocess.run(
                step, env=environment, capture_output=True, text=True, timeout=APT_DEADLINE, check=False
            )
        except subprocess.TimeoutExpired:
            print(f"error: {' '.join(step)}: no end within {APT_DEADLINE:.0f} s", file=sys.stderr)
            return False
        if done.returncode != 0:
            print(f"error: {' '.join(step)} failed:\n{done.stdout[-1500:]}{done.stderr[-1500:]}", file=sys.stderr)
            return False
    if still := [name for name in missing if not PACKAGES[name]()]:
        print(f"error: apt-get installed {', '.join(still)}, but it is still not found", file=sys.stderr)
        return False
    return True


if __name__ == "__main__":
    unknown = [name for name in sys.argv[1:] if name not in PACKAGES]
    if unknown:
        sys.exit(f"error: no such package here: {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    sys.exit(0 if require(sys.argv[1:]) else 1)
