"""What is found out before the way is gone; the way itself is walked in tests/kubernetes/test_operators.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon.faults import TowerError
from protocol import defaults
from tests.towerctl.kit import Shell
from towerctl.kubeway import is_ready, kubeconfig_of, port_of


def kubeconfig(path: Path, *contexts: str) -> Path:
    entries = "".join(f"- name: {name}\n  context: {{}}\n" for name in contexts)
    path.write_text(f"contexts:\n{entries}" if entries else "contexts: []\n")
    return path


def test_the_first_of_kubectls_files_that_has_the_context_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = kubeconfig(tmp_path / "one", "a", "b"), kubeconfig(tmp_path / "two", "b", "c")
    monkeypatch.setenv("KUBECONFIG", f"{one}:{tmp_path / 'gone'}:{two}")
    assert (kubeconfig_of("a"), kubeconfig_of("b"), kubeconfig_of("c")) == (one, one, two)
    with pytest.raises(TowerError, match="has no context 'd'") as caught:
        kubeconfig_of("d")
    assert "a, b, b, c" in (caught.value.mend or "")
    monkeypatch.setenv("KUBECONFIG", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(TowerError, match="there is no kubeconfig"):
        kubeconfig_of("a")


def pod(*, ready: str = "True", port: dict | None = None, **meta: str) -> dict:
    spec = {"containers": [{"ports": [{"name": "tunnel", "containerPort": 8443}, *([port] if port else [])]}]}
    return {"metadata": meta, "spec": spec, "status": {"conditions": [{"type": "Ready", "status": ready}]}}


def test_a_server_that_is_not_ready_or_on_its_way_out_is_not_asked() -> None:
    assert is_ready(pod())
    assert not is_ready(pod(ready="False"))
    assert not is_ready(pod(deletionTimestamp="2024-01-01T00:00:00Z"))
    assert not is_ready({"metadata": {}})


def test_the_pod_says_which_port_it_is() -> None:
    assert port_of(pod(port={"name": "operators", "containerPort": 9000})) == 9000
    assert port_of(pod()) == defaults.OPERATOR_PORT


def test_a_context_that_cannot_be_used_ends_the_command_with_its_reason(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(kubeconfig(tmp_path / "config", "prod")))
    shell("get", "clusters", "--context", "nope").refused("TWR309", "has no context 'nope'", "choose one of: prod")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / ("x" * 300)))
    shell("get", "clusters", "--context", "prod").refused("TWR102", "File name too long")
