"""The command line as people type it."""

from __future__ import annotations

import asyncio
import io
import json
import signal
from pathlib import Path

import click
import pytest
import yaml

from tests.tower_agent.caller import Caller
from tests.tower_agent.commands import command, running
from tests.tower_agent.conftest import MakeMember
from tests.tower_agent.tower import new_tower, serving_tower
from tower_agent.main import _again, run_words

pytestmark = pytest.mark.slow  # many processes


def configuration(folder: Path, **settings: object) -> Path:
    file = folder / "agent.yaml"
    base = {"state_dir": str(folder / "state"), "health_address": "127.0.0.1:0"}
    file.write_text(yaml.safe_dump({**base, **settings}))
    return file


@pytest.mark.asyncio
async def test_join_then_run_then_stop(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        config = configuration(tmp_path, kubeconfig=str(member.kubeconfig))
        token = tower.token()
        code, out, err = await command("--config", config, "join", stdin=f"{token}\n")
        assert code == 0, err
        assert out == ""
        assert "joined host east as agent a1 of cluster edge" in err
        assert f"next: tower-agent run --config {config}\n" in err
        assert token.secret not in err

        async with running(tmp_path / "log", "run", "--config", config) as agent:
            await agent.said("tunnel-opened")
            tunnel = await tower.tunnel()
            admin = tower.client("tower:east:admin", "tower:east:cluster-admins")
            caller = await Caller.open(tunnel, tower.caller_context(admin))
            assert (await caller.ask("/api?secret=1"))[0] == 200
            caller.close()
            await agent.said('"path": "/api"')
            health = json.loads(next(line for line in agent.log.splitlines() if "agent-started" in line))["health"]
            assert await get(health, "/healthz") == (200, "ok\n")
            assert (await get(health, "/readyz"))[0] == 200
            figures = (await get(health, "/metrics"))[1]
            assert 'tower_agent_connected{host="east"} 1.0' in figures
            assert 'tower_agent_streams{service="kubernetes"}' in figures
            assert await agent.stop() == 0
            assert "secret=1" not in agent.log
            assert "agent-stopped" in agent.log
        assert (await asyncio.wait_for(tunnel.wait_closed(), 30)).text == "the agent is stopping"


async def get(address: str, path: str) -> tuple[int, str]:
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await asyncio.wait_for(reader.read(), 30)).partition(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return int(head.split()[1]), body.decode()


@pytest.mark.asyncio
async def test_run_joins_first_where_it_has_a_token_file(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member, serving_tower(new_tower()) as tower:
        file = tmp_path / "token"
        file.touch(mode=0o600)
        file.write_text(str(tower.token()))
        config = configuration(tmp_path, kubeconfig=str(member.kubeconfig), token_file=str(file))
        async with running(tmp_path / "log", "run", "--config", config) as agent:
            await agent.said("tunnel-opened")
            assert await agent.stop() == 0
        file.unlink()  # the identity is there now
        async with running(tmp_path / "log", "run", "--config", config) as agent:
            await agent.said("tunnel-opened")
            assert await agent.stop(signal.SIGINT) == 0


@pytest.mark.asyncio
async def test_a_stop_is_heard_while_the_server_is_away(make_member: MakeMember, tmp_path: Path) -> None:
    async with make_member() as member:
        async with serving_tower(new_tower()) as tower:
            pass
        file = tmp_path / "token"
        file.touch(mode=0o600)
        file.write_text(str(tower.token()))
        config = configuration(tmp_path, kubeconfig=str(member.kubeconfig), token_file=str(file))
        async with running(tmp_path / "log", "run", "--config", config) as agent:
            await agent.said("enrolment-retried")
            assert await agent.stop() == 0


SECRET = "twr1.a-token-that-belongs-on-standard-input"


@pytest.mark.parametrize(
    ("arguments", "stdin", "code", "told"),
    [
        (["join"], "garbage", 1, ["TWR207", "does not begin with twr1."]),
        (["join", SECRET], "", 2, ["unexpected extra argument"]),
        (["run", f"--dance={SECRET}"], "", 2, ["No such option"]),
        (["check", "-o", SECRET], "", 2, ["Invalid value for '-o'"]),
        (["join", "--token", "twr1.abc"], "", 2, ["No such option"]),
        (["join", "--token-file", SECRET], "", 1, ["TWR104", "cannot be read"]),
        (["join", "--token-file", "/nonexistent/token"], "", 1, ["TWR104", "/nonexistent/token"]),
        (["join", "--wait", "soon"], "", 2, ["a duration is a number with a unit"]),
        (["run"], "", 1, ["TWR309", "KUBERNETES_SERVICE_HOST", "--kubeconfig"]),
        (["run", "--kubeconfig", "/nonexistent"], "", 1, ["TWR102", "/nonexistent"]),
        (["run", "--log-level", "loud"], "", 2, ["loud"]),
        (["--dialect", "kubesphere-v1"], "", 1, ["TWR231", "--ship-credential"]),
        (["--no-ship-credential", "--dialect=kubesphere-v1"], "", 1, ["TWR231"]),
        (["--dance"], "", 2, ["No such option", "tower-agent --help"]),
        (["check"], "", 3, ["TWR225", "there is no identity"]),
        (["check", "--health-address", "127.0.0.1:1", "--links", "2", "--log-level", "debug"], "", 3, ["TWR225"]),
        (["leave"], "", 1, ["TWR225", "there is no identity", "--state-dir", "towerctl explain TWR225"]),
        (["policy"], "", 2, ["name the host"]),
        (["policy", "a", "B"], "", 2, ["'B' cannot be a host's name"]),
        (["leave", "../other"], "", 2, ["'../other' cannot be a host's name"]),
        (["check", "--host", ""], "", 2, ["'' cannot be a host's name"]),
        (["check", "--host", "east", "--dialect", "kubesphere-v1"], "", 2, ["with kubesphere-v1 there is one"]),
        (["run", "--state-dir", ""], "", 1, ["TWR101", "--state-dir", "an empty path"]),
        (["join", "--token-file", ""], "", 1, ["TWR101", "--token-file", "an empty path"]),
        (["dance"], "", 2, ["No such command"]),
    ],
)
def test_mistakes_are_explained(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    stdin: str,
    code: int,
    told: list[str],
) -> None:
    config = configuration(tmp_path)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
    got = run_words(["--config", str(config), *arguments])
    err = capsys.readouterr().err
    assert got == code, err
    for text in told:
        assert text in err
    assert "Traceback" not in err
    assert SECRET not in err


def test_config_show_names_origins_and_hides_passwords(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configuration(tmp_path, proxy="http://user:hidden@proxy:3128", services={"grafana": "grafana:3000"})
    monkeypatch.setenv("TOWER_CONTEXT", "member")
    assert run_words(["config", "show", "--config", str(config), "--log-level", "debug"]) == 0
    out = capsys.readouterr().out
    assert "hidden" not in out
    assert f"health_address: 127.0.0.1:0  # file {config}:1" in out
    assert "context: member  # environment TOWER_CONTEXT" in out
    assert "level: debug  # flag --log-level" in out
    assert "address: grafana:3000" in out
    assert "resume_window: 40s  # default" in out
    assert "tunnel: 48MiB  # default" in out


def test_a_wrong_key_names_line_and_neighbour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text("state_dir: /x\nkubconfig: /y\n")
    assert run_words(["run", "--config", str(file)]) == 1
    assert f"{file}:2: unknown key 'kubconfig'; did you mean 'kubeconfig'?" in capsys.readouterr().err


def test_policy_version_and_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_words(["policy", "east"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["hosts"]["east"]["groups"] == ["tower:east:cluster-admins"]
    assert run_words(["version", "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "Version"
    assert run_words(["completion", "zsh"]) == 0
    assert "_TOWER_AGENT_COMPLETE" in capsys.readouterr().out


def test_what_the_next_command_needs_is_said_without_a_proxys_password() -> None:
    given = {"state_dir": Path("/s"), "kubeconfig": Path("/k"), "context": None, "insecure_transport": True}
    with click.Context(click.Command("join")):
        assert _again(None, given) == ["--state-dir", "/s", "--kubeconfig", "/k", "--insecure-transport"]
        assert _again(Path("/c"), {"proxy": "http://u:hidden@p:1"}) == ["--config", "/c", "--proxy", "URL"]
