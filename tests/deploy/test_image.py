"""The image as far as it can be held to something without an engine: its packages, its user, its context."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "deploy" / "image"
DOCKERFILE = (IMAGE / "Dockerfile").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\$", (IMAGE / "requirements.txt").read_text(), re.MULTILINE))


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, found: dict[str, list[Requirement]]) -> dict[str, list[Requirement]]:
    """Everything that a package wants when it runs, with what it asks of each."""
    for text in importlib.metadata.requires(name) or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        known = canonical(wanted.name) in found
        found.setdefault(canonical(wanted.name), []).append(wanted)
        if not known:
            needed(wanted.name, found)
    return found


def test_every_package_that_runs_is_locked_at_a_version_that_is_admitted() -> None:
    wanted = needed("tower-tunnel", {})
    assert sorted(wanted) == sorted(LOCKED)
    for name, requirements in wanted.items():
        for requirement in requirements:
            assert requirement.specifier.contains(LOCKED[name], prereleases=True), f"{name}: {requirement}"


def test_every_package_is_held_to_hashes() -> None:
    text = (IMAGE / "requirements.txt").read_text()
    entries = re.findall(r"^[a-z0-9-]+==\S+ \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\\n|\n))+)", text, re.MULTILINE)
    assert len(entries) == len(LOCKED)
    assert "--require-hashes" in DOCKERFILE


def test_the_build_backend_is_the_one_of_the_project_and_held_to_hashes_too() -> None:
    text = (IMAGE / "build-requirements.txt").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==(\S+) \\\n    --hash=sha256:[0-9a-f]{64}$", text, re.MULTILINE))
    assert len(locked) == text.count("==")
    system = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]
    for wanted in map(Requirement, system["requires"]):
        assert wanted.specifier.contains(locked[canonical(wanted.name)])
    for line in re.findall(r"^RUN .*pip install.*$", DOCKERFILE, re.MULTILINE):
        assert "--require-hashes" in line, "nothing is taken that was not looked at"


def test_it_does_not_run_as_root_and_takes_only_what_is_there() -> None:
    *_, last = DOCKERFILE.split("\nFROM ")
    assert "USER 65532:65532" in last
    for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in sources.split():
            assert (ROOT / source).exists(), source


def test_every_room_that_is_shipped_is_in_it() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    listed = re.search(r"^packages = \[(.+)\]$", project, re.MULTILINE)
    assert listed is not None
    for room in re.findall(r'"(\w+)"', listed[1]):
        assert f"COPY {room} /src/{room}" in DOCKERFILE
