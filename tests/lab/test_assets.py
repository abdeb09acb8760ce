"""Where the programs of the control plane come from, and what is said when they cannot be had (no real build here)."""

from __future__ import annotations

import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lab import assets, progress
from tests.lab.processes import wait_until

pytestmark = pytest.mark.slow  # many processes


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(assets, "CACHE", tmp_path / "cache")
    return tmp_path / "cache"


def test_a_users_folder_is_used_and_a_single_programs_variable_wins(tmp_path: Path, empty_cache: Path) -> None:
    kubectl, etcd = program(tmp_path / "kubectl"), program(tmp_path / "etcd")
    other = program(tmp_path / "other-etcd")
    environ = {"KUBEBUILDER_ASSETS": str(tmp_path), "TEST_ASSET_ETCD": str(other)}
    assert assets.ensure(["kubectl", "etcd"], environ=environ) == {"kubectl": kubectl, "etcd": other}
    assert assets.ensure(["etcd"], environ={"KUBEBUILDER_ASSETS": str(tmp_path)}) == {"etcd": etcd}


@pytest.mark.parametrize(
    ("variable", "said"), [("TEST_ASSET_KUBECTL", "no executable"), ("KUBEBUILDER_ASSETS", "no such folder")]
)
def test_a_variable_that_points_nowhere_is_an_error_and_not_a_build(tmp_path: Path, variable: str, said: str) -> None:
    nowhere = tmp_path / "kubectl"
    with pytest.raises(assets.AssetError, match=f"{variable}={nowhere}: {said}"):
        assets.ensure(["kubectl"], environ={variable: str(nowhere)})


def test_what_a_users_folder_lacks_has_to_be_built_and_without_go_the_text_says_what_to_install(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assets.shutil, "which", lambda *_, **__: None)
    with pytest.raises(assets.AssetError, match=r"(?s)kubectl has to be built.*install Go 1\.26.*KUBEBUILDER_ASSETS"):
        assets.ensure(["kubectl"], environ={"KUBEBUILDER_ASSETS": str(tmp_path), "PATH": ""})


def test_an_old_go_is_named_with_its_version(tmp_path: Path, empty_cache: Path) -> None:
    (tmp_path / "go").write_text("#!/bin/sh\necho go1.19.8\n")
    (tmp_path / "go").chmod(0o755)
    with pytest.raises(assets.AssetError, match=r"go is go1\.19\.8: install Go 1\.26 or newer"):
        assets.ensure(["etcd"], environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})


def test_a_failed_build_shows_the_end_of_its_log_and_leaves_no_program(
    tmp_path: Path, empty_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "go").write_text(
        "#!/bin/sh\n[ $1 = env ] && { echo go1.26.1; exit; }\necho 'go: dial tcp: no route to host'; exit 1\n"
    )
    (tmp_path / "go").chmod(0o755)
    with pytest.raises(assets.AssetError, match=r"(?s)building etcd failed.*no route to host.*log:.*next:"):
        assets.ensure(["etcd"], environ={"PATH": f"{tmp_path}:/usr/bin:/bin"})
    assert [path.name for path in empty_cache.rglob("*etcd*")] == ["etcd.build.log"]
    assert "building etcd from Go modules" in capsys.readouterr().err


def test_a_build_lands_whole_in_a_folder_named_after_its_inputs_and_happens_once(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "go").write_text(
        "#!/bin/sh\n[ $1 = env ] && { echo go1.26.1; exit; }\n"
        f"echo built >> {tmp_path}/count\n"
        'while [ "$1" != -o ]; do shift; done; echo "#!/bin/sh" > "$2"; chmod +x "$2"\n'
    )
    (tmp_path / "go").chmod(0o755)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    first = assets.ensure(["etcd", "kwok"], environ=environ)
    assert first == assets.ensure(["etcd", "kwok"], environ=environ)
    assert (tmp_path / "count").read_text() == "built\nbuilt\n"
    assert first["etcd"].parent.parent == first["kwok"].parent.parent == empty_cache
    assert first["etcd"].parent != first["kwok"].parent

    modules = tmp_path / "modules"
    (modules / "controlplane").mkdir(parents=True)
    (modules / "controlplane" / "go.mod").write_text("module other\n")
    monkeypatch.setattr(assets, "GO_MODULES", modules)
    assert assets.ensure(["etcd"], environ=environ)["etcd"] != first["etcd"]


SLOW_GO = """#!/bin/sh
[ $1 = env ] && {{ echo go1.26.1; exit; }}
echo $$ >> {folder}/builds
until [ -e {folder}/enough ]; do sleep 0.1; done
while [ "$1" != -o ]; do shift; done; echo "#!/bin/sh" > "$2"; chmod +x "$2"
"""
RUN = "import sys; from pathlib import Path; from tests.lab import assets; assets.CACHE = Path(sys.argv.pop(1)); "


def start_build(folder: Path, cache: Path) -> subprocess.Popen[str]:
    """What it says goes to `folder / "said"`."""
    with (folder / "said").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-c", RUN + "sys.exit(assets.main())", str(cache), "etcd"],
            cwd=assets.ROOT,
            env={"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(folder)},
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )


def slow_go(folder: Path) -> Path:
    """Builds until there is a file `enough`."""
    (folder / "go").write_text(SLOW_GO.format(folder=folder))
    (folder / "go").chmod(0o755)
    return folder / "builds"


def test_two_builds_at_once_take_turns_and_build_once(tmp_path: Path, empty_cache: Path) -> None:
    builds, said, waits = slow_go(tmp_path), tmp_path / "said", "another build of the control plane is running"
    both = [start_build(tmp_path, empty_cache) for _ in range(2)]
    try:
        wait_until(lambda: waits in said.read_text(), "one that waits for the other", 60)
    finally:
        (tmp_path / "enough").touch()
        outputs = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0], said.read_text()
    assert outputs[0] == outputs[1] != ""
    assert len(builds.read_text().splitlines()) == 1
    assert said.read_text().count(waits) == 1


def test_an_interrupted_build_ends_its_compilers_and_leaves_no_half(tmp_path: Path, empty_cache: Path) -> None:
    builds = slow_go(tmp_path)
    process = start_build(tmp_path, empty_cache)
    wait_until(lambda: builds.exists() and builds.read_text().endswith("\n"), "the build", 60)
    compiler = int(builds.read_text())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; what is built stays" in (tmp_path / "said").read_text()
    wait_until(lambda: not Path(f"/proc/{compiler}").exists(), "end of the compiler", 30)
    assert [path.name for path in empty_cache.rglob("*etcd*")] == ["etcd.build.log"]


def test_an_unknown_program_is_refused_with_the_list() -> None:
    with pytest.raises(assets.AssetError, match=r"no such program: minikube; there are kube-apiserver, .*kwok"):
        assets.ensure(["minikube"])


def test_plain_progress_says_what_is_done_for_how_long_and_what_is_next() -> None:
    now, out = [0.0], io.StringIO()
    with progress.Progress(out, lambda: now[0]).step("kubectl", following=["etcd"]) as step:
        now[0] = 1.0
        step.now("too soon for another line")
        now[0] = 30.0
        step.now("400 packages compiled")
        now[0] = 65.0
        step.done("59 MB")
    assert out.getvalue().splitlines() == [
        "  kubectl ...; next: etcd",
        "  kubectl  0:30  400 packages compiled; next: etcd",
        "  kubectl  1:05  59 MB",
    ]


def test_on_a_terminal_one_line_lives_and_is_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "60")
    now, out = [0.0], Terminal()
    with progress.Progress(out, lambda: now[0]).step("kube-apiserver", following=["kubectl", "etcd"]) as step:
        for second in (1.0, 61.0):
            now[0] = second
            step.now("downloading k8s.io/a-module-with-a-rather-long-name v0.35.4")
        step.done("103 MB")
    shown = [line for line in re.split(r"\r\x1b\[K", out.getvalue()) if line]
    assert [line[:24] for line in shown] == [
        "/ kube-apiserver  0:01  ",
        "- kube-apiserver  1:01  ",
        "  kube-apiserver  1:01  ",
    ]
    assert all(len(line) < 60 for line in shown[:2])
    assert shown[2] == "  kube-apiserver  1:01  103 MB\n"
