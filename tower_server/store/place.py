"""Which store a configuration asks for, opened."""

from __future__ import annotations

from typing import Final

from tower_server.config import ServerConfig
from tower_server.store.base import Store

STORE_FILE: Final = "tower.db"
PLACE_HEADER: Final = "Tower-Store"  # of the answer that is a copy: the file that it is of
DEADLINE: Final = 5.0  # of one operation: an agent that waits for its record gives its handshake 10 s


async def open_store(config: ServerConfig, *, version: str) -> Store:
    """The store with its records; TowerError says what is in the way. Only what is used is imported."""
    wanted = config.store
    if wanted.kind == "sqlite":
        from tower_server.store.sqlite import SqliteStore

        return await SqliteStore.open(config.state_dir / STORE_FILE)
    from daemon.kube.access import Access
    from daemon.kube.client import Client
    from tower_server.store.kubernetes import KubernetesStore
    from tower_server.store.kubernetes_objects import WRITER

    access = Access.find(wanted.kubeconfig, wanted.context)
    client = Client(access, user_agent=f"{WRITER}/{version}", deadline=DEADLINE)
    return await KubernetesStore.open(client, namespace=wanted.namespace)


def state_of(config: ServerConfig) -> str:
    """Where the records lie, for the log."""
    if config.store.kind == "sqlite":
        return str(config.state_dir)
    return f"namespace {config.store.namespace} of the cluster of {config.store.kubeconfig or 'this pod'}"
