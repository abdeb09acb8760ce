"""What a member has to be before it is accepted, asked of a real apiserver."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import pytest_asyncio

from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.errors import Conflict, NotFound, Unreachable
from daemon.kube.resources import CONFIG_MAPS, NAMESPACES
from tests.tower_server.controller.kit import NAMESPACE
from tower_server.controller import preflight
from tower_server.controller.mark import LABEL, SPACE, Owner, mark_body
from tower_server.controller.preflight import Candidate, Refused, accept, release
from tower_server.controller.writer import Deposed

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(180)]
US = Owner("here", "uid-here", "edge")
OTHER = Owner("elsewhere", "uid-elsewhere", "berlin")
PLAIN = Candidate(owner=US, hosted_as="", served_too=frozenset(), kubesphere="")


@pytest_asyncio.fixture
async def member(plane):
    client = Client(Access.find(plane.admin_kubeconfig), user_agent="test")
    await clear(client)
    yield client
    await clear(client)
    client.close()


async def clear(client):
    for body in (await client.list(CONFIG_MAPS, namespace=SPACE, labels=LABEL)).items:
        await client.delete(CONFIG_MAPS, body["metadata"]["name"], namespace=SPACE)
    with suppress(NotFound):
        patch = {"metadata": {"annotations": None}}
        await client.patch(NAMESPACES, NAMESPACE, patch)


async def marks(client):
    listing = await client.list(CONFIG_MAPS, namespace=SPACE, labels=LABEL)
    return {body["metadata"]["name"]: body["data"] for body in listing.items}


async def look(client, candidate=PLAIN, *, known=(), fence=lambda: None):
    async def is_known(cluster):
        return cluster in known

    return await accept(client, candidate, known=is_known, fence=fence)


async def test_a_free_member_is_accepted_and_marked_once(member):
    assert await look(member) == ""
    assert await marks(member) == {"tower-host-here": {"host": "here", "uid": "uid-here", "cluster": "edge"}}
    first = (await member.get(CONFIG_MAPS, "tower-host-here", namespace=SPACE))["metadata"]["resourceVersion"]
    assert await look(member) == ""
    again = (await member.get(CONFIG_MAPS, "tower-host-here", namespace=SPACE))["metadata"]["resourceVersion"]
    assert again == first, "an accepted member is looked at without a write"
    assert await release(member, US)
    assert await marks(member) == {}
    assert not await release(member, US)


async def test_a_member_of_another_host_is_refused_with_both_ways_out(member):
    await member.create(CONFIG_MAPS, mark_body(OTHER))
    with pytest.raises(Refused, match=r"'elsewhere' has had this member since .* as its cluster 'berlin'") as refused:
        await look(member)
    assert refused.value.code == "TWR124"
    assert "delete configmap tower-host-elsewhere" in refused.value.mend
    assert "annotate configmap tower-host-elsewhere tower.kubesphere.io/shared=true" in refused.value.mend
    assert list(await marks(member)) == ["tower-host-elsewhere"]


async def test_an_agent_that_serves_both_hosts_shares_the_member_on_purpose(member):
    await member.create(CONFIG_MAPS, mark_body(OTHER))
    assert await look(member, replace(PLAIN, served_too=frozenset({"elsewhere"}))) == ""
    assert list(await marks(member)) == ["tower-host-elsewhere", "tower-host-here"]


async def test_two_hosts_at_once_do_not_both_get_it(member, monkeypatch):
    """The other one writes after our look and before our mark."""
    listed = preflight._marks
    looks = []

    async def late(client):
        found = await listed(client)
        if not looks:
            await member.create(CONFIG_MAPS, mark_body(replace(OTHER, host="a-first-name")))
        looks.append(found)
        return found

    monkeypatch.setattr(preflight, "_marks", late)
    with pytest.raises(Refused, match="a-first-name"):
        await look(member)
    assert list(await marks(member)) == ["tower-host-a-first-name"], "ours was taken back"


async def test_a_second_name_is_refused_while_the_first_one_stands_and_takes_over_after_it(member):
    await look(member)
    again = replace(PLAIN, owner=replace(US, cluster="again"))
    with pytest.raises(Refused, match="this host's cluster 'edge' already") as refused:
        await look(member, again, known={"edge"})
    assert refused.value.code == "TWR123"
    assert not await release(member, again.owner), "the mark is the first one's"
    assert await look(member, again) == ""
    assert (await marks(member))["tower-host-here"]["cluster"] == "again"


async def test_a_host_of_the_same_name_is_another_host(member):
    await member.create(CONFIG_MAPS, mark_body(replace(US, uid="uid-of-another")))
    with pytest.raises(Refused, match="called 'here' too") as refused:
        await look(member)
    assert refused.value.code == "TWR124"
    assert "`host`" in refused.value.mend


@pytest.mark.parametrize(
    ("notes", "hosted_as", "refused"),
    [
        ({"host-cluster": "host", "name": "berlin"}, "host", True),
        ({"host-cluster": "munich", "name": "edge"}, "host", True),
        ({"host-cluster": "host", "name": "edge"}, "", True),
        ({"host-cluster": "host", "name": "edge"}, "host", False),
        ({"name": "edge"}, "", False),
    ],
)
async def test_a_member_of_another_kubesphere_is_refused(member, notes, hosted_as, refused):
    with suppress(Conflict):
        await member.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    annotations = {f"cluster.kubesphere.io/{key}": value for key, value in notes.items()}
    await member.patch(NAMESPACES, NAMESPACE, {"metadata": {"annotations": annotations}})
    candidate = replace(PLAIN, hosted_as=hosted_as)
    if not refused:
        assert await look(member, candidate) == ""
        return
    with pytest.raises(Refused, match="KubeSphere of the host cluster") as error:
        await look(member, candidate)
    assert error.value.code == "TWR124"
    assert "kubectl annotate namespace kubesphere-system cluster.kubesphere.io/host-cluster-" in error.value.mend
    shared = {"metadata": {"annotations": {"tower.kubesphere.io/shared": "true"}}}
    await member.patch(NAMESPACES, NAMESPACE, shared)
    assert await look(member, candidate) == ""


async def test_two_kubespheres_that_differ_are_refused(member):
    with pytest.raises(Refused, match="the secrets differ") as refused:
        await look(member, replace(PLAIN, kubesphere="the secrets differ"))
    assert refused.value.code == "TWR125"
    assert await marks(member) == {}


async def test_an_apiserver_that_is_too_old_is_refused(member, monkeypatch):
    monkeypatch.setattr(preflight, "OLDEST", (99, 0))
    with pytest.raises(Refused, match=r"runs Kubernetes v1\..*, older than 99\.0") as refused:
        await look(member)
    assert refused.value.code == "TWR126"


async def test_without_the_right_to_leave_a_mark_it_is_accepted_and_that_is_said(member, plane):
    plane.kubectl("create", "serviceaccount", "preflight", "-n", "default", check=False)
    token = plane.kubectl("create", "token", "preflight", "-n", "default").text
    weak = Client(Access.find(plane.kubeconfig("preflight", token=token)), user_agent="test")
    try:
        said = await look(weak)
    finally:
        weak.close()
    assert "may not leave its mark" in said
    assert await marks(member) == {}


async def test_a_leader_that_was_deposed_leaves_no_mark(member):
    def deposed():
        raise Deposed("its lease has run out")

    with pytest.raises(Deposed):
        await look(member, fence=deposed)
    assert await marks(member) == {}


@pytest.mark.parametrize(("status", "body"), [(503, b'{"kind": "Status", "message": "no tunnel"}'), (200, b"[" * 9999)])
async def test_a_member_that_is_away_is_no_refusal(status, body):
    class Away:
        address = "127.0.0.1:1"

        async def raw(self, path):
            return status, body

    with pytest.raises(Unreachable, match=f"answered {status}"):
        await look(Away())
