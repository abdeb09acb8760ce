"""A network of its own for a member: a namespace from which connections to the host work, and into which none do.

    host  198.18.N.1 ---- veth ---- 198.18.N.2  member      (no route further; 198.18/15 is set aside for such uses)

The rules lie inside the namespace and drop every incoming packet that answers nothing: the member is as unreachable as
behind a NAT. Everything vanishes with the namespace. It takes root, `ip` and `nft`; `lacking()` says what is missing.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from typing import Self

from tests.lab.processes import LabError

SUBNET = "198.18.{}.{}"
RULES = """
table inet member {
  chain incoming {
    type filter hook input priority 0; policy drop;
    iif "lo" accept
    ct state established,related accept
  }
  chain outgoing {
    type filter hook output priority 0; policy drop;
    oif "lo" accept
    ct state established,related accept
    ip daddr HOST tcp dport != 0 accept
  }
}
"""
VANISH = """
table inet vanish {
  chain incoming { type filter hook input priority -10; policy accept; iif != "lo" drop; }
  chain outgoing { type filter hook output priority -10; policy accept; oif != "lo" drop; }
}
"""
LOSSY = """
table netdev DEVICE {
  chain arriving {
    type filter hook ingress device "DEVICE" priority 0; policy accept;
    numgen random mod 100 < PERCENT drop
  }
}
"""
COMMAND_DEADLINE = 30.0


def lacking() -> str | None:
    """Why no namespace can be made here, or None."""
    if os.geteuid() != 0:  # first: others do not have /usr/sbin on their PATH, and a package would not help them
        return "not root"
    missing = [program for program in ("ip", "nft") if shutil.which(program) is None]
    if missing:
        packages = " ".join({"ip": "iproute2", "nft": "nftables"}[program] for program in missing)
        return f"{' and '.join(missing)} not installed (apt-get install {packages})"
    try:
        with MemberNetwork():
            return None
    except LabError as error:
        return str(error)


class MemberNetwork:
    """The namespace `name`, with `host` and `member` as the two ends' addresses, until `close`."""

    def __init__(self) -> None:
        tag = secrets.token_hex(3)
        self.name = f"tower-{tag}"
        self._link, self._inner = f"tw{tag}", f"tm{tag}"
        inner = self._inner
        number = _free_subnet()
        self.host, self.member = SUBNET.format(number, 1), SUBNET.format(number, 2)
        try:
            _run("ip", "netns", "add", self.name)
            _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", inner, "netns", self.name)
            _run("ip", "addr", "add", f"{self.host}/30", "dev", self._link)
            _run("ip", "link", "set", self._link, "up")
            self.run("ip", "addr", "add", f"{self.member}/30", "dev", inner)
            self.run("ip", "link", "set", inner, "up")
            self.run("ip", "link", "set", "lo", "up")
            self.run("nft", "-f", "-", stdin=RULES.replace("HOST", self.host))
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, stdin: str = "") -> str:
        return _run("ip", "netns", "exec", self.name, *command, stdin=stdin)

    @contextlib.contextmanager
    def vanishing(self) -> Iterator[None]:
        """Every packet between host and member is dropped, in both directions, and nobody is told."""
        self.run("nft", "-f", "-", stdin=VANISH)
        try:
            yield
        finally:
            self.run("nft", "delete", "table", "inet", "vanish")

    @contextlib.contextmanager
    def poor(self, *, rate: str, loss: int) -> Iterator[None]:
        """Both directions move no more than `rate` (in tc's words; 100 ms of queue) and lose so many packets of 100."""
        shape = ("root", "tbf", "rate", rate, "burst", "4kb", "latency", "100ms")
        ends = ((self._link, _run), (self._inner, self.run))
        try:
            for device, run in ends:
                run("ip", "link", "set", device, "gso_max_segs", "1")  # a packet that is dropped is one of the wire's
                run("tc", "qdisc", "add", "dev", device, *shape)
                run("nft", "-f", "-", stdin=LOSSY.replace("DEVICE", device).replace("PERCENT", str(loss)))
            yield
        finally:
            for device, run in ends:
                with contextlib.suppress(LabError):  # not made
                    run("nft", "delete", "table", "netdev", device)
                with contextlib.suppress(LabError):
                    run("tc", "qdisc", "del", "dev", device, "root")

    def close(self) -> None:
        with contextlib.suppress(LabError):  # never made, or gone already
            _run("ip", "link", "del", self._link)
        with contextlib.suppress(LabError):
            _run("ip", "netns", "del", self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def loopbacks() -> dict[socket.AddressFamily, str]:
    """The addresses by which this machine reaches itself: a container has often none of IPv6."""
    found = {}
    for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, 0))
            found[family] = address
    return found


def reachable(host: str, port: int, *, deadline: float = 1.0) -> bool:
    """Whether a TCP connection from the host's own network gets through."""
    try:
        socket.create_connection((host, port), timeout=deadline).close()
    except OSError:
        return False
    return True


def _free_subnet() -> int:
    taken = _run("ip", "-4", "-o", "addr", "show")
    for number in sorted(range(256), key=lambda _: secrets.randbelow(1 << 30)):
        if f" {SUBNET.format(number, '')}" not in taken:
            return number
    raise LabError(f"every subnet of {SUBNET.format('N', '0')}/30 is taken")


def _run(*command: str, stdin: str = "") -> str:
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=COMMAND_DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LabError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        raise LabError(f"{' '.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
