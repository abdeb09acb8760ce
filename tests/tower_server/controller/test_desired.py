"""The objects of a cluster: where its Service leads, what is repaired, and what is left alone."""

from __future__ import annotations

import copy

from tower_server.controller.desired import (
    Replica,
    drifted,
    external_service,
    leftovers,
    service,
    serving,
    slices,
    written,
    written_term,
)

PORTS = {"kubernetes": 6012, "kubesphere": 16012}


def replica(name: str, address: str = "10.0.0.1", *, ready: bool = True, clusters: tuple[str, ...] = ()) -> Replica:
    return Replica(name, address, ready, frozenset(clusters))


def stored(wanted, **spec):
    """As an apiserver would hand it back: defaults and an address filled in."""
    found = copy.deepcopy(written(wanted, None, term=1))
    found["metadata"] |= {"resourceVersion": "7", "uid": "u"}
    if "spec" in found:
        found["spec"] |= {"clusterIP": "10.96.0.9", "sessionAffinity": "None", **spec}
    return found


def test_the_service_leads_6443_and_80_to_the_clusters_ports_and_selects_nobody():
    made = written(service("edge-1", PORTS, namespace="ks"), None, term=1)
    assert made["metadata"]["name"] == "mc-edge-1"
    assert [(each["port"], each["targetPort"]) for each in made["spec"]["ports"]] == [(6443, 6012), (80, 16012)]
    assert "selector" not in made["spec"]


def test_the_second_port_is_there_only_with_the_second_service():
    made = service("edge-1", {"kubernetes": 6012}, namespace="ks")
    assert [each["port"] for each in made["spec"]["ports"]] == [6443]


def test_a_load_balancer_never_publishes_the_port_that_does_not_authenticate():
    made = external_service("edge-1", PORTS, namespace="ks", annotations={"a": "b"})
    assert made["spec"]["type"] == "LoadBalancer"
    assert [each["port"] for each in made["spec"]["ports"]] == [6443]
    assert made["metadata"]["annotations"]["a"] == "b"


def test_slices_name_the_owners():
    found = serving("edge-1", [replica("a"), replica("b", clusters=("edge-1",)), replica("c", clusters=("edge-2",))])
    assert [each.name for each in found] == ["b"]


def test_without_an_owner_every_ready_replica_answers():
    found = serving("edge-1", [replica("b"), replica("a"), replica("c", ready=False, clusters=("edge-1",))])
    assert [each.name for each in found] == ["a", "b"]


def test_a_slice_for_each_address_family_with_the_targets_as_ports():
    made = slices("mc-edge-1", "edge-1", PORTS, [replica("a"), replica("b", "fd00::1")], namespace="ks")
    assert [(each["addressType"], each["endpoints"][0]["addresses"]) for each in made] == [
        ("IPv4", ["10.0.0.1"]),
        ("IPv6", ["fd00::1"]),
    ]
    assert [each["port"] for each in made[0]["ports"]] == [6012, 16012]
    assert made[0]["metadata"]["labels"]["kubernetes.io/service-name"] == "mc-edge-1"


def test_what_stands_as_wanted_is_no_drift_whatever_the_apiserver_added():
    wanted = service("edge-1", PORTS, namespace="ks")
    assert not drifted(wanted, stored(wanted))


def test_every_change_by_hand_is_a_drift_and_mended_in_place():
    wanted = service("edge-1", PORTS, namespace="ks")
    edits = (
        lambda found: found["spec"].update(selector={"app": "tower"}),
        lambda found: found["spec"].update(type="NodePort"),
        lambda found: found["spec"]["ports"].pop(),
        lambda found: found["spec"]["ports"].append({"name": "x", "port": 1, "protocol": "TCP", "targetPort": 1}),
        lambda found: found["spec"]["ports"][0].update(targetPort=1),
        lambda found: found["metadata"]["labels"].clear(),
        lambda found: found["metadata"]["annotations"].clear(),
    )
    for edit in edits:
        found = stored(wanted)
        edit(found)
        assert drifted(wanted, found)
        mended = written(wanted, found, term=2)
        assert not drifted(wanted, mended)
        assert mended["metadata"]["resourceVersion"] == "7"
        assert mended["spec"]["clusterIP"] == "10.96.0.9"


def test_what_others_added_stays():
    wanted = service("edge-1", PORTS, namespace="ks")
    found = stored(wanted)
    found["metadata"]["annotations"]["somebody/else"] = "x"
    found["metadata"]["labels"]["team"] = "y"
    found["spec"]["ports"].pop()
    mended = written(wanted, found, term=2)
    assert mended["metadata"]["annotations"]["somebody/else"] == "x"
    assert mended["metadata"]["labels"]["team"] == "y"


def test_an_annotation_taken_out_of_the_resource_goes_and_that_of_the_cloud_stays():
    before = external_service("edge-1", PORTS, namespace="ks", annotations={"ours": "1", "kept": "1"})
    found = stored(before, type="LoadBalancer")
    found["metadata"]["annotations"]["cloud.example.com/id"] = "lb-7"
    after = external_service("edge-1", PORTS, namespace="ks", annotations={"kept": "1"})
    assert drifted(after, found)
    annotations = written(after, found, term=2)["metadata"]["annotations"]
    assert "ours" not in annotations
    assert annotations["kept"] == "1"
    assert annotations["cloud.example.com/id"] == "lb-7"


def test_node_ports_of_a_load_balancer_are_kept_through_a_repair():
    wanted = external_service("edge-1", PORTS, namespace="ks", annotations={})
    found = stored(wanted)
    found["spec"]["ports"][0]["nodePort"] = 30123
    found["metadata"]["labels"].clear()
    assert written(wanted, found, term=2)["spec"]["ports"][0]["nodePort"] == 30123


def test_endpoints_and_slices_of_an_older_service_are_leftovers_and_those_of_others_are_not():
    wanted = slices("mc-edge-1", "edge-1", PORTS, [replica("a")], namespace="ks")
    label = {"kubernetes.io/service-name": "mc-edge-1"}
    found = [
        {"kind": "EndpointSlice", "metadata": {"name": "mc-edge-1-ipv4", "labels": label}},
        {"kind": "EndpointSlice", "metadata": {"name": "mc-edge-1-x7k2p", "labels": label}},
        {
            "kind": "EndpointSlice",
            "metadata": {"name": "mc-edge-11-ipv4", "labels": {**label, **dict.fromkeys(label, "mc-edge-11")}},
        },
        {"kind": "Endpoints", "metadata": {"name": "mc-edge-1"}},
        {"kind": "Endpoints", "metadata": {"name": "mc-edge-11"}},
    ]
    gone = leftovers("mc-edge-1", found, wanted)
    assert [each["metadata"]["name"] for each in gone] == ["mc-edge-1-x7k2p", "mc-edge-1"]


def test_the_term_of_the_last_writer_is_read_back():
    wanted = service("edge-1", PORTS, namespace="ks")
    assert written_term(written(wanted, None, term=12)) == 12
    assert written_term({"metadata": {}}) == 0
    assert written_term({"metadata": {"annotations": {"tower.kubesphere.io/term": "x" * 50}}}) == 0
