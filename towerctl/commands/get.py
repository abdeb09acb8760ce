"""`get`: lists, as kubectl prints them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import CONTEXT_SETTINGS, Command, KindGroup
from towerctl.output import FORMATS, Resource, output_option, print_list, print_one
from towerctl.types import Cluster, Listed

_LISTS: Final = {
    "clusters": "Clusters with their state and its reason.",
    "tunnels": "Open tunnels: which agent, from where, since when.",
    "streams": "Streams in the tunnels: service, caller, bytes.",
    "agents": "Enrolled agents with their identities' expiry.",
    "tokens": "Enrolment tokens (never their secrets).",
}


def _command(plural: str) -> click.Command:
    @click.command(plural, cls=Command, help=_LISTS[plural])
    @click.argument("name", required=False, type=Listed(plural))
    @output_option(*FORMATS)
    @click.option("-w", "--watch", is_flag=True, help="Go on and print what changes, until Ctrl-C.")
    @click.option("--no-headers", is_flag=True, help="Leave the line of column names out.")
    @_narrowed(plural)
    @pass_ctl
    def command(
        ctl: Ctl, name: str | None, output: str, watch: bool, no_headers: bool, cluster: str | None = None
    ) -> None:
        _show(ctl, plural, name=name, cluster=cluster, output=output, watch=watch, headers=not no_headers)

    return command


def _narrowed(plural: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    if plural == "clusters":
        return lambda function: function
    return click.option("--cluster", type=Cluster(), help="Only those of this cluster.")


def _show(
    ctl: Ctl, plural: str, *, name: str | None, cluster: str | None, output: str, watch: bool, headers: bool
) -> None:
    from towerctl.lookup import get_cluster, one_of

    resource = _resource(plural)
    client = ctl.client()
    if cluster is not None:
        get_cluster(client, cluster)  # an unknown cluster is a mistake, not an empty list
    query = {"cluster": cluster} if cluster else {}
    if watch:
        from towerctl.watching import follow

        if name is not None:
            one_of(client, resource, name, cluster=cluster)
        follow(client, resource, query, name=name, output=output, headers=headers)
    elif name is None:
        print_list(resource, client.get(f"/v1/{plural}", query), output=output, headers=headers)
    elif plural == "clusters":
        print_one(resource, get_cluster(client, name), output=output, headers=headers)
    else:
        print_one(resource, one_of(client, resource, name, cluster=cluster), output=output, headers=headers)


def _resource(plural: str) -> Resource:
    from towerctl import resources

    found: Resource = getattr(resources, plural.upper())
    return found


class _GetGroup(KindGroup):
    """One command a kind, made when it is used."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return _command(cmd_name) if cmd_name in _LISTS else None


get = _GetGroup(
    "get",
    table={plural: ("", line) for plural, line in _LISTS.items()},
    help="List clusters, tunnels, streams, agents or tokens; with NAME only that one.",
    no_args_is_help=True,
    callback=lambda: None,
    context_settings=CONTEXT_SETTINGS,
)
