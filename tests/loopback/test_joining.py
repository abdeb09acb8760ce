"""`tower-agent join` against a real server: what a token opens, to whom, and what a person is told when it does not."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from certs.token import EnrolmentToken, parse_token
from tests.lab.controlplane import Done, run
from tests.lab.processes import wait_until
from tests.lab.world import BIN, TowerWorld
from tests.loopback.callers import logs, moves
from tests.loopback.member import BackendMember

pytestmark = [pytest.mark.usefixtures("bystanders"), pytest.mark.slow]
Join = Callable[..., Done]


@pytest.fixture
def cluster(world: TowerWorld, request: pytest.FixtureRequest) -> Iterator[str]:
    """A cluster of the test's own."""
    name = f"j{abs(hash(request.node.nodeid)):x}"[:12]
    assert world.call("POST", "/v1/clusters", {"name": name})[0] == 201
    yield name
    world.call("DELETE", f"/v1/clusters/{name}")


@pytest.fixture
def token(world: TowerWorld, cluster: str) -> Callable[..., str]:
    def make(**bounds: float) -> str:
        status, made = world.call("POST", f"/v1/clusters/{cluster}/tokens", bounds)
        assert status == 201, made
        return str(made["token"])

    return make


@pytest.fixture
def config(world: TowerWorld, member: BackendMember) -> Iterator[Callable[..., Path]]:
    """Configurations of agents that have joined nothing yet, each with a state directory of its own."""
    with tempfile.TemporaryDirectory(prefix="twr-") as folder:
        made: list[Path] = []

        def make() -> Path:
            file = Path(folder) / f"{len(made)}.yaml"
            state = str(Path(folder) / f"state-{len(made)}")
            file.write_text(yaml.safe_dump({"kubeconfig": str(member.by_token), "state_dir": state}))
            made.append(file)
            return file

        yield make


@pytest.fixture
def join(world: TowerWorld, config: Callable[..., Path]) -> Join:
    def go(token: str, *arguments: str) -> Done:
        argv = [str(BIN / "tower-agent"), "--config", str(config()), "join", "--wait", "1s", *arguments]
        return run(argv, world.environment(), f"{token}\n".encode())

    return go


def refused(done: Done, token: str, *says: str) -> None:
    """Exit code 1, one message with all of it, and nothing of the token's secret."""
    said = done.stderr.decode()
    assert done.code == 1, done
    for text in says:
        assert text in said
    assert token not in said
    assert parse_token(token).secret not in said


def test_a_token_lets_its_one_key_in_and_no_other(world: TowerWorld, token: Callable[..., str], join: Join) -> None:
    text = token()
    assert join(text).code == 0
    with (
        moves(world, 'tower_enrolments_total{result="TWR206"}'),
        logs(world.server.log, "enrolment-refused", "TWR206", without=(text, parse_token(text).secret)),
    ):
        refused(join(text), text, "TWR206", "used up", "token")


@pytest.mark.slow
def test_a_wrong_secret_and_an_unknown_token_are_not_told_apart(
    world: TowerWorld, token: Callable[..., str], join: Join
) -> None:
    good = parse_token(token())
    wrong = str(
        EnrolmentToken(url=good.url, cluster=good.cluster, id=good.id, secret="A" * len(good.secret), ca=good.ca)
    )
    unknown = str(EnrolmentToken.create(url=good.url, cluster=good.cluster, ca=good.ca))
    with (
        moves(world, 'tower_enrolments_total{result="TWR204"}', by=2),
        logs(
            world.server.log, "enrolment-refused", "TWR204", without=(wrong, good.secret, parse_token(unknown).secret)
        ),
    ):
        said = [join(text).stderr.decode() for text in (wrong, unknown)]
    assert "TWR204" in said[0]
    assert said[0] == said[1]


@pytest.mark.slow
def test_an_expired_token_says_so(world: TowerWorld, token: Callable[..., str], join: Join) -> None:
    text = token(ttl=1)
    wait_until(lambda: _state(world, text) == "Expired", "the token's end", 30.0)
    with (
        moves(world, 'tower_enrolments_total{result="TWR205"}'),
        logs(world.server.log, "enrolment-refused", "TWR205", without=(text, parse_token(text).secret)),
    ):
        refused(join(text), text, "TWR205", "expired")


def _state(world: TowerWorld, text: str) -> str:
    items = world.call("GET", "/v1/tokens")[1]["items"]
    return next(str(item["state"]) for item in items if item["id"] == parse_token(text).id)


@pytest.mark.slow
def test_a_revoked_token_says_so(world: TowerWorld, token: Callable[..., str], join: Join) -> None:
    text = token()
    world.towerctl("revoke", "token", parse_token(text).id)
    refused(join(text), text, "TWR208", "revoked")


def test_a_token_for_another_tower_never_sends_its_secret(
    world: TowerWorld, token: Callable[..., str], join: Join
) -> None:
    good = parse_token(token())
    ca = good.ca[:-1] + ("0" if good.ca[-1] != "0" else "1")
    text = str(EnrolmentToken(url=good.url, cluster=good.cluster, id=good.id, secret=good.secret, ca=ca))
    before = world.call("GET", "/v1/tokens")[1]
    refused(join(text), text, "TWR223", "nothing was sent")
    assert world.call("GET", "/v1/tokens")[1] == before


@pytest.mark.parametrize("text", ["twr1.####", pytest.param("twr1." + "A" * 5000, marks=pytest.mark.slow)])
def test_what_is_no_token_is_refused_without_a_connection(join: Join, text: str) -> None:
    done = join(text)
    assert done.code != 0
    assert re.match(r"tower-agent: TWR\d{3}: .+\n  .+", done.stderr.decode())


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_twenty_who_join_at_once_with_one_token_make_one_identity(
    world: TowerWorld, cluster: str, token: Callable[..., str], config: Callable[..., Path]
) -> None:
    text, many = token(), 20
    joining = [
        subprocess.Popen(
            [str(BIN / "tower-agent"), "--config", str(config()), "join"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=world.environment(),
        )
        for _ in range(many)
    ]
    for process in joining:
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.close()
    said = []
    for process in joining:
        assert process.stderr is not None
        said.append((process.wait(250), process.stderr.read().decode()))
        process.stderr.close()
    assert sorted(code for code, _ in said) == [0] + [1] * (many - 1)
    assert all("TWR206" in text for code, text in said if code)
    agents = world.call("GET", f"/v1/agents?cluster={cluster}")[1]["items"]
    assert len(agents) == 1


@pytest.mark.slow
def test_agents_of_one_state_directory_share_one_identity(
    world: TowerWorld, cluster: str, token: Callable[..., str], config: Callable[..., Path]
) -> None:
    """Two joins at once with the same directory: the keys are made once, so that both get the same answer."""
    text, file = token(), config()
    argv = [str(BIN / "tower-agent"), "--config", str(file), "join"]
    both = [
        subprocess.Popen(
            argv, stdin=subprocess.PIPE, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=world.environment()
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdin is not None
        process.stdin.write(text.encode())
        process.stdin.flush()
    for process in both:
        _, said = process.communicate(timeout=30)
        assert process.returncode == 0, said
    assert len(world.call("GET", f"/v1/agents?cluster={cluster}")[1]["items"]) == 1


@pytest.mark.slow
def test_the_identity_is_kept_for_its_owner_alone(
    token: Callable[..., str], join: Join, config: Callable[..., Path], world: TowerWorld
) -> None:
    file = config()
    text = token()
    done = run([str(BIN / "tower-agent"), "--config", str(file), "join"], world.environment(), text.encode())
    assert done.code == 0
    state = Path(yaml.safe_load(file.read_text())["state_dir"])
    found = list(state.rglob("*"))
    assert found
    for path in [state, *found]:
        assert os.stat(path).st_mode & 0o077 == 0, path
    for path in (path for path in found if path.is_file()):
        assert parse_token(text).secret.encode() not in path.read_bytes()
    assert b"PRIVATE" not in done.stdout + done.stderr
