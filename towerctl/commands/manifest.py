"""`manifest`: what the member's owner applies to run the agent as a Deployment.

A token is made for it, so printing it is not free of effect; `--no-token` and `--rbac-only` print without one.
"""

from __future__ import annotations

import importlib.metadata
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from daemon.faults import TowerError
from protocol import defaults
from towerctl.client import AdminClient, path_of
from towerctl.context import Ctl, pass_ctl
from towerctl.errors import not_understood, usage
from towerctl.lazy import Command
from towerctl.output import Object, say
from towerctl.types import LABEL, Cluster, Duration, Name
from towerctl.words import PROGRAM

if TYPE_CHECKING:
    from gateway.policy import Policy


class _Service(click.ParamType[tuple[str, str]]):
    """NAME=HOST:PORT: a destination that the agent may dial."""

    name = "service"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        from daemon.units import split_address

        name, _, address = str(value).partition("=")
        try:
            split_address(address, listener=False)  # as the agent reads it
        except ValueError:
            name = ""
        if not LABEL.fullmatch(name):
            self.fail(f"{value!r}: use NAME=HOST:PORT, such as grafana=grafana.monitoring:3000", param, ctx)
        if name == "kubernetes":
            self.fail("the service kubernetes is always there; its address is the pod's own apiserver", param, ctx)
        return name, address


@click.command(
    cls=Command,
    epilog="Example, by the member's own kubeconfig: towerctl manifest edge-1 | kubectl --kubeconfig FILE apply -f -",
)
@click.argument("cluster", type=Cluster())
@click.option(
    "-n",
    "--namespace",
    type=Name("namespace"),
    default="tower-system",
    show_default=True,
    help="Where the agent lives in the member.",
)
@click.option("--image", help="The image of the agent. [default: tower-tunnel:VERSION]")
@click.option(
    "--replicas",
    type=click.IntRange(1, 10),
    help=f"Agents side by side. [default: {defaults.AGENT_REPLICAS}]",
)
@click.option(
    "--policy",
    "policy_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Whom this host may act as in the member; the host's own admins when left out.",
)
@click.option("--service", "services", type=_Service(), multiple=True, help="NAME=HOST:PORT to declare (repeatable).")
@click.option("--ttl", type=Duration(minimum=1), help="How long the token in it can be used, such as 30m.")
@click.option("--no-token", is_flag=True, help="The agent has joined: leave the token out.")
@click.option("--rbac-only", is_flag=True, help="Namespace, ServiceAccount and RBAC only, for an agent elsewhere.")
@click.option(
    "-f", "--file", type=click.Path(path_type=Path), help="Write to this file (0600), not to standard output."
)
@click.option("-o", "--output", type=click.Choice(["yaml", "json"]), default="yaml", show_default=True)
@pass_ctl
def manifest(
    ctl: Ctl,
    cluster: str,
    namespace: str,
    image: str | None,
    replicas: int | None,
    policy_path: Path | None,
    services: tuple[tuple[str, str], ...],
    ttl: float | None,
    no_token: bool,
    rbac_only: bool,
    file: Path | None,
    output: str,
) -> None:
    """Print the manifest that runs the agent of CLUSTER, with a fresh enrolment token in it.

    Keep it as you keep the token: whoever applies it first has joined.
    """
    from gateway.manifest import Plan, objects, rights

    client = ctl.client()
    with_token = not (no_token or rbac_only)
    if ttl is not None and not with_token:
        raise usage("--ttl is the lifetime of the token, and there is none", mend="leave --ttl out")
    if rbac_only:
        _refuse_unused(image=image, replicas=replicas, services=services)
    policy = _policy(client, cluster, policy_path)
    plan = Plan(
        policy=policy,
        namespace=namespace,
        image=image or f"tower-tunnel:{importlib.metadata.version('tower-tunnel')}",
        token=_new_token(client, cluster, ttl) if with_token else None,
        replicas=replicas or defaults.AGENT_REPLICAS,
        services=dict(services),
    )
    _write(rights(plan) if rbac_only else objects(plan), file, output)
    if not rbac_only and image is None:
        say(f"The Deployment names the image {plan.image}: build it where the member finds it, or name one by --image.")


def _refuse_unused(*, image: str | None, replicas: int | None, services: tuple[tuple[str, str], ...]) -> None:
    """What only the Deployment and the agent's configuration hold; of the services KubeSphere's needs a right too."""
    unused = [option for option, value in (("--image", image), ("--replicas", replicas)) if value is not None]
    unused += [f"--service {name}" for name, _ in services if name != "kubesphere"]
    if unused:
        own = "; such an agent has its services in its own configuration (`services`)"
        raise usage(
            f"--rbac-only prints no agent, so it has no use for {', '.join(unused)}",
            mend=f"leave that out{own if '--service' in unused[-1] else ''}",
        )


def _policy(client: AdminClient, cluster: str, path: Path | None) -> Policy:
    from gateway.policy import Policy
    from towerctl.lookup import suggesting

    with suggesting(client, cluster):
        host = str(client.get(path_of("clusters", cluster, "connection")).get("host"))
    return Policy.default(host) if path is None else read_policy(path, host)


def read_policy(path: Path, host: str) -> Policy:
    """The rules of `host` in a policy file. Raises `TowerError` (TWR104) naming file and key."""
    import yaml

    from daemon.yamlfile import plain
    from gateway.errors import PolicyError
    from gateway.policy import Policy
    from towerctl.files import read_text

    text = read_text(path, what="the policy file")
    try:
        hosts = plain(text)["hosts"]
        rules = hosts[host]
        if not isinstance(rules, dict):
            raise TypeError
    except yaml.YAMLError as error:
        raise TowerError("TWR104", f"the policy file {path} is not YAML: {error}", mend="correct that line") from error
    except (KeyError, TypeError) as error:
        raise TowerError(
            "TWR104",
            f"the policy file {path} has no rules for host {host}",
            mend=f"it begins with\n  hosts:\n    {host}:\n      users: [...]\n      groups: [...]",
        ) from error
    try:
        return Policy.from_dict(host, rules)
    except PolicyError as error:
        raise TowerError("TWR104", f"{path}: {error}", mend="correct that key") from error


def _new_token(client: AdminClient, cluster: str, ttl: float | None) -> str:
    """A fresh token. Without a public URL of the server there is none to give, and the refusal says how to set it."""
    made: Object = client.post(path_of("clusters", cluster, "tokens"), {} if ttl is None else {"ttl": ttl})
    token = made.get("token")
    if not isinstance(token, str):
        raise not_understood("a token without its secret")
    return token


def _write(made: list[Object], file: Path | None, output: str) -> None:
    import json

    import yaml

    if output == "json":
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": made}, indent=2) + "\n"
    else:
        text = yaml.safe_dump_all(made, sort_keys=False, width=1000, explicit_start=True)
    if file is None:
        click.echo(text, nl=False)
        return
    from towerctl.files import write_private

    write_private(file, text, what="the manifest")
    apply = shlex.join(["kubectl", "apply", "-f", str(file)])
    say(f"Written to {file}. In the member: {apply}. Then here: {PROGRAM} get clusters")
