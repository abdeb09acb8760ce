"""How a process reaches its apiserver, and as whom: the agent its member's, the server its host's.

There are two TLS contexts, which never mix: the bare one shows no certificate and carries callers' own bearer tokens;
the other one shows the process' own client certificate, if it has one. The process' own token (from a ServiceAccount,
a `tokenFile` or an exec plugin) is read again when it may have changed, and is kept in memory only.

The files are read again too: a renewed authority, certificate or token takes effect without a restart. If what is read
cannot be used, or names another address, the earlier one stays in force.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import ssl
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from certs.errors import AuthorityError
from certs.tls import ClientTrust, client_context, load_pair
from daemon.faults import TowerError
from daemon.kube.kubeconfig import ExecPlugin, Kubeconfig, read_kubeconfig
from daemon.log import get_logger
from daemon.reminder import Reminder
from protocol.aio.proxydial import DialTarget, open_connection
from protocol.jsontext import parse_json

P = TypeVar("P", bound=asyncio.BaseProtocol)

SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
TOKEN_REREAD: Final = 10.0  # seconds a token that was read from disk is used before it is read again
CONFIG_REREAD: Final = 10.0  # and the kubeconfig, or the pod's authority
PLUGIN_DEADLINE: Final = 30.0
PLUGIN_EARLY: Final = 30.0  # seconds before its expiry that a plugin's token is asked for anew

log = get_logger(__name__)


class Access:
    """One apiserver and the process' own credential for it."""

    def __init__(self, config: Kubeconfig, read: Callable[[], Kubeconfig] | None = None) -> None:
        """`read` gives what stands on disk now; without it nothing is followed."""
        try:
            parts = urlsplit(config.server)
            port = parts.port or 443
        except ValueError as error:
            text = f"{config.source}: the server {config.server!r} is not an address: {error}"
            raise TowerError("TWR309", text) from error
        if parts.scheme != "https" or not parts.hostname:
            raise TowerError("TWR309", f"{config.source}: the server {config.server!r} is not an https:// address")
        if parts.path.rstrip("/"):
            raise TowerError(
                "TWR309", f"{config.source}: the server {config.server!r} has a path, which is not supported"
            )
        self.source = config.source
        self.host: str = parts.hostname
        self.port: int = port
        self.server_name = config.server_name
        self.generation = 0
        """Counts what was taken over from disk: whoever keeps a context or a target makes it anew then."""
        self._read = read
        self._reread_at = time.monotonic() + CONFIG_REREAD
        self._reminder = Reminder(every=math.inf)
        self._config = config
        self._token: str | None = config.token
        self._stale_at = float("inf") if config.token else 0.0
        self._refreshing = asyncio.Lock()
        self._context: ssl.SSLContext | None = None

    @classmethod
    def find(cls, kubeconfig: Path | None, context: str | None = None) -> Access:
        """From a kubeconfig where one is named, else from the pod's ServiceAccount; raises TowerError TWR309."""
        if kubeconfig is not None:
            return cls(read_kubeconfig(kubeconfig, context), partial(read_kubeconfig, kubeconfig, context))
        return cls(in_cluster(os.environ), partial(in_cluster, os.environ))

    def follow(self) -> None:
        """Takes over what was changed on disk; looks at most every `CONFIG_REREAD` seconds, and never raises."""
        if self._read is None or time.monotonic() < self._reread_at:
            return
        self._reread_at = time.monotonic() + CONFIG_REREAD
        try:
            found = self._read()
            if found != self._config:
                self._take_over(found)
        except TowerError as error:
            if self._reminder.due(error.message):
                log.warning("access-not-reread", code=error.code, text=error.message, mend=error.mend)
        else:
            self._reminder.reset()

    def _take_over(self, found: Kubeconfig) -> None:
        new = Access(found)
        new.own_context()  # raises for a pair or an authority that cannot be used
        if (new.host, new.port, new.server_name) != (self.host, self.port, self.server_name):
            text = f"{self.source} leads to {new.address} by now; {self.address} stays in use until a restart"
            raise TowerError("TWR309", text, mend="restart this process")
        self._config, self._token, self._stale_at, self._context = found, new._token, new._stale_at, None
        self.generation += 1
        log.info("access-reread", access=self.source)

    @property
    def address(self) -> str:
        """host:port, for messages."""
        return DialTarget(host=self.host, port=self.port, ssl_context=None).authority

    @property
    def ca_pem(self) -> bytes:
        """What the apiserver's certificate must end at; empty for the system's authorities."""
        return self._config.ca_pem or b""

    @property
    def certificate(self) -> tuple[bytes, bytes] | None:
        """The agent's client certificate and its key, PEM."""
        config = self._config
        return (
            None
            if config.certificate_pem is None or config.key_pem is None
            else (config.certificate_pem, config.key_pem)
        )

    @property
    def has_token(self) -> bool:
        """Whether the agent speaks by a bearer token (its certificate goes along, where it has one)."""
        config = self._config
        return any((config.token, config.token_file, config.plugin))

    def bare_context(self) -> ssl.SSLContext:
        """TLS that presents no certificate: for callers who bring a credential of their own."""
        trust = ClientTrust(system=self._config.ca_pem is None, ca_pem=self._config.ca_pem)
        try:
            return client_context(trust)
        except (AuthorityError, ssl.SSLError) as error:
            raise TowerError("TWR309", f"{self.source}: its certificate authority is not PEM") from error

    def own_context(self) -> ssl.SSLContext:
        """TLS that presents the agent's client certificate, where it has one."""
        context = self.bare_context()
        config = self._config
        if config.certificate_pem is not None and config.key_pem is not None:
            try:
                load_pair(context, chain_pem=config.certificate_pem, key_pem=config.key_pem)
            except AuthorityError as error:
                text = f"{self.source}: the client certificate and its key do not fit each other"
                raise TowerError("TWR309", text) from error
        return context

    def target(self, context: ssl.SSLContext) -> DialTarget:
        """Where and how to dial: directly, whatever proxy the environment names for the way out of the member."""
        return DialTarget(
            host=self.host,
            port=self.port,
            ssl_context=context,
            server_hostname=self.server_name,
            proxy_env=False,
            expected_ca="the authority named by the agent's access",
        )

    async def connect(self, factory: Callable[[], P]) -> tuple[asyncio.Transport, P]:
        """A connection that presents the own certificate, where there is one. DialError, TowerError TWR309."""
        self.follow()
        if self._context is None:
            self._context = self.own_context()
        return await open_connection(self.target(self._context), factory)

    def forget_token(self) -> None:
        """The token was refused: it is read, or the plugin asked, before the next use."""
        self._reread_at = 0.0
        if self._config.token_file is not None or self._config.plugin is not None:
            self._stale_at = 0.0

    def token(self) -> str | None:
        """The agent's bearer token as last read; None where it works by certificate alone."""
        self.follow()
        if self._config.token_file is not None and time.monotonic() >= self._stale_at:
            self._reread(self._config.token_file)
        return self._token

    async def fresh_token(self) -> str | None:
        """As `token`, asking an exec plugin where the access has one. Raises TowerError TWR309."""
        self.follow()
        plugin = self._config.plugin
        if plugin is not None and time.monotonic() >= self._stale_at:
            async with self._refreshing:
                if time.monotonic() >= self._stale_at:
                    self._token, self._stale_at = await _ask_plugin(plugin)
        return self.token()

    def _reread(self, path: Path) -> None:
        try:
            text = path.read_text("ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            if self._token is not None:
                return  # a rotation in progress: the last token is good for a while yet
            raise TowerError("TWR309", f"the token file {path} cannot be read: {error}") from error
        if not text or any(character.isspace() for character in text):
            raise TowerError("TWR309", f"the token file {path} holds no token")
        self._token, self._stale_at = text, time.monotonic() + TOKEN_REREAD


def in_cluster(environ: Mapping[str, str], folder: Path = SERVICE_ACCOUNT) -> Kubeconfig:
    """The pod's own access; raises TowerError TWR309 outside a cluster."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not host:
        raise TowerError(
            "TWR309",
            "no kubeconfig was named, and this is not a pod (KUBERNETES_SERVICE_HOST is not set)",
            mend="name a kubeconfig: --kubeconfig FILE with tower-agent, `store.kubeconfig` for tower-server",
        )
    try:
        ca = (folder / "ca.crt").read_bytes()
    except OSError as error:
        raise TowerError(
            "TWR309",
            f"the pod has no ServiceAccount mounted: {folder / 'ca.crt'}: {error.strerror}",
            mend="set automountServiceAccountToken: true for this pod",
        ) from error
    bracketed = f"[{host}]" if ":" in host else host
    return Kubeconfig(
        source="the pod's ServiceAccount",
        server=f"https://{bracketed}:{port}",
        ca_pem=ca,
        server_name=None,
        certificate_pem=None,
        key_pem=None,
        token=None,
        token_file=folder / "token",
        plugin=None,
    )


async def _ask_plugin(plugin: ExecPlugin) -> tuple[str, float]:
    """Run an exec plugin; the token and when (monotonic) to ask again."""
    info = {"apiVersion": plugin.api_version, "kind": "ExecCredential", "spec": {"interactive": False}}
    environ = {**os.environ, **dict(plugin.env), "KUBERNETES_EXEC_INFO": json.dumps(info)}
    try:
        process = await asyncio.create_subprocess_exec(
            plugin.command,
            *plugin.args,
            env=environ,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    except OSError as error:
        raise TowerError("TWR309", f"the exec plugin {plugin.command}: {error.strerror}") from error
    try:
        async with asyncio.timeout(PLUGIN_DEADLINE):
            out, said = await process.communicate()
    except TimeoutError as error:
        raise TowerError("TWR309", f"the exec plugin {plugin.command} did not end in {PLUGIN_DEADLINE:g} s") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:
        last = said.decode("utf-8", "replace").strip().splitlines()[-1:]
        told = f": {last[0][:200]}" if last else ""
        raise TowerError("TWR309", f"the exec plugin {plugin.command} ended with code {process.returncode}{told}")
    try:
        status = parse_json(out)["status"]
        token, expiry = status["token"], status.get("expirationTimestamp")
        left = datetime.fromisoformat(expiry).timestamp() - time.time() if expiry else float("inf")
    except (ValueError, KeyError, TypeError) as error:
        text = f"the exec plugin {plugin.command} printed no token (client certificates of plugins are not supported)"
        raise TowerError("TWR309", text) from error
    return str(token), time.monotonic() + max(1.0, left - PLUGIN_EARLY)
