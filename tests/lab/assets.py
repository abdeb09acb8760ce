"""The programs of a real control plane: taken from where the user has them, else built from Go modules and kept.

`python -m tests.lab.assets [NAME ...]` makes sure that the named programs exist (all of them without a name) and prints
where each one lies. What is used, first match wins:

1. `TEST_ASSET_KUBE_APISERVER`, `TEST_ASSET_ETCD`, `TEST_ASSET_KUBECTL` (envtest's names);
2. the folder `KUBEBUILDER_ASSETS`, as far as it has the program;
3. `.cache/lab/<module>-<hash>/`, built at first use. The hash covers go.mod, go.sum, the sources, flags and machine:
   a folder's content never changes, and a change of versions builds anew beside the old.

Nothing is looked up on PATH but `go`: an unrelated kubectl there would quietly test something else. Two builds at once
take turns (a lock), a cut build leaves no half program (rename), and a program is built only when it is asked for.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.progress import Progress

ROOT = Path(__file__).resolve().parents[2]
GO_MODULES = Path(__file__).resolve().parent / "go"
GO_PEERS = ROOT / "tests" / "interop" / "go"
CACHE = ROOT / ".cache" / "lab"
GO_VERSION = (1, 26)  # what kwok's go.mod asks for
BUILD_DEADLINE = 45 * 60.0
VERSION_PACKAGES = ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")


class AssetError(Exception):
    """A program of the control plane cannot be had; the text says which, why and what to do."""


@dataclass(frozen=True, slots=True)
class Program:
    name: str
    module: str  # folder below tests/lab/go, or the peers' name
    package: str
    first_build: int  # seconds on two cores with empty caches, for the estimate that is shown
    modfile: str = "go.mod"  # one of several lets the same sources be built with other versions

    @property
    def sources(self) -> Path:
        return GO_PEERS if self.module == "peers" else GO_MODULES / self.module


PROGRAMS: Mapping[str, Program] = {
    program.name: program
    for program in (
        Program("kube-apiserver", "controlplane", "k8s.io/kubernetes/cmd/kube-apiserver", 240),
        Program("kubectl", "controlplane", "k8s.io/kubernetes/cmd/kubectl", 40),
        Program("etcd", "controlplane", "go.etcd.io/etcd/server/v3", 20),
        Program("kube-proxy", "kubeproxy", "k8s.io/kubernetes/cmd/kube-proxy", 30),
        Program("streamlet", "controlplane", "./streamlet", 5),
        Program("way", "way", ".", 5),
        Program("kwok", "kwok", "sigs.k8s.io/kwok/cmd/kwok", 120),
        Program("chart", "chart", ".", 40),
        Program("go-agent-2020", "peers", "./agent", 15),
        Program("go-proxy-2020", "peers", "./proxy", 5),
        Program("go-agent-2023", "peers", "./agent", 5, "vintage2023.mod"),
        Program("go-proxy-2023", "peers", "./proxy", 5, "vintage2023.mod"),
    )
}
OVERRIDES = {
    "kube-apiserver": "TEST_ASSET_KUBE_APISERVER",
    "etcd": "TEST_ASSET_ETCD",
    "kubectl": "TEST_ASSET_KUBECTL",
}


def ensure(names: Sequence[str] = tuple(PROGRAMS), *, environ: Mapping[str, str] = os.environ) -> dict[str, Path]:
    """Where each named program lies, after building what nobody has built yet. Raises AssetError."""
    unknown = [name for name in names if name not in PROGRAMS]
    if unknown:
        raise AssetError(f"no such program: {', '.join(unknown)}; there are {', '.join(PROGRAMS)}")
    found = {name: _given(name, environ) or _built(PROGRAMS[name]) for name in names}
    if missing := [PROGRAMS[name] for name, path in found.items() if path is None]:
        found |= _build_all(missing, environ)
    return {name: path for name, path in found.items() if path is not None}


def _given(name: str, environ: Mapping[str, str]) -> Path | None:
    variable = OVERRIDES.get(name)
    if variable and (value := environ.get(variable)):
        path = Path(value).expanduser()
        if not _is_program(path):
            raise AssetError(f"{variable}={value}: no executable file is there; correct the variable or unset it")
        return path
    if folder := environ.get("KUBEBUILDER_ASSETS"):
        if not Path(folder).expanduser().is_dir():
            raise AssetError(f"KUBEBUILDER_ASSETS={folder}: no such folder; correct the variable or unset it")
        path = Path(folder).expanduser() / name
        if _is_program(path):
            return path
    return None


def _built(program: Program) -> Path | None:
    path = _folder(program) / program.name
    return path if _is_program(path) else None


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _folder(program: Program) -> Path:
    digest = hashlib.sha256(f"{_flags(program)} {platform.machine()}".encode())
    module = program.sources
    for path in sorted(module.rglob("*")):
        if path.is_file():
            digest.update(f"\0{path.relative_to(module)}\0".encode() + path.read_bytes())
    return CACHE / f"{program.module}-{digest.hexdigest()[:12]}"


def _flags(program: Program) -> list[str]:
    linker = ["-s", "-w"]
    required = re.search(r"\bk8s\.io/kubernetes (v1\.(\d+)\S*)", (program.sources / program.modfile).read_text())
    if required:  # so that /version tells the truth: nothing else stamps a build from a module
        stamp = {"gitVersion": required[1], "gitMajor": "1", "gitMinor": required[2], "gitTreeState": "clean"}
        stamp |= {"gitCommit": "modproxy", "buildDate": "1970-01-01T00:00:00Z"}
        linker += [f"-X {package}.{key}={value}" for package in VERSION_PACKAGES for key, value in stamp.items()]
    versions = [] if program.modfile == "go.mod" else [f"-modfile={program.modfile}"]
    return [*versions, "-trimpath", "-ldflags", " ".join(linker)]


def _build_all(programs: Sequence[Program], environ: Mapping[str, str]) -> dict[str, Path]:
    go = _go(environ, programs[0].name)
    progress = Progress()
    with _lock(progress):
        missing = [program for program in programs if _built(program) is None]  # another build may have made them
        total = sum(program.first_build for program in missing)
        if missing:
            progress.say(
                f"building {', '.join(program.name for program in missing)} from Go modules into {CACHE} "
                f"(about {max(1, round(total / 60))} min the first time, kept afterwards)"
            )
        for position, program in enumerate(missing):
            following = [later.name for later in missing[position + 1 :]]
            _build(go, program, progress, following=following)
    return {program.name: _folder(program) / program.name for program in programs}


def _go(environ: Mapping[str, str], wanted_for: str) -> str:
    path = f"{environ.get('PATH', '')}{os.pathsep}/usr/local/go/bin"
    mend = (
        f"install Go {GO_VERSION[0]}.{GO_VERSION[1]} or newer (https://go.dev/dl/) and put it on PATH, "
        "or set KUBEBUILDER_ASSETS to a folder that holds the program"
    )
    go = shutil.which("go", path=path)
    if go is None:
        raise AssetError(f"{wanted_for} has to be built and there is no `go` on PATH: {mend}")
    version = subprocess.run([go, "env", "GOVERSION"], capture_output=True, text=True, timeout=30, check=False).stdout
    parsed = re.match(r"go(\d+)\.(\d+)", version)
    if parsed is None or (int(parsed[1]), int(parsed[2])) < GO_VERSION:
        raise AssetError(f"{wanted_for} has to be built and {go} is {version.strip() or 'of no known version'}: {mend}")
    return go


@contextlib.contextmanager
def _lock(progress: Progress) -> Iterator[None]:
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as handle:
        deadline = time.monotonic() + BUILD_DEADLINE
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress.say("another build of the control plane is running; waiting for it")
            while True:
                if time.monotonic() > deadline:
                    raise AssetError(
                        f"another build has held {CACHE / 'lock'} for {BUILD_DEADLINE / 60:.0f} min"
                    ) from None
                time.sleep(0.5)
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
        yield  # closing the file lets the lock go


def _build(go: str, program: Program, progress: Progress, *, following: Sequence[str]) -> None:
    folder = _folder(program)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / f"{program.name}.build.log"
    half = folder / f".{program.name}.new"
    environment = dict(os.environ, CGO_ENABLED="0", GOTOOLCHAIN="local", GOFLAGS="-buildvcs=false", GOWORK="off")
    command = [go, "build", "-v", *_flags(program), "-o", str(half), program.package]
    with progress.step(program.name, following=following) as step, log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=program.sources,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C reaches us alone, and we end the compilers with it
        )
        try:
            deadline = time.monotonic() + BUILD_DEADLINE
            while process.poll() is None:
                if time.monotonic() > deadline:
                    raise AssetError(
                        f"building {program.name} took more than {BUILD_DEADLINE / 60:.0f} min; log: {log}"
                    )
                step.now(_doing(log))
                time.sleep(0.2)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode != 0:
            tail = "\n".join("    " + line for line in log.read_text(errors="replace").splitlines()[-12:])
            raise AssetError(
                f"building {program.name} failed: `go build {program.package}` in {program.sources} "
                f"ended with {process.returncode}\n{tail}\n  log: {log}\n"
                "  next: see the last line; downloads need the network, a build about 4 GB of disk"
            )
        half.rename(folder / program.name)
        step.done(f"{(folder / program.name).stat().st_size / 1e6:.0f} MB")


def _doing(log: Path) -> str:
    """What `go build -v` is at: the last module it fetched, or how many packages it has compiled."""
    lines = log.read_text(errors="replace").splitlines()
    if lines and lines[-1].startswith("go: downloading "):
        return lines[-1].removeprefix("go: ")
    compiled = sum(not line.startswith("go: ") for line in lines)
    return f"{compiled} packages compiled" if compiled else "looking at what is there"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.lab.assets", description="Build the real control plane.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(PROGRAMS)} (default: all)")
    names = parser.parse_args().names or list(PROGRAMS)
    try:
        for name, path in ensure(names).items():
            print(f"{name}\t{path}")
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is built stays, the rest is built next time", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
