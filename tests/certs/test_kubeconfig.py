from __future__ import annotations

import base64
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from certs import kubeconfig
from certs.ca import Authority
from certs.errors import KubeconfigError
from certs.generation import Issued
from certs.keys import PrivateKey, key_to_pem
from certs.kubeconfig import Connection

EXISTING = """\
apiVersion: v1
kind: Config
preferences: {colors: true}
current-context: work
clusters:
- {name: work, cluster: {server: "https://10.0.0.1:6443", x-own: kept}}
users:
- {name: me, user: {token: abc}}
contexts:
- {name: work, context: {cluster: work, user: me, namespace: dev}}
x-unknown: {a: [1, 2]}
"""


@pytest.fixture
def connection(authority: Authority) -> Connection:
    return Connection("https://host.example:6000", "edge-1.members.tower", authority.bundle.root_pem)


@pytest.fixture
def addition(connection: Connection) -> dict[str, Any]:
    return kubeconfig.with_plugin(connection, name="edge-1", command="towerctl", arguments=["credential", "edge-1"])


def test_an_embedded_kubeconfig_holds_everything(
    connection: Connection, every_kind: dict[str, Issued], key: PrivateKey, authority: Authority
) -> None:
    issued = every_kind["client"]
    config = kubeconfig.embedded(connection, name="edge-1", chain_pem=issued.chain_pem, key_pem=key_to_pem(key))
    again = yaml.safe_load(kubeconfig.to_yaml(config))
    cluster, user = again["clusters"][0]["cluster"], again["users"][0]["user"]
    assert cluster["server"] == "https://host.example:6000"
    assert cluster["tls-server-name"] == "edge-1.members.tower"
    assert base64.b64decode(cluster["certificate-authority-data"]) == authority.bundle.root_pem
    assert base64.b64decode(user["client-certificate-data"]) == issued.chain_pem
    assert base64.b64decode(user["client-key-data"]) == key_to_pem(key)


def test_a_plugin_kubeconfig_holds_no_secret(addition: dict[str, Any]) -> None:
    plugin = addition["users"][0]["user"]["exec"]
    assert plugin["apiVersion"] == "client.authentication.k8s.io/v1"
    assert (plugin["command"], plugin["args"]) == ("towerctl", ["credential", "edge-1"])
    assert plugin["interactiveMode"] == "Never"
    assert "Install" in plugin["installHint"]
    assert "PRIVATE" not in kubeconfig.to_yaml(addition)


def test_the_plugins_answer_says_when_it_ends(every_kind: dict[str, Issued], key: PrivateKey) -> None:
    issued = every_kind["client"]
    answer = kubeconfig.exec_credential(chain_pem=issued.chain_pem, key_pem=key_to_pem(key), not_after=issued.not_after)
    assert answer["kind"] == "ExecCredential"
    assert answer["status"]["expirationTimestamp"] == "2027-01-16T08:00:00Z"
    assert answer["status"]["clientCertificateData"].count("BEGIN CERTIFICATE") == 2


def test_merging_keeps_what_others_wrote(tmp_path: Path, addition: dict[str, Any]) -> None:
    path = tmp_path / "config"
    path.write_text(EXISTING)
    kubeconfig.merge(path, addition)
    merged, before = yaml.safe_load(path.read_text()), yaml.safe_load(EXISTING)
    assert merged["current-context"] == "work"
    assert merged["x-unknown"] == before["x-unknown"]
    assert merged["preferences"] == before["preferences"]
    for section in ("clusters", "users", "contexts"):
        assert merged[section] == [*before[section], *addition[section]]
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["config"]


def test_merging_makes_a_missing_file_and_its_folder(tmp_path: Path, addition: dict[str, Any]) -> None:
    path = tmp_path / "new" / "config"
    kubeconfig.merge(path, addition)
    assert yaml.safe_load(path.read_text())["current-context"] == "edge-1"


def test_merging_again_renews_and_keeps_the_namespace(
    tmp_path: Path, connection: Connection, addition: dict[str, Any], every_kind: dict[str, Issued], key: PrivateKey
) -> None:
    path = tmp_path / "config"
    path.write_text(EXISTING)
    kubeconfig.merge(path, addition, use=True)
    config = yaml.safe_load(path.read_text())
    assert config["current-context"] == "edge-1"
    config["contexts"][1]["context"]["namespace"] = "prod"
    path.write_text(yaml.safe_dump(config))
    embedded = kubeconfig.embedded(
        connection, name="edge-1", chain_pem=every_kind["client"].chain_pem, key_pem=key_to_pem(key)
    )
    kubeconfig.merge(path, embedded)
    config = yaml.safe_load(path.read_text())
    assert [row["name"] for row in config["users"]] == ["me", "edge-1"]
    assert "exec" not in config["users"][1]["user"]
    assert config["contexts"][1]["context"] == {"cluster": "edge-1", "user": "edge-1", "namespace": "prod"}


@pytest.mark.parametrize(
    ("existing", "says"),
    [
        ("contexts: [{name: edge-1, context: {cluster: work, user: me}}]", "context 'edge-1' already: cluster 'work'"),
        (
            "clusters: [{name: edge-1, cluster: {server: 'https://x'}}]",
            "another cluster 'edge-1' already, at 'https://x'",
        ),
        ("users: [{name: edge-1, user: {token: t}}]", "user 'edge-1' already"),
    ],
)
def test_a_name_that_is_taken_is_never_overwritten_unasked(
    tmp_path: Path, addition: dict[str, Any], existing: str, says: str
) -> None:
    path = tmp_path / "config"
    path.write_text(existing)
    with pytest.raises(KubeconfigError, match=rf"{says}.*--context-name") as caught:
        kubeconfig.merge(path, addition)
    assert caught.value.fault == "TWR610"
    assert path.read_text() == existing
    kubeconfig.merge(path, addition, overwrite=True)
    assert yaml.safe_load(path.read_text())["clusters"] == addition["clusters"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("a: [", r"not YAML \(line"),
        ("- 1", "not a kubeconfig"),
        ("kind: Secret", "not a kubeconfig"),
        ("clusters: {a: b}", "'clusters' is not a list of named entries"),
        ("users: [1]", "'users' is not a list"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("[" * 500, "not YAML"),
        ("clusters: 2026-99-99", "not YAML"),
    ],
)
def test_what_is_no_kubeconfig_is_left_alone(tmp_path: Path, addition: dict[str, Any], content: str, says: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(KubeconfigError, match=says):
        kubeconfig.merge(path, addition)
    assert path.read_text() == content


def test_a_link_stays_a_link(tmp_path: Path, addition: dict[str, Any]) -> None:
    (tmp_path / "real").write_text(EXISTING)
    (tmp_path / "config").symlink_to(tmp_path / "real")
    kubeconfig.merge(tmp_path / "config", addition)
    assert (tmp_path / "config").is_symlink()
    assert "edge-1" in (tmp_path / "real").read_text()


def test_a_lock_that_stays_is_named(tmp_path: Path, addition: dict[str, Any]) -> None:
    (tmp_path / "config.lock").write_text("")
    with pytest.raises(KubeconfigError, match=r"config\.lock exists; .*remove the lock file"):
        kubeconfig.merge(tmp_path / "config", addition, deadline=0.05)
    assert (tmp_path / "config.lock").exists()


def test_writers_at_once_lose_nothing(tmp_path: Path, connection: Connection) -> None:
    def add(name: str) -> None:
        kubeconfig.merge(
            tmp_path / "config", kubeconfig.with_plugin(connection, name=name, command="towerctl", arguments=[name])
        )

    threads = [threading.Thread(target=add, args=(f"edge-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    config = yaml.safe_load((tmp_path / "config").read_text())
    assert {row["name"] for row in config["contexts"]} == {f"edge-{i}" for i in range(8)}


def test_a_file_of_its_own_replaces_none(tmp_path: Path, addition: dict[str, Any]) -> None:
    kubeconfig.write(tmp_path / "config", addition)
    assert (tmp_path / "config").stat().st_mode & 0o777 == 0o600
    with pytest.raises(KubeconfigError, match=r"exists already.*merge into this one"):
        kubeconfig.write(tmp_path / "config", addition)


def test_what_is_no_file_is_neither_waited_for_nor_replaced(tmp_path: Path, addition: dict[str, Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(KubeconfigError, match="pipe is no regular file"):
        kubeconfig.merge(tmp_path / "pipe", addition)
    assert (tmp_path / "pipe").is_fifo()
    for write in (kubeconfig.merge, kubeconfig.write):
        with pytest.raises(KubeconfigError, match="is no name of a file"):
            write(Path(""), addition)


def test_a_place_that_cannot_be_written_is_named(addition: dict[str, Any]) -> None:
    with pytest.raises(KubeconfigError, match=r"/proc/nowhere/config cannot be"):
        kubeconfig.merge(Path("/proc/nowhere/config"), addition)


def test_what_is_there_for_one_cluster_is_told_from_all_else(tmp_path: Path, addition: dict[str, Any]) -> None:
    path = tmp_path / "config"
    path.write_text(EXISTING)
    kubeconfig.merge(path, addition)
    config = kubeconfig.read(path)
    config["contexts"] += [
        {"name": "edge-1-dev", "context": {"cluster": "edge-1", "user": "me", "namespace": "dev"}},
        {"name": "odd", "context": None},
    ]
    where = {"server": "https://host.example:6000", "tls_server_name": "edge-1.members.tower"}
    assert kubeconfig.entries_for(config, **where) == [
        ("context", "edge-1"),
        ("context", "edge-1-dev"),
        ("cluster", "edge-1"),
        ("user", "edge-1"),
    ]
    assert kubeconfig.entries_for(config, **where | {"server": "https://other.example:6000"}) == []
