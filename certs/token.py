"""The one string that joins a member: `twr1.` and base64url of {url, cluster, id, secret, ca}.

The server keeps only a hash of the secret; the secret has 256 random bits, so a plain SHA-256 is enough and a lookup
goes by `id`. `ca` is the SHA-256 of the host's root: with it the agent knows the server before it says anything.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from certs import codec
from certs.errors import MessageError, TokenError
from certs.names import is_label

PREFIX: Final = "twr1."
MAX_TOKEN_CHARS: Final = 4096
MAX_URL: Final = 1024
SECRET_BYTES: Final = 32
_SCHEMES: Final = frozenset({"https", "wss", "http", "ws"})
_ID: Final = re.compile(r"[a-z0-9]{8,32}")
_SECRET: Final = re.compile(r"[A-Za-z0-9_-]{43}")
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_BODY: Final = re.compile(r"[A-Za-z0-9_-]+")
_COPY_AGAIN: Final = "copy the whole token again, in one line; a new one comes from `towerctl create token CLUSTER`"


@dataclass(frozen=True, slots=True)
class EnrolmentToken:
    """What a member needs to join. Its `repr` holds no secret; `str` is the token itself, for the operator's eyes."""

    url: str
    cluster: str
    id: str
    secret: str = field(repr=False)
    ca: str

    @classmethod
    def create(cls, *, url: str, cluster: str, ca: str) -> EnrolmentToken:
        """A token with a fresh id and secret; TokenError when the parts cannot make one."""
        secret = base64.urlsafe_b64encode(secrets.token_bytes(SECRET_BYTES)).rstrip(b"=").decode()
        return _checked(cls(url=url, cluster=cluster, id=secrets.token_hex(8), secret=secret, ca=ca))

    def __str__(self) -> str:
        parts = {"url": self.url, "cluster": self.cluster, "id": self.id, "secret": self.secret, "ca": self.ca}
        return PREFIX + base64.urlsafe_b64encode(codec.encode(parts)).rstrip(b"=").decode()


def parse_token(given: str) -> EnrolmentToken:
    """The token in `given`, white space around it aside. No message of a TokenError repeats any part of it."""
    token = given.strip()
    if not token:
        raise TokenError("there is no token: the input is empty", "give it by standard input or by a file")
    if len(token) > MAX_TOKEN_CHARS:
        raise TokenError(f"the input has {len(token)} characters, which no token has", _COPY_AGAIN)
    if not token.startswith(PREFIX):
        newer = re.match(r"twr[0-9]+\.", token) is not None
        raise TokenError(
            "the token is of another version than this program knows"
            if newer
            else f"the input is not an enrolment token: it does not begin with {PREFIX}",
            "use the tower-agent of the server's version" if newer else _COPY_AGAIN,
        )
    body = token[len(PREFIX) :]
    if any(character.isspace() for character in body):
        raise TokenError("the token holds white space, probably from a wrapped line", _COPY_AGAIN)
    if _BODY.fullmatch(body) is None:
        raise TokenError("the token holds characters that no token has, or nothing after its prefix", _COPY_AGAIN)
    what = "the token"
    try:
        message = codec.decode(
            base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), limit=MAX_TOKEN_CHARS, what=what
        )
        parsed = EnrolmentToken(
            url=codec.text(message, "url", limit=MAX_URL, what=what),
            cluster=codec.text(message, "cluster", limit=63, what=what),
            id=codec.text(message, "id", limit=32, what=what),
            secret=codec.text(message, "secret", limit=43, what=what),
            ca=codec.text(message, "ca", limit=64, what=what),
        )
    except (MessageError, ValueError):
        # Without its cause: what a JSON or base64 error quotes could be a piece of the secret.
        raise TokenError("the token is cut off or was altered when it was copied", _COPY_AGAIN) from None
    return _checked(parsed)


def hash_secret(secret: str) -> str:
    """What the store keeps of a token's secret."""
    return hashlib.sha256(b"tower enrolment secret\x00" + secret.encode()).hexdigest()


def secret_matches(secret: str, stored: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest(hash_secret(secret).encode(), stored.encode())


def is_token_id(text: str) -> bool:
    """Whether a token can have this id: what else is asked for is not looked up anywhere."""
    return _ID.fullmatch(text) is not None


def _checked(token: EnrolmentToken) -> EnrolmentToken:
    if not _is_url(token.url):
        raise TokenError(
            "the token's URL is not one that an agent can dial", "it is https://HOST:PORT, no user, no path"
        )
    if not is_label(token.cluster):
        raise TokenError("the token's cluster is not a DNS label", _COPY_AGAIN)
    if not (is_token_id(token.id) and _SECRET.fullmatch(token.secret) and _FINGERPRINT.fullmatch(token.ca)):
        raise TokenError("a part of the token has the wrong form", _COPY_AGAIN)
    return token


def _is_url(url: str) -> bool:
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.scheme in _SCHEMES and bool(parts.hostname) and parts.port != 0 and "@" not in parts.netloc
    except ValueError:
        return False
