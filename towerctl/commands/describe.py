"""`describe`: one object in full, cause and next step first, because it is read when something is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from daemon.faults import TowerError
from towerctl import table
from towerctl.context import Ctl, pass_ctl
from towerctl.lazy import Command, KindGroup
from towerctl.output import Object, Resource, output_option, print_document, print_names, warn_stale
from towerctl.types import Cluster, Existing, declared

KEY_WIDTH = 14


@click.command("cluster", cls=Command)
@click.argument("name", type=Cluster())
@output_option("table", "json", "yaml", "name")
@pass_ctl
def cluster(ctl: Ctl, name: str, output: str) -> None:
    """Show cluster NAME: state, cause, conditions, tunnels, agents and its latest history."""
    from towerctl import resources
    from towerctl.lookup import get_cluster

    client = ctl.client()
    item = get_cluster(client, name)
    if output != "table":
        _document(resources.CLUSTERS, item, output)
        return
    _say_cluster(item)
    _conditions(item.get("conditions") or [])
    narrow = {"cluster": name}
    expected = f" (expected {item.get('tunnels_expected') or 0})"
    _table("Tunnels", resources.TUNNELS, client.get("/v1/tunnels", narrow).get("items", []), none=f"<none>{expected}")
    _table("Agents", resources.AGENTS, client.get("/v1/agents", narrow).get("items", []))
    try:
        tokens = client.get("/v1/tokens", narrow).get("items", [])
    except TowerError as error:  # the rest needs no store, and is read when that does not answer
        _line("Tokens", f"not known: {error.code} {error.message}")
    else:
        _table("Tokens", resources.TOKENS, tokens)
    _history(item.get("history") or [])


@click.command("agent", cls=Command)
@click.argument("name", type=Existing("agent"))
@click.option("--cluster", "owner", type=Cluster(), help="Its cluster, where two have an agent of that name.")
@output_option("table", "json", "yaml", "name")
@pass_ctl
def agent(ctl: Ctl, name: str, owner: str | None, output: str) -> None:
    """Show agent NAME: its identity, its certificates and its tunnels."""
    from towerctl import resources
    from towerctl.lookup import one_of

    client = ctl.client()
    item = one_of(client, resources.AGENTS, name, cluster=owner)
    if output != "table":
        _document(resources.AGENTS, item, output)
        return
    _line("Name", item.get("name"))
    _line("Cluster", item.get("cluster"))
    _line("State", resources.agent_state(item))
    _line("Version", item.get("version"))
    _line("From", item.get("remote"))
    _line("Identity", f"{_expiry(item.get('identity_expires'))}, renewed {_ago(item.get('renewed'))}")
    _line("Serving", _expiry(item.get("serving_expires")))
    _line("Seen", _ago(item.get("seen")))
    _line("Created", _ago(item.get("created")))
    if item.get("revoked"):
        _line("Revoked", _ago(item.get("revoked")))
    tunnels = client.get("/v1/tunnels", {"cluster": str(item.get("cluster"))}).get("items", [])
    _table("Tunnels", resources.TUNNELS, [tunnel for tunnel in tunnels if tunnel.get("agent") == name])


@click.command("authority", cls=Command)
@output_option("table", "json", "yaml")
@pass_ctl
def authority(ctl: Ctl, output: str) -> None:
    """Show the tower CA: its roots, and how far a rotation is."""
    from towerctl.commands.rotate import show

    item = ctl.client().get("/v1/authority")
    if output == "table":
        show(item)
    else:
        print_document(item, output)


def _document(resource: Resource, item: Object, output: str) -> None:
    if output == "name":
        print_names(resource, [item])
    else:
        print_document(item, output)


def _say_cluster(item: Object) -> None:
    from daemon.units import format_count, format_duration
    from towerctl import times

    warn_stale(item)
    _line("Name", item.get("name"))
    _line("UID", item.get("uid"))
    _line("Ready", f"{item.get('ready')}   {item.get('state')}, since {times.age(item.get('since'))}")
    if item.get("code") or item.get("cause"):
        _line("Cause", " ".join(str(part) for part in (item.get("code"), item.get("cause")) if part))
    if item.get("mend"):
        _line("Next", item.get("mend"))
    ports = item.get("ports") or {}
    _line("Ports", ", ".join(f"{port} ({service})" for service, port in sorted(ports.items())))
    _line("Server", f"{item.get('server') or '-'}   tls-server-name {item.get('tls_server_name') or '-'}")
    _line("Dialect", item.get("dialect"))
    member = item.get("member") or {}
    facts = [f"Kubernetes {member['version']}"] if member.get("version") else []
    facts += [format_count(member["nodes"], "node")] if member.get("nodes") is not None else []
    facts += [f"kube-system {member['uid']}"] if member.get("uid") else []
    _line("Member", ", ".join(facts))
    _line("Services", ", ".join(declared(member)))
    _line("RTT", format_duration(item.get("rtt")))
    _line("Heartbeat", _ago(item.get("last_heartbeat")))
    if item.get("flapping"):
        _line("Flapping", f"TWR229 {item['flapping']}")
    _line("Certificate", _expiry(item.get("certificate_expires")))
    if item.get("serving_names"):
        _line("Also named", ", ".join(item["serving_names"]))
    _line("Created", _ago(item.get("created")))


def _expiry(value: Any) -> str:
    """`expires in 21h`, `expired`, or a dash where there is nothing that could expire."""
    from towerctl import times

    left = times.until(value)
    return left if left in ("-", "expired") else f"expires in {left}"


def _ago(value: Any) -> str:
    from towerctl import times

    return f"{times.age(value)} ago" if times.seconds(value) is not None else "never"


def _line(key: str, value: Any) -> None:
    shown = table.printable("-" if value is None or value == "" else str(value))
    click.echo(f"{key + ':':<{KEY_WIDTH}}{shown}")


def _rows(title: str, rows: Sequence[list[str]], *, none: str = "<none>") -> None:
    if len(rows) < 2:  # only the headers
        _line(title, none)
        return
    click.echo(f"{title}:")
    widths = table.widths_of(rows)
    for row in rows:
        click.echo(f"  {table.format_row(row, widths)}")


def _table(title: str, resource: Resource, items: Sequence[Object], *, none: str = "<none>") -> None:
    columns = [column for column in resource.shown("table") if column.header != "CLUSTER"]
    _rows(title, [[column.header for column in columns], *table.rows_of(columns, items)], none=none)


def _conditions(conditions: Sequence[Object]) -> None:
    from towerctl import times

    rows = [["TYPE", "STATUS", "SINCE", "REASON", "MESSAGE"]]
    for entry in conditions:
        cells = (entry.get("type"), entry.get("status"), times.age(entry.get("since")), entry.get("reason"))
        rows.append([table.printable(str(cell or "-")) for cell in (*cells, entry.get("message"))])
    _rows("Conditions", rows)


def _history(history: Sequence[Object]) -> None:
    from towerctl import times

    rows = [["WHEN", "EVENT", "AGENT", "FROM", "CODE", "WHY"]]
    for entry in history:
        cells = [
            times.clock(entry.get("at")),
            *(entry.get(key) for key in ("event", "agent", "remote", "code", "text")),
        ]
        rows.append([table.printable(str(cell or "-")) for cell in cells])
    _rows("History", rows)


describe = KindGroup(
    "describe",
    table={
        "cluster": (f"{__name__}:cluster", "State, cause, conditions, tunnels, agents, history."),
        "agent": (f"{__name__}:agent", "Identity, certificates, tunnels."),
        "authority": (f"{__name__}:authority", "The tower CA and its rotation."),
    },
    help="Show one cluster or agent with its state, cause and history, or the tower CA.",
    no_args_is_help=True,
    callback=lambda: None,
)
