from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from pydantic import Field, SecretStr

from daemon.config import Duration, Loaded, Section, Size, load
from daemon.faults import TowerError
from daemon.units import Listener


class HealthSection(Section):
    address: str = "127.0.0.1:9443"
    token: str | None = None


class Service(Section):
    name: str
    port: int = 443


class Sample(Section):
    public_url: str | None = None
    budget: Size = 1024
    hold: Duration = 2.0
    health: HealthSection = HealthSection()
    services: tuple[Service, ...] = ()
    hosts: Mapping[str, Service] = Field(default_factory=dict)
    mode: Literal["l7", "passthrough"] = "l7"
    password: SecretStr = SecretStr("")


class Strict(Section):
    name: str


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "server.yaml"


def read(file: Path, text: str, *, environ: Mapping[str, str] | None = None, **more: Any) -> Loaded[Sample]:
    file.write_text(text)
    return load(Sample, file=file, environ=environ or {}, **more)


def refused(file: Path, text: str, *, environ: Mapping[str, str] | None = None, code: str = "TWR101") -> str:
    with pytest.raises(TowerError) as caught:
        read(file, text, environ=environ)
    assert caught.value.code == code
    assert caught.value.mend
    return caught.value.message


def test_flags_win_over_environment_over_file_over_defaults(file: Path) -> None:
    loaded = read(
        file,
        "public_url: https://file\nbudget: 256KiB\nhold: 1s\nhealth:\n  address: file:1\n",
        environ={"TOWER_HOLD": "3s", "TOWER_HEALTH__ADDRESS": "env:1", "OTHER": "x"},
        flags={"health.address": "flag:1", "mode": None},
    )
    assert loaded.value.public_url == "https://file"
    assert loaded.value.budget == 256 * 1024
    assert loaded.value.hold == 3.0
    assert loaded.value.health.address == "flag:1"
    origins = dict(line.strip().split("  # ") for line in loaded.render().splitlines() if "  # " in line)
    assert origins["public_url: https://file"] == f"file {file}:1"
    assert origins["hold: 3s"] == "environment TOWER_HOLD"
    assert origins["address: flag:1"] == "flag --address"
    assert next(origin for line, origin in origins.items() if line.startswith("mode:")) == "default"


def test_what_config_show_prints_is_a_configuration_without_secrets(file: Path) -> None:
    loaded = read(file, "health: {token: hunter2}\npassword: hunter2\nservices: [{name: a}]\nbudget: 1KiB\n")
    text = loaded.render()
    assert "hunter2" not in text
    assert f"budget: 1KiB  # file {file}:4" in text.splitlines()
    assert yaml.safe_load(text)["services"] == [{"name": "a", "port": 443}]


def test_the_printed_configuration_reads_back_the_same(file: Path) -> None:
    first = read(file, "hosts: {h1: {name: '3d', port: 4}}\nhold: 1.0625s\nbudget: 1025\npublic_url: 'a: #b'\n")
    second = read(file, first.render())
    assert second.value == first.value


def test_unknown_keys_name_place_and_nearest_key(file: Path) -> None:
    text = refused(
        file, "publik_url: x\nhealth:\n  adress: 1\nservices:\n- nam: x\n  name: y\nhosts:\n  h:\n    prt: 1\n"
    )
    assert f"{file}:1: unknown key 'publik_url'; did you mean 'public_url'?" in text
    assert f"{file}:3: unknown key 'health.adress'; did you mean 'address'?" in text
    assert f"{file}:5: unknown key 'services[0].nam'; did you mean 'name'?" in text
    assert f"{file}:9: unknown key 'hosts.h.prt'; did you mean 'port'?" in text


def test_an_unknown_key_that_resembles_nothing_lists_the_known_ones(file: Path) -> None:
    assert "known are: address, token" in refused(file, "health:\n  zzz: 1\n")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("budget: 3Qi\n", ':1: budget: a size is a number with a unit, such as "256KiB"'),
        ("\nhold: soon\n", ":2: hold: a duration is a number with a unit"),
        ("mode: l4\n", ":1: mode: input should be 'l7' or 'passthrough', but is 'l4'"),
        ("services:\n- name: a\n  port: http\n", ":3: services[0].port: input should be a valid integer"),
        ("health: 3\n", ":1: health: "),
        ("services:\n- port: 1\n", "the key 'services[0].name' is missing"),
    ],
)
def test_wrong_values_name_place_key_and_expectation(file: Path, text: str, problem: str) -> None:
    assert problem in refused(file, text)


def test_a_wrong_value_is_named_once(tmp_path: Path) -> None:
    class Door(Section):
        address: Listener

    with pytest.raises(TowerError) as caught:
        load(Door, environ={}, flags={"address": "bogus"})
    assert caught.value.message.count("bogus") == 1


def test_a_wrong_secret_is_not_repeated(file: Path) -> None:
    assert "hunter2" not in refused(file, "health:\n  token: [hunter2]\n")
    assert "hunter2" not in refused(file, "", environ={"TOWER_HEALTH__TOKEN": "[hunter2]"})


def test_several_mistakes_are_told_at_once(file: Path) -> None:
    assert refused(file, "budget: x\nhold: x\n").startswith("2 problems\n")


def test_a_missing_key_is_named() -> None:
    with pytest.raises(TowerError, match="TWR101: the key 'name' is missing; mend: "):
        load(Strict, environ={})


def test_wrong_environment_is_named_by_its_variable(file: Path) -> None:
    assert "environment TOWER_HOLD: hold: a duration" in refused(file, "", environ={"TOWER_HOLD": "x"})
    text = refused(file, "", environ={"TOWER_HEALTH__ADRESS": "x"})
    assert text == "environment: unknown variable TOWER_HEALTH__ADRESS; did you mean 'TOWER_HEALTH__ADDRESS'?"
    for wrong in ("[{", "[2026-99-99]", "[" * 3000):
        assert "TOWER_SERVICES starts like a list" in refused(file, "", environ={"TOWER_SERVICES": wrong})


def test_lists_come_from_the_environment_as_yaml(file: Path) -> None:
    loaded = read(file, "services: [{name: file}]\n", environ={"TOWER_SERVICES": "[{name: env, port: 2}]"})
    assert loaded.value.services == (Service(name="env", port=2),)


def test_what_kubernetes_puts_into_every_pod_is_not_ours(file: Path) -> None:
    links = {
        "TOWER_SERVICE_HOST": "10.96.0.7",
        "TOWER_SERVICE_PORT": "8443",
        "TOWER_SERVICE_PORT_TUNNEL": "8443",
        "TOWER_PORT": "tcp://10.96.0.7:8443",
        "TOWER_PORT_8443_TCP": "tcp://10.96.0.7:8443",
        "TOWER_PORT_8443_TCP_ADDR": "10.96.0.7",
        "TOWER_AGENT_SERVICE_HOST": "10.96.0.8",
    }
    assert read(file, "", environ=links).value == Sample()
    assert "unknown variable TOWER_PORT" in refused(file, "", environ={"TOWER_PORT": "8443"})


def test_reserved_variables_are_for_others(file: Path) -> None:
    assert read(file, "", environ={"TOWER_CONFIG": "x"}, reserved=("TOWER_CONFIG",)).value == Sample()


def test_a_default_file_may_be_missing_and_a_named_one_may_not(tmp_path: Path) -> None:
    missing = tmp_path / "none.yaml"
    assert load(Sample, file=missing, required=False, environ={}).value == Sample()
    with pytest.raises(TowerError, match=r"TWR102: cannot read .*: File name too long"):
        load(Sample, file=tmp_path / ("x" * 300), required=False, environ={})
    with pytest.raises(TowerError, match=r"TWR102: cannot read .*none\.yaml"):
        load(Sample, file=missing, environ={})


def test_a_loaded_configuration_does_not_change(file: Path) -> None:
    value = read(file, "").value
    with pytest.raises(ValueError, match="frozen"):
        value.budget = 3  # type: ignore[misc]
