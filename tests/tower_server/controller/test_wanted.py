"""Cluster resources as people write them: what is asked for, and what is said about what cannot be given."""

from __future__ import annotations

import json
from typing import Any

import pytest

from certs.token import secret_matches
from tower_server.controller.names import APPLIED, CLUSTER_LABEL, LB_ANNOTATIONS, PASSED, TERM
from tower_server.controller.wanted import read_wanted
from tower_server.ports import PortRange

RANGES = {"kubernetes": PortRange(6000, 7000), "kubesphere": PortRange(16000, 17000)}


def resource(name: str = "edge-1", *, annotations: Any = None, **connection: Any) -> dict[str, Any]:
    external = connection.pop("external", False)
    spec = {"connection": {"type": "proxy", **connection}, "externalKubeAPIEnabled": external}
    return {"metadata": {"name": name, "uid": "u-1", "annotations": annotations or {}}, "spec": spec}


def read(*args: Any, **more: Any):
    return read_wanted(resource(*args, **more), ranges=RANGES)


def test_ports_that_were_given_out_earlier_are_asked_for():
    wanted = read(kubernetesAPIServerPort=6012, kubesphereAPIServerPort=16012)
    assert wanted.ports == {"kubernetes": 6012, "kubesphere": 16012}
    assert wanted.usable
    assert not wanted.problems


@pytest.mark.parametrize("port", [5999, 7001, -1, "6012", 6012.5, True, 99999])
def test_a_port_out_of_range_is_named_with_the_range_and_the_mend(port):
    (problem,) = read(kubernetesAPIServerPort=port).problems
    assert (problem.condition, problem.reason, problem.code) == ("PortReady", "PortOutOfRange", "TWR120")
    assert "6000-7000" in problem.text
    assert "kubernetesAPIServerPort" in problem.mend


@pytest.mark.parametrize("port", [0, None])
def test_no_port_means_any(port):
    wanted = read(kubernetesAPIServerPort=port)
    assert not wanted.ports
    assert not wanted.problems


def test_a_name_that_leaves_no_room_for_its_service_is_refused_with_the_length():
    assert read("e" * 60).usable
    wanted = read("e" * 61)
    assert not wanted.usable
    assert "61 characters" in wanted.problems[0].text
    assert "60" in wanted.problems[0].text


def test_a_name_that_fits_no_certificate_is_refused():
    wanted = read("edge.one")
    assert not wanted.usable
    assert wanted.problems[0].reason == "InvalidName"


def test_a_name_too_long_for_the_external_service_costs_the_external_service_only():
    wanted = read("e" * 55, external=True)
    assert wanted.usable
    assert not wanted.external
    assert wanted.problems[0].condition == "ExternalAccessReady"


def test_annotations_for_the_load_balancer_are_passed_on():
    given = {"service.example.com/internal": "true"}
    wanted = read(external=True, annotations={LB_ANNOTATIONS: json.dumps(given)})
    assert wanted.annotations == given
    assert not wanted.problems


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[" * 9999,
        "[]",
        '"text"',
        '{"a": 1}',
        '{"no good": "x"}',
        json.dumps({f"k{n}": "" for n in range(65)}),
        "null",
    ],
)
def test_a_broken_annotation_is_named_and_nothing_of_it_is_passed_on(text):
    wanted = read(external=True, annotations={LB_ANNOTATIONS: text})
    assert not wanted.annotations
    assert wanted.external
    assert wanted.problems[0].reason == "InvalidAnnotation"
    assert LB_ANNOTATIONS in wanted.problems[0].text


@pytest.mark.parametrize("key", [APPLIED, TERM, PASSED, CLUSTER_LABEL])
def test_what_the_tower_itself_writes_on_a_service_is_nobody_elses(key):
    """Two would write the same one: the Service would never be as wanted, and be written at every look."""
    wanted = read(external=True, annotations={LB_ANNOTATIONS: json.dumps({"a.example/b": "x", key: "99999"})})
    assert not wanted.annotations
    assert f"'{key}' is one that the tower itself writes" in wanted.problems[0].text


@pytest.mark.parametrize("given", [{"a..b/c": ""}, {"a-.b/c": ""}, {f"{'a.' * 127}b/c": ""}, {"a": "\ud800"}])
def test_an_annotation_that_the_apiserver_would_refuse_or_change_is_not_passed_on(given):
    wanted = read(external=True, annotations={LB_ANNOTATIONS: json.dumps(given)})
    assert not wanted.annotations
    assert wanted.problems[0].reason == "InvalidAnnotation"


@pytest.mark.parametrize("broken", [{}, {"spec": None}, {"spec": {"connection": 5}}, {"spec": [], "metadata": {}}])
def test_a_resource_without_sense_is_read_all_the_same(broken):
    body = {"metadata": {"name": "edge-1", "finalizers": None, "annotations": None}, **broken}
    assert not read_wanted(body, ranges=RANGES).deleting


def test_a_direct_cluster_is_none_of_ours():
    assert not read(type="direct").proxied


def test_the_token_of_go_agents_is_kept_as_its_hash_alone():
    token = "5f" * 32
    wanted = read(token=token)
    assert secret_matches(token, wanted.legacy_token)
    assert token not in repr(wanted)
    assert read().legacy_token is None
    assert read(token="").legacy_token is None


@pytest.mark.parametrize("token", ["short", "with space " * 4, 7, ["a"] * 40, "x" * 513])
def test_a_token_that_is_no_secret_is_said_and_lets_nobody_in(token):
    wanted = read(token=token)
    assert wanted.legacy_token is None
    (problem,) = wanted.problems
    assert (problem.reason, problem.code) == ("InvalidToken", "TWR605")
    assert str(token) not in problem.text
