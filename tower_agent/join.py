"""`tower-agent join`: enrol, say what was made and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import click

from certs.identity import StoredIdentity
from certs.peers import rfc3339
from daemon.kube.access import Access
from tower_agent.config import AgentConfig
from tower_agent.enrol import Enrolment
from tower_agent.member import MemberApi
from tower_agent.stores import needs_secret, stores_of
from tower_agent.version import product_version
from tower_agent.wayout import WayOut


async def join_host(config: AgentConfig, token: str, *, wait: float, flags: Sequence[str] = ()) -> StoredIdentity:
    """Enrol with the host of the token and keep the identity; `flags` are what `run` needs too. Raises TowerError."""
    api = None
    if needs_secret(config):
        api = MemberApi(Access.find(config.kubeconfig, config.context), version=product_version())
    store = stores_of(config, api)[0]
    enrolment = Enrolment(token, store=store, way=WayOut.of(config), wait=wait)
    joined = await enrolment.run()
    until = rfc3339(joined.bundle.identify_agent(joined.chain).validity.not_after)
    click.echo(
        f"{'already ' if enrolment.already else ''}joined host {joined.host} as agent {joined.agent} of cluster "
        f"{joined.cluster}, until {until}",
        err=True,
    )
    click.echo(f"the identity is {store.place(joined.host, 'identity.json')}; it renews by itself", err=True)
    again = shlex.join(["tower-agent", "run", *flags])
    click.echo(f"next: {again}", err=True)
    click.echo(
        "an agent that runs already serves it within seconds; restart it if its identity before still works",
        err=True,
    )
    return joined
