"""What must never be shown, in one place: the log, `config show` and error texts all ask here.

This is the last line of defence, not the first: code should not hand secrets to the log at all. Two rules: a value
whose name says it is a secret, and a text that looks like one whatever its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

REDACTED: Final = "[redacted]"
MAX_DEPTH: Final = 8  # deeper structures are cut: a log line is not a document

_WORDS: Final = frozenset(
    {"token", "tokens", "secret", "secrets", "password", "passwd", "authorization", "key", "cookie"}
)
_HARMLESS: Final = re.compile(r"(_|-|\b)(id|ids|file|path|name|names|fingerprint|expires|count|lifetime|uses)$")
_TEXTS: Final = (
    re.compile(r"twr1\.[A-Za-z0-9_\-]{8,}"),
    re.compile(r"\b(?:Bearer|BEARER|Basic|BASIC)\s+[A-Za-z0-9\-._~+/]{3,}=*"),
    re.compile(r"\b(?:bearer|basic)\s+(?=\S*[0-9._~+/]|\S{16})[A-Za-z0-9\-._~+/]{6,}=*"),  # not "bearer tokens"
    re.compile(r"(?i)(?<=authorization: )\S.*"),
    re.compile(r"base64url\.bearer\.authorization\.k8s\.io\.[A-Za-z0-9_\-]+"),
    re.compile(r"\beyJ[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]{8,}\.[A-Za-z0-9_\-]*"),  # a JSON web token
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    re.compile(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)"),  # user:password in a URL
)
_HINTS: Final = ("twr1.", "earer", "EARER", "asic", "ASIC", "thorization: ", "THORIZATION: ", "eyJ", "PRIVATE KEY", "@")


@lru_cache(maxsize=4096)  # the same few names stand in every line
def is_secret_name(name: str) -> bool:
    """Whether a name such as `token`, `client_key`, `proxyPassword` is a secret's; `key_file`, `token_id` are not."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    if _HARMLESS.search(words):
        return False
    return not _WORDS.isdisjoint(re.split(r"[_\-. ]+", words))


def redact_text(text: str) -> str:
    """`text` without anything that looks like a secret."""
    if not any(hint in text for hint in _HINTS):
        return text
    for pattern in _TEXTS:
        text = pattern.sub(REDACTED, text)
    return text


def redact(value: Any, *, name: str = "", depth: int = 0) -> Any:
    """`value` with secrets replaced, by its name and by its looks; containers are copied, never changed."""
    if name and is_secret_name(name) and value not in (None, "", 0, False):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if depth >= MAX_DEPTH:
        return "..."
    if isinstance(value, Mapping):
        return {str(key): redact(item, name=str(key), depth=depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [redact(item, depth=depth + 1) for item in value]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return f"<{len(value)} bytes>"
    return redact_text(str(value))
