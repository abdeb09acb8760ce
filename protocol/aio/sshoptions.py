"""How the dialect's SSH is set up: its algorithms, and an authentication that lets everybody in.

A Go host makes a new key at each start and accepts any user: what proves an agent is the token in its `config`.
"""

from __future__ import annotations

import getpass
import os
from typing import Any, Final

import asyncssh
from asyncssh import SSHClientConnectionOptions, SSHServerConnectionOptions

from protocol.aio.ssh import Wire

# Nothing with SHA-1 or a group below 2048 bits: Go agents of 2020 know the curve by its older name.
KEX: Final = (
    "curve25519-sha256",
    "curve25519-sha256@libssh.org",
    "ecdh-sha2-nistp256",
    "ecdh-sha2-nistp384",
    "ecdh-sha2-nistp521",
    "diffie-hellman-group14-sha256",
)
# AEAD first, the fastest in front: Go picks by the order of the agent, we by ours where we are that.
CIPHERS: Final = (
    "aes128-gcm@openssh.com",
    "aes256-gcm@openssh.com",
    "chacha20-poly1305@openssh.com",
    "aes128-ctr",
    "aes192-ctr",
    "aes256-ctr",
)
MACS: Final = ("hmac-sha2-256-etm@openssh.com", "hmac-sha2-256")
NO_NAME: Final = "tower"
_ALGORITHMS: Final = {"kex_algs": KEX, "encryption_algs": CIPHERS, "mac_algs": MACS, "compression_algs": None}


class _Callbacks:
    """What asyncssh tells the object that it takes for its application."""

    _wire: Wire

    def connection_made(self, conn: Any) -> None:
        self._wire = conn

    def connection_lost(self, exc: Exception | None) -> None:
        self._wire.finished(exc)

    def auth_completed(self) -> None:
        self._wire.authenticated()


class _ServerSide(_Callbacks, asyncssh.SSHServer):
    """Anybody is let in by SSH itself: the token in `config` is what authenticates."""

    def begin_auth(self, username: str) -> bool:
        return True

    def password_auth_supported(self) -> bool:
        return True

    def validate_password(self, username: str, password: str) -> bool:
        return True


class _AgentSide(_Callbacks, asyncssh.SSHClient):
    """Go's host key is a new one at every start: there is nothing to hold it against."""

    def validate_host_public_key(self, host: str, addr: str, port: int, key: asyncssh.SSHKey) -> bool:
        return True


async def server_options(**more: Any) -> SSHServerConnectionOptions:
    """For all connections of one server: a host key of its own, as Go's server has."""
    made: SSHServerConnectionOptions = await SSHServerConnectionOptions.construct(
        None,
        config=None,
        server_factory=_ServerSide,
        server_host_keys=[asyncssh.generate_private_key("ecdsa-sha2-nistp256")],
        login_timeout=0,
        keepalive_interval=0,
        gss_host=None,
        **{**_ALGORITHMS, **more},
    )
    return made


async def agent_options(**more: Any) -> SSHClientConnectionOptions:
    """For connections of an agent."""
    _name_this_user()
    made: SSHClientConnectionOptions = await SSHClientConnectionOptions.construct(
        None,
        config=None,
        client_factory=_AgentSide,
        host="tower",
        username="",
        password="",
        known_hosts=((), (), ()),
        client_keys=None,
        agent_path=None,
        gss_host=None,
        login_timeout=0,
        keepalive_interval=0,
        **{**_ALGORITHMS, **more},
    )
    return made


def _name_this_user() -> None:
    """asyncssh does not go on without the name of the user that it runs as, for which nothing here has a use; in a
    container that user mostly has none."""
    try:
        getpass.getuser()
    except (KeyError, OSError):  # the latter from Python 3.13
        os.environ["LOGNAME"] = NO_NAME
