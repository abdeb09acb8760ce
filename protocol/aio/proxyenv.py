"""Which proxy the environment asks for, and for whom it makes an exception.

The rules are those of Go's HTTP client, because operators set these variables once for a whole cluster: capital names
first, then small ones, then `ALL_PROXY` (curl's addition); loopback never goes through a proxy; `NO_PROXY` holds names
(`example.com` covers itself and all below, `.example.com` only what is below), addresses, CIDR ranges, each with an
optional port, and `*` for everything.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """An HTTP proxy that takes CONNECT; `credentials` is the Basic value and never part of any text."""

    scheme: str
    host: str
    port: int
    credentials: str | None = None

    def __str__(self) -> str:
        return f"{self.scheme}://{bracketed(self.host)}:{self.port}"

    def __repr__(self) -> str:
        return f"Proxy({self})"


class BadProxy(ValueError):
    """A proxy setting that cannot be used; the text never repeats its password."""


def parse_proxy(value: str) -> Proxy:
    """Read `http://user:password@host:port`, `https://...` or plain `host:port`; raises BadProxy."""
    text = value.strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise BadProxy("the proxy setting is not a URL of the form http://host:port") from error
    scheme = parts.scheme.lower()
    if scheme not in _DEFAULT_PORTS:
        raise BadProxy(f"a proxy of kind {scheme!r} is not supported: use an http:// or https:// proxy")
    if not parts.hostname:
        raise BadProxy("the proxy setting names no host: it must be of the form http://host:port")
    credentials = None
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        credentials = base64.b64encode(pair.encode()).decode("ascii")
    return Proxy(scheme, parts.hostname, port or _DEFAULT_PORTS[scheme], credentials)


def proxy_from_environment(host: str, port: int, *, tls: bool, environ: Mapping[str, str]) -> Proxy | None:
    """The proxy on the way to `host:port`, or None for the direct way; raises BadProxy."""
    names = ("HTTPS_PROXY", "https_proxy") if tls else ("HTTP_PROXY", "http_proxy")
    value = next((environ[name] for name in (*names, "ALL_PROXY", "all_proxy") if environ.get(name)), "")
    if not value or excepted(host, port, environ.get("NO_PROXY") or environ.get("no_proxy") or ""):
        return None
    return parse_proxy(value)


def excepted(host: str, port: int, no_proxy: str) -> bool:
    """Whether `host:port` is reached without the proxy."""
    name = host.strip("[]").rstrip(".").lower()
    address = _address(name)
    if name == "localhost" or (address is not None and address.is_loopback):
        return True
    entries = (entry.strip().lower() for entry in no_proxy.split(","))
    return any(_covers(entry, name, port, address) for entry in entries if entry)


def bracketed(host: str) -> str:
    """A host as it stands before a port: IPv6 addresses in brackets."""
    return f"[{host}]" if ":" in host else host


_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _covers(entry: str, name: str, port: int, address: _Address | None) -> bool:
    if entry == "*":
        return True
    if "/" in entry:
        try:
            return address is not None and address in ipaddress.ip_network(entry, strict=False)
        except ValueError:
            return False
    pattern, wanted = _split_port(entry)
    if wanted is not None and wanted != port:
        return False
    literal = _address(pattern)
    if literal is not None:
        return address == literal
    pattern = pattern.removeprefix("*").rstrip(".")
    if pattern.startswith("."):
        return name.endswith(pattern)
    return name == pattern or name.endswith(f".{pattern}")


def _split_port(entry: str) -> tuple[str, int | None]:
    if entry.startswith("["):
        host, _, rest = entry[1:].partition("]")
        return host, _port(rest.removeprefix(":"))
    if entry.count(":") == 1:
        host, _, rest = entry.partition(":")
        return host, _port(rest)
    return entry, None


def _port(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() else None


def _address(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
