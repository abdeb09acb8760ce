from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from daemon import yamlfile
from daemon.faults import TowerError


def test_values_come_with_their_lines() -> None:
    values, lines = yamlfile.parse(b"a: 1\nb:\n  c: [x, y]\n  d:\n  - e: 2024-01-01\n", source="f")
    assert values["a"] == 1
    assert values["b"]["c"] == ["x", "y"]
    assert lines[("a",)] == 1
    assert lines[("b", "c")] == 3
    assert lines[("b", "d", 0, "e")] == 5


def test_an_empty_file_is_an_empty_mapping() -> None:
    for data in (b"", b"# nothing\n", b"---\n", b"null\n"):
        assert yamlfile.parse(data, source="f") == ({}, {})


@pytest.mark.parametrize(
    ("data", "code", "text"),
    [
        (b"a: 1\na: 2\n", "TWR101", "f:2: the key 'a' stands twice (first on line 1)"),
        (b"a: &x 1\nb: *x\n", "TWR101", "aliases (*name) are not read"),
        (b"a: &x [*x]\n", "TWR101", "aliases"),
        (b"1: 2\n", "TWR101", "f:1: the key 1 is not a text"),
        (b"a:\n\t- 1\n", "TWR102", "f:2:1: not YAML"),
        (b"a: [1,\n", "TWR102", "f:2:1: not YAML"),
        (b"- 1\n", "TWR102", "holds a list, but `key: value` lines are expected"),
        (b"a: 1\n---\nb: 2\n", "TWR102", "not YAML"),
        (b"a: !!python/object/apply:os.system [true]\n", "TWR102", "not YAML"),
        (b"\xff\xfe\x00", "TWR102", "not YAML"),
        (b"a: 2026-99-99\n", "TWR102", "f: not YAML: month must be in 1..12"),
        (b"a: " + b"[" * 300, "TWR102", "nested deeper than 32 levels"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_place(data: bytes, code: str, text: str) -> None:
    with pytest.raises(TowerError) as caught:
        yamlfile.parse(data, source="f")
    assert caught.value.code == code
    assert text in caught.value.message


def test_a_file_that_is_not_there_or_too_large(tmp_path: Path) -> None:
    with pytest.raises(TowerError, match=r"TWR102: cannot read .*missing\.yaml: No such file or directory; mend: "):
        yamlfile.read(tmp_path / "missing.yaml")
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * (yamlfile.MAX_FILE_BYTES + 1))
    with pytest.raises(TowerError, match=r"TWR102: .*larger than"):
        yamlfile.read(large)


def test_what_decides_whom_to_trust_is_not_everybodys_to_write(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text("hosts: {}\n")
    path.chmod(0o666)
    with pytest.raises(TowerError, match=r"may be written by everybody \(mode 0666\)") as caught:
        yamlfile.read(path, decides=True)
    assert caught.value.code == "TWR102"
    assert caught.value.mend == f"`chmod o-w {path}`, after a look at what is in it"
    assert yamlfile.read(path)[0] == {"hosts": {}}, "a kubeconfig on a file system without modes"
    path.chmod(0o664)
    assert yamlfile.read(path, decides=True)[0] == {"hosts": {}}


def bomb(levels: int) -> str:
    """Each level merges the one before eight times: YAML's own loader takes 8^levels steps."""
    lines = ["a0: &a0 {k: v}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 8)}]}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    "text",
    [bomb(30), "[" * 300, "{a: " * 300, "a: &x [*x]", "- 2026-99-99", b"\xff", "a: !!python/name:os.system ''"],
)
def test_what_others_wrote_is_read_or_refused_soon(text: str | bytes) -> None:
    with pytest.raises(yaml.YAMLError):
        yamlfile.plain(text)


def test_what_others_wrote_is_read_as_yaml_says() -> None:
    assert yamlfile.plain("a: {b: [1, x], c: 'd'}\ne: null\n1: 2") == {"a": {"b": [1, "x"], "c": "d"}, "e": None, 1: 2}
    assert yamlfile.plain(b"") is None
