"""`make demo`: kubectl through a tunnel to the apiserver of a member that nobody can dial, until Ctrl-C.

What it starts is what a user would start (tower-server, tower-agent, towerctl); the member is a real control plane in a
network of its own, or the reader's own cluster (`MEMBER_KUBECONFIG=FILE`, and no other variable: an exported KUBECONFIG
may point at something that matters). Whatever it makes lies in one temporary folder, one network namespace, and in the
reader's cluster under one random name; all of it is gone afterwards. `ONCE=1` ends it after the proof.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from tests.lab import assets, debian, network
from tests.lab.controlplane import PLANE, PODS, ControlPlane
from tests.lab.ownmember import MemberRefused, OwnMember
from tests.lab.processes import LabError
from tests.lab.proof import Proof
from tests.lab.world import BIN, Cluster, TowerWorld

NAME = "member"
POD = "greeter"
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    for number in ENDING:  # a shell starts what runs behind it without SIGINT
        signal.signal(number, _interrupt)
    own = os.environ.get("MEMBER_KUBECONFIG", "")
    once = os.environ.get("ONCE", "") not in ("", "0")
    try:
        with contextlib.ExitStack() as stack:
            try:
                return demo(stack, Path(own).expanduser() if own else None, once=once)
            finally:
                _clean_up_undisturbed()
    except (LabError, assets.AssetError) as error:
        told = isinstance(error, MemberRefused | assets.AssetError)  # the mend, which is not to wait
        busy = "" if told else too_busy(os.getloadavg()[0], os.cpu_count() or 1)
        print(f"error: {error}{busy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped; nothing is left behind", file=sys.stderr)
        return 0 if not once else 130


def too_busy(load: float, processors: int) -> str:
    """A next step for what came up too late on a machine that had other things to do."""
    if load < 2 * processors:
        return ""
    return f"\n  this machine is busy (load {load:.0f} on {processors} processors): see `uptime`, then run it again"


def demo(stack: contextlib.ExitStack, own: Path | None, *, once: bool) -> int:
    if own is None:
        assets.ensure([*PLANE, *PODS])
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tower-demo-")))
    host = f"demo-{secrets.token_hex(2)}"
    member = own_member(stack, own, folder) if own else stand_in_member(stack, folder)
    address = member.network.host if member.network else "127.0.0.1"
    with doing(f"a tower server on its SQLite store, for agents at wss://{address}"):
        world = stack.enter_context(TowerWorld(folder / "t", host=host, address=address))
    with doing("the member's agent: added, manifest applied, joined, Ready"):
        world.join(NAME, member)
    kubeconfig = world.kubeconfig(NAME)
    namespace = "default"
    if isinstance(member, OwnMember):
        namespace = f"tower-{host}"
        member.create_pod(POD, namespace=namespace)
    else:
        member.create_pod(POD)
        stack.enter_context(chatter(member))
    proof = Proof(member, kubeconfig, pod=POD, namespace=namespace)
    fine = proof.show()
    print("\nThe member is yours, and all of it is real." if isinstance(member, OwnMember) else STAND_INS, flush=True)
    if once:
        return 0 if fine else 1
    print(next_steps(world, member, kubeconfig, namespace), flush=True)
    stay(world, member)
    return 0


def stand_in_member(stack: contextlib.ExitStack, folder: Path) -> ControlPlane:
    net = own_network(stack)
    where = f"in network namespace {net.name}, address {net.member}" if net else "on loopback"
    with doing(f"a member: kube-apiserver, etcd, kwok, streamlet {where}"):
        return stack.enter_context(ControlPlane(folder / "m", network=net))


def own_network(stack: contextlib.ExitStack) -> network.MemberNetwork | None:
    """A namespace where that is allowed; else None, and the reason said."""
    if os.geteuid() == 0:
        debian.require(["iproute2", "nftables"])
    reason = network.lacking()
    if reason is None:
        return stack.enter_context(network.MemberNetwork())
    say(f"no network of its own for the member ({reason}): everything runs on loopback, where it could also be dialled")
    return None


def own_member(stack: contextlib.ExitStack, kubeconfig: Path, folder: Path) -> OwnMember:
    member = stack.enter_context(OwnMember(kubeconfig, folder))
    say(f"member: {member.server} as {kubeconfig} says; its agent runs here, on this machine")
    return member


@contextlib.contextmanager
def chatter(member: ControlPlane) -> Iterator[None]:
    """The stand-in container's output: a line a second."""
    end = threading.Event()

    def write() -> None:
        number = 0
        while not end.wait(1):
            number += 1
            member.write_log(POD, f"hello {number} from the member, at {time.strftime('%H:%M:%S')}")

    thread = threading.Thread(target=write, name="chatter")
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def next_steps(world: TowerWorld, member: Cluster, kubeconfig: Path, namespace: str) -> str:
    program = assets.ensure(["kubectl"])["kubectl"].parent
    return f"""
It stays up until Ctrl-C. In another terminal:

  export PATH={program}:{BIN}:$PATH KUBECONFIG={kubeconfig} TOWER_ADMIN_SOCKET={world.socket}
  kubectl auth whoami                      # who you are in the member
  kubectl -n {namespace} logs -f {POD}
  kubectl -n {namespace} exec -it {POD} -- sh
  kubectl get --raw '/readyz?verbose'
  towerctl get clusters -o wide            # what the host sees
  towerctl describe cluster {NAME}
  towerctl ping {NAME}
  towerctl check

The kubeconfig: {kubeconfig}   Logs: {world.folder}"""


STAND_INS = """
Real: kube-apiserver, etcd, kubectl, and all of Tower. Stand-ins: Node and Pod status come from kwok; logs, exec, attach
and port-forward end in streamlet, a small Go program with a kubelet's streaming code, and exec runs a process on this
machine. There is no scheduler and no controller manager: a Pod needs `nodeName: node-1`, a Deployment makes none."""


def stay(world: TowerWorld, member: Cluster) -> NoReturn:
    children = [*world.children, *(member.children if isinstance(member, ControlPlane) else [])]
    while True:
        for child in children:
            if child.returncode is not None:
                raise LabError(f"{child.name} ended with {child.returncode}:\n{child.tail()}")
        time.sleep(0.5)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    started = time.monotonic()
    say(f"{what} ...")
    yield
    say(f"  up after {time.monotonic() - started:.1f} s")


def say(text: str) -> None:
    print(text, flush=True)


def _interrupt(*_: object) -> NoReturn:
    _clean_up_undisturbed()
    raise KeyboardInterrupt


def _clean_up_undisturbed() -> None:
    """A second Ctrl-C reaches neither us nor what we run to take things away."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
