"""The demo's proof: kubectl commands through the tunnel, each shown with what it printed and whether that was right."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

from tests.lab.controlplane import ControlPlane
from tests.lab.network import reachable
from tests.lab.world import Cluster

DEADLINE = 60.0
SHOWN_LINES = 8
FOLLOWED_LINES = 3


class Proof:
    """`show` prints every step and returns whether all of them held."""

    def __init__(self, member: Cluster, kubeconfig: Path, *, pod: str, namespace: str) -> None:
        self._member, self._kubeconfig, self._pod, self._namespace = member, kubeconfig, pod, namespace

    def show(self) -> bool:
        in_namespace = [] if self._namespace == "default" else ["-n", self._namespace]
        print("\nProof\n", flush=True)
        held = [
            self._cannot_be_dialled(),
            self._kubectl("version", expect="Server Version"),
            self._kubectl("get", "namespaces", expect="kube-system"),
            self._follow("logs", "-f", "--tail=1", *in_namespace, self._pod),
            self._kubectl(
                "exec",
                *in_namespace,
                self._pod,
                "--",
                "sh",
                "-c",
                "echo hello from inside; exit 7",
                expect="hello from inside",
                code=7,
            ),
        ]
        good = all(held)
        print(f"{'All of it held.' if good else 'NOT all of it held.'}", flush=True)
        return good

    def _cannot_be_dialled(self) -> bool:
        if self._member.network is None or not isinstance(self._member, ControlPlane):
            return True  # said when it was set up
        host, port = self._member.address, self._member.ports.apiserver
        print(f"Dialling the member's apiserver directly, {host}:{port} ...", flush=True)
        if reachable(host, port):
            print("  FAILED: it answers, so the tunnel proves nothing\n", flush=True)
            return False
        print("  ok: no answer; only the agent reaches it\n", flush=True)
        return True

    def _kubectl(self, *arguments: str, expect: str, code: int = 0) -> bool:
        self._announce(arguments)
        started = time.monotonic()
        try:
            done = subprocess.run(
                self._argv(arguments),
                env=self._environment(),
                capture_output=True,
                text=True,
                timeout=DEADLINE,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return self._verdict(f"no end within {DEADLINE:.0f} s")
        lines = (done.stdout + done.stderr).splitlines()
        for line in lines[:SHOWN_LINES]:
            print(f"    {line}")
        if len(lines) > SHOWN_LINES:
            print(f"    ... and {len(lines) - SHOWN_LINES} more")
        if done.returncode != code:
            return self._verdict(f"exit code {done.returncode}, not {code}")
        if expect not in done.stdout:
            return self._verdict(f"no {expect!r} in its output")
        ended = f", exit code {code} as inside" if code else ""
        return self._verdict(None, f"{time.monotonic() - started:.2f} s{ended}")

    def _follow(self, *arguments: str) -> bool:
        """Lines that come while we watch, one after the other, and not at the end in one piece."""
        self._announce(arguments)
        with subprocess.Popen(
            self._argv(arguments), env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ) as process:
            assert process.stdout is not None
            os.set_blocking(process.stdout.fileno(), False)
            end, text, came = time.monotonic() + DEADLINE, b"", []
            while len(came) < FOLLOWED_LINES and time.monotonic() < end:
                if piece := process.stdout.read() or b"":
                    text += piece
                    came += [(time.monotonic(), line) for line in text.split(b"\n")[len(came) : -1]]
                elif process.poll() is not None:
                    break
                time.sleep(0.02)
            ended = process.poll()
            process.kill()
        for _, line in came:
            print(f"    {line.decode(errors='replace')}")
        if ended is not None:
            return self._verdict(f"it ended by itself with {ended}: {text[-300:].decode(errors='replace')}")
        if len(came) < FOLLOWED_LINES:
            return self._verdict(f"{len(came)} lines within {DEADLINE:.0f} s")
        return self._verdict(None, f"live: {FOLLOWED_LINES} lines over {came[-1][0] - came[0][0]:.1f} s")

    def _announce(self, arguments: tuple[str, ...]) -> None:
        words = [f"'{word}'" if " " in word else word for word in arguments]
        print(f"$ kubectl {' '.join(words)}", flush=True)

    def _verdict(self, failure: str | None, fine: str = "") -> bool:
        print(f"  FAILED: {failure}\n" if failure else f"  ok ({fine})\n", flush=True)
        return failure is None

    def _argv(self, arguments: tuple[str, ...]) -> list[str]:
        return [str(self._member.programs["kubectl"]), "--kubeconfig", str(self._kubeconfig), *arguments]

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._kubeconfig.parent)}
