"""The exec plugin's cache: who may read it, when it is replaced, and what happens while the server is away."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from tests.towerctl.kit import Shell
from towerctl.credentials import cache_file


def status(text: str) -> dict[str, Any]:
    document = json.loads(text)
    assert document["apiVersion"] == "client.authentication.k8s.io/v1"
    assert document["kind"] == "ExecCredential"
    found: dict[str, Any] = document["status"]
    return found


def held(live: Shell, cluster: str) -> Path:
    return cache_file(str(live.socket), cluster, None)


def change(path: Path, **values: float) -> None:
    document = json.loads(path.read_text()) | values
    path.write_text(json.dumps(document))


def test_a_certificate_with_its_key_is_printed_for_kubectl(live: Shell, cluster: str) -> None:
    found = status(live.ok("credential", cluster))
    certificate = x509.load_pem_x509_certificate(found["clientCertificateData"].encode())
    assert "PRIVATE KEY" in found["clientKeyData"]
    renew = datetime.fromisoformat(found["expirationTimestamp"])
    left, life = renew - datetime.now(UTC), certificate.not_valid_after_utc - datetime.now(UTC)
    assert 0.6 < left / life < 0.7, "kubectl is told to come back at two thirds, not when it is too late"


def test_the_second_call_gives_the_same_without_asking(live: Shell, cluster: str) -> None:
    first = live.ok("credential", cluster)
    assert live.ok("credential", cluster) == first
    assert live.ok("credential", cluster, "--refresh") != first


def test_the_cache_is_for_its_owner_alone(live: Shell, cluster: str) -> None:
    live.ok("credential", cluster)
    path = held(live, cluster)
    assert path.is_relative_to(live.home)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_the_cache_follows_the_xdg_directory(
    live: Shell, cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    live.ok("credential", cluster)
    assert len(list((folder / "cache" / "tower" / "credentials").iterdir())) == 1


def test_callers_clusters_and_servers_are_kept_apart(live: Shell, cluster: str) -> None:
    admin, alice = live.ok("credential", cluster), live.ok("credential", cluster, "--as", "alice")
    assert admin != alice
    names = {
        cache_file("/a", "x", None),
        cache_file("/b", "x", None),
        cache_file("/a", "y", None),
        cache_file("/a", "x", "u"),
    }
    assert len(names) == 4


def test_a_tower_that_was_made_anew_at_the_same_place_gets_a_new_certificate(live: Shell, cluster: str) -> None:
    first = live.ok("credential", cluster, "--ca", "aa")
    assert live.ok("credential", cluster, "--ca", "aa") == first
    assert live.ok("credential", cluster, "--ca", "bb") != first


def test_it_is_renewed_before_it_ends(live: Shell, cluster: str) -> None:
    first = live.ok("credential", cluster)
    change(held(live, cluster), renew_at=time.time() - 1)
    assert live.ok("credential", cluster) != first


def test_while_the_server_is_away_the_old_one_serves_until_it_ends(live: Shell, cluster: str, folder: Path) -> None:
    first = status(live.ok("credential", cluster))
    gone = str(folder / "gone.sock")
    path = cache_file(gone, cluster, None)
    path.write_text(held(live, cluster).read_text())
    path.chmod(0o600)
    change(path, renew_at=time.time() - 1)
    ran = live("credential", cluster, "--socket", gone)
    assert ran.code == 0
    assert status(ran.out)["clientCertificateData"] == first["clientCertificateData"]
    again = datetime.fromisoformat(status(ran.out)["expirationTimestamp"]) - datetime.now(UTC)
    assert 0 < again.total_seconds() <= 60
    assert "warning: no tower server runs here" in ran.err
    change(path, not_after=time.time() - 1)
    live("credential", cluster, "--socket", gone).refused("no tower server runs here", "TWR602")


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_a_cache_that_others_could_touch_is_not_used(live: Shell, cluster: str, mode: int) -> None:
    first = live.ok("credential", cluster)
    held(live, cluster).chmod(mode)
    ran = live("credential", cluster)
    assert ran.out != first
    assert "is open to others and not used" in ran.err
    assert stat.S_IMODE(held(live, cluster).stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "[" * 9999, '{"renew_at": 9e99}', '{"renew_at": 9e99, "not_after": 9e99, "credential": {}}'],
)
def test_a_damaged_cache_is_made_anew(live: Shell, cluster: str, content: str) -> None:
    live.ok("credential", cluster)
    held(live, cluster).write_text(content)
    assert "PRIVATE KEY" in status(live.ok("credential", cluster))["clientKeyData"]


def test_a_link_in_the_place_of_the_cache_is_not_followed(live: Shell, cluster: str, folder: Path) -> None:
    live.ok("credential", cluster)
    path, elsewhere = held(live, cluster), folder / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)
    before = elsewhere.read_text()
    live.ok("credential", cluster)
    assert elsewhere.read_text() == before
    assert not path.is_symlink()


def test_a_home_that_cannot_be_written_costs_a_warning_and_no_access(
    live: Shell, cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "file"))
    ran = live("credential", cluster)
    assert "PRIVATE KEY" in status(ran.out)["clientKeyData"]
    assert "cannot be kept" in ran.err


def test_without_server_and_cache_it_is_one_sentence_with_its_mend(shell: Shell) -> None:
    shell("credential", "edge-1").refused("no tower server runs here", "tower-server run", "TWR602")


def test_an_unknown_cluster_is_refused(live: Shell, cluster: str) -> None:
    live("credential", f"{cluster}x").refused(f"there is no cluster '{cluster}x'", f"did you mean {cluster}")


def test_a_kept_certificate_needs_no_cryptography(live: Shell, cluster: str) -> None:
    live.ok("credential", cluster)
    code = f"import sys, towerctl.main; towerctl.main.run(['credential', {cluster!r}]); print(sorted(sys.modules))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, env=dict(os.environ)
    )
    modules = told.stdout.splitlines()[-1]
    for heavy in ("'cryptography'", "'yaml'", "'pydantic'", "'asyncio'"):
        assert heavy not in modules


def test_after_a_revocation_every_kubeconfig_of_the_cluster_gets_a_new_one(live: Shell, cluster: str) -> None:
    named = ("credential", cluster, "--ca", "abc", "--socket", str(live.socket))
    other = ("credential", cluster, "--as", "alice")
    kept, alices = live.ok(*named), live.ok(*other)
    longer = live.home / ".cache" / "tower" / "credentials" / f"{cluster}-2-{'0' * 24}.json"
    longer.write_text("another cluster's")
    live.ok("credential", cluster, "--refresh")
    assert live.ok(*named) != kept
    assert live.ok(*other) != alices
    assert longer.read_text() == "another cluster's"
