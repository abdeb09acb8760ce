"""What the agent reads from a kubeconfig, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from daemon.faults import TowerError
from daemon.kube.kubeconfig import read_kubeconfig
from tests.tower_agent.backend import write_kubeconfig


def test_data_files_and_relative_paths(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("CERT")
    (tmp_path / "key.pem").write_text("KEY")
    user = {"client-certificate": "cert.pem", "client-key": str(tmp_path / "key.pem"), "tokenFile": "token"}
    file = write_kubeconfig(tmp_path / "config", "https://10.0.0.1:6443", b"CA", user)
    found = read_kubeconfig(file)
    assert (found.server, found.ca_pem) == ("https://10.0.0.1:6443", b"CA")
    assert (found.certificate_pem, found.key_pem) == (b"CERT", b"KEY")
    assert found.token_file == tmp_path / "token"
    assert found.source == f"kubeconfig {file}, context 'member'"


def test_an_exec_plugin_is_found_beside_the_file(tmp_path: Path) -> None:
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": "./get-token",
            "args": ["--now"],
            "env": [{"name": "A", "value": "b"}],
        }
    }
    plugin = read_kubeconfig(write_kubeconfig(tmp_path / "config", "https://m", b"CA", user)).plugin
    assert plugin is not None
    assert plugin.command == str(tmp_path / "get-token")
    assert (plugin.args, plugin.env) == (("--now",), (("A", "b"),))


@pytest.mark.parametrize(
    ("user", "told"),
    [
        ({"username": "me", "password": "hidden"}, "'username' is not supported"),
        ({"auth-provider": {"name": "gcp"}}, "'auth-provider' is not supported"),
        ({"client-certificate-data": "QQ=="}, "without its key"),
        ({"client-key-data": "%%"}, "client-key-data is not base64"),
        ({"client-key-data": "ä"}, "client-key-data is not base64"),
        ({"client-key": "missing.pem"}, "No such file"),
        ({"exec": {"apiVersion": "v1"}}, "lacks a command"),
        ({"exec": {"apiVersion": "v1", "command": "x", "args": "--all"}}, "to be lists"),
        ({"exec": {"apiVersion": "v1", "command": "x", "env": {"A": "b"}}}, "to be lists"),
        ({"exec": {"apiVersion": "v1", "command": "x", "env": [{"A": "b"}]}}, "a name and a value"),
        ({"exec": {"apiVersion": "v1", "command": "x", "env": ["A=b"]}}, "a name and a value"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, user: dict[str, object], told: str) -> None:
    file = write_kubeconfig(tmp_path / "config", "https://m", b"CA", user)
    with pytest.raises(TowerError) as caught:
        read_kubeconfig(file)
    assert caught.value.code == "TWR309"
    assert told in caught.value.message
    assert str(file) in caught.value.message
    assert "hidden" not in str(caught.value)


def test_unverified_tls_is_refused(tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "config", "https://m", b"CA", {})
    document = yaml.safe_load(file.read_text())
    document["clusters"][0]["cluster"]["insecure-skip-tls-verify"] = True
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(TowerError, match="insecure-skip-tls-verify is not accepted"):
        read_kubeconfig(file)


def test_a_missing_context_or_file_is_named(tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "config", "https://m", b"CA", {})
    with pytest.raises(TowerError, match="no context named 'other'"):
        read_kubeconfig(file, "other")
    with pytest.raises(TowerError, match="cannot read"):
        read_kubeconfig(tmp_path / "nothing")
