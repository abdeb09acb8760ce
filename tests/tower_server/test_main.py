"""The program as a process: it starts, says what is wrong when it cannot, and stops by signal leaving nothing."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.lab.processes import free_ports
from tests.tower_server.test_ports import free_range
from tower_server.config import ServerConfig
from tower_server.main import FLAGS

pytestmark = pytest.mark.slow  # many processes

PROGRAM = [sys.executable, "-c", "from tower_server.main import main; main()"]


def run(*arguments, env=None, timeout=20):
    environ = {key: value for key, value in os.environ.items() if not key.startswith("TOWER_")} | (env or {})
    return subprocess.run([*PROGRAM, *arguments], capture_output=True, text=True, timeout=timeout, env=environ)


def free_port():
    """Not one of those that the kernel gives to any connection that goes out, as it may before the server is up."""
    return free_ports(1)[0]


@pytest.fixture
def config(tmp_path):
    ports = free_range(4)
    file = tmp_path / "server.yaml"
    file.write_text(
        f"public_url: wss://localhost:8443\nlisten: 127.0.0.1:{free_port()}\nstate_dir: {tmp_path}/state\n"
        f"admin_socket: {tmp_path}/admin.sock\nhealth_address: 127.0.0.1:{free_port()}\n"
        f"ports: {{range: {ports}, bind: 127.0.0.1}}\nlog: {{format: json}}\n"
    )
    return file


@contextlib.contextmanager
def started(config, tmp_path, **env):
    """A running server that has told systemd (a socket of ours) that it is ready: process, messages, socket, log."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(15)
        log = tmp_path / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [*PROGRAM, "run", "--config", str(config)],
                stderr=out,
                env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), **env},
            )
        try:
            messages = [systemd.recv(4096).decode()]
            yield process, messages, systemd, log
        finally:
            process.kill()
            process.wait()


def test_it_says_ready_serves_and_stops_by_signal(config, tmp_path):
    with started(config, tmp_path) as (process, messages, systemd, log):
        assert messages[0].startswith("READY=1\nSTATUS=serving 0 clusters")
        assert (tmp_path / "admin.sock").is_socket()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert systemd.recv(4096) == b"STOPPING=1"
        assert not (tmp_path / "admin.sock").exists()
        assert "Traceback" not in log.read_text()


def test_a_second_server_on_the_same_state_is_refused(config, tmp_path):
    with started(config, tmp_path):
        again = run("run", "--config", str(config))
        assert again.returncode == 1
        assert "TWR107" in again.stderr
        assert "held by another process" in again.stderr


def test_a_taken_tunnel_port_is_named_with_its_mend(config):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        result = run("run", "--config", str(config), "--listen", address)
    assert result.returncode == 1
    assert f"tower-server: TWR103: the tunnel port {address} cannot be listened on" in result.stderr
    assert "ss -ltnp" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lisen: :1", "did you mean 'listen'?"),
        ("listen: [", "server.yaml"),
        ("tls: {cert: /no/cert, key: /no/key}", "/no/cert"),
    ],
)
def test_a_bad_configuration_names_file_and_key(config, text, said):
    config.write_text(config.read_text() + text + "\n")
    result = run("run", "--config", str(config))
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_state_directory_that_cannot_be_made_is_named(config, tmp_path):
    (tmp_path / "file").write_text("")
    result = run("run", "--config", str(config), "--state-dir", str(tmp_path / "file" / "state"))
    assert result.returncode == 1
    assert str(tmp_path / "file" / "state") in result.stderr


def test_a_start_without_the_hosts_apiserver_ends_and_says_so(config, tmp_path):
    cluster = {"server": f"https://127.0.0.1:{free_port()}"}
    context = {"name": "host", "context": {"cluster": "host", "user": "tower"}}
    access = {"clusters": [{"name": "host", "cluster": cluster}], "contexts": [context], "current-context": "host"}
    (tmp_path / "kubeconfig").write_text(json.dumps({**access, "users": [{"name": "tower", "user": {"token": "t"}}]}))
    config.write_text(config.read_text() + f"store: {{kind: kubernetes, kubeconfig: {tmp_path / 'kubeconfig'}}}\n")
    result = run("run", "--config", str(config), timeout=60)
    assert result.returncode == 1, result.stderr
    where = cluster["server"].removeprefix("https://")
    for said in ("TWR114", where, "Connection refused", "a start has to be repeated"):
        assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_config_show_prints_values_and_origins(config):
    result = run("config", "show", "--config", str(config), "--host", "hq", env={"TOWER_CALLERS__HOLD": "1s"})
    assert result.returncode == 0, result.stderr
    assert "host: hq  # flag --host" in result.stdout
    assert "hold: 1s  # environment TOWER_CALLERS__HOLD" in result.stdout
    assert f"public_url: wss://localhost:8443  # file {config}:1" in result.stdout
    assert "hold_waiters: 256  # default" in result.stdout
    assert "lifetime: 1h  # default" in result.stdout
    assert "process: 48MiB  # default" in result.stdout


def test_config_may_stand_before_the_command_as_with_the_agent(config, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("host: other\n")
    config.write_text(config.read_text() + "host: hq\n")
    before = run("--config", str(config), "config", "show", env={"TOWER_CONFIG": str(other)})
    assert f"host: hq  # file {config}:" in before.stdout, before.stderr
    after = run("--config", str(other), "config", "show", "--config", str(config))
    assert f"host: hq  # file {config}:" in after.stdout, after.stderr
    variable = run("config", "show", env={"TOWER_CONFIG": str(other)})
    assert f"host: other  # file {other}:1" in variable.stdout, variable.stderr
    missing = run("--config", str(tmp_path / "none.yaml"), "run")
    assert missing.returncode == 1
    assert "none.yaml" in missing.stderr


def test_a_wrong_call_is_exit_2():
    assert run("rnu").returncode == 2
    assert run("run", "--nonsense").returncode == 2


def test_version_and_completion():
    assert run("version").stdout.startswith("tower-server 0.")
    for shell in ("bash", "zsh", "fish"):
        assert "_TOWER_SERVER_COMPLETE" in run("completion", shell).stdout


def test_a_listener_of_systemd_is_used(config, tmp_path):
    """LISTEN_FDS as systemd passes them: the tunnel port is accepted on before the process even starts."""
    with socket.create_server(("127.0.0.1", 0)) as tunnel:
        os.set_inheritable(tunnel.fileno(), True)
        port = tunnel.getsockname()[1]
        script = (
            "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ.update(LISTEN_PID=str(os.getpid()),"
            " LISTEN_FDS='1', LISTEN_FDNAMES='tunnel'); sys.argv = ['tower-server', 'run', '--config', sys.argv[2]];"
            " from tower_server.main import main; main()"
        )
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(tmp_path / "notify"))
            systemd.settimeout(15)
            process = subprocess.Popen(
                [sys.executable, "-c", script, str(tunnel.fileno()), str(config)],
                pass_fds=[tunnel.fileno()],
                stderr=subprocess.DEVNULL,
                env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            )
            try:
                assert systemd.recv(4096).startswith(b"READY=1")
                with socket.create_connection(("127.0.0.1", port), timeout=30) as caller:
                    caller.sendall(b"x" * 8)
                    assert caller.recv(1) in (b"", b"\x15")  # a TLS alert or the end: somebody of ours is there
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(10)


def test_every_flag_is_a_key():
    assert set(FLAGS) <= set(ServerConfig.model_fields)
