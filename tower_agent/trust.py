"""What the agent holds of one host: its own identity, the authorities that it believes, and what was revoked.

Trust is per host, so that several hosts in one member cannot pass for each other. The revocation list only ever moves
forward: a list with a lower number is refused, and the last one is kept where the identity lies, so that a restart
forgets nothing. A list that has grown old while the tunnel stands is one that somebody withholds.
"""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from certs.errors import CertsError, Untrusted
from certs.handshake import server_verifier
from certs.identity import IdentityStore, StoredIdentity
from certs.keys import key_from_pem, make_csr, signer
from certs.names import MAX_HOST_NAME, MAX_SERVER_NAMES
from certs.peers import ClientIdentity, Validity, rfc3339
from certs.renewal import prove_renewal
from certs.revocation import RevocationList, list_age, newer, verify_list
from certs.rotation import announced
from certs.verify import TrustBundle, certificate_names, load_chain
from daemon.faults import TowerError
from daemon.log import get_logger
from protocol import defaults
from protocol.aio.dial import FEATURES
from protocol.handshake import NONCE_SIZE, AgentHandshake
from tower_agent.faultof import certs_fault

SUCCESSORS_WITHIN: Final = 10.0  # seconds: a thousand agents do not ask for their successors in one moment

log = get_logger(__name__)


class HostTrust:
    """One host's identity and trust. `load` reads it; `adopt` and `revoke` move it forward."""

    def __init__(
        self, store: IdentityStore, identity: StoredIdentity, revocations: RevocationList | None, kept: bytes | None
    ) -> None:
        self._store: Final = store
        self._kept = kept
        self.revocations = revocations
        self._revocations_at = _known_since(revocations, time.time())
        self._awaited: tuple[int, TrustBundle] | None = None
        self._successor_from = float("inf")
        self._wanted_names: frozenset[str] = frozenset()
        self._use(identity)

    @classmethod
    async def load(cls, store: IdentityStore, host: str) -> HostTrust:
        """Raises TowerError TWR225 where there is no identity, and others for what is damaged."""
        try:
            identity = await store.load(host)
            if identity is None:
                raise TowerError("TWR225", f"there is no identity for host {host!r}")
            kept = await store.revocations(host)
            revocations = None if kept is None else _read_list(kept, identity.bundle)
        except CertsError as error:
            raise certs_fault(error) from error
        return cls(store, identity, revocations, kept)

    def _use(self, identity: StoredIdentity) -> None:
        self.identity = identity
        self.bundle: TrustBundle = identity.bundle
        self.validity: Validity = self.bundle.identify_agent(identity.chain).validity
        self.serving_validity: Validity = self.bundle.identify_serving(load_chain(identity.serving_chain_pem)).validity

        chains = identity.chain, load_chain(identity.serving_chain_pem)
        self._names = certificate_names(chains[1])
        if all(map(self.bundle.is_current, chains)):
            self._successor_from = float("inf")
        elif self._successor_from == float("inf"):
            self._successor_from = time.time() + random.uniform(0.0, SUCCESSORS_WITHIN)  # noqa: S311 - spreads load

    @property
    def host(self) -> str:
        return self.identity.host

    @property
    def renew_at(self) -> float:
        """When the first of the two certificates has lived two thirds of its life, soon when the host has come to sign
        by another root, at once when callers come by a name that the serving certificate lacks; Unix seconds."""
        if self._wanted_names - self._names:
            return 0.0
        return min(self.validity.renew_at, self.serving_validity.renew_at, self._successor_from)

    def take_names(self, names: object) -> bool:
        """What the host says that callers reach this cluster by; True when that is news, and the serving certificate
        lacks some of it. What no certificate could carry is no list of names."""
        before = self._wanted_names
        if isinstance(names, list) and len(names) <= MAX_SERVER_NAMES and all(map(_is_name, names)):
            self._wanted_names = frozenset(names)
        return self._wanted_names != before and bool(self._wanted_names - self._names)

    def handshake(self, *, instance: str, software: str) -> AgentHandshake:
        """A fresh handshake with the identity in use."""
        return AgentHandshake(
            cluster=self.identity.cluster,
            instance=instance,
            chain=self.identity.chain,
            sign=signer(self.identity.key),
            verify=server_verifier(self.bundle, time.time),
            nonce=secrets.token_bytes(NONCE_SIZE),
            features=FEATURES,
            software=software,
        )

    def ends_at_tower(self, chain: tuple[bytes, ...]) -> bool:
        """Whether an outer TLS chain is that of a server of this host, so that nobody in between can look inside."""
        if not chain:
            return False
        try:
            self.bundle.verify_server(chain, time.time())
        except CertsError:
            return False
        return True

    # -- callers -----------------------------------------------------------------------------------------------------

    def verify_client(self, chain: list[bytes]) -> ClientIdentity:
        """Who a caller's certificate names; Untrusted otherwise."""
        return self.bundle.verify_client(chain, time.time(), revocations=self.revocations)

    def check_client(self, identity: ClientIdentity) -> None:
        """The cheap check of every request; Untrusted when the certificate is no longer good."""
        identity.check(time.time(), self.revocations)

    def take_revocations(self, encoded: bytes) -> bool:
        """Put a list that the server sent into force. CertsError if it must not be.

        True when it is to be stored: its number is new, or only this copy is signed by the host's present issuer.
        """
        held, accepted = self.revocations, newer(self.revocations, _read_list(encoded, self.bundle))
        if accepted is held:
            return False
        self.revocations, self._revocations_at = accepted, _known_since(accepted, time.time())
        if self._kept is None or list_age(self._kept)[0] != accepted.number:
            return True
        return not self._signed_now(self._kept) and self._signed_now(encoded)

    def _signed_now(self, encoded: bytes) -> bool:
        try:
            verify_list(encoded, issuers=self.bundle.revocation_keys()[:1], host=self.host)
        except CertsError:
            return False
        return True

    def stale_revocations(self, at: float) -> str | None:
        """What is wrong if no newer list has come for too long, else None. To be asked while there is a tunnel."""
        if at - self._revocations_at <= defaults.REVOCATIONS_STALE:
            return None
        return f"the newest revocation list that came is of {rfc3339(self._revocations_at)}"

    async def keep_revocations(self, encoded: bytes) -> None:
        """Store the list that is in force, for the next start."""
        await self._store.save_revocations(self.host, encoded)
        self._kept = encoded

    # -- renewal -----------------------------------------------------------------------------------------------------

    def requests(self) -> tuple[bytes, bytes]:
        """CSRs (PEM) for the identity and the serving certificate, signed with the keys that they have now."""
        serving_key = key_from_pem(self.identity.serving_key_pem, what=f"the serving certificate for {self.host}")
        return make_csr(self.identity.key), make_csr(serving_key)

    def prove(self, csr: bytes, serving_csr: bytes) -> bytes:
        """The proof that this agent itself asks for these two: whoever ends TLS on the way could inject a request."""
        held = self.identity
        return prove_renewal(
            signer(held.key), host=held.host, cluster=held.cluster, agent=held.agent, csr=csr, serving_csr=serving_csr
        )

    async def adopt(self, chain_pem: bytes, serving_chain_pem: bytes) -> None:
        """Store renewed chains and use them. If a sibling was faster, its identity is used instead."""
        held, awaited = self.identity, self._awaited
        renewed = replace(held, chain_pem=chain_pem, serving_chain_pem=serving_chain_pem)
        if awaited is not None:
            renewed = replace(renewed, trust_number=awaited[0], trust_pem=awaited[1].to_pem())
        self._use(await self._store.save(renewed, replaces=held))
        if awaited is not None and self.identity.trust_number >= awaited[0]:
            self._awaited = None

    async def take_trust(self, message: Mapping[str, Any]) -> bool:
        """Trust what the host's roots announce; False if that is trusted already. Raises CertsError.

        If the announced bundle lacks the root of this agent's own certificates, these are renewed first.
        """
        found = announced(message, trusted=self.bundle, number=self.identity.trust_number)
        if found is None or (self._awaited is not None and found[0] <= self._awaited[0]):
            return False
        while self.identity.trust_number < found[0]:  # anew if a sibling has saved another identity meanwhile
            held = self.identity
            believing = replace(held, trust_number=found[0], trust_pem=found[1].to_pem())
            try:
                believing.check()
            except Untrusted:
                self._awaited, self._successor_from = found, time.time()
                return True
            self._use(await self._store.save(believing, replaces=held))
        return True

    async def reload(self) -> bool:
        """Adopt what a sibling or a new join stored meanwhile; True when it is another identity."""
        stored = await self._store.load(self.host)
        if stored is None or stored == self.identity:
            return False
        self._use(stored)
        return True


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_HOST_NAME


def _known_since(held: RevocationList | None, at: float) -> float:
    """When what is known was true: never later than now, so that a server's clock that runs ahead hides nothing."""
    return at if held is None else min(at, held.issued_at)


def _read_list(encoded: bytes, bundle: TrustBundle) -> RevocationList:
    return verify_list(encoded, issuers=bundle.revocation_keys(), host=bundle.host)
