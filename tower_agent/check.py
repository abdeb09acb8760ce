"""`tower-agent check`: the way out hop by hop, the proof of who both ends are, and the member's apiserver.

Every host is walked once, for real: the last hop opens a tunnel, proves both ends and closes it again without serving
anything. What was passed is shown with its evidence, the first hop that was not with its fault; the rest is skipped.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

from certs.errors import CertsError
from certs.identity import IdentityStore
from certs.peers import rfc3339
from daemon.checks import Check, Graph, Report, Result, fail, ok, warn
from daemon.faults import EXIT_COULD_NOT_CHECK, TowerError
from daemon.kube.access import Access
from daemon.units import format_duration, split_address
from gateway.policy import probe_user
from protocol import defaults
from protocol.aio.dial import dial
from protocol.aio.hops import DialError, Hop, OnHop
from protocol.aio.proxydial import DialTarget
from protocol.aio.stream import IncomingStream
from protocol.constants import CHECK_INSTANCE, Code
from protocol.flow import Budget
from tower_agent.config import AgentConfig
from tower_agent.faultof import certs_fault, dial_fault
from tower_agent.http import Answer, fetch
from tower_agent.member import MemberApi, readiness
from tower_agent.policy import PolicyFile, drift
from tower_agent.stores import enrolled, needs_secret, stores_of
from tower_agent.trust import HostTrust
from tower_agent.wayout import WayOut

_TITLES: Final = {"http": "upgrade", "subprotocol": "upgrade", "handshake": "authentication"}
_ORDER: Final = ("dns", "tcp", "proxy", "tls", "upgrade", "authentication")
MEMBER: Final = "member"
_NEVER_READY: Final = "whether a request gets through: the cluster is never Ready there"


async def run_checks(config: AgentConfig, *, version: str, only: str | None = None) -> Report:
    """Check every enrolled host (or `only` one) and the member. Raises TowerError where nothing can be checked."""
    api = member_api(config, version)
    checks: list[Check] = []
    if isinstance(api, TowerError) and needs_secret(config):
        raise api
    stores = stores_of(config, None if isinstance(api, TowerError) else api)
    places = {host: store for host, store in (await enrolled(stores)).items() if only in (None, host)}
    if not places:
        named = f"for host {only!r} " if only else ""
        text = f"there is no identity {named}in {stores[0].place('HOST', 'identity.json')}"
        raise TowerError("TWR225", text, exit_code=EXIT_COULD_NOT_CHECK)
    for host, store in sorted(places.items()):
        checks += await _host_checks(config, host, store, version)
    checks += [*member_checks(config, api), _rights(config, api, sorted(places))]
    return await Graph(checks).run()


def member_api(config: AgentConfig, version: str) -> MemberApi | TowerError:
    try:
        return MemberApi(Access.find(config.kubeconfig, config.context), version=version)
    except TowerError as error:
        return error


def _found(result: Result) -> Callable[[], Awaitable[Result]]:
    async def run() -> Result:
        return result

    return run


async def _host_checks(config: AgentConfig, host: str, store: IdentityStore, version: str) -> list[Check]:
    try:
        trust = await HostTrust.load(store, host)
    except TowerError as error:
        return [Check(f"{host} identity", _found(failed(error)), category=host, subject=host, title="identity")]
    checks = chained(host, [("identity", _identity(trust)), *await _walk(config, trust, version)])
    return [replace(check, cluster=trust.identity.cluster) for check in checks]


def chained(host: str, results: list[tuple[str, Result]]) -> list[Check]:
    """Checks of what was found hop by hop: each needs the one before."""
    checks: list[Check] = []
    before: tuple[str, ...] = ()
    for title, result in results:
        name = f"{host} {title}"
        checks.append(Check(name, _found(result), needs=before, category=host, subject=host, title=title))
        before = (name,)
    return checks


def _identity(trust: HostTrust) -> Result:
    now, validity = time.time(), trust.validity
    text = f"{trust.identity.agent} of {trust.identity.cluster}, until {rfc3339(validity.not_after)}"
    try:
        validity.check_time(now, noun="the agent's identity", grace=defaults.EXPIRED_IDENTITY_GRACE_DAYS * 86400.0)
    except CertsError as error:
        return failed(certs_fault(error))
    if now > validity.not_after:
        return warn(
            "TWR502", f"{text}: it has expired and may only renew", next_step="start the agent: it renews by itself"
        )
    if validity.not_after - now < (validity.not_after - validity.issued_at) / 10:
        return warn("TWR503", text)
    return ok(text)


async def _walk(config: AgentConfig, trust: HostTrust, version: str) -> list[tuple[str, Result]]:
    """What each hop showed, in order; the first that failed comes with what could not be tried behind it."""
    passed: list[Hop] = []
    order = [title for title in _ORDER if title != "proxy"]
    try:
        target = WayOut.of(config, trust.host).tunnel(trust.identity.url, trust.bundle)
        if target.route() is not None:
            order = list(_ORDER)
        await _open_and_close(target, trust, version, passed.append)
    except TowerError as fault:  # the address itself cannot be used
        return [("address", failed(fault)), *((title, ok()) for title in order)]
    except DialError as error:
        title = _TITLES.get(error.hop, error.hop)
        behind = order[order.index(title) + 1 :] if title in order else order
        shown = _shown(passed, upgraded=error.hop == "handshake")
        # What lies behind is skipped, since each needs the one before.
        return [*shown, (title, failed_hop(error)), *((each, ok()) for each in behind)]
    return [*_shown(passed[:-1], upgraded=True), ("authentication", ok(evidence(passed[-1])))]


def _shown(passed: list[Hop], *, upgraded: bool) -> list[tuple[str, Result]]:
    shown = [(hop.name, ok(evidence(hop))) for hop in passed]
    return [*shown, ("upgrade", ok("101"))] if upgraded else [*shown]


async def _open_and_close(target: DialTarget, trust: HostTrust, version: str, on_hop: OnHop) -> None:
    """The whole way, for real. Streams that come meanwhile are told to go to another tunnel."""
    tunnel = await dial(
        target,
        handshake=trust.handshake(instance=f"{CHECK_INSTANCE}{secrets.token_hex(4)}", software=version),
        instance="check",
        budget=Budget(defaults.PROCESS_BUDGET),
        on_stream=_decline,
        on_hop=on_hop,
    )
    tunnel.drain(Code.DRAINING, "only a check", deadline=0.0, retry_after=0.0)
    await asyncio.sleep(0)
    tunnel.close(Code.NONE, "only a check")


def _decline(incoming: IncomingStream) -> None:
    incoming.refuse(Code.DRAINING, "this tunnel is only a check")


def evidence(hop: Hop) -> str:
    return hop.evidence if hop.name == "dns" else f"{hop.evidence} {format_duration(hop.seconds)}"


def failed(error: TowerError) -> Result:
    return fail(error.code, error.message, next_step=error.mend)


def failed_hop(error: DialError) -> Result:
    """Without the hop's name, since it is printed behind its title."""
    result = failed(dial_fault(error))
    return replace(result, message=result.message.removeprefix(f"{error.hop}: "))


def member_checks(config: AgentConfig, api: MemberApi | TowerError) -> list[Check]:
    """Of the agent on this machine, and of the member's apiserver."""

    async def apiserver() -> Result:
        if isinstance(api, TowerError):
            raise api
        started = time.monotonic()
        ready = await readiness(api)
        took = format_duration(time.monotonic() - started)
        return ok(f"{api.access.address} {took}") if ready.ok else fail("TWR302", ready.text)

    return [
        Check("agent", lambda: _running(config.health_address), category=MEMBER, subject=MEMBER, code="TWR228"),
        Check("apiserver", apiserver, category=MEMBER, subject=MEMBER, code="TWR303"),
    ]


def _rights(config: AgentConfig, api: MemberApi | TowerError, hosts: list[str]) -> Check:
    kubernetes = config.services.get("kubernetes")
    in_gateway = kubernetes is None or kubernetes.mode == "gateway"

    async def rights() -> Result:
        assert not isinstance(api, TowerError)
        policies = PolicyFile(config.policy_file)
        for host in hosts if in_gateway else ():
            probe = probe_user(host)
            if policies.policy(host).denies(probe, ()) is not None:
                return fail("TWR406", f"the policy does not admit {probe}, by which the host finds out {_NEVER_READY}")
            if not await api.may("impersonate", "users", probe):
                what = f"RBAC does not let this agent impersonate {probe}, by which the host finds out {_NEVER_READY}"
                return fail("TWR307", what)
        found = [text for host in hosts if (text := await drift(api, policies.policy(host))) is not None]
        return warn("TWR307", "; ".join(found)) if found else ok("as the policy says")

    return Check("rights", rights, needs=("apiserver",), category=MEMBER, subject=MEMBER, code="TWR307")


async def _running(address: str) -> Result:
    """Whether the agent of this machine is there: a way out that nobody walks serves nobody. Only ever a warning,
    since the check may be made before the agent is started, or elsewhere."""
    host, port = split_address(address)
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    target = DialTarget(host=host, port=port, path="", ssl_context=None, proxy_env=False)
    try:
        answer = await fetch(target, "GET", "/readyz")
    except DialError as error:
        return warn("TWR228", f"nobody answers at {target.authority}: {error.text}")
    if answer.status != 200:
        text = f"the agent at {target.authority} is not ready: {_reasons(answer)}"
        return warn("TWR228", text, next_step="it runs: mend what it names")
    return ok(f"ready at {target.authority}")


def _reasons(answer: Answer) -> str:
    try:
        return "; ".join(f"{name}: {reason}" for name, reason in answer.json()["reasons"].items())
    except (ValueError, KeyError, TypeError, AttributeError):  # something else listens there
        return f"status {answer.status}: {answer.text()}"
