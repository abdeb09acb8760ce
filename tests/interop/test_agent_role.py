"""Our agent in the Go agent's place, at Go proxies of both vintages: real processes, a real member behind TLS."""

from __future__ import annotations

import contextlib
import http.server
import json
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.interop.peers import GoAgent, GoProxy, OurAgent, Vintage
from tests.interop.test_go_peers import caller_of, listening
from tests.lab.processes import Child, wait_until, whole_lines
from tests.lab.world import BIN
from tests.loopback.backend import TOKEN as MEMBER_TOKEN
from tests.loopback.member import AGENT, BackendMember

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]  # many processes
PATIENCE = 30.0


@pytest.fixture
def proxy(tmp_path: Path, vintage: Vintage) -> Iterator[GoProxy]:
    with GoProxy(tmp_path / "proxy", vintage) as running:
        yield running


@pytest.fixture
def agent(proxy: GoProxy, member: BackendMember, tmp_path: Path) -> Iterator[OurAgent]:
    with OurAgent(tmp_path / "agent", proxy.url, kubeconfig=member.by_token) as running:
        yield running


def resident_mib(child: Child) -> float:
    status = Path(f"/proc/{child.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) / 1024


def test_requests_bodies_and_upgrades_get_through(proxy: GoProxy, agent: OurAgent, member: BackendMember) -> None:
    caller = caller_of(proxy)
    path = f"/ours/{proxy.vintage}"
    assert caller.ask(path, anonymous=True).status == 200
    (seen,) = member.seen(path)
    assert seen.values("authorization") == [f"Bearer {MEMBER_TOKEN}"]
    assert caller.ask("/bytes/20000000").body == b"z" * 20_000_000
    with caller.connect() as connection:
        body = bytes(range(256)) * 8000
        size = f"Content-Length: {len(body)}"
        connection.send(connection.request("POST", f"{path}/up", size, body=body))
        assert connection.answer("POST").status == 200
    (seen,) = member.seen(f"{path}/up")
    assert seen.body.encode("latin-1") == body
    with caller.connect() as connection:
        connection.send(connection.request("GET", "/echo", "Connection: Upgrade", "Upgrade: echo"))
        assert connection.answer().status == 101
        connection.send(b"there and back\n")
        assert connection.line() == b"there and back\n"


def test_a_certificate_is_shipped_with_its_key_and_the_second_port_leads_to_the_declared_service(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    class Console(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "7")
            self.end_headers()
            self.wfile.write(b"console")

        def log_message(self, *_args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Console) as console:
        console.daemon_threads = True
        thread = threading.Thread(target=console.serve_forever)
        thread.start()
        settings = {"services": {"kubesphere": f"127.0.0.1:{console.server_port}"}}
        try:
            with OurAgent(tmp_path / "a", proxy.url, kubeconfig=member.by_certificate, settings=settings):
                path = f"/ours/certificate-{proxy.vintage}"
                assert caller_of(proxy).ask(path, anonymous=True).status == 200
                with urllib.request.urlopen(f"http://127.0.0.1:{proxy.kubesphere_port}/x", timeout=PATIENCE) as answer:
                    assert answer.read() == b"console"
        finally:
            console.shutdown()
            thread.join(PATIENCE)
    (seen,) = member.seen(path)
    assert seen.certificate == AGENT


def test_a_caller_that_stops_reading_stops_only_itself(proxy: GoProxy, agent: OurAgent) -> None:
    caller = caller_of(proxy)
    assert caller.ask("/version").status == 200
    before = resident_mib(agent.child)
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            stalled = stack.enter_context(caller.connect())
            stalled.send(stalled.request("GET", "/bytes/400000000"))
        for _ in range(20):
            assert caller.ask("/bytes/300000").body == b"z" * 300_000
        assert resident_mib(agent.child) < before + 60


def test_a_changed_token_is_registered_again_and_used(proxy: GoProxy, member: BackendMember, tmp_path: Path) -> None:
    config = yaml.safe_load(member.by_token.read_text())
    config["users"][0]["user"] = {"tokenFile": str(tmp_path / "sa-token")}
    (tmp_path / "sa-token").write_text("not-yet-known")
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(yaml.safe_dump(config))
    constants = {"tower_agent.legacylink.CREDENTIAL_EVERY": 0.2, "daemon.kube.access.TOKEN_REREAD": 0.1}
    with OurAgent(tmp_path / "agent", proxy.url, kubeconfig=kubeconfig, constants=constants) as agent:
        assert caller_of(proxy).ask("/version").status == 401
        (tmp_path / "new").write_text(MEMBER_TOKEN)
        (tmp_path / "new").rename(tmp_path / "sa-token")
        agent.until("host-registered", 2)
        wait_until(lambda: listening(proxy.kubernetes_port), "the host's port again", PATIENCE)
        assert caller_of(proxy).ask("/version").status == 200
        assert MEMBER_TOKEN not in (agent.folder / "agent.log").read_text()


def test_requests_that_run_are_not_cut_when_the_agent_stops(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    patient = {"tower_agent.legacylink.QUIET": 5.0}  # a busy machine falls silent in the middle of a body
    with contextlib.ExitStack() as stack:
        agent = stack.enter_context(
            OurAgent(
                tmp_path / "a", proxy.url, kubeconfig=member.by_token, settings={"drain": "60s"}, constants=patient
            )
        )
        connection = stack.enter_context(caller_of(proxy).connect())
        connection.send(connection.request("GET", "/bytes/60000000"))
        assert connection.line().startswith(b"HTTP/1.1 200")
        agent.child.send(signal.SIGTERM)
        agent.until("stopping")
        got = 0
        while got < 60_000_000:
            piece = connection.line()  # lines of a head, then the whole body, which has none
            assert piece
            got += len(piece)
        agent.child.wait(PATIENCE)
        assert agent.stop() == 0
    wait_until(lambda: not proxy.available, "the proxy knows that it is gone", PATIENCE)


def readiness(agent: OurAgent) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{agent.health}/readyz", timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_refusal_is_told_in_the_hosts_words_with_a_code_and_tried_again(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    agent = OurAgent(tmp_path / "agent", proxy.url, kubeconfig=member.by_token, token="wrong")
    try:
        agent.start(registered=False)
        down = agent.until("tunnel-down")
        assert down["code"] == "TWR230"
        assert "refused the cluster edge-1: Unauthorized agent" in down["text"]
        status, reasons = readiness(agent)
        assert status == 503
        assert "TWR230" in reasons
        log = proxy.folder / "proxy.log"
        assert "agent connected" not in log.read_text()
    finally:
        agent.stop()


def test_a_host_that_is_away_is_named_and_found_again(proxy: GoProxy, agent: OurAgent) -> None:
    assert readiness(agent)[0] == 200
    proxy.stop()
    wait_until(lambda: readiness(agent)[0] == 503, "not ready", PATIENCE)
    codes = {each["code"] for each in agent.said("tunnel-down")}
    assert codes <= {"TWR201", "TWR211"}
    proxy.start()
    agent.until("host-registered", 2)
    assert caller_of(proxy).ask("/version").status == 200
    assert readiness(agent)[0] == 200


def test_a_dead_member_is_named_here_whatever_the_go_proxy_makes_of_it(
    proxy: GoProxy, member: BackendMember, tmp_path: Path
) -> None:
    config = yaml.safe_load(member.by_token.read_text())
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
    (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
    with OurAgent(tmp_path / "agent", proxy.url, kubeconfig=tmp_path / "kubeconfig") as agent:
        assert caller_of(proxy).ask("/version").body == b""
        refused = agent.until("stream-refused")
        assert refused["code"] == "TWR301"
        assert f"127.0.0.1:{port}" in refused["text"]
        assert f"cannot connect to 127.0.0.1:{port}" in (proxy.folder / "proxy.log").read_text()


def test_ours_beside_a_go_agent_serves_the_same_cluster(
    proxy: GoProxy, agent: OurAgent, member: BackendMember, tmp_path: Path
) -> None:
    go = GoAgent(tmp_path / "go", proxy.vintage, proxy.url, credential=member.by_certificate)
    with go:
        caller = caller_of(proxy)
        assert {caller.ask("/version").status for _ in range(20)} == {200}
    assert caller.ask("/version").status == 200


def test_nothing_is_sent_without_consent(proxy: GoProxy, member: BackendMember, tmp_path: Path) -> None:
    agent = OurAgent(tmp_path / "agent", proxy.url, kubeconfig=member.by_token)
    try:
        agent.start("--no-ship-credential", registered=False)
        assert agent.child.wait(PATIENCE) == 1
        told = (tmp_path / "agent" / "agent.log").read_text()
    finally:
        agent.stop()
    assert "tower-agent: TWR231: in the dialect kubesphere-v1 this agent ships a credential of its member" in told
    assert "--ship-credential" in told


@pytest.mark.parametrize("command", [["run"], []], ids=["run", "no command"])
def test_flags_are_enough(proxy: GoProxy, member: BackendMember, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "token").touch(0o600)
    (tmp_path / "token").write_text(proxy.token)
    log = tmp_path / "log"
    argv: list[str | Path] = [
        BIN / "tower-agent",
        *command,
        "--dialect",
        "kubesphere-v1",
        "--server",
        proxy.url.replace("http", "ws"),
    ]
    argv += ["--cluster", proxy.name, "--token-file", tmp_path / "token", "--kubeconfig", member.by_token]
    argv += ["--ship-credential", "--health-address", "127.0.0.1:0", "--log-format", "json"]
    child = Child("tower-agent", argv, log=log)
    try:
        child.until(lambda: "host-registered" in log.read_text(), "registration", PATIENCE)
        assert caller_of(proxy).ask("/version").status == 200
    finally:
        assert child.stop() == 0
    events = [json.loads(line) for line in whole_lines(log) if line.startswith("{")]
    (warned,) = [each for each in events if each["event"] == "credential-shipped"]
    assert str(member.by_token) in warned["text"]


def test_a_check_learns_whether_the_host_knows_the_token_and_takes_no_caller(
    proxy: GoProxy, agent: OurAgent, member: BackendMember, tmp_path: Path
) -> None:
    def checked(folder: Path) -> tuple[int, dict[str, tuple[str, str]]]:
        command = [str(BIN / "tower-agent"), "--config", str(folder / "agent.yaml"), "check", "-o", "json"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        items = json.loads(done.stdout)["items"]
        return done.returncode, {item["title"]: (item["status"], item["message"]) for item in items}

    caller = caller_of(proxy)
    assert caller.ask("/version").status == 200
    code, found = checked(agent.folder)
    assert (code, found["registration"]) == (0, ("ok", "edge-1 and its token are known")), found
    assert found["agent"][0] == "ok"
    stranger = OurAgent(tmp_path / "stranger", proxy.url, kubeconfig=member.by_token, token="00" * 32)
    code, found = checked(stranger.folder)
    assert code == 1
    assert found["registration"][0] == "failed"
    assert "Unauthorized agent" in found["registration"][1]
    assert [caller.ask("/version").status for _ in range(20)] == [200] * 20
    assert (tmp_path / "proxy" / "proxy.log").read_text().count("agent connected") == 1
