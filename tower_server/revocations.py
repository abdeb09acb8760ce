"""The host's revocation list, kept in one record so that its number and its content are always changed together.

The number rises with every change, and is at least the time in milliseconds. So the first revocation after a restore
from a backup gets a number above any that agents have seen, and they take that list at once; until then they keep the
later one that they have, which knows more. Whatever has to act at once (live tunnels, control streams) subscribes. A
server that runs forgets nothing where the record is deleted or an earlier one takes its place: it writes it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

from certs.ca import Authority
from certs.errors import ListRefused
from certs.peers import rfc3339
from certs.revocation import ALL_AGENTS, RevocationList
from daemon.faults import TowerError
from daemon.log import get_logger
from protocol import defaults
from tower_server.dependents import Upto
from tower_server.store.base import Conflict, Kind, NotFound, Store, Version

RECORD: Final = "list"
MOST_AHEAD: Final = defaults.CERTIFICATE_BACKDATE / 2  # the other half stays for the clocks of members
ATTEMPTS: Final = 16  # writers of one record that meet; each time somebody gets on
Change = Callable[[RevocationList], RevocationList]

log = get_logger(__name__)


@dataclass(slots=True)
class _Asked:
    change: Change
    at: float
    done: bool = False


class Revocations:
    """Make it with `await Revocations.load(...)`."""

    def __init__(
        self, store: Store, authority: Authority, current: RevocationList, version: Version | None, *, at: float
    ) -> None:
        self._store = store
        self._authority = authority
        self._version = version
        self._writing = asyncio.Lock()
        self._asked: list[_Asked] = []
        self._observers: list[Callable[[], None]] = []
        self.current = current
        self.signed = b""
        """What agents are sent."""
        self.signed_at = 0.0
        self._sign(at)

    @classmethod
    async def load(cls, store: Store, authority: Authority, *, at: float) -> Revocations:
        empty = RevocationList(number=0, host=authority.host, issued_at=at)
        try:
            record = await store.get(Kind.REVOCATION, RECORD)
        except NotFound:
            return cls(store, authority, empty, None, at=at)
        return cls(store, authority, _read(record.data, authority.host), record.version, at=at)

    def time_for_caller(self, user: str, *, at: float) -> float:
        """When a certificate for `user` is to be issued so that the list does not take it for one that is revoked."""
        return _issue_time(self.current.users.get(user, -1.0), f"of {user}", at=at)

    def time_for_agent(self, cluster: str, agent: str, *, at: float) -> float:
        """The same for an agent's identity. TowerError TWR505 where a clock ran ahead too far."""
        held = self.current.agents
        upto = max(held.get((cluster, each), -1.0) for each in (agent, ALL_AGENTS))
        return _issue_time(upto, f"of agents of cluster {cluster}", at=at)

    def subscribe(self, observer: Callable[[], None]) -> None:
        """`observer` is called when there is something to send: after every change, and every now and then."""
        self._observers.append(observer)

    def repeat(self, *, at: float) -> None:
        """Signs the list in force anew when its signature has become old, which shows agents that none is withheld."""
        if not 0 <= at - self.signed_at < defaults.REVOCATIONS_EVERY:
            self.sign_anew(at=at)

    def sign_anew(self, *, at: float) -> None:
        """The same list by the issuer that signs now."""
        self._sign(at)
        self._tell()

    async def revoke_agent(self, cluster: str, agent: str, *, at: float) -> None:
        await self.revoke_agents({(cluster, agent): at}, at=at)

    async def revoke_agents(self, upto: Upto, *, at: float) -> None:
        """What those agents were issued until a time each. Nothing is written where the list says as much already."""
        if _uncovered(self.current, upto):
            await self._change(lambda held: replace(held, agents={**held.agents, **_uncovered(held, upto)}), at)

    async def revoke_user(self, user: str, *, at: float) -> None:
        """What they were issued until then; a clock that was set back gives nothing back that was taken before, and
        spares nothing that was issued since (`time_for_caller`)."""

        def change(held: RevocationList) -> RevocationList:
            since = held.users.get(user)
            return replace(held, users={**held.users, user: at if since is None else max(at, int(since) + 1.0)})

        await self._change(change, at)

    async def revoke_serial(self, serial: int, *, expires: float, at: float) -> None:
        def change(held: RevocationList) -> RevocationList:
            return replace(held, serials={**held.serials, serial: max(expires, held.serials.get(serial, expires))})

        await self._change(change, at)

    async def _change(self, change: Change, at: float) -> None:
        """Written together with all that others ask for meanwhile; on the list when this returns."""
        asked = _Asked(change, at)
        self._asked.append(asked)
        try:
            async with self._writing:
                if not asked.done:
                    await self._write_all(tuple(self._asked))
        finally:
            self._asked.remove(asked)

    async def _write_all(self, batch: tuple[_Asked, ...]) -> None:
        at = max(asked.at for asked in batch)
        for _ in range(ATTEMPTS):
            changed = self.current.pruned(at)
            for asked in batch:
                changed = asked.change(changed)
            changed = replace(changed, number=max(self.current.number + 1, int(at * 1000)), issued_at=at)
            self._check(changed)
            try:
                await self._write(changed)
            except (Conflict, NotFound):  # another server wrote it, or somebody has deleted it
                await self._reload()
                continue
            break
        else:
            raise TowerError("TWR108", "the revocation list keeps changing: other servers write it")
        for asked in batch:
            asked.done = True
        self._sign(at)
        self._tell()

    async def follow(self) -> RevocationList | None:
        """Takes over what another server has written; the list before it, or None when nothing has changed. A record
        that was deleted, or in whose place an earlier one was put, is written again."""
        async with self._writing:
            before = self.current
            if not await self._reload():
                with contextlib.suppress(Conflict, NotFound):  # another server was first: the next look tells
                    await self._write(before)
                    text = "the revocation list was deleted or put back; it was written again from this server's memory"
                    log.error("revocations-put-back", code="TWR506", number=before.number, text=text)
            if self.current is before:
                return None
        self.sign_anew(at=time.time())
        return before

    def _tell(self) -> None:
        for observer in self._observers:
            observer()

    async def _write(self, changed: RevocationList) -> None:
        data = _written(changed)
        if self._version is None:
            record = await self._store.create(Kind.REVOCATION, RECORD, data)
        else:
            record = await self._store.update(Kind.REVOCATION, RECORD, data, expect=self._version)
        self._version, self.current = record.version, changed

    async def _reload(self) -> bool:
        """Reads the record. False where it is gone, or an earlier one, and what is known here is kept."""
        try:
            record = await self._store.get(Kind.REVOCATION, RECORD)
        except NotFound:
            self._version = None
            return not self.current.number
        if record.version == self._version:
            return bool(record.data.get("number") == self.current.number)
        stored, self._version = _read(record.data, self._authority.host), record.version
        if stored.number < self.current.number:
            return False
        self.current = stored
        return True

    def _check(self, changed: RevocationList) -> None:
        """Refuses what agents would not take, before it is stored."""
        try:
            changed.for_members().sign(self._authority.revocation_signer())
        except ListRefused as error:
            raise TowerError("TWR506", error.text, mend=error.mend) from error

    def _sign(self, at: float) -> None:
        """Number and content stay, and the record as it is: only the time of this signature is another."""
        signing = replace(self.current.for_members(), issued_at=at)
        self.signed, self.signed_at = signing.sign(self._authority.revocation_signer()), at

    def items(self) -> list[dict[str, Any]]:
        """For people: what is revoked, one entry each."""
        held = self.current
        return [
            *({"type": "agent", "name": f"{c}/{a}", "at": rfc3339(at)} for (c, a), at in sorted(held.agents.items())),
            *({"type": "caller", "name": user, "at": rfc3339(at)} for user, at in sorted(held.users.items())),
            *(
                {"type": "certificate", "name": f"{s:x}", "until": rfc3339(end)}
                for s, end in sorted(held.serials.items())
            ),
        ]


def _issue_time(upto: float, whose: str, *, at: float) -> float:
    """Now, or a moment later where another server's clock, or this one's before it was set back, ran ahead."""
    if int(at) > upto:  # certificates carry whole seconds
        return at
    later = int(upto) + 1.0
    if later - at <= MOST_AHEAD:
        return later
    raise TowerError(
        "TWR505",
        f"certificates {whose} are revoked until {rfc3339(upto)}, and here it is {rfc3339(at)}: what is made now would "
        "be refused",
        mend="correct this server's clock if it is behind; if another ran ahead when it was revoked, wait until then, "
        "or use another name",
    )


def _uncovered(held: RevocationList, upto: Upto) -> Upto:
    """What the list does not say yet; an entry for all agents of a cluster says it for each of them."""

    def said(cluster: str, agent: str) -> float:
        whole = cluster, ALL_AGENTS
        mine = -1.0 if agent == ALL_AGENTS else upto.get(whole, -1.0)
        return max(mine, held.agents.get((cluster, agent), -1.0), held.agents.get(whole, -1.0))

    return {who: at for who, at in upto.items() if at > said(*who)}


def _written(held: RevocationList) -> dict[str, Any]:
    return {
        "number": held.number,
        "issued_at": held.issued_at,
        "serials": [[f"{serial:x}", end] for serial, end in held.serials.items()],
        "agents": [[*agent, at] for agent, at in held.agents.items()],
        "users": [[user, at] for user, at in held.users.items()],
    }


def _read(data: Any, host: str) -> RevocationList:
    return RevocationList(
        number=int(data["number"]),
        host=host,
        issued_at=float(data["issued_at"]),
        serials={int(serial, 16): float(end) for serial, end in data["serials"]},
        agents={(cluster, agent): float(at) for cluster, agent, at in data["agents"]},
        users={str(user): float(at) for user, at in data["users"]},
    )
