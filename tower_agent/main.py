"""The command line of `tower-agent`. `--config` may stand before or after the command."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

import click

from certs.names import is_label
from daemon import log
from daemon.commandline import FAIL_ON, SHELLS, completion_script, run_line
from daemon.config import Loaded, load
from daemon.faults import TowerError
from daemon.process import Process, report, run
from daemon.units import parse_duration
from protocol import defaults
from tower_agent.config import AgentConfig

if TYPE_CHECKING:
    from daemon.checks import Report

PROGRAM: Final = "tower-agent"
COMPLETE_VARIABLE: Final = "_TOWER_AGENT_COMPLETE"
_OTHERS: Final = ("TOWER_CONFIG", "TOWER_ADMIN_SOCKET")  # variables of the environment that are not the agent's keys
F = TypeVar("F", bound=Callable[..., Any])
_PATH: Final = click.Path()


class _Host(click.ParamType[str]):
    """The name of a host: it is part of the paths and names that belong to it."""

    name = "host"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not is_label(value):
            text = f"{value[:80]!r} cannot be a host's name: it is a DNS label, as `tower-agent join` printed it"
            self.fail(text, param, ctx)
        return str(value)


_HOST: Final = _Host()

_OPTIONS: Final[dict[str, Callable[[Any], Any]]] = {
    "state_dir": click.option(
        "--state-dir", type=_PATH, help=f"Where identities are kept; {defaults.AGENT_STATE_DIR} when left out."
    ),
    "identity_secret": click.option(
        "--identity-secret", metavar="NAMESPACE/NAME", help="Keep the identity in this Secret of the member."
    ),
    "kubeconfig": click.option("--kubeconfig", type=_PATH, help="The member's kubeconfig; else the ServiceAccount."),
    "context": click.option("--context", help="The context of the kubeconfig."),
    "ca_file": click.option("--ca-file", type=_PATH, help="Further authorities for the link's TLS and for proxies."),
    "proxy": click.option("--proxy", metavar="URL", help="The HTTP proxy; else HTTPS_PROXY and NO_PROXY."),
    "insecure_transport": click.option(
        "--insecure-transport/--no-insecure-transport", default=None, help="Allow ws://, the link without TLS."
    ),
    "token_file": click.option("--token-file", type=_PATH, help="The enrolment token's file."),
    "policy_file": click.option("--policy-file", type=_PATH, help="Whom each host may act as."),
    "links": click.option("--links", type=click.IntRange(1, defaults.MAX_LINKS), help="Tunnels to each host."),
    "dialect": click.option(
        "--dialect",
        type=click.Choice(["tower.v1", "kubesphere-v1"]),
        help="What the host speaks (Go Tower: the latter).",
    ),
    "kubesphere_v1.server": click.option(
        "--server", "kubesphere_v1_server", metavar="URL", help="kubesphere-v1: the host's address, ws:// or wss://."
    ),
    "kubesphere_v1.cluster": click.option(
        "--cluster", "kubesphere_v1_cluster", metavar="NAME", help="kubesphere-v1: this member's Cluster on the host."
    ),
    "kubesphere_v1.ship_credential": click.option(
        "--ship-credential/--no-ship-credential",
        "kubesphere_v1_ship_credential",
        default=None,
        help="kubesphere-v1: agree that the host gets this agent's credential for the apiserver.",
    ),
    "health_address": click.option("--health-address", metavar="HOST:PORT", help="/healthz, /readyz and /metrics."),
    "log.level": click.option(
        "--log-level", "log_level", type=click.Choice(["debug", "info", "warning", "error"]), help="How much is logged."
    ),
    "log.format": click.option(
        "--log-format", "log_format", type=click.Choice(["auto", "json", "console"]), help="In which form."
    ),
}
_FILE_HELP: Final = f"Configuration file; {defaults.AGENT_CONFIG_FILE} when that exists."
_FILE_PATH: Final = click.Path(path_type=Path)
_FILE: Final = click.option("--config", "file", type=_FILE_PATH, help=_FILE_HELP)
_WAY: Final = ("state_dir", "identity_secret", "kubeconfig", "context", "ca_file", "proxy", "insecure_transport")
_ALL: Final = tuple(_OPTIONS)
_INSTEAD: Final = {
    "join": "there is nothing to enrol: write the token of the host's Cluster resource into `token_file` (0600), see "
    "`tower-agent check`, then `tower-agent run` registers by itself",
    "leave": "stop the agent; then take the token out of the host's Cluster resource, and delete the ServiceAccount or "
    "the certificate's rights in the member: the host has had that credential",
}
"""What takes the place of a command where the host speaks kubesphere-v1: such an agent keeps nothing."""


def _options(*names: str) -> Callable[[F], F]:
    def decorate(command: F) -> F:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return _FILE(command)

    return decorate


def _load(file: Path | None, flags: dict[str, Any]) -> Loaded[AgentConfig]:
    chosen = file or click.get_current_context().find_object(Path)
    return load(
        AgentConfig,
        file=chosen or Path(defaults.AGENT_CONFIG_FILE),
        required=chosen is not None,
        reserved=_OTHERS,
        flags={_key(name): value for name, value in flags.items()},
        called={"log.level": "--log-level", "log.format": "--log-format"},
    )


def _again(file: Path | None, flags: dict[str, Any]) -> list[str]:
    """The words of this command line that the next command needs too; a proxy's password is not among them."""
    chosen = file or click.get_current_context().find_object(Path)
    words = ["--config", str(chosen)] if chosen is not None else []
    for name in _WAY:
        option, value = f"--{name.replace('_', '-')}", flags.get(name)
        if isinstance(value, bool):
            words.append(option if value else option.replace("--", "--no-", 1))
        elif value is not None:
            words += [option, "URL" if "@" in str(value) and name == "proxy" else str(value)]
    return words


def _key(name: str) -> str:
    """The configuration's key for a parameter of a command."""
    for section in ("log", "kubesphere_v1"):
        if name.startswith(f"{section}_"):
            return f"{section}.{name.removeprefix(f'{section}_')}"
    return name


def _native(config: AgentConfig, command: str) -> AgentConfig:
    if config.dialect != "tower.v1":
        raise TowerError(
            "TWR101",
            f"`tower-agent {command}` is for tower.v1, and the configuration says `dialect: {config.dialect}`",
            mend=_INSTEAD[command],
        )
    return config


class _Commands(click.Group):
    """Options without a command are those of `run`, as Go Tower's agent takes them."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        of_run = {name for each in self.commands["run"].params for name in each.opts + each.secondary_opts}
        at = 0
        while at < len(args) and args[at].partition("=")[0] == "--config":
            at += 1 if "=" in args[at] else 2
        if at < len(args) and args[at].partition("=")[0] in of_run:
            args = [*args[:at], "run", *args[at:]]
        return super().parse_args(ctx, args)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, no_args_is_help=True)
@click.option("--config", "file", type=_FILE_PATH, envvar="TOWER_CONFIG", help=_FILE_HELP)
@click.version_option(package_name="tower-tunnel", prog_name=PROGRAM, message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context, file: Path | None) -> None:
    """Join this cluster (the member) to tower servers and serve them.

    Start with the command that `towerctl add cluster NAME` prints on the host, then `tower-agent run`. Options
    without a command are those of `run`.
    """
    context.obj = file


@cli.command(epilog="Example: tower-agent join < token")
@_options(*_WAY, "token_file")
@click.option(
    "--wait", metavar="DURATION", default="30s", show_default=True, help="Go on that long after failures that may pass."
)
def join(file: Path | None, wait: str, **flags: Any) -> int:
    """Enrol with a host. The token comes by standard input or --token-file, never as an argument."""
    try:
        seconds = parse_duration(wait)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--wait") from error
    config = _native(_load(file, flags).value, "join")
    log.configure(level="warning", style="console" if sys.stderr.isatty() else config.log.format)

    from tower_agent.token import read_token_file, read_token_input

    token = read_token_input() if config.token_file is None else read_token_file(config.token_file)
    again = _again(file, flags)

    async def main(_process: Process) -> int:
        from tower_agent.join import join_host

        await join_host(config, token, wait=seconds, flags=again)
        return 0

    return run(main, name=PROGRAM)


@cli.command(epilog="Example: tower-agent leave east", short_help="Leave a host for good.")
@_options(*_WAY)
@click.argument("host", required=False, type=_HOST)
@click.option("--forget", is_flag=True, help="Take the identity away here without asking the host.")
def leave(file: Path | None, host: str | None, forget: bool, **flags: Any) -> int:
    """Leave HOST (or the only one) for good: it revokes this agent, and the identity is taken away here."""
    config = _native(_load(file, flags).value, "leave")
    log.configure(level="warning", style="console" if sys.stderr.isatty() else config.log.format)

    async def main(_process: Process) -> int:
        from tower_agent.leave import leave_host

        await leave_host(config, host, forget=forget)
        return 0

    return run(main, name=PROGRAM)


@cli.command("run", short_help="Serve every host that this agent has joined.")
@_options(*_ALL)
def run_command(file: Path | None, **flags: Any) -> int:
    """Serve every host that this agent has joined, until it is told to stop."""
    return _run(_load(file, flags).value)


def _run(config: AgentConfig) -> int:
    log.configure(level=config.log.level, style=config.log.format)

    async def main(process: Process) -> int:
        if config.dialect == "kubesphere-v1":
            from tower_agent.legacy import LegacyAgent

            return await LegacyAgent(config).run(process)
        from tower_agent.agent import Agent

        return await Agent(config).run(process)

    return run(main, name=PROGRAM)


@cli.command(short_help="Walk the way to each host, and name the hop that is wrong.")
@_options(*_ALL)
@click.option("--host", type=_HOST, help="Only this host.")
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
@FAIL_ON
def check(file: Path | None, host: str | None, output: str, fail_on: str, **flags: Any) -> int:
    """Walk the way to each host hop by hop, and name the one that is wrong.

    Exit code: 0 fine (warnings too), 1 something failed, 2 usage, 3 it could not be checked.
    """
    config = _load(file, flags).value
    if host is not None and config.dialect == "kubesphere-v1":
        raise click.UsageError(
            "--host chooses among the hosts of tower.v1; with kubesphere-v1 there is one: leave it out"
        )
    log.configure(level="error", style=config.log.format)

    reports: list[Report] = []

    async def main(_process: Process) -> int:
        from tower_agent import check, legacycheck
        from tower_agent.version import product_version

        version = product_version()
        if config.dialect == "kubesphere-v1":
            made = await legacycheck.run_checks(config, version=version)
        else:
            made = await check.run_checks(config, version=version, only=host)
        reports.append(made)
        return made.exit_code(fail_on_warning=fail_on == "warning")

    code = run(main, name=PROGRAM)
    for made in reports:  # out here, where a reader that has gone, as `head` has, is no defect of this program
        if output == "table":
            from daemon.checkview import by_hop

            click.echo(by_hop(made, command="towerctl"), nl=False)
        else:
            _print(made.document(), output)
    return code


@cli.group()
def config() -> None:
    """Look at the configuration."""


@config.command("show", short_help="Print the values in force and their origins.")
@_options(*_ALL)
def config_show(file: Path | None, **flags: Any) -> None:
    """Print the configuration in force and where each value comes from; secrets are replaced."""
    click.echo(_load(file, flags).render(), nl=False)


@cli.command(short_help="Print the policy in force as a policy file.")
@_options("policy_file")
@click.argument("hosts", nargs=-1, type=_HOST)
def policy(file: Path | None, hosts: tuple[str, ...], **flags: Any) -> None:
    """Print the policy in force for HOSTS as a policy file, to keep or to start from.

    Without a policy file that is what the manifest of a new member grants. HOSTS may be left out where the file names
    them.
    """
    from gateway.rbac import policy_file
    from tower_agent.policy import PolicyFile

    policies = PolicyFile(_load(file, flags).value.policy_file)
    named = hosts or policies.hosts
    if not named:
        raise click.UsageError("name the host whose policy you want: `tower-agent policy HOST`")
    click.echo(policy_file([policies.policy(host) for host in named]), nl=False)


@cli.command()
@click.option("-o", "--output", type=click.Choice(["table", "json", "yaml"]), default="table", show_default=True)
def version(output: str) -> None:
    """Print the version."""
    from tower_agent.version import product_version

    if output == "table":
        click.echo(product_version())
    else:
        _print({"apiVersion": "tower/v1", "kind": "Version", "version": product_version()}, output)


@cli.command(short_help="Print the completion script of a shell.", epilog="bash: source <(tower-agent completion bash)")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script of SHELL."""
    click.echo(completion_script(cli, shell, program=PROGRAM, complete_var=COMPLETE_VARIABLE))


def _print(document: dict[str, Any], output: str) -> None:
    import json

    import yaml

    text = json.dumps(document, indent=2) + "\n" if output == "json" else yaml.safe_dump(document, sort_keys=False)
    click.echo(text, nl=False)


def main() -> NoReturn:
    """The entry point."""
    sys.exit(run_words(sys.argv[1:]))


def run_words(args: list[str]) -> int:
    """Run one command line; its exit code."""
    told = partial(report, name=PROGRAM)
    return run_line(cli, args, program=PROGRAM, complete_var=COMPLETE_VARIABLE, told=told)
