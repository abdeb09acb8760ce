"""An agent's life on a whole tower: revoked while it serves, a server that restarts, certificates that renew."""

from __future__ import annotations

import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.lab.processes import wait_until
from tests.lab.world import TowerWorld
from tests.loopback import forgery
from tests.loopback.backend import TOKEN
from tests.loopback.callers import Caller, logs, metrics, ticks_until_end, tunnels
from tests.loopback.load import loading
from tests.loopback.member import BackendMember

pytestmark = pytest.mark.slow
NAME = "mover"
BACK = 60.0
LIFE = 16.0  # seconds of an agent's certificates
DAY = 86400.0


@pytest.fixture(scope="module")
def token() -> Iterator[Path]:
    """The file of the ServiceAccount's token, as a kubelet writes it."""
    with tempfile.TemporaryDirectory(prefix="twr-") as folder:
        made = Path(folder) / "token"
        made.write_text(f"{TOKEN}.1")
        yield made


@pytest.fixture(scope="module")
def tower(member: BackendMember, token: Path) -> Iterator[TowerWorld]:
    """A tower whose certificates live seconds; its agents are revoked and its server stopped at will."""
    constants = {"AGENT_IDENTITY_DAYS": LIFE / DAY, "SERVER_CERTIFICATE_DAYS": LIFE / DAY, "CERTIFICATE_BACKDATE": 0.0}
    constants |= {"certs.ca.MIN_TTL": 1.0, "BACKOFF_MAX": 1.0, "daemon.kube.access.TOKEN_REREAD": 0.5}
    constants |= {"tower_server.housekeeping.EVERY": 0.5}
    config = yaml.safe_load(member.by_token.read_text())
    config["users"][0]["user"] = {"tokenFile": str(token)}
    credential = token.with_name("kubeconfig")
    credential.write_text(yaml.safe_dump(config))
    with tempfile.TemporaryDirectory(prefix="twr-") as folder, TowerWorld(Path(folder), constants=constants) as world:
        world.join(NAME, member, credential=credential)
        yield world


@pytest.fixture(scope="module")
def caller(tower: TowerWorld) -> Caller:
    return Caller(tower.kubeconfig(NAME))


def test_every_credential_changes_under_load_and_nobody_notices(
    tower: TowerWorld, caller: Caller, member: BackendMember, token: Path
) -> None:
    """Identity, serving certificate, the server's certificate and the ServiceAccount's token, all at least once."""
    before, tunnel = forgery.identity_of(tower, NAME), tunnels(tower, NAME)
    agent, server = tower.members[NAME].agent, tower.server
    renewed = 'tower_certificate_renewals_total{kind="identity",result="ok"}'
    with (
        loading(caller, "ask_on", "watch") as load,
        logs(agent.log, "identity-renewed"),
        logs(server.log, "renewed", NAME),
        logs(server.log, "server-certificate-renewed"),
    ):
        start = metrics(tower, NAME).get(renewed, 0.0)
        token.write_text(f"{TOKEN}.2")
        wait_until(lambda: _shown(member) == f"Bearer {TOKEN}.2", "the agent shows its new token", BACK)
        (member.folder / "revoked").write_text(f"{TOKEN}.1")
        wait_until(lambda: metrics(tower, NAME).get(renewed, 0.0) >= start + 2, "two renewals", 4 * LIFE)
        after = forgery.identity_of(tower, NAME)
        assert after.chain_pem != before.chain_pem
        assert after.serving_chain_pem != before.serving_chain_pem
        assert caller.ask("/renewed").status == 200  # under the new serving certificate
        load.more()
    load.check()
    assert load.watches == 1
    assert tunnels(tower, NAME) == tunnel
    assert tower.cluster(NAME)["state"] == "Connected"


def _shown(member: BackendMember) -> str:
    """The credential of the newest request of the load."""
    return member.seen("GET /on ")[-1].values("authorization")[0]


def test_an_agent_whose_identity_has_expired_only_renews_and_is_then_back(tower: TowerWorld, caller: Caller) -> None:
    tower.members[NAME].agent.stop()
    expires = forgery.identity_of(tower, NAME).bundle.identify_agent(forgery.identity_of(tower, NAME).chain).not_after
    wait_until(lambda: time.time() > expires + 0.5, "the end of the identity", 2 * LIFE)
    agent = tower.restart_agent(NAME)
    tower.until_state(NAME, "Connected", deadline=BACK)
    assert '"renew_only": true' in agent.log.read_text()
    assert caller.ask("/back").status == 200


def test_a_server_that_restarts_has_its_ports_and_agents_back(tower: TowerWorld, caller: Caller) -> None:
    port = caller.address
    with caller.connect() as running:
        running.send(running.request("GET", "/watch"))
        assert running.line()
        began = time.monotonic()
        assert tower.stop_server() == 0
        assert time.monotonic() - began < 6.0  # a stream that never ends is given a moment, and no more
        assert ticks_until_end(running) - began < 6.0
    tower.start()
    assert tower.cluster(NAME)["ports"]["kubernetes"] == port[1]
    tower.until_state(NAME, "Connected", deadline=BACK)
    assert caller.ask("/restarted").status == 200


def test_a_server_that_is_killed_loses_nothing_that_it_has_said(tower: TowerWorld, caller: Caller) -> None:
    tower.towerctl("add", "cluster", "said")
    told = tower.cluster("said")["ports"]
    token = tower.call("POST", "/v1/clusters/said/tokens", {})[1]["id"]
    tower.server.send(signal.SIGKILL)
    tower.stop_server()
    tower.start()
    assert tower.cluster("said")["ports"] == told
    assert token in {item["id"] for item in tower.call("GET", "/v1/tokens?cluster=said")[1]["items"]}
    tower.until_state(NAME, "Connected", deadline=BACK)
    assert caller.ask("/after-the-kill").status == 200


def test_a_revoked_agent_loses_its_tunnel_within_a_second_and_says_why(tower: TowerWorld, caller: Caller) -> None:
    (agent,) = tower.call("GET", f"/v1/agents?cluster={NAME}")[1]["items"]
    log = tower.members[NAME].agent.log
    with logs(log, "tunnel-down", "revoked", "TWR209"), caller.connect() as running:
        running.send(running.request("GET", "/watch"))
        assert running.line()
        began = time.monotonic()
        status, _ = tower.call("POST", f"/v1/agents/{NAME}/{agent['name']}/revoke", {})
        assert status in (200, 201)
        assert tunnels(tower, NAME) == []
        assert ticks_until_end(running) - began < 1.0
    wait_until(lambda: "make a new token and join again" in log.read_text(), "the agent's next step", BACK)
    found = tower.cluster(NAME)
    assert (found["state"], found["ready"]) == ("AuthFailed", "False")
    assert caller.ask("/revoked").status == 503


def test_the_owner_of_a_revoked_agent_joins_again_and_serves(tower: TowerWorld, caller: Caller) -> None:
    text = tower.call("POST", f"/v1/clusters/{NAME}/tokens", {})[1]["token"]
    member = tower.members[NAME]
    tower.members[NAME].agent.stop()
    tower.command("tower-agent", "--config", str(member.config), "join", stdin=text.encode())
    tower.restart_agent(NAME)
    tower.until_state(NAME, "Connected", deadline=BACK)
    assert caller.ask("/joined-again").status == 200


def test_deleting_a_cluster_frees_its_port_and_turns_its_agent_away(tower: TowerWorld, caller: Caller) -> None:
    log = tower.members[NAME].agent.log
    with logs(log, "tunnel-down", "delete"):
        tower.towerctl("delete", "cluster", NAME, "--yes")
    with pytest.raises(ConnectionRefusedError):
        caller.plain()
    assert not [key for key in metrics(tower) if f'member_cluster="{NAME}"' in key]
    tower.towerctl("add", "cluster", NAME)  # of the same name, and another cluster
    wait_until(lambda: tower.cluster(NAME)["history"], "the old agent's next try", BACK)
    assert tower.cluster(NAME)["history"][0]["event"] == "refused"
    assert tunnels(tower, NAME) == []
