"""What the configuration accepts, and how mistakes are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.config import load
from daemon.faults import TowerError
from protocol import defaults
from tower_agent.config import AgentConfig, split_secret


def loaded(tmp_path: Path, text: str) -> AgentConfig:
    file = tmp_path / "agent.yaml"
    file.write_text(text)
    return load(AgentConfig, file=file, environ={}).value


def test_defaults_are_those_of_the_product() -> None:
    config = AgentConfig()
    assert str(config.state_dir) == defaults.AGENT_STATE_DIR
    assert config.health_address == defaults.AGENT_HEALTH_ADDRESS
    assert config.insecure_transport is False
    assert config.raw_services_over_foreign_tls is False


def test_the_effective_configuration_reads_back(tmp_path: Path) -> None:
    text = "services: {grafana: 'grafana:3000'}\nhosts: [{name: hq, proxy: 'http://p:1'}]\nmemory: {tunnel: 1MB}\n"
    (tmp_path / "agent.yaml").write_text(text)
    first = load(AgentConfig, file=tmp_path / "agent.yaml", environ={"TOWER_LIVENESS__PING": "1500ms"})
    assert loaded(tmp_path, first.render()) == first.value


def test_services_in_both_spellings(tmp_path: Path) -> None:
    config = loaded(
        tmp_path,
        "services:\n  grafana: grafana.monitoring:3000\n  kubesphere: {address: '[fd00::1]:80'}\n"
        "  kubernetes: {mode: passthrough}\n",
    )
    assert config.services["grafana"].address == "grafana.monitoring:3000"
    assert config.services["kubesphere"].address == "[fd00::1]:80"
    assert config.services["kubernetes"].mode == "passthrough"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("services: {grafana: grafana}", "must be HOST:PORT"),
        ("services: {grafana: 'grafana:99999'}", "must be HOST:PORT"),
        ("services: {grafana: 'fd00::1:80'}", "must be HOST:PORT"),
        ("services: {Grafana: 'grafana:80'}", "a service's name is a DNS label"),
        ("services: {kubernetes: 'other:443'}", "the address of kubernetes comes from"),
        ("services: {grafana: {mode: passthrough}}", "needs an address"),
        ("hosts: [{name: East}]", "a host's name is a DNS label"),
        ("hosts: [{name: east}, {name: east}]", "names a host twice"),
        ("identity_secret: justaname", "NAMESPACE/NAME"),
        ("health_address: nonsense", "must be HOST:PORT, [IPV6]:PORT or :PORT"),
        ("kubernetes: x", "unknown key"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(TowerError) as caught:
        loaded(tmp_path, text)
    assert caught.value.code == "TWR101"
    assert told in caught.value.message
    assert "agent.yaml" in caught.value.message


def test_secrets_are_named_by_namespace() -> None:
    assert split_secret("tower-east/tower-agent.identity") == ("tower-east", "tower-agent.identity")
    for wrong in ("name", "/name", "ns/", "ns/a/b", "NS/name"):
        with pytest.raises(ValueError, match="NAMESPACE/NAME"):
            split_secret(wrong)
