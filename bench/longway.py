"""A member at the end of a long way: a namespace whose only way to the host has a rate, a delay and a bounded queue.

    host  198.18.N.1 ---- delay each way, rate, queue ---- 198.18.N.2  member

Real packets and the kernel's own TCP at both ends, so what waits in queues, is lost and sent again is what would be on
such a path. Not every kernel can delay packets, so a small program carries them between two devices (`lab/go/way`).
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from typing import Self

from tests.lab.assets import ensure
from tests.lab.network import SUBNET, _free_subnet, _run
from tests.lab.processes import Child, LabError

READY = 20.0
# So large that a long fat way is not held up by the ends' own buffers: 64 MiB.
BUFFERS = {"tcp_rmem": "4096 131072 67108864", "tcp_wmem": "4096 65536 67108864"}


class LongWay:
    """The namespace `name`, with `host` and `member` as the two ends' addresses, until `close`.

    Args:
        round_trip: seconds.
        rate: bytes a second in each direction; 0 for as many as come. The queue holds what it moves in a round trip.
        mtu: bytes of the largest packet.
        offload: let the kernel cut no packets and add up no bytes, as with a network card that does it: what carries
            them takes less of the processors then, which the ends need too. Queues and losses are of 64 KiB at a time.
    """

    def __init__(
        self, folder: Path, *, round_trip: float, rate: float = 0, mtu: int = 1500, offload: bool = False
    ) -> None:
        tag = secrets.token_hex(3)
        self.name = f"tower-{tag}"
        near, far = f"tw{tag}", f"tm{tag}"
        number = _free_subnet()
        self.host, self.member = SUBNET.format(number, 1), SUBNET.format(number, 2)
        self.log = folder / f"way-{tag}.log"
        self._carrier: Child | None = None
        arguments = [near, far, f"{rate:.0f}", f"{max(rate * round_trip, 2 * mtu):.0f}", f"{round_trip / 2 * 1000:g}ms"]
        arguments += ["offload"] * offload
        try:
            _run("ip", "netns", "add", self.name)
            self._carrier = Child("way", [ensure(["way"])["way"], *arguments], log=self.log)
            self._carrier.until(lambda: "ready" in self.log.read_text(), "the way's devices", READY)
            _run("ip", "link", "set", far, "netns", self.name)
            _run("ip", "addr", "add", f"{self.host}/30", "dev", near)
            _run("ip", "link", "set", near, "mtu", str(mtu), "txqueuelen", "10000", "up")
            self.run("ip", "addr", "add", f"{self.member}/30", "dev", far)
            self.run("ip", "link", "set", far, "mtu", str(mtu), "txqueuelen", "10000", "up")
            self.run("ip", "link", "set", "lo", "up")
            for name, value in BUFFERS.items():
                self.run("sysctl", "-qw", f"net.ipv4.{name}={value}")
        except BaseException:
            self.close()
            raise

    def run(self, *command: str) -> str:
        return _run("ip", "netns", "exec", self.name, *command)

    def close(self) -> None:
        if self._carrier is not None:
            self._carrier.stop()
        with contextlib.suppress(LabError):  # never made, or gone already
            _run("ip", "netns", "del", self.name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
