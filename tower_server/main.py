"""`tower-server`: run the server, show its configuration, print its version, complete a shell.

`--config` may stand before or after the command, as with tower-agent; after it, it wins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from daemon import config as configuration
from daemon.commandline import SHELLS, completion_script, run_line
from daemon.config import Loaded
from daemon.faults import TowerError
from daemon.log import configure
from daemon.process import Process, report, run
from daemon.units import format_bytes
from protocol import defaults
from tower_server.config import CONFIG_VARIABLE, ServerConfig, user_places

NAME: Final = "tower-server"
COMPLETE_VARIABLE: Final = "_TOWER_SERVER_COMPLETE"
USERS_OWN: Final = "default of a user"
DISTRIBUTION: Final = "tower-tunnel"
F = TypeVar("F", bound=Callable[..., Any])

# Flags and the keys that they set; every key can be set by file and environment.
FLAGS: Final = {
    "host": "Name of this tower in certificates; fixed by its first start.",
    "public_url": "How agents reach the tunnel port, such as wss://tower.example.com:8443.",
    "listen": "Address of the tunnel port.",
    "state_dir": "Directory of the store.",
    "admin_socket": "Unix socket of the admin API.",
    "health_address": "Address of /healthz, /readyz and /metrics.",
}
PATHS: Final = ("state_dir", "admin_socket")


def _file(**more: Any) -> Callable[[F], F]:
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path, dir_okay=False),
        help=f"Configuration file; {defaults.SERVER_CONFIG_FILE} when that exists.",
        **more,
    )


def _options(command: F) -> F:
    for key, text in reversed(FLAGS.items()):
        kind = click.Path(readable=False) if key in PATHS else None
        command = click.option(f"--{key.replace('_', '-')}", type=kind, help=text)(command)
    stores = click.Choice(("sqlite", "kubernetes"))
    store = click.option("--store", type=stores, help="Where records lie: a file of this machine, or a cluster.")
    return _file()(store(command))


def load(config_file: Path | None, flags: dict[str, Any]) -> Loaded[ServerConfig]:
    """The configuration in force. A user who is not root gets places of their own for what nobody set."""
    file = config_file or Path(defaults.SERVER_CONFIG_FILE)
    options: dict[str, Any] = {"file": file, "required": config_file is not None, "reserved": {CONFIG_VARIABLE}}
    loaded = configuration.load(ServerConfig, **options, flags=flags)
    places = user_places(dict(os.environ), os.geteuid())
    unset = {key: place for key, place in places.items() if (key,) not in loaded.origins}
    if not unset:
        return loaded
    moved = configuration.load(ServerConfig, **options, flags={**flags, **unset})
    return Loaded(moved.value, {**moved.origins, **dict.fromkeys(((key,) for key in unset), USERS_OWN)})


def _load(config_file: Path | None, flags: dict[str, Any]) -> Loaded[ServerConfig]:
    return load(config_file or click.get_current_context().find_object(Path), flags)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name=DISTRIBUTION, prog_name=NAME, message="%(prog)s %(version)s")
@_file(envvar=CONFIG_VARIABLE)
@click.pass_context
def cli(context: click.Context, config_file: Path | None) -> None:
    """The host side of Tower: holds the tunnels of member clusters and the ports that reach them.

    Start with `tower-server run --public-url wss://HOST:8443`, the address that members dial; then, in another
    terminal, `towerctl add cluster NAME`.
    """
    context.obj = config_file


@cli.command("run")
@_options
def run_command(config_file: Path | None, **flags: Any) -> None:
    """Run the server until it is told to stop by SIGTERM or Ctrl-C."""
    config = _load(config_file, flags).value
    configure(level=config.log.level, style=config.log.format)

    async def main(process: Process) -> None:
        from tower_server.server import serve

        await serve(config, process, version=product_version())

    sys.exit(run(main, name=NAME))


@cli.group("config")
def config_group() -> None:
    """Look at the configuration."""


@config_group.command("show", short_help="Print the values in force and their origins.")
@_options
def show(config_file: Path | None, **flags: Any) -> None:
    """Print the configuration in force and where each value comes from, secrets replaced."""
    click.echo(_load(config_file, flags).render(), nl=False)


_STATE = click.option("--state-dir", type=click.Path(readable=False), help="Directory of the store.")


@cli.command("backup", short_help="Copy the state into a file, while the server runs.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace FILE if it is there.")
@_STATE
@_file()
def backup_command(config_file: Path | None, file: Path, overwrite: bool, state_dir: str | None) -> None:
    """Copy the whole state into FILE (0600), also while the server runs.

    The copy holds the tower CA with its keys: whoever reads it can act as the tower.
    """
    from tower_server import backup

    loaded = _load(config_file, {"state_dir": state_dir})
    config, named = loaded.value, loaded.origins.get(("state_dir",), USERS_OWN) != USERS_OWN
    data = backup.snapshot(_database(config), config.admin_socket, named=named)
    backup.write(data, file, replace=overwrite)
    click.echo(f"{file}: {backup.inspect(data, str(file))}, {format_bytes(len(data))}", err=True)


@cli.command("restore", short_help="Make such a copy the state of this machine's server.")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--replace", is_flag=True, help="Put the state that is there aside.")
@_STATE
@_file()
def restore_command(config_file: Path | None, file: Path, replace: bool, state_dir: str | None) -> None:
    """Make the copy in FILE the state of this machine's server, which must not run meanwhile."""
    from tower_server import backup

    database = _database(_load(config_file, {"state_dir": state_dir}).value)
    contents, aside, since = backup.restore(backup.read_copy(file), database, replace=replace)
    click.echo(f"{database}: {contents}", err=True)
    if aside is not None:
        click.echo(f"The state before lies in {aside}.", err=True)
    for done in since:
        click.echo(done, err=True)
    if aside is None:
        click.echo(
            "What was done after the copy was made is not in it: revoke again what was revoked, delete again what was "
            "deleted, and have members join again that joined since.",
            err=True,
        )
    click.echo("Tokens that were not used up are void: make new ones.", err=True)


def _database(config: ServerConfig) -> Path:
    from tower_server.store.place import STORE_FILE

    if config.store.kind != "sqlite":
        raise TowerError(
            "TWR605",
            f"the records lie in namespace {config.store.namespace} of a Kubernetes cluster, not in a file",
            mend="back up and restore that cluster, or the objects with the label tower.kubesphere.io/record",
        )
    return config.state_dir / STORE_FILE


@cli.command("version")
def version_command() -> None:
    """Print the version."""
    click.echo(f"{NAME} {product_version()}")


@cli.command("completion", short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the script that completes commands in a shell: `source <(tower-server completion bash)`."""
    click.echo(completion_script(cli, shell, program=NAME, complete_var=COMPLETE_VARIABLE))


def product_version() -> str:
    return distribution_version(DISTRIBUTION)


def main() -> None:
    """The program."""
    told = partial(report, name=NAME)
    sys.exit(run_line(cli, sys.argv[1:], program=NAME, complete_var=COMPLETE_VARIABLE, told=told))
