"""Work in members, on a real apiserver that is host and member in one: what is arrived at, and who waits for it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import pytest_asyncio

from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.errors import NotFound, Unreachable
from daemon.kube.resources import CONFIG_MAPS, SECRETS
from tests.lab import kubefed
from tower_server.controller import errands as module
from tower_server.controller.errands import Errand, Errands
from tower_server.controller.federation import KUBEFED_CLUSTERS, SERVICE_ACCOUNTS, SPACE
from tower_server.controller.mark import LABEL, Owner, mark_body
from tower_server.controller.writer import Deposed

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.asyncio, pytest.mark.timeout(180)]
PATIENCE = 30.0
EDGE = Errand(
    cluster="edge",
    port=1,
    server="https://10.0.0.7:6443",
    labels={},
    hosted_as="",
    served_too=frozenset(),
    kubesphere="",
    passthrough=False,
    healthy=True,
    federate=False,
    joined=False,
)
OTHER = Owner("elsewhere", "uid-elsewhere", "berlin")


class Reach:
    """The member is the apiserver itself, unless it is `away`, or takes `as_long`."""

    def __init__(self, client):
        self._client = client
        self.calls, self.away, self.slow = [], None, set()
        self.answers = asyncio.Event()

    @asynccontextmanager
    async def client(self, cluster, port):
        self.calls.append(cluster)
        if self.away is not None:
            raise self.away
        if cluster in self.slow:
            await self.answers.wait()
        yield self._client


class Lab:
    def __init__(self, client):
        self.client, self.reach = client, Reach(client)
        self.known, self.news, self.fenced = set(), [], False
        self.errands = Errands(
            host="here", client=client, reach=self.reach, ca_pem=lambda: b"ROOT", known=self._is_known
        )
        self.begin()

    def begin(self):
        self.errands.begin(fence=self._fence, poke=self.news.append)

    def _fence(self):
        if self.fenced:
            raise Deposed("its lease has run out")

    async def _is_known(self, cluster):
        return cluster in self.known

    async def until(self, errand, true):
        """Asks as a reconcile does, until what is known is as awaited."""
        async with asyncio.timeout(PATIENCE):
            while (findings := self.errands.ask(errand)) is None or not true(findings):
                await asyncio.sleep(0.02)
            return findings

    async def accepted(self, errand, status):
        found = await self.until(errand, lambda each: each.accepted is not None and each.accepted.status == status)
        return found.accepted

    async def federation(self, errand, reason):
        return await self.until(errand, lambda each: each.federation is not None and each.federation.reason == reason)

    async def marks(self):
        listing = await self.client.list(CONFIG_MAPS, namespace="kube-system", labels=LABEL)
        return sorted(body["metadata"]["name"] for body in listing.items)

    async def there(self, resource, name):
        try:
            return bool(await self.client.get(resource, name, namespace=SPACE))
        except NotFound:
            return False


@pytest_asyncio.fixture
async def lab(plane):
    client = Client(Access.find(plane.admin_kubeconfig), user_agent="test")
    made = Lab(client)
    work = asyncio.create_task(made.errands.run(), name="errands")
    yield made
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    for name in await made.marks():
        await client.delete(CONFIG_MAPS, name, namespace="kube-system")
    client.close()


async def test_a_member_is_looked_at_once_and_the_news_are_told(lab):
    assert lab.errands.ask(EDGE) is None
    await lab.accepted(EDGE, "True")
    assert lab.news == ["edge"]
    assert await lab.marks() == ["tower-host-here"]
    asked = lab.client.requests
    for _ in range(50):
        lab.errands.ask(EDGE)
        await asyncio.sleep(0)
    assert lab.client.requests == asked
    assert lab.reach.calls == ["edge"]


async def test_a_member_that_is_down_is_not_asked_and_stays_what_it_was(lab):
    assert lab.errands.ask(replace(EDGE, healthy=False)) is None
    await lab.accepted(EDGE, "True")
    assert lab.errands.ask(replace(EDGE, healthy=False)).accepted.status == "True"
    assert lab.reach.calls == ["edge"]


async def test_a_refused_one_is_looked_at_again_and_accepted_when_it_is_released(lab, monkeypatch):
    monkeypatch.setattr(module, "REFUSED_AGAIN", 0.05)
    await lab.client.create(CONFIG_MAPS, mark_body(OTHER))
    refused = await lab.accepted(EDGE, "False")
    assert refused.reason == "OwnedByAnotherHost"
    assert "TWR124: host 'elsewhere'" in refused.message
    assert "delete configmap tower-host-elsewhere" in refused.message
    await lab.client.delete(CONFIG_MAPS, "tower-host-elsewhere", namespace="kube-system")
    await lab.accepted(EDGE, "True")
    assert await lab.marks() == ["tower-host-here"]


async def test_one_that_does_not_answer_keeps_no_other_waiting(lab, monkeypatch):
    monkeypatch.setattr(module, "DEADLINE", 0.3)
    lab.reach.slow = {"slow"}
    lab.known = {"edge"}
    await lab.accepted(EDGE, "True")
    slow = await lab.accepted(replace(EDGE, cluster="slow"), "Unknown")
    assert "longer than 0.3 s" in slow.message
    assert slow.reason == "NotLooked"


@pytest.mark.parametrize("away", [Unreachable("TWR114", "no way"), RuntimeError("no way")])
async def test_a_failure_is_said_and_tried_again_and_undoes_no_acceptance(lab, monkeypatch, away):
    monkeypatch.setattr(module, "ACCEPTED_AGAIN", 0.05)
    monkeypatch.setattr(module, "RETRY", (0.01, 0.05))
    lab.reach.away = away
    unknown = await lab.accepted(EDGE, "Unknown")
    assert "no way" in unknown.message
    lab.reach.away = None
    await lab.accepted(EDGE, "True")
    lab.reach.away = away
    before = len(lab.reach.calls)
    await lab.until(EDGE, lambda _: len(lab.reach.calls) > before + 1)
    assert lab.errands.ask(EDGE).accepted.status == "True"


async def test_one_that_passes_callers_through_is_accepted_without_a_look(lab):
    accepted = await lab.accepted(replace(EDGE, passthrough=True), "True")
    assert accepted.reason == "Unmarked"
    assert "untouched" in accepted.message
    assert lab.reach.calls == []


async def test_a_deposed_leader_writes_nothing_and_the_next_term_begins_anew(lab):
    lab.fenced = True
    lab.errands.ask(EDGE)
    async with asyncio.timeout(PATIENCE):
        while not lab.reach.calls:
            await asyncio.sleep(0.01)
    lab.fenced = False
    lab.begin()
    assert lab.errands.ask(EDGE) is None
    await lab.accepted(EDGE, "True")


async def test_two_kubespheres_that_differ_are_refused_until_they_do_not(lab):
    refused = await lab.accepted(replace(EDGE, kubesphere="the secrets differ"), "False")
    assert refused.reason == "KubeSphereDiffers"
    await lab.accepted(EDGE, "True")


async def test_the_federation_is_joined_and_left_and_left_behind(lab, plane):
    kubefed.install(plane)
    wish = replace(EDGE, federate=True)
    await lab.federation(wish, "Joining")
    assert not await lab.there(SERVICE_ACCOUNTS, "edge.here"), "nothing is made before it is noted"
    wish = replace(wish, joined=True)
    lab.errands.ask(wish)
    async with asyncio.timeout(PATIENCE):
        while not await lab.there(SECRETS, "edge.here"):
            await asyncio.sleep(0.05)
    await asyncio.to_thread(kubefed.fill, plane)
    await lab.federation(wish, "Joined")
    assert await lab.there(KUBEFED_CLUSTERS, "edge")
    away = await lab.federation(replace(wish, federate=False, healthy=False), "LeftBehind")
    assert not away.left
    assert not await lab.there(KUBEFED_CLUSTERS, "edge")
    assert await lab.there(SERVICE_ACCOUNTS, "edge.here")
    back = await lab.federation(replace(wish, federate=False), "Left")
    assert back.left
    assert not await lab.there(SERVICE_ACCOUNTS, "edge.here")


async def test_a_federation_that_cannot_be_joined_is_no_refusal_of_the_member(lab, plane):
    kubefed.install(plane)
    spec = {"apiEndpoint": "https://10.9.9.9:6443", "secretRef": {"name": "x"}}
    body = {"metadata": {"name": "edge", "namespace": SPACE}, "spec": spec}
    await lab.client.create(KUBEFED_CLUSTERS, body)
    try:
        failed = await lab.federation(replace(EDGE, federate=True), "FederationFailed")
        assert failed.accepted.status == "True"
        assert "TWR127" in failed.federation.message
        own = {"spec": {"apiEndpoint": EDGE.server}}
        await lab.client.patch(KUBEFED_CLUSTERS, "edge", own, namespace=SPACE)
        lab.begin()
        joined = await lab.federation(replace(EDGE, federate=True), "JoinedByOther")
        assert joined.federation.status == "True"
    finally:
        await lab.client.delete(KUBEFED_CLUSTERS, "edge", namespace=SPACE)


async def test_a_farewell_takes_the_mark_along_and_never_waits_for_long(lab, monkeypatch):
    await lab.accepted(EDGE, "True")
    lab.reach.away = Unreachable("TWR114", "no tunnel")
    said = await lab.errands.farewell(EDGE)
    assert "(no tunnel): configmap tower-host-here in kube-system" in said
    assert "kubefed" not in said
    assert "kubefed-controller-manager:edge.here" in await lab.errands.farewell(
        replace(EDGE, joined=True, healthy=False)
    )
    lab.reach.away = None
    monkeypatch.setattr(module, "FAREWELL_DEADLINE", 0.2)
    lab.reach.slow = {"edge"}
    assert "not within 0.2 s" in await lab.errands.farewell(EDGE)
    assert await lab.marks() == ["tower-host-here"]
    lab.reach.slow = set()
    monkeypatch.setattr(module, "FAREWELL_DEADLINE", 15.0)
    assert await lab.errands.farewell(EDGE) == ""
    assert await lab.marks() == []
    lab.fenced = True
    with pytest.raises(Deposed):
        await lab.errands.farewell(EDGE)


async def being_done(lab) -> asyncio.Task:
    """What has begun in a member that is slow to answer."""
    lab.reach.slow = {"edge"}
    assert lab.errands.ask(EDGE) is None
    async with asyncio.timeout(PATIENCE):
        while not lab.reach.calls:
            await asyncio.sleep(0.02)
    return next(task for task in asyncio.all_tasks() if task.get_name() == "errand-edge")


async def test_what_is_being_done_in_a_member_does_not_come_after_its_farewell(lab):
    """The account that is being made when the cluster is deleted would stay for ever."""
    doing = await being_done(lab)
    await lab.errands.farewell(replace(EDGE, healthy=False))
    assert doing.cancelled()
    lab.reach.slow = set()
    await lab.accepted(replace(EDGE, cluster="other"), "True")
    assert lab.news == ["other"], "the others' work goes on, and nothing is said of the one that is gone"


async def test_what_was_begun_in_a_member_in_an_earlier_term_does_not_come_after_its_farewell(lab):
    """The lead is lost and won again while the member is slow, and the cluster deleted then."""
    doing = await being_done(lab)
    lab.begin()
    await lab.errands.farewell(replace(EDGE, healthy=False))
    lab.reach.answers.set()
    async with asyncio.timeout(PATIENCE):
        await asyncio.wait({doing})
    assert await lab.marks() == []
    await lab.accepted(replace(EDGE, cluster="other"), "True")
