"""The rotation of the tower CA, in three steps that an operator takes, with both roots trusted between the first and
the last.

*start* makes the new root and tells every agent to trust it; *switch* signs by it, and agents fetch new certificates at
once; *finish* takes the old root away. A step that would lock an agent out is refused and names it. Each step is one
write to the store before anything in memory changes, so that a server that dies between two lines goes on from there;
other replicas read it back (`follow`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any, Final, Literal

from certs.ca import Authority, Phase
from certs.errors import IssueRefused
from certs.peers import rfc3339
from certs.rotation import announce, trust_id
from certs.verify import fingerprint
from daemon.faults import TowerError
from daemon.log import get_logger
from protocol import defaults
from protocol.messages import encode_message
from tower_server.agents import Agents
from tower_server.authority import put_back, read, root_id, write
from tower_server.records import Agent
from tower_server.store.base import Conflict, NotFound, Store

Step = Literal["start", "switch", "finish"]
MAX_NAMED: Final = 10  # agents in one message
_GRACE: Final = defaults.EXPIRED_IDENTITY_GRACE_DAYS * 86400.0

log = get_logger(__name__)


class Rotation:
    """The rotation of the tower CA. `changed` is called after each step, taken here or at another replica."""

    def __init__(self, store: Store, authority: Authority, agents: Agents) -> None:
        self._store = store
        self._authority = authority
        self._agents = agents
        self._changed: list[Callable[[], None]] = []
        self._trust = (0, "")

    @property
    def number(self) -> int:
        return self._authority.number

    @property
    def trust(self) -> str:
        """What an agent that trusts the CA as it is now reports."""
        if self._trust[0] != self._authority.number:
            self._trust = self._authority.number, trust_id(self._authority.number, self._authority.bundle)
        return self._trust[1]

    def line(self) -> bytes:
        """The announcement for agents, as a line of the control stream."""
        return encode_message("trust", **announce(self._authority))

    def subscribe(self, changed: Callable[[], None]) -> None:
        self._changed.append(changed)

    async def take(self, step: Step, *, force: bool) -> None:
        """Take one step. TowerError TWR510 names who would be locked out, TWR505 says what step is next."""
        await self.follow()
        authority = self._authority
        try:
            if step == "start":
                later = authority.with_next(at=time.time())
            else:
                later = authority.switched() if step == "switch" else authority.finished()
                await self._nobody_is_lost(step, force=force)
        except IssueRefused as error:
            raise TowerError("TWR505", error.text, mend=error.mend) from error
        try:
            await write(self._store, later)
        except Conflict as error:
            raise TowerError("TWR108", "another server has taken a step meanwhile") from error
        log.info("authority-rotated", step=step, number=later.number, fingerprint=later.bundle.fingerprint)
        self._take_over(later)

    async def follow(self) -> None:
        """Take over what another replica has written; write the record again if somebody has deleted it, or put back
        the one of before a rotation, which agents may believe no more."""
        with contextlib.suppress(NotFound):
            stored = await read(self._store)
            if stored.number > self._authority.number:
                log.info("authority-followed", number=stored.number, fingerprint=stored.bundle.fingerprint)
                self._take_over(stored)
            if stored.number >= self._authority.number:
                return
        if await put_back(self._store, self._authority):
            text = "the record of the tower CA was deleted or put back; it was written again from this server's memory"
            log.error("authority-put-back", code="TWR501", text=text)

    def _take_over(self, later: Authority) -> None:
        self._authority.take_over(later)
        for changed in self._changed:
            changed()

    async def waiting(self) -> list[str]:
        """The agents that have not followed the last step, as `cluster/agent`."""
        if self._authority.phase is Phase.STEADY:
            return []
        now = time.time()
        live = [each for each in await self._agents.list() if each.revoked is None]
        late = [each for each in live if each.identity_expires + _GRACE > now and self._lags(each)]
        return [f"{each.cluster}/{each.name}" for each in late]

    def _lags(self, agent: Agent) -> bool:
        if self._authority.phase is Phase.ANNOUNCED:
            return agent.trust < self._authority.number
        return agent.root != root_id(self._authority)

    async def _nobody_is_lost(self, step: Step, *, force: bool) -> None:
        lost = await self.waiting()
        if lost and not force:
            more = f" and {len(lost) - MAX_NAMED} more" if len(lost) > MAX_NAMED else ""
            lack = "trust the new root" if step == "switch" else "have certificates under the new root"
            raise TowerError("TWR510", f"these agents do not {lack} yet: {', '.join(lost[:MAX_NAMED])}{more}")

    async def view(self) -> dict[str, Any]:
        """For people: the phase, the roots, and whom the next step waits for."""
        bundle = self._authority.bundle
        return {
            "host": self._authority.host,
            "phase": str(self._authority.phase),
            "number": self._authority.number,
            "roots": [
                {
                    "fingerprint": fingerprint(root),
                    "expires": rfc3339(root.not_valid_after_utc.timestamp()),
                    "signs": root is bundle.root,
                }
                for root in bundle.roots
            ],
            "waiting": await self.waiting(),
        }
