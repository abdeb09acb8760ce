"""Enrolment tokens: made for one cluster, kept as a hash, used up by keys.

A token is spent by *keys*, not by requests: the key that it let in may ask again until it expires and gets the same
answer, so a lost reply locks nobody out and repeats nothing; another key finds it used. Spending is one conditional
write of the record, so of many that come at once exactly as many get in as the token has uses.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from certs.token import EnrolmentToken, hash_secret, secret_matches
from daemon.faults import TowerError
from daemon.units import format_duration
from tower_server.records import Cluster, Enrolled, Token
from tower_server.store.base import Conflict, Kind, NotFound, Store, Version

ATTEMPTS: Final = 64  # requests with one token that meet: each round one of them gets on
KEPT_AFTER_EXPIRY: Final = 86400.0  # so that "expired" is said and not "unknown" to someone who comes late
MIN_LIFETIME: Final = 1.0
MAX_LIFETIME: Final = 30 * 86400.0
MAX_USES: Final = 1000
_NO_SECRET: Final = hash_secret("")


@dataclass(frozen=True, slots=True)
class NewToken:
    """`text` is the token itself: shown once, never stored."""

    token: Token
    text: str


class Tokens:
    """Of all clusters."""

    def __init__(
        self, store: Store, *, url: Callable[[], str], fingerprint: Callable[[], str], lifetime: float, uses: int
    ) -> None:
        self._store = store
        self._url = url
        self._fingerprint = fingerprint
        self._lifetime = lifetime
        self._uses = uses

    async def create(self, cluster: Cluster, *, ttl: float | None = None, uses: int | None = None) -> NewToken:
        """A new token. TowerError TWR111 without a public URL, TWR605 for bounds that make no sense."""
        ttl = self._lifetime if ttl is None else ttl
        uses = self._uses if uses is None else uses
        if not MIN_LIFETIME <= ttl <= MAX_LIFETIME:
            bounds = f"{format_duration(MIN_LIFETIME)} to {format_duration(MAX_LIFETIME)}"
            raise TowerError("TWR605", f"a token's ttl is {bounds}, not {format_duration(ttl)}")
        if not 1 <= uses <= MAX_USES:
            raise TowerError("TWR605", f"a token has 1 to {MAX_USES} uses, not {uses}")
        made = EnrolmentToken.create(url=self._url(), cluster=cluster.name, ca=self._fingerprint())
        now = time.time()
        token = Token(
            id=made.id,
            cluster=cluster.name,
            uid=cluster.uid,
            secret_hash=hash_secret(made.secret),
            created=now,
            expires=now + ttl,
            uses=uses,
        )
        await self._store.create(Kind.TOKEN, token.id, token.data())
        return NewToken(token, str(made))

    async def redeem(
        self, token_id: str, secret: str, key: str, *, issue: Callable[[Token], Enrolled]
    ) -> tuple[Token, Enrolled]:
        """What `key` is given for the token: what it was given before, else what `issue` makes.

        TowerError TWR204, 205, 206 or 208 says why not.
        """
        for _ in range(ATTEMPTS):
            token, version = await self._check(token_id, secret)
            held = token.keys.get(key)
            if held is not None:
                return token, held
            if len(token.keys) >= token.uses:
                count = "one agent" if token.uses == 1 else f"{token.uses} agents"
                raise TowerError("TWR206", f"the token {token.id} was used up: {count} joined with it already")
            answer = issue(token)
            spent = replace(token, keys={**token.keys, key: answer})
            try:
                await self._store.update(Kind.TOKEN, token.id, spent.data(), expect=version)
            except (Conflict, NotFound):
                continue
            return spent, answer
        raise TowerError("TWR108", f"the token {token_id} is used by too many agents at once", retry_after=1.0)

    async def _check(self, token_id: str, secret: str) -> tuple[Token, Version]:
        try:
            record = await self._store.get(Kind.TOKEN, token_id)
        except NotFound:
            secret_matches(secret, _NO_SECRET)  # takes as long as for a token that there is
            raise TowerError("TWR204", "this tower has no such enrolment token") from None
        token = Token.read(record)
        if not secret_matches(secret, token.secret_hash):
            raise TowerError("TWR204", "this tower has no such enrolment token")
        if token.revoked is not None:
            raise TowerError("TWR208", f"the token {token.id} was revoked")
        if time.time() >= token.expires:
            raise TowerError("TWR205", f"the token {token.id} has expired")
        return token, record.version

    async def revoke(self, token_id: str) -> Token:
        """TowerError TWR603 when there is none."""
        for _ in range(ATTEMPTS):
            try:
                record = await self._store.get(Kind.TOKEN, token_id)
            except NotFound:
                raise TowerError("TWR603", f"there is no token {token_id!r}") from None
            token = Token.read(record)
            revoked = replace(token, revoked=token.revoked or time.time())
            try:
                await self._store.update(Kind.TOKEN, token_id, revoked.data(), expect=record.version)
            except Conflict:
                continue
            return revoked
        raise TowerError("TWR108", f"the token {token_id} keeps changing")

    async def list(self, cluster: str | None = None) -> list[Token]:
        tokens = [Token.read(record) for record in (await self._store.list(Kind.TOKEN)).items]
        found = (token for token in tokens if cluster is None or token.cluster == cluster)
        return sorted(found, key=lambda token: (token.cluster, token.created, token.id))

    async def tidy(self) -> None:
        """Takes away tokens that have been expired for a day. `dependents.tidy` has those of clusters that are gone."""
        for record in (await self._store.list(Kind.TOKEN)).items:
            token = Token.read(record)
            if time.time() > token.expires + KEPT_AFTER_EXPIRY:
                with contextlib.suppress(Conflict, NotFound):
                    await self._store.delete(Kind.TOKEN, token.id, expect=record.version)


def token_state(token: Token, now: float) -> str:
    """Valid, Used, Expired or Revoked."""
    if token.revoked is not None:
        return "Revoked"
    if now >= token.expires:
        return "Expired"
    return "Used" if len(token.keys) >= token.uses else "Valid"
