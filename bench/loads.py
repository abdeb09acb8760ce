"""Loads: wrk and curl as processes of their own, never Python. Each returns one figure."""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

DEADLINE = 180.0
MEGA = 1_000_000
# Any token will do: the bearer way passes it on untouched, and nginx does not look.
AUTHORIZATION = "Authorization: Bearer bench"


class LoadError(Exception):
    """A load did not run, or did not get what it asked for."""


@dataclass(frozen=True)
class Wrk:
    """What wrk printed: requests a second, and latencies in milliseconds."""

    rate: float
    p50: float
    p99: float


def wrk(port: int, connections: int, seconds: int, *, close: bool = False) -> Wrk:
    """Small GETs over `connections` kept connections, or over a new connection each with `close`."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "10s", "-H", AUTHORIZATION]
    if close:
        command += ["-H", "Connection: close"]
    out = _run([*command, f"https://127.0.0.1:{port}/small"])
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out) or re.search(r"Socket errors: (.*)", out)
    rate, p50, p99 = (
        re.search(pattern, out) for pattern in (r"Requests/sec:\s+([\d.]+)", _LATENCY % 50, _LATENCY % 99)
    )
    if bad or not rate or not p50 or not p99:
        raise LoadError(f"wrk -c{connections} on port {port}: {bad[0] if bad else 'no figures'}\n{out}")
    return Wrk(float(rate[1]), _milliseconds(p50), _milliseconds(p99))


_LATENCY = r"\b%d%%\s+([\d.]+)(us|ms|s)\b"
_UNITS = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def _milliseconds(match: re.Match[str]) -> float:
    return float(match[1]) * _UNITS[match[2]]


def download(port: int, streams: int, size: int, *, host: str = "127.0.0.1") -> float:
    """MB/s of `size` bytes over `streams` connections at once."""
    share = size // streams
    return _curls(
        [[*_CURL, "-o", "/dev/null", "-r", f"0-{share - 1}", f"https://{host}:{port}/bulk"] for _ in range(streams)],
        share * streams,
        code="206",
    )


def grown(port: int, after: int, size: int, *, host: str = "127.0.0.1") -> float:
    """MB/s at which one download of `size` bytes goes on once `after` of them have come."""
    command = [*_CURL, "-o", "/dev/null", "-r", f"0-{size - 1}", f"https://{host}:{port}/bulk"]
    began: tuple[float, int] | None = None
    ended = (0.0, 0)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as curl:
        deadline = time.monotonic() + DEADLINE
        while curl.poll() is None:
            if time.monotonic() > deadline:
                curl.kill()
            with contextlib.suppress(OSError):  # it is just ending
                written = re.search(r"^wchar: (\d+)", Path(f"/proc/{curl.pid}/io").read_text(), re.MULTILINE)
                now, done = time.monotonic(), int(written[1]) if written else 0
                if began is None and done >= after:
                    began = now, done
                if done > ended[1]:
                    ended = now, done
            time.sleep(0.01)
        out, err = curl.communicate()
    if curl.returncode or out.strip() != "206" or began is None or ended[0] <= began[0]:
        raise LoadError(f"{' '.join(command)}: exit {curl.returncode}, status {out.strip()}, {err.strip()}")
    return (ended[1] - began[1]) / (ended[0] - began[0]) / MEGA


def upload(port: int, file: Path, streams: int = 1) -> float:
    """MB/s of a file sent over `streams` connections at once, whole on each."""
    command = [*_CURL, "-o", "/dev/null", "-H", "Expect:", "-T", str(file), f"https://127.0.0.1:{port}/upload"]
    return _curls([command] * streams, file.stat().st_size * streams, code="200")


_CURL = ["curl", "-sS", "-k", "-H", AUTHORIZATION, "-w", "%{http_code}"]


def _curls(commands: Sequence[list[str]], size: int, *, code: str) -> float:
    started = time.monotonic()
    running = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    try:
        for process in running:
            out, err = process.communicate(timeout=DEADLINE)
            if process.returncode or out.strip() != code:
                raise LoadError(f"{' '.join(process.args)}: status {out.strip()}, {err.strip()}")  # type: ignore[arg-type]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return size / (time.monotonic() - started) / MEGA


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode:
        raise LoadError(f"{' '.join(command)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
