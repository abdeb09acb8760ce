"""No secret lies where it does not belong: not in logs, command lines, environments, metrics, answers or the store.

The canaries pass through every process in every way that a secret may come: used, refused, malformed, in the middle of
a failure. What is searched is everything that the processes show or keep, but for the files that are there to hold it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
import tempfile
import urllib.request
from pathlib import Path

import pytest
import yaml

from certs.token import parse_token
from tests.lab.controlplane import run
from tests.lab.world import BIN, TowerWorld
from tests.loopback import forgery
from tests.loopback.backend import TOKEN
from tests.loopback.callers import Caller, health_port
from tests.loopback.conftest import EDGE, OTHER
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow  # many processes

BEARER = "canary-bearer-3f9a1c77d2"
QUERY = "canary-query-5e1b0a9914"
COOKIE = "canary-cookie-77aa12bc01"
PASSWORD = "canary-password-a81b2c3d"
KEY = re.compile(r"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")


@pytest.fixture(scope="module")
def canaries(world: TowerWorld, member: BackendMember, admin: Caller, neighbour: Caller) -> dict[str, str]:
    """What must be found nowhere, by name; everything has happened to each when a test begins."""
    found = {"bearer": BEARER, "query": QUERY, "cookie": COOKIE, "proxy password": PASSWORD, "agent's account": TOKEN}
    encoded = base64.urlsafe_b64encode(BEARER.encode()).decode().rstrip("=")
    found["bearer of a WebSocket"] = encoded
    for caller in (admin, neighbour):
        for anonymous in (True, False):
            _carry(caller, encoded, anonymous=anonymous)
    with tempfile.TemporaryDirectory(prefix="twr-") as folder:
        used = _join(world, member, Path(folder))
    found["token"], found["token's secret"] = used, parse_token(used).secret
    for cluster in (EDGE, OTHER):
        held = forgery.identity_of(world, cluster)
        found[f"key of the agent of {cluster}"] = _middle(held.key_pem)
        found[f"serving key of {cluster}"] = _middle(held.serving_key_pem)
    found["key of the tower CA"] = _middle(forgery.authority_of(world).to_pem())
    return found


def _carry(caller: Caller, encoded: str, *, anonymous: bool) -> None:
    """Requests that go through, are refused, break off, and are no requests at all; each carries the canaries."""
    bearer, cookie = f"Authorization: Bearer {BEARER}", f"Cookie: session={COOKIE}"
    socket = ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"]
    socket.append(f"Sec-WebSocket-Protocol: v5.channel.k8s.io, base64url.bearer.authorization.k8s.io.{encoded}")
    for path in (f"/canary?token={QUERY}", f"/cut?token={QUERY}", f"/bytes/10?password={QUERY}"):
        for headers in ([bearer, cookie], [bearer, cookie, "Impersonate-User: jane"], socket):
            with contextlib.suppress(Exception):  # some are meant to fail: what matters is what they leave behind
                caller.ask(path, *headers, anonymous=anonymous)
    for end in ("\r\nContent-Length: 1\r\nContent-Length: 2", "\nX: y", "\r\nX: \x00", f"\r\nX: {'x' * 70000}"):
        raw = f"GET /canary?token={QUERY} HTTP/1.1\r\nHost: k\r\n{bearer}\r\n{cookie}{end}\r\n\r\n"
        with contextlib.suppress(Exception):
            caller.say(raw.encode(), anonymous=anonymous)
    with caller.plain() as bare:
        bare.sendall(f"GET /canary?token={QUERY} HTTP/1.1\r\n{bearer}\r\n\r\n".encode())


def _join(world: TowerWorld, member: BackendMember, folder: Path) -> str:
    """A token that was used, used again, and shown to whoever lists tokens; by way of a proxy that is not there too."""
    token = str(world.call("POST", "/v1/clusters", {"name": "canary"})[1]["join"]["token"])
    config = folder / "agent.yaml"
    for state, proxy in (("one", None), ("two", None), ("three", f"http://user:{PASSWORD}@127.0.0.1:9")):
        settings = {"kubeconfig": str(member.by_token), "state_dir": str(folder / state)}
        config.write_text(yaml.safe_dump(settings | ({"proxy": proxy} if proxy else {})))
        argv = [str(BIN / "tower-agent"), "--config", str(config), "join", "--wait", "100ms"]
        done = run(argv, world.environment(), token.encode())
        (world.folder / f"join-{state}.log").write_bytes(done.stdout + done.stderr)
    for command in (["check"], ["config", "show"]):
        said = run([str(BIN / "tower-agent"), "--config", str(config), *command], world.environment())
        (world.folder / f"{command[0]}.log").write_bytes(said.stdout + said.stderr)
    return token


def _middle(pem: bytes) -> str:
    """A line of a private key that no other file has by chance."""
    block = re.search(rb"PRIVATE KEY-----\n(.+?)-----END", pem, re.DOTALL)
    assert block is not None
    return block[1].split(b"\n")[1].decode()


def search(canaries: dict[str, str], texts: dict[str, str]) -> list[str]:
    """Where what was found; never the canary itself, which would end in the report."""
    found = [f"{name} in {place}" for place, text in texts.items() for name, value in canaries.items() if value in text]
    return found + [f"a private key in {place}" for place, text in texts.items() if KEY.search(text)]


def test_logs_hold_none(world: TowerWorld, canaries: dict[str, str]) -> None:
    texts = {path.name: path.read_text() for path in world.folder.glob("*.log")}
    assert len(texts) >= 8
    assert "canary" in texts["agent-edge-1.log"]  # the requests themselves are there
    assert search(canaries, texts) == []


def test_command_lines_and_environments_hold_none(world: TowerWorld, canaries: dict[str, str]) -> None:
    texts = {}
    for child in world.children:
        for name in ("cmdline", "environ", "comm"):
            texts[f"{child.log.stem} {name}"] = Path(f"/proc/{child.pid}/{name}").read_bytes().decode(errors="replace")
    assert len(texts) >= 9
    assert search(canaries, texts) == []


def test_metrics_hold_none(world: TowerWorld, canaries: dict[str, str]) -> None:
    texts = {}
    for cluster in (None, EDGE, OTHER):
        for path in ("metrics", "readyz"):
            with urllib.request.urlopen(f"http://127.0.0.1:{health_port(world, cluster)}/{path}", timeout=30) as answer:
                texts[f"{path} of {cluster or 'the server'}"] = answer.read().decode()
    assert search(canaries, texts) == []


def test_the_admin_api_and_the_commands_show_none(world: TowerWorld, canaries: dict[str, str]) -> None:
    calls = ["clusters", "tunnels", "streams", "agents", "tokens", "revocations", "info", "check"]
    texts = {call: json.dumps(world.call("GET", f"/v1/{call}")[1]) for call in calls}
    for arguments in (["get", "tokens", "-o", "yaml"], ["describe", "cluster", EDGE], ["get", "agents", "-o", "wide"]):
        done = world.towerctl(*arguments)
        texts[" ".join(arguments)] = (done.stdout + done.stderr).decode()
    assert search(canaries, texts) == []


def test_the_store_holds_none_but_its_own_authority(world: TowerWorld, canaries: dict[str, str]) -> None:
    kept = {path.name: path.read_bytes().decode("latin-1") for path in (world.folder / "server").glob("tower.db*")}
    others = {name: value for name, value in canaries.items() if name != "key of the tower CA"}
    assert kept
    assert [found for found in search(others, kept) if "a private key" not in found] == []


@pytest.mark.parametrize("place", ["server", "agent-edge-1/state"])
def test_what_holds_keys_is_readable_by_its_owner_alone(world: TowerWorld, place: str) -> None:
    files = [path for path in (world.folder / place).rglob("*") if path.is_file()]
    assert files
    for path in [world.folder / place, *files]:
        assert path.stat().st_mode & 0o077 == 0, path
