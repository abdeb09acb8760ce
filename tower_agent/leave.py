"""`tower-agent leave`: the host revokes this agent's identity, then it is taken away here.

In this order, so that no key is lost that the host still believes. A host that cannot be reached any more is left by
`--forget`, which says what remains to be done there.
"""

from __future__ import annotations

import click

from certs.errors import CertsError
from certs.identity import IdentityStore
from certs.keys import signer
from certs.leaving import ask_to_leave
from daemon.faults import TowerError
from daemon.kube.access import Access
from protocol.aio.hops import DialError
from tower_agent.config import AgentConfig
from tower_agent.enrol import refusal_of
from tower_agent.faultof import certs_fault, dial_fault
from tower_agent.http import fetch
from tower_agent.member import MemberApi
from tower_agent.stores import enrolled, needs_secret, stores_of
from tower_agent.trust import HostTrust
from tower_agent.version import product_version
from tower_agent.wayout import WayOut

PATH = "/v1/leave"


async def leave_host(config: AgentConfig, host: str | None, *, forget: bool) -> None:
    """Leave `host`, or the only one. Raises TowerError, with the identity still here."""
    api = None
    if needs_secret(config):
        api = MemberApi(Access.find(config.kubeconfig, config.context), version=product_version())
    stores = stores_of(config, api)
    places = await enrolled(stores)
    chosen = host or (next(iter(places)) if len(places) == 1 else None)
    if chosen is None and places:
        text = f"this agent has joined {', '.join(sorted(places))}"
        raise TowerError("TWR601", text, mend="name the one to leave: tower-agent leave HOST")
    if chosen is None or chosen not in places:
        named, place = f"for host {chosen!r} " if chosen else "", stores[0].place(chosen or "HOST", "identity.json")
        there = f"this agent has joined {', '.join(sorted(places))}; " if places else ""
        mend = f"{there}name the --state-dir (or --identity-secret) of the agent that is to leave, and its host"
        raise TowerError("TWR225", f"there is no identity {named}in {place}", mend=mend)
    store = places[chosen]
    if forget:
        there = await _to_do_there(store, chosen)
        await _forget(store, chosen)
        click.echo(f"forgot host {chosen} without asking it; there: {there}", err=True)
        return
    trust = await HostTrust.load(store, chosen)
    name = f"{trust.identity.cluster}/{trust.identity.agent}"
    await _ask(config, trust)
    await _forget(store, chosen)
    click.echo(f"left host {chosen}: it has revoked agent {name}, and the identity is gone from here", err=True)
    click.echo("next: stop the agent, or restart it where it serves other hosts", err=True)


async def _ask(config: AgentConfig, trust: HostTrust) -> None:
    identity = trust.identity
    target = WayOut.of(config, trust.host).tunnel(identity.url, trust.bundle)
    body = ask_to_leave(
        signer(identity.key),
        host=identity.host,
        cluster=identity.cluster,
        agent=identity.agent,
        chain=identity.chain,
    )
    forgetting = "mend the way to the host (tower-agent check), or leave it without asking: --forget"
    try:
        answer = await fetch(target, "POST", PATH, headers=[("Content-Type", "application/json")], body=body)
    except DialError as error:
        fault = dial_fault(error)
        raise TowerError(fault.code, fault.message, mend=forgetting) from error
    if answer.status == 200:
        return
    refused = refusal_of(answer, f"{target.authority} answered {answer.status} to the request to leave")
    if refused.code != "TWR603":  # its cluster was deleted: there is nothing left to revoke
        raise TowerError(refused.code, refused.message, mend=forgetting)


async def _to_do_there(store: IdentityStore, host: str) -> str:
    """Whatever is damaged here, a host can be forgotten."""
    try:
        identity = await store.load(host)
    except CertsError as error:
        return f"find it by `towerctl get agents` and revoke it; its identity could not be read here: {error.text}"
    return f"towerctl revoke agent {identity.cluster}/{identity.agent}" if identity else "nothing, it was not joined"


async def _forget(store: IdentityStore, host: str) -> None:
    try:
        await store.forget(host)
    except CertsError as error:
        raise certs_fault(error) from error
