"""Kinds of arguments. Each refuses what is wrong with the text and what would be right, before the server is asked."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
from click.shell_completion import CompletionItem

from protocol import defaults
from towerctl.context import Ctl
from towerctl.errors import usage
from towerctl.words import PROGRAM

F = TypeVar("F", bound=Callable[..., Any])
LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_USER: Final = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,62}[\x21-\x7e])?")


class Duration(click.ParamType[float]):
    """Seconds, written as 90s, 5m, 24h, 1h30m or 7d."""

    name = "duration"

    def __init__(self, *, minimum: float = 0.0, maximum: float | None = None) -> None:
        self.minimum = minimum
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        from daemon.units import format_duration, parse_duration

        try:
            seconds = parse_duration(value)
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if seconds < self.minimum:
            self.fail(f"{value!r} is less than {format_duration(self.minimum)}", param, ctx)
        if self.maximum is not None and seconds > self.maximum:
            self.fail(f"{value!r} is more than {format_duration(self.maximum)}", param, ctx)
        return seconds


class Name(click.ParamType[str]):
    """A DNS label: what clusters, agents and services are named by."""

    def __init__(self, what: str = "cluster") -> None:
        self.name = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not LABEL.fullmatch(text):
            self.fail(
                f"{text[:80]!r} cannot be the name of {_a(self.name)}: use 1 to 63 lower-case letters, digits and "
                f"hyphens, with a letter or digit at both ends",
                param,
                ctx,
            )
        return text


class Listed(click.ParamType[str]):
    """The name of something that the server lists; completed from it, which gets a fraction of a second to answer."""

    def __init__(self, plural: str) -> None:
        self.name = self.plural = plural

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in names_of(ctx, self.plural) if name.startswith(incomplete)]


class Existing(Name, Listed):
    """A name that is held to the rules of names, and completed. As `-o name` prints it (`cluster/edge-1`) will do."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.plural = f"{what}s"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        return super().convert(str(value).removeprefix(f"{self.name}/"), param, ctx)


class Cluster(Existing):
    """The name of a cluster that exists."""

    def __init__(self) -> None:
        super().__init__("cluster")


class User(click.ParamType[str]):
    """The name of a caller or of a group, as it stands in a certificate and in an HTTP header."""

    def __init__(self, what: str = "caller") -> None:
        self.name = what

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if not _USER.fullmatch(text):
            self.fail(
                f"{text[:80]!r} cannot be a {self.name}'s name: use 1 to 64 printable ASCII characters, "
                "no space at either end",
                param,
                ctx,
            )
        return text


class FaultCode(click.ParamType[str]):
    """A code of the table of faults; with `families`, also all of a kind: TWR5xx."""

    name = "code"

    def __init__(self, *, families: bool = False) -> None:
        self._families = families

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from daemon.faults import FAULTS

        text = str(value).upper()
        if self._families and not any(code.startswith(text.rstrip("X")) for code in FAULTS if len(text) == len(code)):
            self.fail(f"{text[:40]!r} is no fault and no family of faults: `{PROGRAM} explain` lists them", param, ctx)
        return text

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from daemon.faults import FAULTS

        known = [(code, fault.title) for code, fault in FAULTS.items() if code.startswith(incomplete.upper())]
        return [CompletionItem(code, help=title) for code, title in known]


def group_option() -> Callable[[F], F]:
    """`--group`, as often as wanted: the groups of a caller named by `--as`."""
    return click.option(
        "--group",
        "groups",
        type=User("group"),
        multiple=True,
        metavar="NAME",
        help="With --as: a group to appear in, as the member's owner allows it; may be given several times.",
    )


def needs_user(user: str | None, groups: tuple[str, ...]) -> None:
    """Groups of the host's own admin are the host's own: they cannot be chosen."""
    if groups and user is None:
        raise usage("--group goes with --as: the groups of the host's own admin are fixed", mend="add --as NAME")


def names_of(ctx: click.Context, kind: str) -> list[str]:
    """The names of what the server holds, for completion only."""
    items = _known(ctx, f"/v1/{kind}").get("items", [])
    return [str(item.get("name", "")) for item in items if isinstance(item, dict)]


def services_of(ctx: click.Context, cluster: str) -> list[str]:
    """What the owner of `cluster` declared beside its apiserver, for completion only."""
    from towerctl.client import path_of

    member = _known(ctx, path_of("clusters", cluster)).get("member") or {}
    return sorted(name for name in declared(member) if name != "kubernetes")


def declared(member: dict[str, Any]) -> list[str]:
    """The services in an agent's words, which may be anything."""
    said = member.get("services")
    return [str(name) for name in said] if isinstance(said, (dict, list)) else []


def _known(ctx: click.Context, path: str) -> dict[str, Any]:
    """The server's answer: no server means nothing to offer and no noise, and a Tab logs in nowhere (`--context`)."""
    from daemon.faults import TowerError

    ctl = ctx.find_object(Ctl) or Ctl()
    if ctl.context:
        return {}
    try:
        return ctl.client(timeout=defaults.COMPLETION_DEADLINE).get(path)
    except TowerError:
        return {}


def _a(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
