"""Certificates that no command gives out: expired ones, and ones of another tower. Made with the tower's own CA."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sqlite3
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from certs.ca import Authority
from certs.identity import StoredIdentity
from certs.identity_files import DirectoryIdentityStore
from certs.keys import generate_key, key_to_pem
from tests.lab.world import TowerWorld


@dataclass(frozen=True, slots=True)
class Papers:
    """A certificate chain and its key, in files."""

    chain: Path
    key: Path

    @classmethod
    def write(cls, folder: Path, name: str, chain_pem: bytes, key_pem: bytes) -> Papers:
        papers = cls(folder / f"{name}.crt", folder / f"{name}.key")
        papers.chain.write_bytes(chain_pem)
        papers.key.touch(0o600)
        papers.key.write_bytes(key_pem)
        return papers


def authority_of(world: TowerWorld) -> Authority:
    """The CA of a running tower, out of a copy of its store (a server keeps the store itself locked)."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (world.folder / "server").glob("tower.db*"):
            shutil.copy(file, folder)
        with contextlib.closing(sqlite3.connect(f"{folder}/tower.db")) as connection:
            query = "SELECT data FROM records WHERE kind = 'secret' AND name = 'authority'"
            (data,) = connection.execute(query).fetchone()
    return Authority.from_pem(json.loads(data)["pem"].encode())


def identity_of(world: TowerWorld, cluster: str) -> StoredIdentity:
    """What a cluster's agent keeps: its identity and serving certificate, with their keys."""
    store = DirectoryIdentityStore(world.members[cluster].folder / "state")
    found = asyncio.run(store.load(world.host))
    assert found is not None
    return found


def caller(folder: Path, authority: Authority, user: str, *, age: float = 0.0, ttl: float = 3600.0) -> Papers:
    """A caller's certificate that was issued `age` seconds ago."""
    key = generate_key()
    issued = authority.issue_client(user, public_key=key.public_key(), at=time.time() - age, ttl=ttl)
    return Papers.write(folder, user.replace(":", "-"), issued.chain_pem, key_to_pem(key))
