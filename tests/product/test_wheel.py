"""The product as a user gets it: a wheel, installed by pip into an environment of its own, away from this checkout."""

from __future__ import annotations

import email
import json
import os
import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from collections.abc import Mapping
from email.message import Message
from pathlib import Path

import pytest

from tests.lab.processes import Child, free_ports

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("tower-server", "tower-agent", "towerctl", "kubectl-tower")
PACKAGES = {"protocol", "certs", "gateway", "daemon", "tower_server", "tower_agent", "towerctl"}
BUILD_DEADLINE = 120.0
INSTALL_DEADLINE = 300.0


def run(
    *argv: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: str = "", deadline: float = 30.0
) -> str:
    done = subprocess.run(
        list(map(str, argv)),
        cwd=cwd,
        env=dict(env or {}) or None,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=deadline,
    )
    assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the build backend itself, from the files of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = "import sys, hatchling.build; print(hatchling.build.build_wheel(sys.argv[1]))"
    name = run(sys.executable, "-c", build, folder, cwd=ROOT, deadline=BUILD_DEADLINE).splitlines()[-1]
    return folder / name


@pytest.fixture(scope="session")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="session")
def metadata(wheel: Path, names: list[str]) -> Message:
    (name,) = [name for name in names if name.endswith(".dist-info/METADATA")]
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_string(archive.read(name).decode())


def test_it_holds_the_listed_packages_and_nothing_else(names: list[str]) -> None:
    tops = {name.partition("/")[0] for name in names}
    (info,) = [top for top in tops if top.endswith(".dist-info")]
    assert tops - {info} == PACKAGES
    assert not [name for name in names if re.search(r"(^|/)(tests?/|test_|conftest\.py)|\.pyc$", name)]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert set(project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]) == PACKAGES


def test_it_holds_every_module_of_its_packages(names: list[str]) -> None:
    there = {str(path.relative_to(ROOT)) for package in PACKAGES for path in (ROOT / package).rglob("*.py")}
    assert there <= set(names)


def test_it_carries_its_licence_by_spdx_expression_and_as_text(
    names: list[str], metadata: Message, wheel: Path
) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    (licence,) = [name for name in names if name.endswith("/licenses/LICENSE")]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
    assert b"Apache License" in (ROOT / "LICENSE").read_bytes()


def test_its_description_is_the_readme_and_its_python_is_named(metadata: Message) -> None:
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata["Summary"]
    body = metadata.get_payload()
    assert isinstance(body, str)
    assert body.strip() == (ROOT / "README.md").read_text().strip()


# ---- installed elsewhere ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands in a fresh environment that pip has put the wheel and what it needs into."""
    place = tmp_path_factory.mktemp("elsewhere") / "env"
    venv.create(place, with_pip=True)
    pip = [place / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    run(*pip, wheel, cwd=place, env=os.environ, deadline=INSTALL_DEADLINE)
    return place / "bin"


@pytest.fixture(scope="session")
def clean(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which nothing leads back to this checkout."""
    return {"PATH": f"{installed}:/usr/bin:/bin", "HOME": str(tmp_path_factory.mktemp("home"))}


@pytest.mark.slow
@pytest.mark.timeout(INSTALL_DEADLINE + BUILD_DEADLINE)
class TestInstalled:
    """Each test works from another folder than this checkout, with an empty home."""

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_says_what_it_can_do(self, installed: Path, clean: dict[str, str], command: str) -> None:
        said = run(installed / command, "--help", cwd=Path(clean["HOME"]), env=clean)
        assert said.startswith("Usage:")
        assert "Commands:" in said

    def test_every_command_says_the_version_of_the_package(
        self, installed: Path, clean: dict[str, str], metadata: Message
    ) -> None:
        home = Path(clean["HOME"])
        for command in COMMANDS:
            arguments = ["version", "--client"] if command in ("towerctl", "kubectl-tower") else ["version"]
            assert metadata["Version"] in run(installed / command, *arguments, cwd=home, env=clean), command
            assert metadata["Version"] in run(installed / command, "--version", cwd=home, env=clean), command

    def test_faults_are_explained_offline(self, installed: Path, clean: dict[str, str]) -> None:
        for command in ("towerctl", "kubectl-tower"):
            assert "TWR201" in run(installed / command, "explain", "TWR201", cwd=Path(clean["HOME"]), env=clean)

    def test_kubectl_completes_the_plugin(self, installed: Path, clean: dict[str, str]) -> None:
        said = run(installed / "kubectl_complete-tower", "explain", "TWR20", cwd=Path(clean["HOME"]), env=clean)
        assert "TWR201" in said.split()
        assert said.endswith(":4\n")

    def test_it_imports_from_its_own_environment(self, installed: Path, clean: dict[str, str]) -> None:
        code = f"import {', '.join(sorted(PACKAGES))}; print(*(m.__file__ for m in ({', '.join(sorted(PACKAGES))})))"
        said = run(installed / "python", "-c", code, cwd=Path(clean["HOME"]), env=clean)
        assert str(ROOT) not in said
        assert said.count(str(installed.parent)) == len(PACKAGES)

    def test_a_server_runs_from_it_and_a_cluster_is_added_and_joined(
        self, installed: Path, clean: dict[str, str], tmp_path: Path
    ) -> None:
        tunnel, health, first = free_ports(3)
        socket = Path(clean["HOME"]) / "admin.sock"
        flags = [
            f"--public-url=wss://127.0.0.1:{tunnel}",
            f"--listen=127.0.0.1:{tunnel}",
            f"--state-dir={tmp_path}/state",
            f"--admin-socket={socket}",
            f"--health-address=127.0.0.1:{health}",
        ]
        environment = {**clean, "TOWER_PORTS__RANGE": f"{first}-{first + 5}", "TOWER_ADMIN_SOCKET": str(socket)}
        server = Child(
            "tower-server", [installed / "tower-server", "run", *flags], log=tmp_path / "log", env=environment
        )
        try:
            server.until(socket.exists, "its admin socket", 30.0)
            client = {**clean, "TOWER_ADMIN_SOCKET": str(socket)}
            added = json.loads(
                run(installed / "towerctl", "add", "cluster", "edge", "-o", "json", cwd=tmp_path, env=client)
            )
            join = [installed / "tower-agent", "join", f"--state-dir={tmp_path}/agent"]
            run(*join, cwd=tmp_path, env=clean, stdin=added["join"]["token"])
            (agent,) = json.loads(
                run(installed / "kubectl-tower", "get", "agents", "-o", "json", cwd=tmp_path, env=client)
            )["items"]
            assert agent["cluster"] == "edge"
        finally:
            assert server.stop() == 0
