"""Bugs planted in the protocol's code, each in an interpreter of its own: the simulation has to see them.

A mutant is a module with one passage replaced as it is read. A passage that is no longer there fails the test that uses
it, so that no mutant goes stale unnoticed.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SEEDS = 2000
DEADLINE = 600.0  # seconds for one mutant


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug: in `module`, `passage` stands once and becomes `instead`."""

    name: str
    module: str
    passage: str
    instead: str


SESSION, MULTIPLEX, FLOW = "protocol.session", "protocol.multiplex", "protocol.flow"
SCHEDULER, REPLAY = "protocol.scheduler", "protocol.replay"
MEMBER, TUNNELS = "tower_server.member", "tower_server.tunnels"

MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        "an ACK one too low",
        SESSION,
        "return encode(FrameType.ACK, 0, U64.pack(self.frames_received))",
        "return encode(FrameType.ACK, 0, U64.pack(max(0, self.frames_received - 1)))",
    ),
    Mutant(
        "an ACK one too high",
        SESSION,
        "return encode(FrameType.ACK, 0, U64.pack(self.frames_received))",
        "return encode(FrameType.ACK, 0, U64.pack(self.frames_received + 1))",
    ),
    Mutant(
        "a FIN that is not told",
        MULTIPLEX,
        "        self._events.append(events.StreamFinished(stream))\n",
        "",
    ),
    Mutant(
        "a FIN that is not sent",
        SCHEDULER,
        "            out.append(HEADER.pack(FrameType.FIN, 0, 0, stream.id, 0))\n",
        "",
    ),
    Mutant(
        "credit that is not returned",
        MULTIPLEX,
        "            self._outbox.grants[stream] = grant  #",
        "            pass  #",
    ),
    Mutant(
        "a frame sent again that was received",
        SESSION,
        "        replay.acknowledge(peer_received - self.frames_acked)\n",
        "        replay.acknowledge(max(0, peer_received - self.frames_acked - 1))\n",
    ),
    Mutant(
        "a frame not sent again that was lost",
        SESSION,
        "        replay.begin()\n",
        "        replay.begin()\n        if replay.resending:\n            replay.resending.popleft()\n",
    ),
    Mutant(
        "a replay buffer that is not trimmed",
        SESSION,
        "                replay.acknowledge(acked - self.frames_acked)\n",
        "                pass\n",
    ),
    Mutant(
        "a RST that is not sent",
        MULTIPLEX,
        "        self._queue(encode_reason(FrameType.RST, stream, code, text))\n",
        "",
    ),
    Mutant(
        "grants that are not made anew",
        SESSION,
        "                self._outbox.grants[stream.id] = stream.credit.granted\n",
        "                pass\n",
    ),
    Mutant(
        "a GOAWAY that is not made anew",
        SESSION,
        "        if self._goaway is not None:\n",
        "        if self._goaway is not None and not self.draining:\n",
    ),
    Mutant("an epoch that fences nothing", SESSION, "        if epoch <= self.epoch:\n", "        if epoch < 0:\n"),
    Mutant(
        "a share that a stream keeps",
        MULTIPLEX,
        "        stream.credit.release()\n        del self._streams[stream.id]\n",
        "        del self._streams[stream.id]\n",
    ),
    Mutant(
        "a queue whose memory is not given back",
        MULTIPLEX,
        "        self.budget.give(stream.charged)\n        stream.charged = 0\n",
        "        stream.charged = 0\n",
    ),
    Mutant(
        "a window that shrinks and keeps its memory",
        FLOW,
        "            self._budget.give(self.window - size)\n",
        "",
    ),
    Mutant(
        "a dead peer that is not noticed",
        SESSION,
        "        if silent >= self.limits.dead_after:\n",
        "        if silent >= 1e9:\n",
    ),
    Mutant(
        "a deaf peer that is not noticed",
        SESSION,
        "        return max(self._owing_since(), self._liveness.answered_at) + DEAF * self.limits.dead_after\n",
        "        return NEVER\n",
    ),
    Mutant(
        "a deaf peer that is noticed late",
        SESSION,
        "            due = min(due, self._deaf_at())\n",
        "",
    ),
    Mutant(
        "a resume window that never ends",
        SESSION,
        "            if now - self.detached_at >= self.limits.resume_window:\n",
        "            if now - self.detached_at >= 1e9:\n",
    ),
    Mutant(
        "a dead peer that is noticed late",
        SESSION,
        "min(self._liveness.heard_at + self.limits.dead_after, self._liveness.due(self.limits.ping_interval))",
        "self._liveness.due(self.limits.ping_interval)",
    ),
    Mutant(
        "a resume window that ends late",
        SESSION,
        "            due = self.detached_at + self.limits.resume_window\n",
        "            due = self.detached_at + 1.1 * self.limits.resume_window\n",
    ),
    Mutant(
        "a stream taken after GOAWAY",
        MULTIPLEX,
        "        if self.draining:\n            return Code.DRAINING",
        "        if False:\n            return Code.DRAINING",
    ),
    Mutant(
        "half a frame kept over to the next link",
        SESSION,
        "        self._decoder = FrameDecoder()\n        self._outbox.link_lost()\n",
        "        self._outbox.link_lost()\n",
    ),
    Mutant(
        "new frames before those that are sent again",
        SESSION,
        "        out = self._take_control(again)\n",
        "        out = self._take_control(False)\n",
    ),
    Mutant(
        "an orderly end whose data is skipped",
        MULTIPLEX,
        "        found.cut = not orderly\n",
        "        found.cut = True\n",
    ),
    Mutant(
        "a SKIP that is not counted",
        SESSION,
        "                if kind < FIRST_UNNUMBERED:\n                    self.frames_received += 1\n",
        "                if kind < FIRST_UNNUMBERED and kind != FrameType.SKIP:\n"
        "                    self.frames_received += 1\n",
    ),
    Mutant(
        "more than was granted",
        SCHEDULER,
        "        size = min(stream.queued, stream.send_limit - stream.sent, largest)\n",
        "        size = min(stream.queued, largest)\n",
    ),
    Mutant("a turn that never ends", SCHEDULER, "                ready.rotate(-1)\n", "                pass\n"),
    Mutant(
        "a tunnel that another agent may go on with",
        TUNNELS,
        "tunnel.dialect == SUBPROTOCOL and tunnel.peer.agent == identity.agent:",
        "tunnel.dialect == SUBPROTOCOL:",
    ),
    Mutant(
        "a position where nobody can have been",
        SESSION,
        "        if not self.frames_acked <= peer_received <= self.frames_sent:\n",
        "        if not self.frames_acked <= peer_received:\n",
    ),
    Mutant(
        "the most loaded tunnel",
        MEMBER,
        "        return min(found, key=_load)\n",
        "        return max(found, key=_load)\n",
    ),
    Mutant("a tunnel that stalls and is chosen", MEMBER, "        tunnel.stalled,\n", "        False,\n"),
    Mutant("a server that takes what agents open", MULTIPLEX, "        if not self._accepts:\n", "        if False:\n"),
    Mutant(
        "credit for what another stream has read",
        MULTIPLEX,
        "            self._outbox.grants[stream] = grant  #",
        "            self._outbox.grants[next(iter(self._streams))] = grant  #",
    ),
    Mutant(
        "a stream without credit that holds up the others",
        SESSION,
        "        elif self._scheduler.ready:\n",
        "        elif self._scheduler.ready and all(s.sendable or not s.queued for s in self._streams.values()):\n",
    ),
    Mutant(
        "a clock set back that passes for a flood",
        MULTIPLEX,
        "max(0.0, now - self._resets_at) * RESET_RATE",
        "(now - self._resets_at) * RESET_RATE",
    ),
    Mutant(
        "a replay that forgets what it keeps",
        REPLAY,
        "        self.resending = self.kept.copy()\n",
        "        self.resending = self.kept.copy()\n        self.resending.reverse()\n",
    ),
)


class NotSeen(AssertionError):
    """A planted bug that no invariant saw."""


def plant(name: str) -> None:
    """Plant a bug in this interpreter, which must not have imported the module yet."""
    mutant = next(each for each in MUTANTS if each.name == name)
    if mutant.module in sys.modules:
        raise RuntimeError(f"{mutant.name}: {mutant.module} is imported already")
    sys.meta_path.insert(0, _Finder(mutant))


def mutated(mutant: Mutant) -> str:
    """The module's source with the bug in it."""
    source = (ROOT / (mutant.module.replace(".", "/") + ".py")).read_text()
    if (count := source.count(mutant.passage)) != 1:
        raise ValueError(f"{mutant.name}: its passage stands {count} times in {mutant.module}")
    return source.replace(mutant.passage, mutant.instead)


class _Finder:
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._mutant.module:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.origin is not None
        spec.loader = _Planted(name, spec.origin, self._mutant)
        return spec


class _Planted(SourceFileLoader, Loader):
    def __init__(self, name: str, path: str, mutant: Mutant) -> None:
        super().__init__(name, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> Any:
        return compile(mutated(self._mutant), self.path, "exec")


def hunt(mutant: Mutant) -> str:
    """Look for the planted bug in a fresh interpreter, without assertions. How it was seen; NotSeen otherwise."""
    command = [sys.executable, "-O", "-m", "tests.simulation", "--mutant", mutant.name, "--seeds", f"0:{SEEDS}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=DEADLINE, check=False)
    if done.returncode != 0:
        raise NotSeen(f"{mutant.name}: not seen in {SEEDS} seeds\n{done.stdout}{done.stderr}")
    return f"{mutant.name}: seen by seed {done.stdout.strip()}"
