"""How an agent joins a host: from a token to a stored identity.

Before anything secret leaves, the server's chain must end at the token's fingerprint. The keys are stored before they
are sent, so that an answer that got lost is asked for again with the same keys and comes again; an agent killed in
between does the same at its next start. What may pass by itself (a network, a busy server) is tried again until the
given time is over; what will not pass by waiting (a wrong, used or expired token) ends at once.
"""

from __future__ import annotations

import asyncio
import random
import ssl
import time
from dataclasses import replace
from typing import Final

from certs.enrolment import AgentEnrolment
from certs.errors import CertsError
from certs.identity import IdentityStore, StoredIdentity
from certs.keys import make_csr
from certs.sealing import Offer, check_offer
from certs.token import EnrolmentToken, parse_token
from daemon.backoff import Backoff
from daemon.faults import FAULTS, TowerError, of_cluster
from daemon.log import get_logger
from protocol import defaults
from protocol.aio.hops import DialError, wait_of
from protocol.aio.proxyenv import BadProxy
from protocol.constants import Code
from protocol.frames import printable
from tower_agent.faultof import certs_fault, dial_fault
from tower_agent.http import Answer, fetch
from tower_agent.wayout import WayOut

PATH: Final = "/v1/enrolment"
JOIN_WAIT: Final = 30.0  # seconds that `join` goes on after failures that may pass
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504, Code.BUSY})

log = get_logger(__name__)


class Enrolment:
    """One token's way to an identity."""

    def __init__(self, token: str, *, store: IdentityStore, way: WayOut, wait: float = JOIN_WAIT) -> None:
        try:
            self.token: EnrolmentToken = parse_token(token)
        except CertsError as error:
            raise certs_fault(error) from None  # without its cause: nothing may quote the token
        self._store = store
        self._wait = wait
        self._target = way.enrolment(self.token.url)
        self._tried: set[str] = set()  # addresses that were connected to, and led nowhere
        self._hosts: tuple[str, ...] = ()  # joined before this began
        self.already = False  # whether the token gave nothing but what was held before

    async def run(self) -> StoredIdentity:
        """Enrol and keep the identity. Raises TowerError; nothing is left half-done, and trying again is safe."""
        backoff = Backoff(random=random.random)
        until = time.monotonic() + self._wait
        try:
            self._hosts = await self._store.hosts()
        except CertsError as error:
            raise certs_fault(error) from error
        while True:
            try:
                return await self._attempt()
            except _Passing as passing:
                delay = backoff.next(retry_after=passing.fault.retry_after)
                if time.monotonic() + delay >= until:
                    raise passing.fault from passing.__cause__
                log.warning("enrolment-retried", code=passing.fault.code, text=passing.fault.message, delay=delay)
                await asyncio.sleep(delay)
            except CertsError as error:
                raise certs_fault(error) from error

    async def _attempt(self) -> StoredIdentity:
        answer = await self._ask("GET", f"{PATH}?token={self.token.id}")
        offer = check_offer(answer.body, ca=self.token.ca, at=time.time())
        replaced = await self._may_join(offer)
        pending = await self._store.pending(offer.host, self.token.id)
        key, serving_key = pending.key, pending.serving_key
        exchange = AgentEnrolment(offer, self.token, csr=make_csr(key), serving_csr=make_csr(serving_key))
        try:
            answer = await self._ask("POST", PATH, exchange.request)
        except TowerError as refused:
            sibling = await self._sibling(offer.host) if refused.code == "TWR206" else None
            if sibling is None:
                raise
            return sibling
        reply, identity = exchange.open_reply(
            answer.body, public_key=key.public_key(), serving_key=serving_key.public_key(), at=time.time()
        )
        stored = await self._store.save(
            StoredIdentity(
                host=reply.host,
                url=self.token.url,
                cluster=reply.cluster,
                agent=reply.agent,
                key_pem=pending.key_pem,
                serving_key_pem=pending.serving_key_pem,
                chain_pem=reply.chain,
                serving_chain_pem=reply.serving_chain,
                trust_pem=reply.trust,
            ),
            replaces=replaced,
        )
        self.already = replaced is not None and (replaced.agent, replaced.key_pem) == (stored.agent, stored.key_pem)
        if reply.revocations:
            await self._store.save_revocations(reply.host, reply.revocations)
        log.info("enrolled", host=reply.host, cluster=reply.cluster, agent=reply.agent, expires=identity.not_after)
        return stored

    async def _sibling(self, host: str) -> StoredIdentity | None:
        """What another process of this agent has joined with since this one began: it had the token's one key."""
        held = None if host in self._hosts else await self._store.load(host)
        mine = held is not None and held.cluster == self.token.cluster and held.bundle.fingerprint == self.token.ca
        return held if mine else None

    async def _may_join(self, offer: Offer) -> StoredIdentity | None:
        """The identity that this join replaces; TowerError when the place is taken by another host or cluster."""
        held = await self._store.load(offer.host)
        if held is None:
            return None
        place = self._store.place(offer.host, "identity.json")
        if held.bundle.fingerprint != self.token.ca:
            raise TowerError(
                "TWR224",
                f"this agent is joined already to another host that is called {offer.host!r} too ({place})",
                mend="if it is the same host with a new CA (after a rotation, or set up again): `tower-agent leave "
                f"{offer.host} --forget`, and join again; else give one of the hosts another name (`host:` there)",
            )
        if held.cluster != self.token.cluster:
            raise TowerError(
                "TWR224",
                f"this agent is joined to {offer.host!r} as cluster {held.cluster!r}, and the token is for "
                f"{self.token.cluster!r} ({place})",
                mend="use a token for that cluster, or give this agent another state directory",
            )
        return held

    async def _ask(self, method: str, path: str, body: bytes = b"") -> Answer:
        headers = [("Content-Type", "application/json")] if body else []
        hops: dict[str, str] = {}
        try:
            answer = await fetch(
                self._target,
                method,
                path,
                headers=headers,
                body=body,
                limit=4 * defaults.MAX_ENROLLED_BYTES,
                on_hop=lambda hop: hops.update({hop.name: hop.evidence}),
            )
        except DialError as error:
            address = hops.get("tcp", "")
            fault = dial_fault(error, address)
            another = bool(address) and address not in self._tried and ", " in hops.get("dns", "")
            if address:
                self._tried.add(address)
                self._target = replace(self._target, after=address)
            if another or _may_pass(error):
                raise _Passing(fault) from error
            raise fault from error
        if answer.status == 200:
            return answer
        fault = refusal_of(answer, f"{self._target.authority} answered {answer.status} to the enrolment")
        fault.mend = of_cluster(fault.mend, self.token.cluster)
        stale_offer = method == "POST" and fault.code == "TWR224"  # the server restarted after its offer
        if answer.status in _PASSING or stale_offer:
            raise _Passing(fault)
        raise fault


class _Passing(Exception):
    """A failure that may pass by itself."""

    def __init__(self, fault: TowerError) -> None:
        super().__init__(fault)
        self.fault = fault


def _may_pass(error: DialError) -> bool:
    """Whether the way may be open later: not where it was refused, or a setting or a certificate cannot be used."""
    if error.code is not None:
        return error.code in _PASSING
    return not isinstance(error.__cause__, BadProxy | ssl.SSLError)


def refusal_of(answer: Answer, what: str) -> TowerError:
    """The server's own words where it sent an Error of ours, else what came in their place."""
    retry_after = wait_of(answer.headers.get("retry-after", ""))
    try:
        document = answer.json()
    except ValueError:
        document = None
    if isinstance(document, dict) and document.get("code") in FAULTS:
        mend = document.get("mend")
        return TowerError(
            document["code"],
            f"{what}: {printable(str(document.get('message'))[:500])}",
            mend=printable(mend[:500]) if isinstance(mend, str) and mend else None,
            retry_after=retry_after,
        )
    return TowerError("TWR224", f"{what}: {answer.text()}", retry_after=retry_after)
