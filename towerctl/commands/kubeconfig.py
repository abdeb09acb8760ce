"""`kubeconfig`: a file for kubectl. It holds no secret unless `--embed` asks for one."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from protocol import defaults
from towerctl.client import AdminClient, path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.errors import not_understood, usage
from towerctl.lazy import Command
from towerctl.output import Object, say
from towerctl.types import Cluster, Duration, User, group_option, needs_user
from towerctl.words import PROGRAM

if TYPE_CHECKING:
    from certs.kubeconfig import Connection


@click.command(cls=Command, epilog="Example: towerctl kubeconfig edge-1 --merge && kubectl --context edge-1 get nodes")
@click.argument("cluster", type=Cluster())
@click.option("--embed", is_flag=True, help="Put a certificate and its key into the file, in place of the plugin.")
@click.option(
    "--ttl",
    type=Duration(minimum=60, maximum=defaults.MAX_CALLER_DAYS * 86400),
    help=f"With --embed: how long the certificate is good. [default: {defaults.CALLER_HOURS}h]",
)
@click.option(
    "--as", "user", type=User(), metavar="NAME", help="Appear in the member as NAME, once its owner allows it."
)
@group_option()
@click.option("--context-name", metavar="NAME", help="How the entries are called. [default: the cluster's name]")
@click.option("--merge", is_flag=True, help="Merge into FILE, or into the first file of KUBECONFIG, or ~/.kube/config.")
@click.option("--use", is_flag=True, help="With --merge: make it the current context.")
@click.option("--overwrite", is_flag=True, help="With --merge: replace another cluster's entry of the same name.")
@click.option("-f", "--file", type=click.Path(path_type=Path), help="Write to FILE (0600), not to standard output.")
@pass_ctl
def kubeconfig(
    ctl: Ctl,
    cluster: str,
    embed: bool,
    ttl: float | None,
    user: str | None,
    groups: tuple[str, ...],
    context_name: str | None,
    merge: bool,
    use: bool,
    overwrite: bool,
    file: Path | None,
) -> None:
    """Write a kubeconfig that reaches CLUSTER through its tunnel.

    It names this program as a credential plugin, which fetches short-lived certificates as they are needed.
    """
    from certs.errors import KubeconfigError
    from daemon.faults import TowerError

    needs_user(user, groups)
    if ttl is not None and not embed:
        raise usage("--ttl goes with --embed: the plugin's certificates renew themselves", mend="add --embed")
    if (use or overwrite) and not merge:
        raise usage("--use and --overwrite go with --merge", mend="add --merge")
    if context_name is not None and not (context_name.strip() and context_name.isprintable()):
        raise usage(f"{context_name!r} cannot be the name of a context", mend="use printable characters")
    config, remark = _config(ctl, cluster, name=context_name or cluster, user=user, groups=groups, embed=embed, ttl=ttl)
    try:
        _deliver(config, file=file, merge=merge, use=use, overwrite=overwrite)
    except KubeconfigError as error:
        raise TowerError(error.fault, error.text, mend=error.mend) from error
    if remark:
        say(remark)
    if user is not None:
        say(f"The member decides about {user!r}: until its owner allows that name, a 403 says which lines to add.")


def _config(
    ctl: Ctl,
    cluster: str,
    *,
    name: str,
    user: str | None,
    groups: tuple[str, ...],
    embed: bool,
    ttl: float | None,
) -> tuple[Object, str]:
    """The kubeconfig, and what is to be said of it once it is written."""
    from certs import kubeconfig as files

    client = ctl.client()
    if embed:
        from towerctl import times
        from towerctl.issue import issue

        issued = issue(client, cluster, user=user, groups=groups, ttl=ttl)
        connection = _connection(issued.answer)
        left = times.until(times.rfc3339(issued.not_after))
        remark = f"The file is as secret as a password and good for {left}; `{PROGRAM} revoke caller` ends it earlier."
        return files.embedded(connection, name=name, chain_pem=issued.chain_pem, key_pem=issued.key_pem), remark
    connection = _connection(_get_connection(client, cluster))
    arguments = ["credential", cluster]
    if ctl.context:
        arguments += ["--context", ctl.context, "--tower-namespace", ctl.tower_namespace]
    elif ctl.socket != defaults.ADMIN_SOCKET:
        arguments += ["--socket", os.path.abspath(ctl.socket)]
    arguments += ["--ca", hashlib.sha256(connection.ca_pem).hexdigest()[:16]]
    if user is not None:
        arguments += ["--as", user, *(part for group in groups for part in ("--group", group))]
    return files.with_plugin(connection, name=name, command=plugin_command(), arguments=arguments), ""


def _get_connection(client: AdminClient, cluster: str) -> Object:
    from towerctl.lookup import suggesting

    with suggesting(client, cluster):
        return client.get(path_of("clusters", cluster, "connection"))


def _connection(answer: Object) -> Connection:
    from certs.kubeconfig import Connection

    server, name, authority = (answer.get(key) for key in ("server", "tls_server_name", "ca"))
    if not (isinstance(server, str) and isinstance(name, str) and isinstance(authority, str)):
        raise not_understood("a connection without server, tls_server_name or ca")
    return Connection(server=server, tls_server_name=name, ca_pem=authority.encode())


def plugin_command() -> str:
    """How kubectl finds this program: by its bare name where PATH leads to it, else by its full path."""
    here = Path(sys.argv[0]) if os.path.basename(sys.argv[0]) in ("towerctl", "kubectl-tower") else None
    own = here if here is not None and here.exists() else Path(sys.executable).with_name("towerctl")
    found = shutil.which("towerctl")
    if found is not None and os.path.realpath(found) == os.path.realpath(own.with_name("towerctl")):
        return "towerctl"
    return str(own.absolute())


def _deliver(config: Object, *, file: Path | None, merge: bool, use: bool, overwrite: bool) -> None:
    from certs import kubeconfig as files
    from towerctl.files import kubectl_files

    name = config["current-context"]
    if merge:
        target = file or kubectl_files()[0]
        files.merge(target, config, overwrite=overwrite, use=use)
        where = [] if file is None else ["--kubeconfig", str(file)]
        say(f"Context {name} is in {target}. Try: {shlex.join(['kubectl', *where, '--context', name, 'version'])}")
    elif file is not None:
        files.write(file, config)
        say(f"Written to {file}. Try: {shlex.join(['kubectl', '--kubeconfig', str(file), 'version'])}")
    else:
        click.echo(files.to_yaml(config), nl=False)
