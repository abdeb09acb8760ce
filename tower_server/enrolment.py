"""`/v1/enrolment` and `/v1/leave` beside the tunnel: how a member gets its first identity, and gives it back.

The offer is for anyone; a post is opened, its token compared, and only then is anything made or written. Each refusal
has its own code, since the person at the other end can mend each in another way. An agent's name comes from its key, so
asking again with the same key is the same agent.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from certs.enrolment import EnrolmentReply, EnrolmentRequest, Received, receive
from certs.errors import CertsError
from certs.keys import PublicKey, key_fingerprint, public_key_from_csr
from certs.leaving import who_leaves
from certs.sealing import Sealer
from certs.verify import TrustBundle
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.metrics import ServerMetrics
from protocol.aio.port import network_of
from protocol.aio.request import HttpRequest, HttpResponse
from tower_server.agents import Agents
from tower_server.bucket import SharedBucket
from tower_server.faultof import certs_fault, error_body, retry_after
from tower_server.records import Agent, Cluster, Enrolled, Token
from tower_server.revocations import Revocations
from tower_server.store.base import Kind, NotFound, Store
from tower_server.tokens import Tokens

PATH: Final = "/v1/enrolment"
LEAVE: Final = "/v1/leave"
NAME_CHARACTERS: Final = 20  # of the key's fingerprint: 80 bits, so that nobody makes a key for another agent's name

log = get_logger(__name__)


class Enrolment:
    """Answers the tunnel port's plain requests."""

    def __init__(
        self,
        *,
        store: Store,
        host: str,
        trust: Callable[[], TrustBundle],
        sealer: Sealer,
        tokens: Tokens,
        agents: Agents,
        revocations: Revocations,
        metrics: ServerMetrics,
        bucket: SharedBucket,
    ) -> None:
        self._store = store
        self._host = host
        self._trust = trust
        self._sealer = sealer
        self._tokens = tokens
        self._agents = agents
        self._revocations = revocations
        self._metrics = metrics
        self._bucket = bucket

    async def answer(self, request: HttpRequest) -> HttpResponse:
        """For any request that is not a tunnel."""
        if request.target == LEAVE and request.method == "POST":
            return await self._leave(request)
        if request.target.partition("?")[0] != PATH:
            return _error(TowerError("TWR612", "this is a tower's tunnel port; there is nothing at this path"))
        if request.method == "GET":
            return HttpResponse(200, self._sealer.offer(time.time()))
        if request.method != "POST":
            error = TowerError("TWR612", f"{request.method} is not a call of {PATH}")
            return _error(error, status=405, headers=(("Allow", "GET, POST"),))
        try:
            return HttpResponse(200, await self._enrol(request))
        except CertsError as error:
            return self._refused(request, certs_fault(error), status=400)  # all of them are about what was sent
        except TowerError as error:
            return self._refused(request, error)

    async def _leave(self, request: HttpRequest) -> HttpResponse:
        """Whoever proves to hold an agent's key may have that agent revoked."""
        try:
            self._take(request)
            identity = who_leaves(request.body, self._trust())
            await self._agents.revoke(identity.cluster, identity.agent)
        except CertsError as error:
            return self._refused(request, certs_fault(error), status=400)
        except TowerError as error:
            return self._refused(request, error)
        log.info("left", cluster=identity.cluster, agent=identity.agent, remote=request.remote)
        return HttpResponse(200, b"{}\n")

    def _take(self, request: HttpRequest) -> None:
        wait = self._bucket.take(asyncio.get_running_loop().time(), network_of(request.remote))
        if wait is not None:
            self._metrics.throttled.labels("enrolments").inc()
            raise TowerError("TWR221", "too many enrolments at once", retry_after=wait)

    async def _enrol(self, request: HttpRequest) -> bytes:
        self._take(request)
        received = receive(request.body, sealer=self._sealer, host=self._host, at=time.time())
        asked = received.request
        key, serving_key = public_key_from_csr(asked.csr), public_key_from_csr(asked.serving_csr)
        name = key_fingerprint(key)[:NAME_CHARACTERS]
        token, answer = await self._redeem(received, asked, key, serving_key, name)
        await self._agents.enrol(self._record(token, answer, key_fingerprint(key)))
        self._metrics.enrolments.labels("ok").inc()
        log.info("enrolled", cluster=token.cluster, agent=name, token=token.id, remote=request.remote)
        reply = EnrolmentReply(
            host=self._host,
            cluster=token.cluster,
            agent=answer.agent,
            chain=answer.identity_chain.encode(),
            serving_chain=answer.serving_chain.encode(),
            trust=self._trust().to_pem(),
            revocations=self._revocations.signed,
        )
        return received.seal_reply(reply)

    async def _redeem(
        self, received: Received, asked: EnrolmentRequest, key: PublicKey, serving_key: PublicKey, name: str
    ) -> tuple[Token, Enrolled]:
        clusters: dict[str, Cluster] = {}

        def standing(token: Token) -> Cluster:
            cluster = clusters.get(token.cluster)
            if cluster is None or cluster.uid != token.uid:
                raise TowerError("TWR208", f"the cluster {token.cluster} that the token {token.id} is for was deleted")
            return cluster

        def issue(token: Token) -> Enrolled:
            certificates = self._agents.issue(standing(token), name, key=key, serving_key=serving_key)
            return Enrolled(
                agent=name,
                at=certificates.issued,
                serving_key=key_fingerprint(serving_key),
                identity_chain=certificates.chain,
                serving_chain=certificates.serving_chain,
                identity_expires=certificates.identity_expires,
                serving_expires=certificates.serving_expires,
            )

        try:  # read before the token is compared: issuing must not wait between its check and its write
            token = Token.read(await self._store.get(Kind.TOKEN, received.token_id))
            clusters[token.cluster] = Cluster.read(await self._store.get(Kind.CLUSTER, token.cluster))
        except NotFound:
            pass  # redeeming says which of the two it is
        token, answer = await self._tokens.redeem(received.token_id, asked.secret, key_fingerprint(key), issue=issue)
        standing(token)  # also for an answer that is given again
        if answer.serving_key != key_fingerprint(serving_key):
            raise TowerError("TWR206", f"the token {token.id} was used by this agent with another serving key")
        return token, answer

    def _record(self, token: Token, answer: Enrolled, key: str) -> Agent:
        return Agent(
            name=answer.agent,
            cluster=token.cluster,
            uid=token.uid,
            key=key,
            created=answer.at,
            token=token.id,
            identity_expires=answer.identity_expires,
            serving_expires=answer.serving_expires,
            root=self._agents.root,
        )

    def _refused(self, request: HttpRequest, error: TowerError, *, status: int | None = None) -> HttpResponse:
        self._metrics.enrolments.labels(error.code).inc()
        if error.code != "TWR221":  # those are counted: lines without bound are what the limit keeps away
            log.warning("enrolment-refused", code=error.code, text=error.message, remote=request.remote)
        return _error(error, status=status)


def _error(error: TowerError, *, status: int | None = None, headers: tuple[tuple[str, str], ...] = ()) -> HttpResponse:
    headers = (*headers, *retry_after(error).items())
    return HttpResponse(status or error.http_status, error_body(error), headers=headers)
