"""A leader that leads no more writes nothing."""

import random

import pytest

from daemon.kube.resources import SERVICES
from tests.tower_server.controller.apiserver import Apiserver, Caller
from tower_server.controller.desired import external_service, service, written
from tower_server.controller.writer import Deposed, NameTaken, Writer


def test_without_a_term_nothing_is_written():
    with pytest.raises(Deposed, match="lease has run out"):
        Writer(None, term=lambda: None).fence()


def test_a_later_leaders_mark_ends_it():
    found = written(service("a", {"kubernetes": 6000}, namespace="ks"), None, term=8)
    assert Writer(None, term=lambda: 8).fence(found) == 8
    with pytest.raises(Deposed, match="term 8, this is 7"):
        Writer(None, term=lambda: 7).fence(found)


@pytest.mark.asyncio
async def test_what_is_as_wanted_is_not_asked_for():
    wanted = service("a", {"kubernetes": 6000}, namespace="ks")
    found = written(wanted, None, term=8)
    writer = Writer(None, term=lambda: None)
    assert await writer.ensure(None, wanted, found) is found
    assert writer.writes == 0


@pytest.mark.asyncio
async def test_what_it_made_itself_and_has_not_heard_of_yet_is_no_failure():
    """The watch is late; a failure would be waited for, and told of on the cluster."""
    writer = Writer(Caller(Apiserver(random.Random(1)), "tower"), term=lambda: 3)
    made = await writer.ensure(SERVICES, service("a", {"kubernetes": 6000}, namespace="ks"), None)
    again = await writer.ensure(SERVICES, service("a", {"kubernetes": 6000}, namespace="ks"), None)
    assert again["metadata"]["resourceVersion"] == made["metadata"]["resourceVersion"]
    other = await writer.ensure(SERVICES, service("a", {"kubernetes": 6001}, namespace="ks"), None)
    assert other["spec"]["ports"][0]["targetPort"] == 6001
    assert other["metadata"]["uid"] == made["metadata"]["uid"]


@pytest.mark.asyncio
@pytest.mark.parametrize("heard", [True, False], ids=["known", "not told of yet"])
async def test_what_is_another_clusters_is_left_alone(heard: bool):
    """`mc-a-external` is the Service of `a-external`, and would be the external one of `a`."""
    writer = Writer(Caller(Apiserver(random.Random(1)), "tower"), term=lambda: 3)
    theirs = await writer.ensure(SERVICES, service("a-external", {"kubernetes": 6001}, namespace="ks"), None)
    ours = external_service("a", {"kubernetes": 6000}, namespace="ks", annotations={})
    before = writer.writes
    with pytest.raises(NameTaken) as caught:
        await writer.ensure(SERVICES, ours, theirs if heard else None)
    assert caught.value.code == "TWR120"
    assert "Service mc-a-external belongs to cluster a-external" in caught.value.message
    assert "delete one of the two Clusters" in (caught.value.mend or "")
    assert writer.writes == before + (0 if heard else 1), "no more than the attempt to make it"
    from_go = {**theirs, "metadata": {**theirs["metadata"], "labels": {}}}
    assert (await writer.ensure(SERVICES, ours, from_go))["spec"]["type"] == "LoadBalancer"
