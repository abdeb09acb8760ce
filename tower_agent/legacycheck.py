"""`tower-agent check` where the host speaks `kubesphere-v1`: the same way out, then SSH and the registration.

A host of this dialect serves callers through whatever has registered, and a Go host keeps the credential that came
first. So the check sends a registration that every host has to refuse, with invalid addresses and keys: name and token
are checked before those, so the refusal tells whether they are known. No credential is sent, and no caller meets the
check.
"""

from __future__ import annotations

import base64
import json
from typing import Final

from daemon.checks import Check, Graph, Report, Result, fail, ok, warn
from protocol.aio.hops import DialError, Hop
from protocol.aio.proxydial import DialTarget
from protocol.aio.ssh import PROHIBITED
from protocol.aio.sshchannel import Channel
from protocol.aio.sshdial import HostSession, RegistrationRefused, dial_host
from tower_agent.check import MEMBER, chained, evidence, failed_hop, member_api, member_checks
from tower_agent.config import AgentConfig
from tower_agent.legacy import NO_CONSENT, credential_of, host_of
from tower_agent.legacylink import LegacyHost

NOWHERE: Final = "%zz"  # no host in any URL
_KEYS_REFUSED: Final = ("tls:", "PEM", "certificate")  # by a host that looks at these first
_TITLES: Final = {"http": "upgrade", "subprotocol": "upgrade", "handshake": "ssh"}
_HOPS: Final = ("dns", "tcp", "proxy", "tls", "upgrade", "ssh", "registration")


async def run_checks(config: AgentConfig, *, version: str) -> Report:
    """Check the host and the member. Raises a TowerError where the configuration does not say which host that is."""
    host = host_of(config, version=version, rtt=lambda: None)
    checks = chained(host.target.authority, await _walk(host))
    credential = Check("credential", lambda: _credential(config), category=MEMBER, subject=MEMBER, code="TWR309")
    return await Graph([*checks, credential, *member_checks(config, member_api(config, version))]).run()


async def _credential(config: AgentConfig) -> Result:
    credential = credential_of(config)
    shipment = await credential.read()
    if not config.kubesphere_v1.ship_credential:
        return fail("TWR231", NO_CONSENT)
    return ok(f"{shipment.what} of {credential.access.source}, to be shipped")


async def _walk(host: LegacyHost) -> list[tuple[str, Result]]:
    """What each hop showed, in order; the first that failed comes with what could not be tried behind it."""
    target, passed = host.target, list[Hop]()
    absent = {"proxy"} if _direct(target) else set[str]()
    if target.ssl_context is None:
        absent.add("tls")
    order = [title for title in _HOPS if title not in absent]
    last = "registration"
    try:
        session = await dial_host(target, limits=host.limits, on_channel=_decline, on_hop=passed.append)
        try:
            result = await _ask(session, host)
        finally:
            session.close("only a check")
    except DialError as error:
        result = failed_hop(error)
        last = _TITLES.get(error.hop, error.hop)
    shown = {hop.name if hop.name != "handshake" else "ssh": ok(evidence(hop)) for hop in passed}
    if last in ("ssh", "registration"):
        shown["upgrade"] = ok("101")
    shown[last] = result
    behind = order[order.index(last) :]  # a failure, which is skipped; before it is only what was walked
    return [(title, shown.get(title, ok())) for title in order if title in shown or title in behind]


def _direct(target: DialTarget) -> bool:
    """A setting that cannot be used is a proxy too: the dial says what is wrong with it."""
    try:
        return target.route() is None
    except DialError:
        return False


async def _ask(session: HostSession, host: LegacyHost) -> Result:
    """Whether the host knows name and token."""
    none = base64.b64encode(b"none").decode()
    document = {
        "Version": host.version,
        "Name": host.cluster,
        "Token": host.token(),
        "KubernetesSvcHost": NOWHERE,
        "KubeSphereSvcHost": NOWHERE,
        "CertData": none,
        "KeyData": none,
    }
    try:
        await session.register(json.dumps(document).encode())
    except RegistrationRefused as refusal:
        said = str(refusal)
        if NOWHERE in said or any(word in said for word in _KEYS_REFUSED):
            return ok(f"{host.cluster} and its token are known")
        return fail("TWR230", f"{host.target.authority} refused the cluster {host.cluster}: {said}")
    except DialError as error:
        return failed_hop(error)
    return warn("TWR230", f"{host.target.authority} accepted a registration that cannot work; its session was ended")


def _decline(channel: Channel, target: str) -> None:
    channel.refuse(PROHIBITED, "this session is only a check")
