"""The tower CA in the store: made at the first start, read at every other.

One record holds it. Of two servers that start at once on an empty store one wins the creation and the other takes what
it finds. The host's name is fixed with the CA: every certificate carries it, so a configured name that differs from
the stored one is refused rather than followed.
"""

from __future__ import annotations

from typing import Final

from certs.ca import Authority
from certs.errors import AuthorityError
from daemon.faults import TowerError
from daemon.units import format_count
from tower_server.store.base import Conflict, Data, Kind, NotFound, Record, Store

RECORD: Final = "authority"
ATTEMPTS: Final = 8


async def load_or_create(store: Store, *, host: str, fallback_host: str, at: float) -> tuple[Authority, bool]:
    """The authority, and whether it was made now. `host` is the configured name, empty for none."""
    try:
        record = await store.get(Kind.SECRET, RECORD)
        made = False
    except NotFound:
        await _nobody_rests_on_another(store)
        new = Authority.create(host or fallback_host, at=at)
        try:
            record = await store.create(Kind.SECRET, RECORD, _data(new))
            made = True
        except Conflict:
            record = await store.get(Kind.SECRET, RECORD)
            made = False
    authority = await _completed(store, record, at=at)
    if host and authority.host != host:
        raise TowerError(
            "TWR501",
            f"the tower CA in the store is that of host {authority.host!r}, and the configuration says host: {host!r}",
            mend=f"set `host: {authority.host}`, or start with another state_dir (its agents join anew)",
        )
    return authority, made


async def _nobody_rests_on_another(store: Store) -> None:
    """A new CA beside agents of an older one would lock all of them out, and nobody would know why."""
    agents = (await store.list(Kind.AGENT)).items
    if agents:
        raise TowerError(
            "TWR501",
            f"the store holds {format_count(len(agents), 'agent')} and no tower CA: its record {RECORD!r} was taken "
            "away, and a new CA would be a stranger to every member",
            mend="restore it from your copy of the state (on a Kubernetes host the Secret tower-secret-authority); "
            "without one delete the agents' records too (Secrets tower-agent-*), and every member joins anew",
        )


async def _completed(store: Store, record: Record, *, at: float) -> Authority:
    """With every issuer of this version; of servers that start at once, one adds what is missing."""
    for _ in range(ATTEMPTS):
        authority = _decode(record)
        if authority.complete:
            return authority
        try:
            record = await store.update(Kind.SECRET, RECORD, _data(authority.completed(at=at)), expect=record.version)
        except Conflict:
            record = await store.get(Kind.SECRET, RECORD)
    raise TowerError("TWR108", "the record of the tower CA keeps changing")


async def read(store: Store) -> Authority:
    """The authority as it is kept now."""
    return _decode(await store.get(Kind.SECRET, RECORD))


async def put_back(store: Store, authority: Authority) -> bool:
    """Keep it again where somebody has taken its record away, or put an earlier one in its place; False where another
    server was first."""
    try:
        record = await store.get(Kind.SECRET, RECORD)
        if _decode(record).number >= authority.number:
            return False
        await store.update(Kind.SECRET, RECORD, _data(authority), expect=record.version)
    except NotFound:
        try:
            await store.create(Kind.SECRET, RECORD, _data(authority))
        except Conflict:
            return False
    except Conflict:
        return False
    return True


async def write(store: Store, later: Authority) -> None:
    """Keep the state that follows the kept one; Conflict when that is not the one before it."""
    record = await store.get(Kind.SECRET, RECORD)
    if _decode(record).number != later.number - 1:
        raise Conflict(Kind.SECRET, RECORD, "was rotated by somebody else")
    await store.update(Kind.SECRET, RECORD, _data(later), expect=record.version)


def root_id(authority: Authority) -> str:
    """What an agent's record keeps of the root that its certificates are under."""
    return authority.bundle.fingerprint[:16]


def _data(authority: Authority) -> Data:
    return {"pem": authority.to_pem().decode(), "number": authority.number}


def _decode(record: Record) -> Authority:
    try:
        return Authority.from_pem(str(record.data["pem"]).encode(), number=int(record.data.get("number", 1)))
    except (AuthorityError, KeyError, TypeError, ValueError) as error:
        raise TowerError(
            "TWR501",
            f"the tower CA in the store cannot be used: {error}",
            mend="restore the state directory from a copy: every certificate of this tower ends at that CA",
        ) from error
