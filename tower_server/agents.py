"""Who may be an agent: admits handshakes, issues and renews identities, revokes agents.

An identity is valid while its certificate is (an expired one may only renew), while there is a record of its agent, and
while neither of the two is revoked. Only an enrolment makes such a record, and it is deleted with its cluster; so an
identity from a deleted cluster opens nothing in a new cluster of the same name.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from certs.ca import Authority
from certs.errors import CertsError
from certs.keys import PublicKey, key_fingerprint, public_key_from_csr
from certs.peers import RENEWAL_GRACE, AgentIdentity, rfc3339
from certs.renewal import check_renewal
from daemon.faults import TowerError
from daemon.log import get_logger
from daemon.wirefault import wire_fault
from protocol.aio.listener import Admission
from protocol.constants import Code
from protocol.errors import HandshakeRejected
from protocol.handshake import Hello
from tower_server.authority import root_id
from tower_server.dependents import ATTEMPTS, Upto, tidy
from tower_server.records import Agent, Cluster, agent_record_name
from tower_server.revocations import Revocations
from tower_server.store.base import Conflict, Kind, NotFound, Record, Store
from tower_server.tunnels import TunnelRegistry

RECORDS_RETRY: Final = 5.0  # seconds after which an agent asks again whose record could not be read
KNOWN_PATIENCE: Final = 1.0
"""Seconds for the record of an agent that was admitted before: less than callers of a lost link are held for."""
SHOW_PATIENCE: Final = 2.5
"""Seconds for the records that are only shown: then somebody who looks for a fault gets what is known."""

Listed = list["Agent"]  # `list` is a method of the class

log = get_logger(__name__)

# The refusals that say something about a cluster's agents; others are about this moment or the peer's software.
PROVEN: Final = frozenset({Code.REVOKED, Code.EXPIRED, Code.DELETED})
UNPROVEN: Final = frozenset({Code.UNTRUSTED, Code.BAD_SIGNATURE, Code.WRONG_CLUSTER})
"""Whoever it was has shown nothing but the cluster's name: a line of its history, and no verdict on it."""


@dataclass(frozen=True, slots=True)
class AgentCerts:
    """An agent's new identity and serving certificate, as PEM chains."""

    chain: str
    serving_chain: str
    issued: float
    identity_expires: float
    serving_expires: float
    root: str


class Agents:
    """The agents of all clusters."""

    def __init__(self, store: Store, authority: Authority, revocations: Revocations, registry: TunnelRegistry) -> None:
        self._store = store
        self._authority = authority
        self._revocations = revocations
        self._registry = registry
        self.tag = ""
        """How the names of this server's tunnels begin, where it is one of several."""
        self._admitted: dict[tuple[str, str], str] = {}
        """Agents that this process has admitted, and the uid of the cluster that it was for."""
        self._seen: dict[tuple[str, str], Agent] = {}
        self._seen_at = time.time()

    # ---- handshakes ---------------------------------------------------------------------------------------------

    async def authenticate(self, hello: Hello, identity: AgentIdentity, remote: str) -> Admission:
        """Decide on an agent whose certificate and signature are good. HandshakeRejected refuses it."""
        member = self._registry.members.get(identity.cluster)
        if member is None:
            raise HandshakeRejected(
                Code.DELETED,
                f"this tower has no cluster {identity.cluster}; if it was deleted by mistake, add it and join again",
            )
        who = identity.cluster, identity.agent
        renew_only = identity.expired(time.time())
        try:
            async with asyncio.timeout(KNOWN_PATIENCE if who in self._admitted else None):
                record = await self._store.get(Kind.AGENT, agent_record_name(*who))
        except NotFound:
            self._admitted.pop(who, None)
            raise _refusal(identity, "is not one that this tower has enrolled") from None
        except (TowerError, TimeoutError) as error:
            # Its tunnel would have outlived the outage; that it has to dial anew is no reason to be stricter. Nobody
            # can write a revocation now either, and the list as last read has been asked already.
            why = f"no answer within {KNOWN_PATIENCE:g} s"
            if isinstance(error, TowerError):
                why = f"{error.code}: {error.message}"
            if self._admitted.get(who) != member.uid:
                text = f"this tower cannot read its records now ({why})"
                raise HandshakeRejected(Code.INTERNAL, text[:400], RECORDS_RETRY) from error
            log.warning("admitted-from-memory", cluster=who[0], agent=who[1], text=why)
            return Admission(self.tag + secrets.token_hex(6), renew_only=renew_only)
        agent = Agent.read(record)
        self._admitted.pop(who, None)
        if agent.uid != member.uid:
            raise _refusal(identity, "belongs to a deleted cluster of the same name")
        if agent.revoked is not None:
            raise _refusal(identity, "was revoked")
        self._admitted[who] = member.uid
        self._seen[who] = agent
        return Admission(self.tag + secrets.token_hex(6), renew_only=renew_only)

    def still_admitted(self, identity: AgentIdentity) -> None:
        """HandshakeRejected for an agent that was revoked, or whose cluster was deleted, since `authenticate`: there
        was no tunnel to close then. Called in the same turn in which the tunnel enters the registry."""
        member = self._registry.members.get(identity.cluster)
        if member is None:
            raise HandshakeRejected(Code.DELETED, f"the cluster {identity.cluster} was deleted")
        try:
            identity.check(time.time(), self._revocations.current, allow_expired_for=RENEWAL_GRACE)
        except CertsError:
            raise _refusal(identity, "was revoked") from None
        if self._admitted.get((identity.cluster, identity.agent)) != member.uid:
            raise _refusal(identity, "was revoked, or belongs to a deleted cluster of the same name")

    def refused(self, *, remote: str, stage: str, code: Code, text: str, hello: Hello | None) -> None:
        """A handshake has failed. Notes it for the cluster that was named, which is all that is known of the peer."""
        member = self._registry.members.get(hello.cluster) if hello is not None else None
        if code in PROVEN | UNPROVEN and member is not None and hello is not None:
            cause = text.partition("; ")[0]  # what to do is for the agent's owner; here it comes with the code
            member.refuse(hello.instance, remote, wire_fault(code, "TWR203"), cause, proven=code in PROVEN)

    async def close_expired(self, *, at: float) -> None:
        """Closes tunnels whose agent's identity ran out while they were open; they come back to renew and no more.

        What an agent shows at its handshake is the older one once it has renewed, so its record has the last word.
        """
        for member, tunnel in self._registry:
            agent = tunnel.peer.agent
            if tunnel.renew_only or at <= tunnel.data.get("expires", tunnel.peer.not_after):
                continue
            try:
                expires = Agent.read(await self.find(member.name, agent)).identity_expires
            except TowerError:  # its record has just gone, and its tunnels are closed for that
                continue
            tunnel.data["expires"] = expires
            if at > expires:
                text = f"the identity of agent {agent} expired at {rfc3339(expires)}; it may come back to renew it"
                tunnel.close(Code.EXPIRED, text)

    # ---- identities ---------------------------------------------------------------------------------------------

    @property
    def root(self) -> str:
        """The root under which certificates are issued now, as records name it."""
        return root_id(self._authority)

    def issue(self, cluster: Cluster, agent: str, *, key: PublicKey, serving_key: PublicKey) -> AgentCerts:
        """Certificates for two keys. Every name in them is the server's decision. TowerError TWR505."""
        now = self._revocations.time_for_agent(cluster.name, agent, at=time.time())
        identity = self._authority.issue_agent(cluster.name, agent, public_key=key, at=now)
        serving = self._authority.issue_serving(cluster.name, cluster.certificate_names, public_key=serving_key, at=now)
        return AgentCerts(
            chain=identity.chain_pem.decode(),
            serving_chain=serving.chain_pem.decode(),
            issued=now,
            identity_expires=identity.not_after,
            serving_expires=serving.not_after,
            root=self.root,
        )

    async def renew(self, identity: AgentIdentity, *, csr: bytes, serving_csr: bytes, proof: bytes) -> AgentCerts:
        """New certificates for an agent that proves the key of its old ones. CertsError, TowerError refuse."""
        check_renewal(identity, proof, csr=csr, serving_csr=serving_csr)
        name = agent_record_name(identity.cluster, identity.agent)
        key, serving_key = public_key_from_csr(csr), public_key_from_csr(serving_csr)
        for _ in range(ATTEMPTS):
            try:
                record = await self._store.get(Kind.AGENT, name)
                cluster = Cluster.read(await self._store.get(Kind.CLUSTER, identity.cluster))
            except NotFound:
                raise TowerError("TWR209", f"the agent {identity.agent} of {identity.cluster} is gone") from None
            agent = Agent.read(record)
            if agent.revoked is not None or agent.uid != cluster.uid:
                raise TowerError("TWR209", f"the agent {agent.name} of {agent.cluster} was revoked")
            certificates = self.issue(cluster, agent.name, key=key, serving_key=serving_key)
            renewed = replace(
                agent,
                key=key_fingerprint(key),
                renewed=certificates.issued,
                identity_expires=certificates.identity_expires,
                serving_expires=certificates.serving_expires,
                root=certificates.root,
            )
            try:
                await self._store.update(Kind.AGENT, name, renewed.data(), expect=record.version)
            except Conflict:
                continue
            return certificates
        raise TowerError("TWR108", f"the record of agent {identity.agent} of {identity.cluster} keeps changing")

    async def enrol(self, agent: Agent) -> None:
        """Writes the record of an agent that a token has let in; harmless if it is there already. If an earlier cluster
        has left a record of that name, its agent is revoked first: nothing else would tell of it from then on."""
        for _ in range(ATTEMPTS):
            try:
                await self._store.create(Kind.AGENT, agent.record_name, agent.data())
            except Conflict:
                record = await self._store.get(Kind.AGENT, agent.record_name)
                held = Agent.read(record)
                # An answer from before the revocation, of this token or an older one, gives nothing back.
                if held.uid == agent.uid and held.revoked is not None and agent.created <= held.revoked:
                    raise TowerError("TWR209", f"the agent {agent.name} of {agent.cluster} was revoked") from None
                if (held.uid, held.token) == (agent.uid, agent.token):
                    return
                if held.uid != agent.uid:
                    if agent.created <= held.created:
                        raise TowerError("TWR208", f"the cluster {agent.cluster} that it joins was deleted") from None
                    await self._revoke({(held.cluster, held.name): held.issued})
                try:
                    await self._store.update(Kind.AGENT, agent.record_name, agent.data(), expect=record.version)
                except Conflict:
                    continue
            return

    # ---- revocation ---------------------------------------------------------------------------------------------

    async def revoke(self, cluster: str, agent: str) -> Agent:
        """Revokes an agent: its record, the list, its live tunnels, in this order and before this returns."""
        self._admitted.pop((cluster, agent), None)
        found = await self.update(cluster, agent, lambda held: replace(held, revoked=held.revoked or time.time()))
        since = found.revoked or 0.0
        if self._revocations.current.agents.get((cluster, agent), 0.0) < since:  # else every server and member has it
            await self._revocations.revoke_agent(cluster, agent, at=max(since, time.time(), found.issued))
        self._registry.close_agent(cluster, agent, code=Code.REVOKED, text=f"the agent {agent} was revoked")
        return found

    async def believes(self, cluster: str, agent: str, number: int) -> None:
        """Notes which trust bundle an agent has said it believes; a rotation waits for it."""
        await self.update(cluster, agent, lambda held: replace(held, trust=max(held.trust, number)))

    async def update(self, cluster: str, agent: str, change: Callable[[Agent], Agent]) -> Agent:
        """Changes a record. TowerError TWR603 when there is none."""
        name = agent_record_name(cluster, agent)
        for _ in range(ATTEMPTS):
            record = await self.find(cluster, agent)
            held = Agent.read(record)
            changed = change(held)
            if changed == held:
                return held
            try:
                await self._store.update(Kind.AGENT, name, changed.data(), expect=record.version)
            except Conflict:
                continue
            return changed
        raise TowerError("TWR108", f"the record of agent {agent} of {cluster} keeps changing")

    async def find(self, cluster: str, agent: str) -> Record:
        try:
            return await self._store.get(Kind.AGENT, agent_record_name(cluster, agent))
        except NotFound:
            raise TowerError("TWR603", f"cluster {cluster} has no agent {agent!r}") from None

    async def _revoke(self, upto: Upto) -> None:
        await self._revocations.revoke_agents(upto, at=time.time())

    async def tidy(self) -> None:
        """Revokes and takes away agents of clusters that are gone, and their tokens; forgets whom it admitted there."""
        uids = {member.uid for member in self._registry.members.values()}
        self._admitted = {who: uid for who, uid in self._admitted.items() if uid in uids}
        self._seen = {who: each for who, each in self._seen.items() if each.uid in uids}
        await tidy(self._store, revoke=self._revoke)

    async def list(self, cluster: str | None = None) -> list[Agent]:
        prefix = f"{cluster}." if cluster is not None else ""
        found = [Agent.read(record) for record in (await self._store.list(Kind.AGENT, prefix=prefix)).items]
        others = {} if cluster is None else {who: each for who, each in self._seen.items() if who[0] != cluster}
        self._seen = others | {(each.cluster, each.name): each for each in found}
        self._seen_at = time.time()
        return found

    async def shown(self, cluster: str | None = None) -> tuple[Listed, str | None]:
        """As `list`, for display only: while the store does not answer, what was read last, and a sentence that says
        so. Whether a cluster is well is not in the store, and people ask for it just when the store is away."""
        try:
            async with asyncio.timeout(SHOW_PATIENCE):
                return await self.list(cluster), None
        except (TowerError, TimeoutError) as error:
            why = f"no answer within {SHOW_PATIENCE:g} s"
            if isinstance(error, TowerError):
                why = f"{error.code}: {error.message}"
            log.info("shown-from-memory", text=why)
            seen = [each for each in self._seen.values() if cluster in (None, each.cluster)]
            return (
                seen,
                f"agents are shown as of {rfc3339(self._seen_at)}, since the records cannot be read now ({why})",
            )


def _refusal(identity: AgentIdentity, what: str) -> HandshakeRejected:
    text = f"the agent {identity.agent} of cluster {identity.cluster} {what}; join again with a new token"
    return HandshakeRejected(Code.REVOKED, text)
