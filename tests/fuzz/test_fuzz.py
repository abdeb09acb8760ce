"""The corpus, hypothesis' inputs and a short coverage-guided run for each target."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS
from tests.lab.examples import examples

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"
SECONDS = 3
FILES = sorted(CORPUS.glob("*/*"))


def test_every_target_has_a_corpus_and_it_is_small() -> None:
    assert {file.parent.name for file in FILES} == set(TARGETS)
    assert sum(file.stat().st_size for file in FILES) < 100_000


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_corpus_holds(file: Path) -> None:
    TARGETS[file.parent.name](file.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes(name: str) -> None:
    known = [file.read_bytes() for file in FILES if file.parent.name == name]
    altered = st.builds(
        lambda raw, at, piece, cut: raw[: at % (len(raw) + 1)] + piece + raw[at % (len(raw) + 1) + cut :],
        st.sampled_from(known),
        st.integers(0, 4000),
        st.binary(max_size=6),
        st.integers(0, 6),
    )

    @examples(150, suppress_health_check=list(HealthCheck))
    @given(st.one_of(altered, st.binary(max_size=300)))
    def holds(data: bytes) -> None:
        TARGETS[name](data)

    holds()


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", TARGETS)
def test_a_short_run_guided_by_coverage(name: str, tmp_path: Path) -> None:
    (tmp_path / "found").mkdir()
    command = [sys.executable, "-m", "tests.fuzz", name, str(tmp_path / "found")]
    command += [f"-max_total_time={SECONDS}", "-max_len=2048", f"-artifact_prefix={tmp_path}/"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs, done.stderr[-2000:]
    assert int(runs[1]) > len(FILES)
