"""Who comes by the host's apiserver: `certs.login` checked, and a short session for what was proven.

A nonce serves once, within a minute, at this server; it is known again by a MAC, so that nobody can have others'
forgotten by asking for many. The request that holds the key is read from the apiserver at each login, so deleting or
denying it ends what it is good for; a session ends by itself after ten minutes. Sessions are bounded in number, the
oldest goes first, and nothing outlives the process. A token is kept as its hash. Logins have a rate, since each costs
the apiserver a request: whoever may forward a port can use up that of strangers. A request by which somebody has logged
in here has a rate of its own.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
import struct
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any, Final

from pydantic import Field

from certs.errors import CertsError
from certs.keys import MAX_SIGNATURE_BYTES, public_key_from_csr, verify_signature
from certs.login import NAMESPACE_LABEL, NONCE_BYTES, SIGNER_NAME, login_statement
from daemon.faults import TowerError
from daemon.kube.client import Client
from daemon.kube.errors import NotFound
from daemon.kube.resources import Object, Resource
from protocol import defaults
from tower_server.admin.body import Body, checked
from tower_server.admin.rights import Person
from tower_server.bucket import Bucket

REQUESTS: Final = Resource(
    "certificates.k8s.io", "v1", "certificatesigningrequests", "CertificateSigningRequest", namespaced=False
)
NONCE_SECONDS: Final = 60.0
SESSION_SECONDS: Final = 600.0
MAX_HELD: Final = 256  # sessions, and requests by which somebody has logged in
LOGIN_RATE: Final = 5.0  # a second, of all requests by which nobody has logged in yet
LOGIN_BURST: Final = 50
KNOWN_RATE: Final = 1.0  # of each other one
KNOWN_BURST: Final = 10
CLOCKS_APART: Final = 300.0  # seconds that the apiserver's clock may be ahead of ours
_MADE: Final = struct.Struct(">d8s")  # how a nonce begins: when it was made, and entropy; the rest is a MAC
_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")


class LoginBody(Body):
    request: str = Field(max_length=253)
    nonce: str = Field(max_length=4 * NONCE_BYTES)
    signature: str = Field(max_length=4 * MAX_SIGNATURE_BYTES)


class Logins:
    """Of one server, called `server` by whoever signs for it."""

    def __init__(
        self, client: Client, *, namespace: str, server: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.client = client
        self.namespace = namespace
        self.server = server
        self._clock = clock
        self._key = secrets.token_bytes(32)
        self._used: dict[bytes, float] = {}  # nonces, until when they would serve: as many as the rates let through
        self._known: dict[str, Bucket] = {}
        self._sessions: dict[bytes, tuple[Person, float]] = {}
        self._strangers = Bucket(rate=LOGIN_RATE, burst=LOGIN_BURST, now=clock())

    def challenge(self) -> Object:
        made = _MADE.pack(self._clock(), secrets.token_bytes(8))
        nonce = made + self._mac(made)
        return {"kind": "LoginChallenge", "server": self.server, "nonce": base64.b64encode(nonce).decode()}

    async def login(self, document: dict[str, Any]) -> Object:
        """A session for whoever made the request. TowerError TWR613 says what is wrong."""
        asked = checked(LoginBody, document)
        now = self._clock()
        try:
            nonce, signature = base64.b64decode(asked.nonce, validate=True), base64.b64decode(asked.signature)
        except ValueError as error:
            raise _refused("nonce and signature are not base64") from error
        if not _NAME.fullmatch(asked.request):
            raise _refused(f"{asked.request[:80]!r} cannot be the name of a request")
        serves_until = self._serves_until(nonce)
        if serves_until < now or nonce in self._used:
            raise _refused("the nonce is not one of this server's, was used before, or is older than a minute")
        if (wait := self._known.get(asked.request, self._strangers).take(now)) is not None:
            raise TowerError("TWR615", "too many logins at once at this server", retry_after=max(1.0, wait))
        self._used = {each: until for each, until in self._used.items() if until >= now}
        self._used[nonce] = serves_until
        try:
            found = await self.client.get(REQUESTS, asked.request)
        except NotFound as error:
            raise _refused(f"the host cluster has no CertificateSigningRequest {asked.request}") from error
        person, csr = read_request(found, namespace=self.namespace, at=time.time())
        try:
            key = public_key_from_csr(csr)
        except CertsError as error:
            raise _refused(error.text) from error
        statement = login_statement(namespace=self.namespace, server=self.server, request=asked.request, nonce=nonce)
        if not verify_signature(key, statement, signature):
            raise _refused(f"the signature is not one of the request's key for server {self.server}")
        if asked.request not in self._known:
            _keep(self._known, asked.request, Bucket(rate=KNOWN_RATE, burst=KNOWN_BURST, now=now))
        token = secrets.token_urlsafe(32)
        _keep(self._sessions, _hashed(token), (person, now + SESSION_SECONDS))
        return {"kind": "Login", "token": token, "user": person.name, "seconds": SESSION_SECONDS}

    def _mac(self, made: bytes) -> bytes:
        return hmac.digest(self._key, made, "sha256")[: NONCE_BYTES - _MADE.size]

    def _serves_until(self, nonce: bytes) -> float:
        """By this server's clock; 0 for one that is not its own."""
        made = nonce[: _MADE.size]
        if not hmac.compare_digest(nonce[_MADE.size :], self._mac(made)):
            return 0.0
        at, _ = _MADE.unpack(made)
        return float(at) + NONCE_SECONDS

    def who(self, authorization: str) -> Person:
        """Whose session the header shows; TowerError TWR613."""
        scheme, _, token = authorization.partition(" ")
        held = self._sessions.get(_hashed(token)) if scheme == "Bearer" else None
        if held is None or held[1] < self._clock():
            raise _refused("nobody is logged in by that, or it is over")
        return held[0]


def read_request(found: Object, *, namespace: str, at: float) -> tuple[Person, bytes]:
    """Who made the request, and what it holds; TowerError TWR613 unless it was made for this, and lately."""
    metadata, spec = found.get("metadata") or {}, found.get("spec") or {}
    conditions = (found.get("status") or {}).get("conditions") or ()
    if spec.get("signerName") != SIGNER_NAME:
        raise _refused(f"the request was made for another purpose ({str(spec.get('signerName'))[:80]})")
    if (metadata.get("labels") or {}).get(NAMESPACE_LABEL) != namespace:
        raise _refused(f"the request is not for the tower of namespace {namespace}")
    if metadata.get("deletionTimestamp") or any(each.get("type") in ("Denied", "Failed") for each in conditions):
        raise _refused("the request was denied or deleted")
    try:
        age = at - datetime.fromisoformat(metadata["creationTimestamp"]).timestamp()
        csr = base64.b64decode(spec["request"], validate=True)
        groups = tuple(map(str, spec.get("groups") or ()))
        extra = {str(key): tuple(map(str, values)) for key, values in (spec.get("extra") or {}).items()}
        person = Person(str(spec.get("username") or ""), str(spec.get("uid") or ""), groups, extra)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise _refused("the request is not of its form") from error
    if not -CLOCKS_APART <= age <= defaults.LOGIN_LIFETIME:
        raise _refused(f"the request is {age:.0f} s old, and good for {defaults.LOGIN_LIFETIME:g} s")
    if not person.name:
        raise _refused("the request names nobody")
    return person, csr


def _refused(why: str) -> TowerError:
    return TowerError("TWR613", f"the login is refused: {why}")


def _hashed(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _keep(held: dict[Any, Any], key: object, value: object) -> None:
    while len(held) >= MAX_HELD:
        del held[next(iter(held))]
    held[key] = value
