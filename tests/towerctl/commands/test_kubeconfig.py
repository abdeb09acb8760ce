from __future__ import annotations

import base64
import re
import shlex
import stat
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.oid import NameOID

from tests.towerctl.kit import Shell


def read(text: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The cluster and the user of a kubeconfig with one context."""
    config = yaml.safe_load(text)
    (cluster,), (user,), (context,) = config["clusters"], config["users"], config["contexts"]
    assert config["current-context"] == context["name"]
    return cluster["cluster"], user["user"]


def certificate(user: dict[str, Any]) -> x509.Certificate:
    return x509.load_pem_x509_certificate(base64.b64decode(user["client-certificate-data"]))


def subject(found: x509.Certificate, oid: x509.ObjectIdentifier) -> list[str]:
    return [str(attribute.value) for attribute in found.subject.get_attributes_for_oid(oid)]


def test_by_default_the_file_holds_a_plugin_and_no_secret(live: Shell, cluster: str) -> None:
    where, user = read(live.ok("kubeconfig", cluster))
    assert where["tls-server-name"] == f"{cluster}.members.tower"
    assert where["server"].startswith("https://127.0.0.1:")
    assert set(user) == {"exec"}
    assert user["exec"]["apiVersion"] == "client.authentication.k8s.io/v1"
    assert user["exec"]["args"][:-1] == ["credential", cluster, "--socket", str(live.socket), "--ca"]


@pytest.mark.parametrize("merge", [False, True])
def test_the_command_to_try_can_be_pasted_and_reads_the_file_that_was_written(
    live: Shell, cluster: str, tmp_path: Path, merge: bool
) -> None:
    file = tmp_path / "of mine"
    said = live("kubeconfig", cluster, "--context-name", "my lab", "-f", str(file), *["--merge"][: int(merge)]).err
    words = shlex.split(said.partition("Try: ")[2])
    context = ["--context", "my lab"] if merge else []
    assert words == ["kubectl", "--kubeconfig", str(file), *context, "version"]
    assert yaml.safe_load(file.read_text())["current-context"] == "my lab"


def test_a_file_without_a_name_is_refused(live: Shell, cluster: str) -> None:
    live("kubeconfig", cluster, "-f", "").refused("is no name of a file", "TWR610")


@pytest.mark.slow
def test_the_plugin_in_the_file_can_be_run_as_kubectl_would(live: Shell, cluster: str) -> None:
    _, user = read(live.ok("kubeconfig", cluster))
    plugin = user["exec"]
    done = subprocess.run([plugin["command"], *plugin["args"]], capture_output=True, text=True, timeout=30, check=True)
    assert '"kind": "ExecCredential"' in done.stdout


def test_an_embedded_certificate_is_the_hosts_admin_for_a_day(live: Shell, cluster: str) -> None:
    ran = live("kubeconfig", cluster, "--embed")
    _, user = read(ran.out)
    found = certificate(user)
    assert subject(found, NameOID.COMMON_NAME) == ["tower:lab:admin"]
    assert subject(found, NameOID.ORGANIZATION_NAME) == ["tower:lab:cluster-admins"]
    left = found.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24, minutes=1)
    assert "as secret as a password" in ran.err
    assert b"PRIVATE KEY" in base64.b64decode(user["client-key-data"])


def test_the_lifetime_of_an_embedded_certificate_can_be_chosen(live: Shell, cluster: str) -> None:
    ran = live("kubeconfig", cluster, "--embed", "--ttl", "90m")
    assert "good for 90m" in ran.err
    _, user = read(ran.out)
    left = certificate(user).not_valid_after_utc - datetime.now(UTC)
    assert timedelta(minutes=88) < left <= timedelta(minutes=91)


def test_another_name_is_in_the_certificate_without_the_admins_group(live: Shell, cluster: str) -> None:
    ran = live("kubeconfig", cluster, "--embed", "--as", "alice")
    found = certificate(read(ran.out)[1])
    assert subject(found, NameOID.COMMON_NAME) == ["alice"]
    assert subject(found, NameOID.ORGANIZATION_NAME) == []
    assert "until its owner allows that name" in ran.err


def test_the_plugin_asks_for_the_other_name_too(live: Shell, cluster: str) -> None:
    _, user = read(live.ok("kubeconfig", cluster, "--as", "alice"))
    assert user["exec"]["args"][-2:] == ["--as", "alice"]


def test_groups_that_were_asked_for_are_in_the_certificate_and_go_to_the_plugin(live: Shell, cluster: str) -> None:
    groups = ("--as", "alice", "--group", "dev", "--group", "ops")
    found = certificate(read(live.ok("kubeconfig", cluster, "--embed", *groups))[1])
    assert subject(found, NameOID.ORGANIZATION_NAME) == ["dev", "ops"]
    _, user = read(live.ok("kubeconfig", cluster, *groups))
    assert user["exec"]["args"][-6:] == list(groups)


def test_groups_need_a_name_to_go_with(live: Shell, cluster: str) -> None:
    live("kubeconfig", cluster, "--group", "dev").refused("--group goes with --as", "add --as NAME", code=2)


@pytest.mark.parametrize("name", ["system:admin", "tower:elsewhere:admin"])
def test_a_name_that_is_not_this_hosts_to_give_is_refused(live: Shell, cluster: str, name: str) -> None:
    live("kubeconfig", cluster, "--embed", "--as", name).refused(name)


def test_a_file_is_written_for_its_owner_alone_and_never_replaced(live: Shell, cluster: str, folder: Path) -> None:
    path = folder / "kubeconfig"
    ran = live("kubeconfig", cluster, "--embed", "-f", str(path))
    assert (ran.code, ran.out) == (0, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    live("kubeconfig", cluster, "--embed", "-f", str(path)).refused(f"{path} exists already", "TWR610")


def test_a_file_that_cannot_be_written_is_named(live: Shell, cluster: str) -> None:
    live("kubeconfig", cluster, "-f", "/proc/nowhere/x").refused("/proc/nowhere", "TWR610")


def test_of_a_file_that_was_not_written_nothing_is_said_but_why(live: Shell, cluster: str, folder: Path) -> None:
    (folder / "there").write_text("mine")
    ran = live("kubeconfig", cluster, "--embed", "-f", str(folder / "there"))
    assert ran.code == 1
    assert ran.err.startswith("error: ")


def test_merging_keeps_what_others_wrote(
    live: Shell, cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = folder / "config"
    other = {"name": "other", "cluster": {"server": "https://10.0.0.1:6443"}}
    path.write_text(
        yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "clusters": [other], "current-context": "other"})
    )
    monkeypatch.setenv("KUBECONFIG", f"{path}:/nowhere")
    live.ok("kubeconfig", cluster, "--merge", "--context-name", "edge")
    config = yaml.safe_load(path.read_text())
    assert other in config["clusters"]
    assert [context["name"] for context in config["contexts"]] == ["edge"]
    assert config["current-context"] == "other"
    live.ok("kubeconfig", cluster, "--merge", "--context-name", "edge", "--use")
    assert yaml.safe_load(path.read_text())["current-context"] == "edge"


def test_merging_without_a_file_makes_the_one_that_kubectl_reads(live: Shell, cluster: str) -> None:
    live.ok("kubeconfig", cluster, "--merge")
    assert yaml.safe_load((live.home / ".kube" / "config").read_text())["current-context"] == cluster


def test_another_clusters_entry_is_not_overwritten_unasked(live: Shell, cluster: str, folder: Path) -> None:
    path = folder / "config"
    theirs = {"name": cluster, "cluster": {"server": "https://10.0.0.1:6443"}}
    path.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", "clusters": [theirs]}))
    live("kubeconfig", cluster, "--merge", "-f", str(path)).refused("another cluster", "--context-name", "TWR610")
    live.ok("kubeconfig", cluster, "--merge", "-f", str(path), "--overwrite")
    path.write_text(re.sub("(certificate-authority-data: ).*", r"\1b2xk", path.read_text()))  # as after a rotation
    live("kubeconfig", cluster, "--merge", "-f", str(path)).refused("with another CA", "--overwrite", "TWR610")
    live.ok("kubeconfig", cluster, "--merge", "-f", str(path), "--overwrite")


@pytest.mark.parametrize("content", ["{: [", "- a\n- b\n", "kind: Pod\n"])
def test_a_file_that_is_no_kubeconfig_is_left_as_it_is(live: Shell, cluster: str, folder: Path, content: str) -> None:
    path = folder / "config"
    path.write_text(content)
    live("kubeconfig", cluster, "--merge", "-f", str(path)).refused(str(path), "TWR610")
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--ttl", "1h"], "--ttl goes with --embed"),
        (["--use"], "go with --merge"),
        (["--overwrite"], "go with --merge"),
        (["--context-name", ""], "cannot be the name of a context"),
        (["--context-name", "a\nb"], "cannot be the name of a context"),
    ],
)
def test_options_that_mean_nothing_together_are_usage_errors(
    live: Shell, cluster: str, options: list[str], why: str
) -> None:
    live("kubeconfig", cluster, *options).refused(why, code=2)


def test_an_unknown_cluster_is_refused_with_what_is_close(live: Shell, cluster: str) -> None:
    for options in ([], ["--embed"]):
        live("kubeconfig", f"{cluster}x", *options).refused(
            f"there is no cluster '{cluster}x'", f"did you mean {cluster}"
        )


def test_a_program_that_is_not_on_the_path_is_named_in_full(
    live: Shell, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    _, user = read(live.ok("kubeconfig", cluster))
    assert user["exec"]["command"] == str(Path(sys.executable).with_name("towerctl"))
