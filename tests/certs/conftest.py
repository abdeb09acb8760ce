"""One authority for the room's tests: making one takes milliseconds, but nothing here changes it."""

from __future__ import annotations

import pytest

from certs.ca import Authority
from certs.generation import Issued
from certs.keys import PrivateKey, generate_key

AT = 1_800_000_000.0
HOUR = 3600.0
DAY = 86400.0


@pytest.fixture(scope="session")
def authority() -> Authority:
    return Authority.create("hq", at=AT)


@pytest.fixture(scope="session")
def other_authority() -> Authority:
    """Another tower's, of the same host name: a name alone must open nothing."""
    return Authority.create("hq", at=AT)


@pytest.fixture(scope="session")
def key() -> PrivateKey:
    return generate_key()


@pytest.fixture(scope="session")
def every_kind(authority: Authority, key: PrivateKey) -> dict[str, Issued]:
    """One certificate of each issuer, all with the same key."""
    public = key.public_key()
    return {
        "server": authority.issue_server("s1", ["tower.example", "*.members.tower"], public_key=public, at=AT),
        "serving": authority.issue_serving("edge-1", public_key=public, at=AT),
        "agent": authority.issue_agent("edge-1", "a1", public_key=public, at=AT),
        "replica": authority.issue_replica("tower-0", public_key=public, at=AT),
        "client": authority.issue_client("tower:hq:admin", ["tower:hq:cluster-admins"], public_key=public, at=AT),
    }
