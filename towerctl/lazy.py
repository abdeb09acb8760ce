"""click groups whose commands are imported when they are used, and the options that every command takes.

Help and completion read only the table of names and one-liners, so that neither pays for what it does not run.
`--socket`, `--context` and `--timeout` are taken anywhere on the line, as kubectl takes its own; `--namespace` too, but
after a verb that has one of its own (`manifest`), where `--tower-namespace` says the same.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import CompletionItem

from protocol import defaults
from towerctl.context import Ctl
from towerctl.types import Duration
from towerctl.words import PROGRAM

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    if value not in (None, ""):  # an empty variable of a script says nothing
        ctl = ctx.ensure_object(Ctl)
        setattr(ctl, str(param.name), value)
        ctl.given.add(str(param.name))


def global_options(*, namespace: bool = True) -> list[click.Parameter]:
    """What may stand before or after the verb; the last one said wins."""
    return [
        click.Option(
            ["--socket"],
            type=click.Path(readable=False),
            metavar="PATH",
            expose_value=False,
            is_eager=True,
            callback=_remember,
            help="Admin socket of the tower server (TOWER_ADMIN_SOCKET).",
        ),
        click.Option(
            ["--context"],
            metavar="NAME",
            expose_value=False,
            is_eager=True,
            callback=_remember,
            help="Ask the tower in the cluster of this kubeconfig context, with your rights there.",
        ),
        click.Option(
            ["tower_namespace", "--tower-namespace", *(["--namespace"] if namespace else [])],
            metavar="NAME",
            expose_value=False,
            is_eager=True,
            callback=_remember,
            help=f"With --context: the tower's namespace. [default: {defaults.STORE_NAMESPACE}]",
        ),
        click.Option(
            ["--timeout"],
            type=Duration(minimum=0.05, maximum=86400),
            expose_value=False,
            is_eager=True,
            callback=_remember,
            help="How long to wait for an answer of the server, such as 10s.",
        ),
    ]


class Command(click.Command):
    """A command that takes the global options too, and says `kubectl tower` where it was called so."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = CONTEXT_SETTINGS | (kwargs.get("context_settings") or {})
        super().__init__(*args, **kwargs)
        own = {name for param in self.params for name in param.opts}
        self.params.extend(global_options(namespace="--namespace" not in own))
        if self.help:
            self.help = self.help.replace("towerctl", PROGRAM)
        self.epilog = self.epilog.replace("towerctl", PROGRAM) if self.epilog else None


class LazyGroup(click.Group):
    """`table` maps a verb to (module:attribute, what it does in one line)."""

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        kwargs["context_settings"] = CONTEXT_SETTINGS | (kwargs.get("context_settings") or {})
        super().__init__(*args, **kwargs)
        self.params.extend(global_options())
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = self.table.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry[0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.table and not args[0].startswith("-") and not ctx.resilient_parsing:
            message = f"No such command {args[0]!r}; there are: {', '.join(self.table)}.{self.hint(ctx, args[0])}"
            raise click.NoSuchCommand(args[0], message, possibilities=list(self.table), ctx=ctx)
        return super().resolve_command(ctx, args)

    def hint(self, ctx: click.Context, word: str) -> str:
        """What may have been meant by `word`."""
        return ""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in self.table.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        found = [
            CompletionItem(name, help=line) for name, (_, line) in self.table.items() if name.startswith(incomplete)
        ]
        return found + click.Command.shell_complete(self, ctx, incomplete)


class KindGroup(LazyGroup):
    """A verb whose words are kinds: one or many of them is the same, and KIND/NAME, as `-o name` prints it, is two."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        word, slash, name = args[0].partition("/")
        for kind in (word, f"{word}s", word.removesuffix("s")):
            if kind in self.table:
                return super().resolve_command(ctx, [kind, *([name] if slash else []), *args[1:]])
        return super().resolve_command(ctx, args)

    def hint(self, ctx: click.Context, word: str) -> str:
        kinds = list(self.table)
        return f" Did you mean `{ctx.command_path} {kinds[0]} {word}`?" if len(kinds) == 1 else ""
