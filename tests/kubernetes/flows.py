"""What a person leaves running in a member: an exec that counts, logs that are followed, a watch; all numbered.

A numbered line that is lost, comes twice or out of order is seen by comparing with the numbers from 0 on. The sources
run beside the tunnel (the counter in the pod, the other two from a thread straight at the member), so a pause of the
tunnel does not pause them.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.kubernetes.rawhttp import Connection
from tests.kubernetes.views import Running, View
from tests.lab.controlplane import ControlPlane
from tests.lab.processes import LabError, wait_until

COUNTER = """
import itertools, os, sys, time
for number in itertools.takewhile(lambda _: not os.path.exists(sys.argv[1]), itertools.count()):
    print(number, flush=True)
    time.sleep(0.01)
print("end", flush=True)
"""
PATIENCE = 60.0


class Flows:
    """Three flows of `caller` in a namespace and pod of their own; `direct` is a way that is never damaged; without
    one, the sources are written by kubectl from within the member's network."""

    def __init__(
        self, plane: ControlPlane, caller: View, direct: View | None, namespace: str, *, every: float = 0.02
    ) -> None:
        self._plane, self._caller, self._namespace, self._every = plane, caller, namespace, every
        self._apiserver = Connection(direct) if direct is not None else None
        self._end = plane.folder / f"end-of-{namespace}"
        self._stop = threading.Event()
        self._writer = threading.Thread(target=self._write, name=f"writer of {namespace}")
        self.written = 0
        self.failure: Exception | None = None
        plane.kubectl("create", "namespace", namespace)
        plane.create_pod("pod", namespace=namespace)
        self.counter = self._start("exec", "pod", "--", sys.executable, "-c", COUNTER, str(self._end))
        self.logs = self._start("logs", "-f", "pod")
        self.watch = self._start("get", "configmaps", "--watch", "-o", "name")

    def _start(self, *arguments: str) -> Running:
        return self._caller.start("-n", self._namespace, *arguments)

    def all(self) -> dict[str, Running]:
        return {"exec": self.counter, "logs": self.logs, "watch": self.watch}

    def begin(self) -> None:
        """From here on the sources write; returns when all three flow. A watch begins with a list, sorted by name:
        the first line of each has to be there before there are two."""
        self._write_one()
        self.logs.until(b"0\n")
        self.watch.until(b"n-0\n")
        self._writer.start()
        self.more(1)

    def _write(self) -> None:
        try:
            while not self._stop.wait(self._every):
                self._write_one()
        except (OSError, http.client.HTTPException, AssertionError, LabError) as error:
            self.failure = error

    def _write_one(self) -> None:
        name = f"n-{self.written}"
        if self._apiserver is None:
            self._plane.kubectl("create", "configmap", name, "-n", self._namespace)
        else:
            self._create(self._apiserver, name)
        self._plane.write_log("pod", str(self.written), namespace=self._namespace)
        self.written += 1

    def _create(self, apiserver: Connection, name: str) -> None:
        body = json.dumps({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": name}}).encode()
        headers = ("Content-Type: application/json", f"Content-Length: {len(body)}")
        path = f"/api/v1/namespaces/{self._namespace}/configmaps"
        apiserver.send(apiserver.request("POST", path, *headers, body=body))
        answer = apiserver.answer("POST")
        assert answer.status == 201, answer

    def seen(self) -> dict[str, int]:
        """Lines of each that have come."""
        return {name: flow.stdout.count(b"\n") for name, flow in self.all().items()}

    def more(self, lines: int = 3) -> None:
        """Waits until every flow has brought so many more lines."""
        before = self.seen()

        def came() -> bool:
            ended = {name: flow.stderr for name, flow in self.all().items() if not flow.running}
            assert not ended, f"ended before their time: {ended}"
            assert self.failure is None, f"the writer: {self.failure}"
            now = self.seen()
            return all(now[name] >= before[name] + lines for name in now)

        wait_until(came, f"{lines} more lines of each flow", PATIENCE)

    def finish(self) -> dict[str, int]:
        """Ends the sources and holds that each flow brought all of it, in order and once; the lines of each."""
        self._stop_writing()
        assert self.failure is None, f"the writer: {self.failure}"
        self._end.touch()
        counted = self.counter.wait(deadline=PATIENCE)
        assert counted.code == 0, counted.stderr
        lines = counted.stdout.decode().splitlines()
        assert lines == [*map(str, range(len(lines) - 1)), "end"], "the counter's lines"
        last = self.written - 1
        self.logs.until(b"\n%d\n" % last, deadline=PATIENCE)
        self.watch.until(b"configmap/n-%d\n" % last, deadline=PATIENCE)
        assert self.logs.stdout.decode().splitlines() == [*map(str, range(self.written))], "the lines of the log"
        watched = self.watch.stdout.decode().splitlines()
        assert watched == [f"configmap/n-{number}" for number in range(self.written)], "the events of the watch"
        return self.seen()

    def _stop_writing(self) -> None:
        self._stop.set()
        if self._writer.ident is not None:
            self._writer.join(PATIENCE)

    def close(self) -> None:
        self._stop_writing()
        self._end.touch()
        for flow in self.all().values():
            flow.__exit__()
        if self._apiserver is not None:
            self._apiserver.__exit__()


@contextlib.contextmanager
def flowing(
    plane: ControlPlane, caller: View, direct: View | None, namespace: str, *, every: float = 0.02
) -> Iterator[Flows]:
    made = Flows(plane, caller, direct, namespace, every=every)
    try:
        made.begin()
        yield made
    finally:
        made.close()


class Copy:
    """A file that `kubectl cp` carries to the pod and back, one after the other, in a thread; `check` compares."""

    def __init__(self, caller: View, folder: Path, *, pod: str, deadline: float) -> None:
        self._caller, self._folder, self._pod, self._deadline = caller, folder, pod, deadline
        self.failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="copy")
        self._thread.start()

    @property
    def running(self) -> bool:
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            namespace, pod = self._pod.split("/")
            source, inside, back = (self._folder / name for name in ("source", "inside", "back"))
            for ends in ((str(source), f"{pod}:{inside}"), (f"{pod}:{inside}", str(back))):
                done = self._caller.kubectl("cp", "-n", namespace, *ends, deadline=self._deadline)
                assert done.code == 0, done
        except (LabError, AssertionError) as error:
            self.failure = error

    def join(self) -> None:
        self._thread.join(3 * self._deadline)
        assert not self.running, "the copy never ends"
        if self.failure is not None:
            raise self.failure
