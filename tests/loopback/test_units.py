"""The shipped systemd units: systemd takes them, they leave the services little, and the programs run as they say.

No systemd runs here as a service manager. Its place is taken by what the units ask of it and a process can bring about
for itself: the sockets with their names, the command line, credentials in a directory, no new privileges and no memory
that is both writable and executable. The rest is systemd's own, and `systemd-analyze` judges it.
"""

from __future__ import annotations

import configparser
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lab.processes import wait_until
from tests.lab.world import BIN, ROOT, TowerWorld
from tests.loopback.callers import Caller
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow

UNITS = ROOT / "deploy" / "systemd"
INSTALLED = "/opt/tower/bin"
MOST_EXPOSED = 20  # tenths: systemd's own scale ends at 100, and it calls 40 and less "OK"
# Environment in, then what the unit imposes, then the program: prctl 38 is NO_NEW_PRIVS, 65 is MDWE.
LAUNCH = """
import ctypes, fcntl, os, sys
names, fds, program = sys.argv[1], [int(fd) for fd in sys.argv[2].split(",") if fd], sys.argv[3:]
kept = [fcntl.fcntl(fd, fcntl.F_DUPFD, 100) for fd in fds]
for index, fd in enumerate(kept):
    os.dup2(fd, 3 + index, inheritable=True)
if fds:
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(fds)), LISTEN_FDNAMES=names)
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(65, 1, 0, 0, 0):
    sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
os.umask(0o077)
os.execv(program[0], program)
"""

# The program's modules are where this user may read them; then it is a user without home, as systemd makes one.
PLACES = """
import os
from tower_server.main import load
load(None, {})
if os.geteuid() == 0:
    os.setuid(65534)
config = load(None, {}).value
print(config.state_dir, config.admin_socket)
"""


def unit(name: str) -> configparser.ConfigParser:
    parsed = configparser.ConfigParser(strict=False, interpolation=None, delimiters=["="])
    parsed.optionxform = str  # type: ignore[method-assign, assignment]
    parsed.read(UNITS / name)
    return parsed


def command(service: str) -> list[str]:
    """The unit's command line, with the programs of this environment."""
    words = unit(service)["Service"]["ExecStart"].split()
    return [str(BIN / Path(words[0]).name), *words[1:]]


@pytest.fixture
def here(tmp_path: Path) -> list[Path]:
    """The units with their programs where they are here, and the template as one of its units."""
    copies = []
    for source in sorted(UNITS.iterdir()):
        copy = tmp_path / source.name.replace("@.", "@6012.")
        copy.write_text(source.read_text().replace(INSTALLED, str(BIN)))
        copies.append(copy)
    return copies


def test_systemd_finds_nothing_to_say_about_them(here: list[Path]) -> None:
    done = subprocess.run(["systemd-analyze", "verify", *here], capture_output=True, text=True, timeout=30, check=False)
    ours = [line for line in (done.stdout + done.stderr).splitlines() if "tower" in line]
    assert (done.returncode, ours) == (0, [])


@pytest.mark.parametrize("service", ["tower-server.service", "tower-agent.service"])
def test_a_service_is_left_little_that_it_could_harm(here: list[Path], service: str) -> None:
    (copy,) = [path for path in here if path.name == service]
    asked = ["systemd-analyze", "security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", copy]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("service", ["tower-server.service", "tower-agent.service"])
def test_a_service_that_cannot_start_now_is_tried_again_for_as_long_as_it_takes(service: str) -> None:
    """Nobody is there at night to say `systemctl reset-failed`."""
    found = unit(service)
    assert (found["Service"]["Restart"], found["Unit"].get("StartLimitIntervalSec")) == ("always", "0")


def test_the_servers_state_and_socket_are_where_its_units_have_them() -> None:
    service = unit("tower-server.service")["Service"]
    environment = dict(word.split("=", 1) for word in service.get("Environment", "").split())
    done = subprocess.run(
        [sys.executable, "-c", PLACES],
        env=environment | {"HOME": "/"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
    )
    socket_path = unit("tower-server-admin.socket")["Socket"]["ListenStream"]
    assert done.stdout.split() == [f"/var/lib/{service['StateDirectory']}", socket_path], done.stderr


@contextlib.contextmanager
def started(service: str, world: TowerWorld, held: dict[str, socket.socket], **env: str) -> Iterator[None]:
    """The service as its unit starts it, until it says that it is ready; SIGTERM must end it well."""
    fds = [sock.fileno() for sock in held.values()]
    argv = [sys.executable, "-c", LAUNCH, ":".join(held), ",".join(map(str, fds)), *command(service)]
    argv = [word.replace("${CREDENTIALS_DIRECTORY}", env.get("CREDENTIALS_DIRECTORY", "")) for word in argv]
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        (world.folder / f"{service}.log").open("wb") as log,
    ):
        manager.bind(str(world.folder / f"{service}.notify"))
        manager.settimeout(30.0)
        environment = world.environment() | env | {"NOTIFY_SOCKET": str(world.folder / f"{service}.notify")}
        process = subprocess.Popen(argv, pass_fds=fds, env=environment, stderr=log, cwd=ROOT)
        try:
            while "READY=1" not in manager.recv(4096).decode().splitlines():
                pass
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def test_server_and_agent_run_as_their_units_say(own_world: Callable[..., TowerWorld], member: BackendMember) -> None:
    world = own_world()
    added = json.loads(world.towerctl("add", "cluster", "edge", "-o", "json").stdout)
    caller = Caller(world.kubeconfig("edge"))
    assert world.stop_server() == 0
    places = {
        "tower-server-tunnel.socket": ("127.0.0.1", world.tunnel_port),
        "tower-server-health.socket": ("127.0.0.1", world.health_port),
        "tower-server-admin.socket": str(world.socket),
        "tower-server-port@.socket": caller.address,
    }
    credentials = world.folder / "credentials"
    credentials.mkdir(mode=0o700)
    (credentials / "token").touch(0o600)
    (credentials / "token").write_text(added["join"]["token"])
    (credentials / "kubeconfig").write_bytes(Path(member.by_token).read_bytes())
    with contextlib.ExitStack() as stack:
        held = {}
        for name, place in places.items():
            path = isinstance(place, str)
            sock = stack.enter_context(socket.socket(socket.AF_UNIX if path else socket.AF_INET))
            if not path:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(place)
            sock.listen()
            held[unit(name)["Socket"]["FileDescriptorName"].replace("%i", str(caller.address[1]))] = sock
        stack.enter_context(started("tower-server.service", world, held, TOWER_CONFIG=str(world.config)))
        state = world.folder / "agent-state"
        state.mkdir(mode=0o700)
        agent = {"TOWER_HEALTH_ADDRESS": "127.0.0.1:0", "TOWER_STATE_DIR": str(state)}
        stack.enter_context(started("tower-agent.service", world, {}, CREDENTIALS_DIRECTORY=str(credentials), **agent))
        wait_until(lambda: world.cluster("edge")["ready"] == "True", "edge is Ready", 30.0)
        assert caller.ask("/version").status == 200
    assert world.socket.exists()  # it is systemd's, and the next start of the service finds it
