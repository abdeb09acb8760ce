"""What the documents promise exists: commands, options, files, tests, targets of make."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from daemon.faults import FAULTS
from tower_agent.main import cli as agent
from tower_server.main import cli as server
from towerctl.root import cli as towerctl

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/MIGRATION.md", "docs/OPERATIONS.md", "docs/SECURITY.md"]
PROGRAMS: dict[str, click.Group] = {"towerctl": towerctl, "tower-agent": agent, "tower-server": server}


def commands(text: str) -> set[tuple[str, str]]:
    """(program, the rest of the words) of every command line in `code` and in console blocks."""
    blocks = re.findall(r"`([^`\n]+)`", text) + re.findall(r"^\$ (.+)$", text, re.MULTILINE)
    found = set()
    for block in blocks:
        for part in re.split(r"\||&&|#", block.replace("\\|", "/")):
            words = part.split()
            if words and words[0] in PROGRAMS:
                found.add((words[0], " ".join(words[1:])))
    return found


def found(program: str, words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command that the words begin with, and what is left of them; AssertionError names a word that is nothing."""
    command: click.Command = PROGRAMS[program]
    context, left = click.Context(command, info_name=program), []
    for word in words:
        if word.startswith("-"):
            options = {name for each in command.get_params(context) for name in each.opts + each.secondary_opts}
            assert word.split("=")[0].strip("[],") in options, f"{program} {' '.join(words)}: no option {word}"
            left.append(word)
        elif isinstance(command, click.Group):
            inner = command.get_command(context, word.split("/")[0])
            assert inner is not None, f"{program} {' '.join(words)}: no command {word}"
            command, context = inner, click.Context(inner, info_name=word, parent=context)
        else:
            left.append(word)
    return command, context, left


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_that_is_shown_exists_with_its_options(document: str) -> None:
    for program, line in commands((ROOT / document).read_text()):
        found(program, line.split())


@pytest.mark.parametrize("code", sorted(FAULTS))
def test_every_command_of_a_mend_can_be_typed_as_it_stands(code: str) -> None:
    """At night nobody looks up what else a command wants."""
    for program, line in commands(FAULTS[code].mend):
        command, context, left = found(program, line.split())
        assert not isinstance(command, click.Group), f"{program} {line} is no whole command"
        given, over, _ = command.make_parser(context).parse_args(left)
        wanted = [each for each in command.params if isinstance(each, click.Argument) and each.required]
        lacking = [each.name for each in wanted if not isinstance(given.get(each.name), str)]
        assert (lacking, over) == ([], []), f"{program} {line}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    text = (ROOT / document).read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert ((ROOT / document).parent / target).exists(), f"{document} links to {target}"


def test_every_property_of_the_threat_model_points_at_tests_that_exist() -> None:
    text = (ROOT / "docs" / "SECURITY.md").read_text()
    named = re.findall(r"`((?:[a-z_]+/)+(?:test_[a-z_]+\.py)?)(?:::test_[a-z_0-9]+)?`", text)
    assert len(named) > 20
    for name in named:
        if name != "tests/":
            assert list((ROOT / "tests").glob(name + ("test_*.py" if name.endswith("/") else ""))), name
    for file, test in re.findall(r"`((?:[a-z_]+/)+test_[a-z_]+\.py)::(test_[a-z_0-9]+)`", text):
        assert re.search(rf"def {test}\(", (ROOT / "tests" / file).read_text()), f"{file} has no {test}"


@pytest.mark.parametrize("heading", ["Who could attack, and what each can do", "What each theft gives away"])
def test_every_actor_and_theft_of_the_threat_model_is_held_by_tests(heading: str) -> None:
    table = (ROOT / "docs" / "SECURITY.md").read_text().partition(f"## {heading}")[2].partition("\n\n## ")[0]
    head, _, *rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("|")]
    assert head[-1].strip() == "held by"
    assert len(rows) >= 7
    for who, *_, held in rows:
        assert re.search(r"`(?:[a-z_]+/)+test_[a-z_]+\.py(?:::test_[a-z_0-9]+)?`", held), f"{who}: nothing holds it"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_every_target_of_make_exists(document: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`make ([a-z-]+)", (ROOT / document).read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"{document} names `make {target}`"


def test_the_readme_shows_the_columns_that_are_printed() -> None:
    code = "from towerctl.resources import CLUSTERS; print(*[c.header for c in CLUSTERS.shown('table')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout.split() in [line.split() for line in (ROOT / "README.md").read_text().splitlines()]
