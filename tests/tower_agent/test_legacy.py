"""What the process of the dialect makes of its configuration; how it serves is held against Go proxies elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daemon.faults import TowerError
from daemon.process import Process
from tests.lab.pki import ClusterCA, write_kubeconfig
from tower_agent.config import AgentConfig
from tower_agent.legacy import LegacyAgent
from tower_agent.main import run_words

pytestmark = pytest.mark.asyncio


def configured(folder: Path, **more: Any) -> AgentConfig:
    ca = ClusterCA(folder, "ca")
    token = folder / "cluster-token"
    token.touch(0o600)
    token.write_text("5f5f\n")
    values: dict[str, Any] = {
        "dialect": "kubesphere-v1",
        "kubesphere_v1": {"server": "wss://tower.test", "cluster": "edge", "ship_credential": True},
        "kubeconfig": write_kubeconfig(
            folder / "kubeconfig", name="m", server="https://10.0.0.1:6443", ca=ca.pem, token="t"
        ),
        "token_file": token,
        "health_address": "127.0.0.1:0",
    }
    return AgentConfig.model_validate(values | more)


async def refused(config: AgentConfig) -> TowerError:
    with pytest.raises(TowerError) as caught:
        await LegacyAgent(config).run(Process(name="tower-agent"))
    return caught.value


async def test_nothing_starts_without_consent_and_the_text_says_what_is_consented_to(tmp_path: Path) -> None:
    config = configured(tmp_path, kubesphere_v1={"server": "ws://tower.test", "cluster": "edge"})
    error = await refused(config)
    assert error.code == "TWR231"
    assert "the host acts in the member with a credential that the agent sends it" in error.fault.meaning
    assert "--ship-credential" in error.mend


@pytest.mark.parametrize(
    ("changed", "said", "mend"),
    [
        ({"server": None}, "kubesphere_v1.server is missing", "--server ws://HOST:PORT"),
        ({"cluster": None}, "kubesphere_v1.cluster is missing", "--cluster NAME"),
        ({"server": "ftp://tower.test"}, "'ftp://tower.test' is not a server address", "what the message names"),
    ],
)
async def test_what_is_missing_or_wrong_is_named_by_key_and_flag(
    tmp_path: Path, changed: dict[str, object], said: str, mend: str
) -> None:
    section = {"server": "wss://tower.test", "cluster": "edge", "ship_credential": True} | changed
    error = await refused(configured(tmp_path, kubesphere_v1=section))
    assert error.code == "TWR101"
    assert said in error.message
    assert mend in error.mend


async def test_without_a_token_there_is_nothing_to_register_by(tmp_path: Path) -> None:
    error = await refused(configured(tmp_path, token_file=None))
    assert (error.code, error.message) == ("TWR101", "token_file is missing")


async def test_a_ca_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "not-pem").write_text("nothing")
    error = await refused(configured(tmp_path, ca_file=tmp_path / "not-pem"))
    assert error.code == "TWR104"
    assert "not-pem" in error.message


async def test_a_token_file_that_others_may_read_is_refused(tmp_path: Path) -> None:
    config = configured(tmp_path)
    (tmp_path / "cluster-token").chmod(0o644)
    error = await refused(config)
    assert error.code == "TWR104"
    assert "chmod 600" in error.mend


async def test_the_dialects_keys_without_the_dialect_are_a_mistake() -> None:
    with pytest.raises(ValueError, match=r"--server, .* is for `dialect: kubesphere-v1` .* named by the token"):
        AgentConfig.model_validate({"kubesphere_v1": {"server": "ws://tower.test"}})


@pytest.mark.parametrize(
    ("command", "mend"),
    [("join", "`tower-agent run` registers by itself"), ("leave", "the host has had that credential")],
)
async def test_commands_that_the_dialect_has_no_use_for_say_what_takes_their_place(
    tmp_path: Path, command: str, mend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "agent.yaml").write_text("dialect: kubesphere-v1\n")
    assert run_words(["--config", str(tmp_path / "agent.yaml"), command]) == 1
    told = capsys.readouterr().err
    assert f"TWR101: `tower-agent {command}` is for tower.v1" in told
    assert mend in " ".join(told.split())
