"""From a host name to a connected socket.

Addresses of both families are tried in turn, a quarter of a second apart, and the first to answer wins (RFC 8305); the
losers are closed. A failure names every address that was tried and what each one said. Whether an address that answers
is good for anything shows behind this hop only: who finds one that is not says so by `after`, and it comes last.
"""

from __future__ import annotations

import asyncio
import socket
import time
from itertools import chain, zip_longest
from typing import Any, Final

from protocol.aio.hops import DialError, Hop, OnHop, reason
from protocol.aio.keepalive import keep_alive
from protocol.aio.lookup import look_up
from protocol.aio.proxyenv import bracketed

STAGGER: Final = 0.25  # seconds between attempts at the addresses of one name
MAX_ADDRESSES: Final = 16

_Where = tuple[int, tuple[Any, ...]]  # address family, socket address


async def connect_tcp(host: str, port: int, deadline: float, note: OnHop, *, after: str = "") -> socket.socket:
    """`after`: what the hop tcp showed as its evidence before; addresses are tried from the one behind it on."""
    started = time.monotonic()
    addresses = await _lookup(host, port, deadline)
    begin = next((at for at, where in enumerate(addresses, 1) if _shown(where[1][0], port) == after), 0)
    addresses = addresses[begin:] + addresses[:begin]
    shown = ", ".join(dict.fromkeys(str(address[1][0]) for address in addresses))
    note(Hop("dns", shown, time.monotonic() - started))
    started = time.monotonic()
    sock = await _race(host, port, addresses, deadline)
    try:
        peer = sock.getpeername()[0]
    except OSError as error:  # accepted and reset in one breath
        sock.close()
        raise DialError("tcp", f"cannot connect to {_shown(host, port)}: the connection was reset at once") from error
    note(Hop("tcp", _shown(peer, port), time.monotonic() - started))
    return sock


def _shown(address: str, port: int) -> str:
    return f"{bracketed(address)}:{port}"


async def _lookup(host: str, port: int, deadline: float) -> list[_Where]:
    try:
        found = await look_up(host, port, deadline)
    except TimeoutError as error:
        raise DialError(
            "dns", f"no answer for {host!r} within {deadline:g} s: is the name server reachable?"
        ) from error
    except (OSError, UnicodeError) as error:
        raise DialError("dns", f"{host!r} cannot be resolved: {reason(error)}") from error
    families: dict[int, list[_Where]] = {}
    for family, _, _, _, address in found:
        families.setdefault(family, []).append((family, address))
    mixed = chain.from_iterable(zip_longest(*families.values()))
    return [where for where in mixed if where is not None][:MAX_ADDRESSES]


async def _race(host: str, port: int, addresses: list[_Where], deadline: float) -> socket.socket:
    """The first address to answer wins; each next one starts when the one before failed or a stagger has passed."""
    if len(addresses) == 1:
        return await _only(host, port, addresses[0], deadline)
    waiting = list(addresses)
    running: dict[asyncio.Task[socket.socket], str] = {}
    failures: list[str] = []
    try:
        async with asyncio.timeout(deadline):
            while waiting or running:
                if waiting:
                    family, address = waiting.pop(0)
                    attempt = asyncio.create_task(_connect_one(family, address), name=f"dial {address[0]}")
                    running[attempt] = str(address[0])
                done, _ = await asyncio.wait(
                    running, timeout=STAGGER if waiting else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    where = running.pop(task)
                    error = task.exception()
                    if error is None:
                        return task.result()
                    failures.append(f"{where}: {reason(error)}")
    except TimeoutError as error:
        tried = ", ".join(running.values())
        told = "; ".join([*failures, f"{tried}: no answer within {deadline:g} s"])
        raise DialError("tcp", f"cannot connect to {bracketed(host)}:{port} ({told})") from error
    finally:
        await _discard(list(running))
    raise DialError("tcp", f"cannot connect to {bracketed(host)}:{port} ({'; '.join(failures)})")


async def _only(host: str, port: int, where: _Where, deadline: float) -> socket.socket:
    """One address races nobody: without a task, since agents dial one for each channel of a host."""
    try:
        async with asyncio.timeout(deadline):
            return await _connect_one(*where)
    except OSError as error:
        told = f"no answer within {deadline:g} s" if isinstance(error, TimeoutError) else reason(error)
        raise DialError("tcp", f"cannot connect to {bracketed(host)}:{port} ({where[1][0]}: {told})") from error


async def _discard(losers: list[asyncio.Task[socket.socket]]) -> None:
    for task in losers:
        task.cancel()
    for outcome in await asyncio.gather(*losers, return_exceptions=True):
        if isinstance(outcome, socket.socket):
            outcome.close()


async def _connect_one(family: int, address: tuple[Any, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(sock)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
