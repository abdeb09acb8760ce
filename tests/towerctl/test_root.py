"""Every verb can be reached and explains itself."""

from __future__ import annotations

import click
import pytest

from tests.towerctl.kit import Shell
from towerctl.lazy import LazyGroup
from towerctl.root import TABLE, cli


def leaves(group: LazyGroup, *path: str) -> list[tuple[str, ...]]:
    context = click.Context(group)
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        found += leaves(command, *path, name) if isinstance(command, LazyGroup) else [(*path, name)]
    return found


@pytest.mark.parametrize("path", leaves(cli), ids=" ".join)
def test_each_command_has_help_that_names_its_options(shell: Shell, path: tuple[str, ...]) -> None:
    told = shell.ok(*path, "--help")
    assert told.startswith(f"Usage: towerctl {' '.join(path)} ")
    assert "--socket" in told
    assert len(told.split("\n\n")[1].strip()) > 20


@pytest.mark.parametrize("verb", TABLE)
def test_what_help_lists_is_what_the_command_says(shell: Shell, verb: str) -> None:
    assert f"  {verb} " in shell.ok("--help")


@pytest.mark.parametrize("verb", ["add", "get", "describe", "delete", "create", "revoke"])
def test_a_verb_without_its_object_prints_help_and_is_a_usage_error(shell: Shell, verb: str) -> None:
    ran = shell(verb)
    assert ran.code == 2
    assert "Commands:" in ran.out + ran.err
