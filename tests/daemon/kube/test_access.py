"""Two TLS contexts that never mix, and a token that follows its rotation."""

from __future__ import annotations

import base64
import json
import sys
from functools import partial
from pathlib import Path

import pytest

from daemon.faults import TowerError
from daemon.kube import access as access_module
from daemon.kube.access import Access, in_cluster
from protocol.aio.hops import DialError
from protocol.aio.proxydial import DialTarget
from tests.tower_agent.backend import Pki, backend, write_kubeconfig
from tower_agent.http import fetch


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.asyncio
async def test_only_the_own_context_presents_the_certificate(tmp_path: Path) -> None:
    pki = Pki(tmp_path)
    user = {"client-certificate-data": encoded(pki.client_pem), "client-key-data": encoded(pki.client_key)}
    async with backend(lambda request: (200, {"client": request.client}), pki.server) as served:
        file = write_kubeconfig(tmp_path / "config", f"https://127.0.0.1:{served.port}", pki.ca_pem, user)
        access = Access.find(file)
        own = await fetch(access.target(access.own_context()), "GET", "/")
        bare = await fetch(access.target(access.bare_context()), "GET", "/")
    assert own.json() == {"client": "tower-agent"}
    assert bare.json() == {"client": None}
    assert access.address == f"127.0.0.1:{served.port}"


def test_a_key_that_does_not_fit_is_named(tmp_path: Path) -> None:
    first, second = Pki(tmp_path, "One"), Pki(tmp_path, "Two")
    user = {"client-certificate-data": encoded(first.client_pem), "client-key-data": encoded(second.client_key)}
    access = Access.find(write_kubeconfig(tmp_path / "config", "https://m", first.ca_pem, user))
    with pytest.raises(TowerError, match="do not fit each other"):
        access.own_context()


def test_the_service_account_token_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.crt").write_bytes(Pki(tmp_path).ca_pem)
    (tmp_path / "token").write_text("first\n")
    environ = {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"}
    access = Access(in_cluster(environ, tmp_path))
    assert access.address == "[fd00::1]:6443"
    assert access.token() == "first"
    (tmp_path / "token").write_text("second\n")
    assert access.token() == "first"
    monkeypatch.setattr(access, "_stale_at", 0.0)
    assert access.token() == "second"
    (tmp_path / "token").unlink()
    monkeypatch.setattr(access, "_stale_at", 0.0)
    assert access.token() == "second"


def test_outside_a_cluster_the_mend_is_a_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(TowerError) as caught:
        in_cluster({}, tmp_path)
    assert "KUBERNETES_SERVICE_HOST is not set" in caught.value.message
    assert "--kubeconfig" in caught.value.mend
    with pytest.raises(TowerError, match="no ServiceAccount mounted"):
        in_cluster({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, tmp_path / "none")


def test_an_unusable_apiserver_address_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TowerError, match="has a path"):
        Access.find(write_kubeconfig(tmp_path / "config", "https://rancher/k8s/clusters/c-1", b"CA", {}))
    with pytest.raises(TowerError, match="not an https:// address"):
        Access.find(write_kubeconfig(tmp_path / "config", "http://127.0.0.1:8080", b"CA", {}))
    for wrong in ("https://m:99999", "https://m:https", "https://[::1"):
        with pytest.raises(TowerError, match="is not an address") as caught:
            Access.find(write_kubeconfig(tmp_path / "config", wrong, b"CA", {}))
        assert wrong in caught.value.message


def plugin_user(script: str) -> dict[str, object]:
    return {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1",
            "command": sys.executable,
            "args": ["-c", script],
        }
    }


@pytest.mark.asyncio
async def test_an_exec_plugin_gives_the_token_once(tmp_path: Path) -> None:
    counter = tmp_path / "calls"
    credential = {"status": {"token": "from-plugin", "expirationTimestamp": "2999-01-01T00:00:00Z"}}
    script = f"open({str(counter)!r}, 'a').write('x'); print({json.dumps(json.dumps(credential))})"
    access = Access.find(write_kubeconfig(tmp_path / "config", "https://m", Pki(tmp_path).ca_pem, plugin_user(script)))
    assert await access.fresh_token() == "from-plugin"
    assert await access.fresh_token() == "from-plugin"
    assert counter.read_text() == "x"
    access.forget_token()  # unless it was refused
    assert await access.fresh_token() == "from-plugin"
    assert counter.read_text() == "xx"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("script", "deadline", "told"),
    [
        ("import sys; sys.exit('no session')", 60.0, "ended with code 1: no session"),
        ("print('{}')", 60.0, "printed no token"),
        ("print('[' * 99999)", 60.0, "printed no token"),
        pytest.param("import time; time.sleep(60)", 1.0, "did not end in 1 s", marks=pytest.mark.slow),
    ],
)
async def test_a_failing_plugin_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, deadline: float, told: str
) -> None:
    monkeypatch.setattr(access_module, "PLUGIN_DEADLINE", deadline)
    access = Access.find(write_kubeconfig(tmp_path / "config", "https://m", Pki(tmp_path).ca_pem, plugin_user(script)))
    with pytest.raises(TowerError, match=told) as caught:
        await access.fresh_token()
    assert caught.value.code == "TWR309"


def test_targets_ignore_the_proxies_of_the_environment(tmp_path: Path) -> None:
    access = Access.find(write_kubeconfig(tmp_path / "config", "https://m", Pki(tmp_path).ca_pem, {}))
    target = access.target(access.bare_context())
    assert isinstance(target, DialTarget)
    assert target.route({"HTTPS_PROXY": "http://proxy:3128"}) is None


async def whoami(access: Access) -> object:
    return (await fetch(access.target(access.own_context()), "GET", "/")).json()


@pytest.mark.asyncio
async def test_what_was_renewed_in_the_kubeconfig_counts_without_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access_module, "CONFIG_REREAD", 0.0)
    first, second = Pki(tmp_path, "One"), Pki(tmp_path, "Two")
    async with backend(lambda request: (200, {"client": request.client}), second.server) as served:
        server = f"https://127.0.0.1:{served.port}"
        file = write_kubeconfig(tmp_path / "config", server, first.ca_pem, {"token": "first"})
        access = Access.find(file)
        before = access.generation
        with pytest.raises(DialError, match="chain ends at 'Two'"):
            await whoami(access)
        user: dict[str, object] = {
            "client-certificate-data": encoded(second.client_pem),
            "client-key-data": encoded(second.client_key),
        }
        write_kubeconfig(file, server, second.ca_pem, {**user, "token": "second"})
        assert await access.fresh_token() == "second"
        assert await whoami(access) == {"client": "tower-agent"}
        assert access.generation > before
        # What cannot be used leaves what was read before in force, and is said.
        write_kubeconfig(file, "https://127.0.0.1:1", second.ca_pem, {"token": "third"})
        assert access.token() == "second"
        file.write_text("users: [half")
        assert access.token() == "second"
        assert await whoami(access) == {"client": "tower-agent"}
    assert access.address == server.removeprefix("https://")


def test_the_kubeconfig_is_not_read_for_each_request(tmp_path: Path) -> None:
    file = write_kubeconfig(tmp_path / "config", "https://m", Pki(tmp_path).ca_pem, {"token": "first"})
    access = Access.find(file)
    write_kubeconfig(file, "https://m", access.ca_pem, {"token": "second"})
    assert access.token() == "first"
    access.forget_token()  # unless it was refused
    assert access.token() == "second"


def test_the_pods_authority_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access_module, "CONFIG_REREAD", 0.0)
    environ = {"KUBERNETES_SERVICE_HOST": "10.96.0.1"}
    first, second = Pki(tmp_path, "One"), Pki(tmp_path, "Two")
    (tmp_path / "ca.crt").write_bytes(first.ca_pem)
    (tmp_path / "token").write_text("own")
    access = Access(in_cluster(environ, tmp_path), partial(in_cluster, environ, tmp_path))
    (tmp_path / "ca.crt").unlink()  # as a rotation may look for a moment
    assert (access.token(), access.ca_pem) == ("own", first.ca_pem)
    (tmp_path / "ca.crt").write_bytes(second.ca_pem)
    assert (access.token(), access.ca_pem) == ("own", second.ca_pem)
