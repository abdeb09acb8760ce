"""A configuration finds its store, and the server behaves as that store asks."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from daemon import config as configuration
from daemon.faults import TowerError
from daemon.kube.resources import MEMBERS
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.tower_server.kit import call, joined, running
from tower_server.config import ServerConfig
from tower_server.main import load
from tower_server.store.base import Kind
from tower_server.store.kubernetes import KubernetesStore
from tower_server.store.place import open_store, state_of
from tower_server.store.sqlite import SqliteStore

NAMESPACE = "placed"


@pytest.mark.asyncio
async def test_without_a_word_records_lie_in_a_file(tmp_path: Path) -> None:
    config = ServerConfig(state_dir=tmp_path / "state")
    store = await open_store(config, version="1")
    assert isinstance(store, SqliteStore)
    assert state_of(config) == str(tmp_path / "state")
    await store.close()


def test_the_flag_the_short_form_and_the_section_say_the_same(tmp_path: Path) -> None:
    file = tmp_path / "server.yaml"
    file.write_text("store: kubernetes\n")
    assert configuration.load(ServerConfig, file=file, environ={}).value.store.kind == "kubernetes"
    file.write_text("store: kubernetes\n")
    loaded = configuration.load(ServerConfig, file=file, environ={"TOWER_STORE__NAMESPACE": "elsewhere"})
    assert (loaded.value.store.kind, loaded.value.store.namespace) == ("kubernetes", "elsewhere")
    shown = loaded.render()
    assert f"  kind: kubernetes  # file {file}:1\n" in shown
    assert "  namespace: elsewhere  # environment TOWER_STORE__NAMESPACE\n" in shown
    both = {"TOWER_STORE": "kubernetes", "TOWER_STORE__NAMESPACE": "elsewhere"}
    assert configuration.load(ServerConfig, environ=both).value.store == loaded.value.store
    file.write_text("store: {namespace: elsewhere}\n")
    found = load(file, {"store": "kubernetes"}).value.store
    assert (found.kind, found.namespace) == ("kubernetes", "elsewhere")
    file.write_text("store: {kind: kubernetes, namespace: No_Label}\n")
    with pytest.raises(TowerError, match="a namespace is a DNS label"):
        configuration.load(ServerConfig, file=file, environ={})


@pytest.mark.asyncio
async def test_a_kubernetes_store_without_access_says_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    config = ServerConfig.model_validate({"store": {"kind": "kubernetes"}, "state_dir": tmp_path})
    with pytest.raises(TowerError) as caught:
        await open_store(config, version="1")
    assert (caught.value.code, "store.kubeconfig" in caught.value.mend) == ("TWR309", True)
    assert state_of(config) == "namespace tower-system of the cluster of this pod"


@pytest.mark.cluster
@pytest.mark.asyncio
async def test_a_server_writes_what_changed_and_no_heartbeats(
    tmp_path: Path, host_plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    crds(host_plane)
    host_plane.kubectl("create", "namespace", NAMESPACE)
    store = {"kind": "kubernetes", "namespace": NAMESPACE, "kubeconfig": str(host_plane.admin_kubeconfig)}
    async with running(tmp_path, store=store) as server:
        held = server.services.store
        assert isinstance(held, KubernetesStore)
        async with joined(server, "edge-1"):
            assert (await call(server, "edge-1")).status == 200
            await server.services.clusters.save()
            written = await held.get(Kind.CLUSTER, "edge-1")
            assert written.data["connected"] is not None
            later = time.time() + 3600
            with monkeypatch.context() as clock:
                clock.setattr(time, "time", lambda: later)
                await server.services.clusters.save()
            again = await held.get(Kind.CLUSTER, "edge-1")
            assert again.data["connected"] == written.data["connected"]
        await held.client.delete(MEMBERS, "edge-1")
    assert not (tmp_path / "state").exists()
