"""The copy stays true through pieces, cuts, 410, a lost CRD, silence; subscribers hear each change once."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from daemon.backoff import Backoff
from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.reflector import Change, Reflector
from daemon.kube.resources import MEMBERS, NAMESPACES, SECRETS, Resource
from tests.daemon.kube.fakeapi import PATIENCE, Answer, FakeApi, Request, event, status, thing
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds
from tests.waiting import until

pytestmark = pytest.mark.asyncio


class Script:
    """Answers lists and watches one after the other; a watch beyond the script stays silent."""

    def __init__(self, lists: list[Answer], watches: list[Answer]) -> None:
        self._lists: Iterator[Answer] = iter(lists)
        self._watches: Iterator[Answer] = iter(watches)
        self.watched_from: list[str] = []
        self.newest = 1000

    def __call__(self, request: Request) -> Answer:
        if request.query.get("limit") == "1":
            return listed(self.newest)
        if "watch" not in request.query:
            return next(self._lists)
        self.watched_from.append(request.query["resourceVersion"])
        return next(self._watches, Answer(pieces=(), hang=True))


def listed(version: int, *items: object, more: str = "") -> Answer:
    metadata = {"resourceVersion": str(version), **({"continue": more} if more else {})}
    return Answer(body={"metadata": metadata, "items": list(items)})


def watched(*events: bytes, hang: bool = False) -> Answer:
    return Answer(pieces=(b"".join(events),) if events else (), hang=hang)


class Seen:
    """What subscribers heard, and whoever waits for it."""

    def __init__(self) -> None:
        self.changes: list[str] = []

    def __call__(self, change: Change) -> None:
        self.changes.append(f"{change.type} {change.object['metadata']['name']}")


async def follow(
    script: Script, until: Callable[[Reflector, Seen], bool], *, silence: float = 60.0, pause: float = 0.001
) -> tuple[Reflector, Seen]:
    async with FakeApi(script).serving() as api:
        client = Client(api, user_agent="test")
        backoff = Backoff(random=lambda: 0.0, minimum=pause, maximum=2 * pause)
        reflector, seen = Reflector(client, SECRETS, silence=silence, backoff=backoff), Seen()
        reflector.subscribe(seen)
        task = asyncio.create_task(reflector.run())
        try:
            async with asyncio.timeout(PATIENCE):
                while not until(reflector, seen):
                    await asyncio.sleep(0.005)
                    if task.done():
                        await task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            client.close()
        return reflector, seen


async def test_pages_become_one_list_and_the_watch_begins_at_its_version() -> None:
    script = Script(
        [listed(7, thing("a", 3), more="next"), listed(7, thing("b", 5))], [watched(event("ADDED", thing("c", 8)))]
    )
    reflector, seen = await follow(script, lambda _r, seen: len(seen.changes) == 3)
    assert seen.changes == ["ADDED a", "ADDED b", "ADDED c"]
    assert script.watched_from[0] == "7"
    assert reflector.get("a") == {"apiVersion": "v1", "kind": "Secret", **thing("a", 3)}
    assert reflector.version == "8"


async def test_a_broken_watch_goes_on_where_it_was_and_bookmarks_count() -> None:
    bookmark = event("BOOKMARK", {"metadata": {"resourceVersion": "20"}})
    script = Script([listed(7)], [watched(event("ADDED", thing("a", 9))), watched(bookmark), Answer(cut=True)])
    reflector, seen = await follow(script, lambda _r, _s: len(script.watched_from) >= 4)
    assert script.watched_from[:4] == ["7", "9", "20", "20"]
    assert (reflector.lists, seen.changes) == (1, ["ADDED a"])


@pytest.mark.parametrize(
    "gone",
    [
        status(410, "Expired"),
        watched(event("ERROR", {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"})),
    ],
)
async def test_410_lists_anew_and_tells_only_what_differs(gone: Answer) -> None:
    first = listed(7, thing("same", 1), thing("changed", 2), thing("deleted", 3), thing("remade", 4, uid="old"))
    second = listed(30, thing("same", 1), thing("changed", 9), thing("remade", 10, uid="new"), thing("new", 11))
    script = Script([first, second], [gone])
    _reflector, seen = await follow(script, lambda _r, _s: len(script.watched_from) == 2)
    assert seen.changes[:4] == ["ADDED same", "ADDED changed", "ADDED deleted", "ADDED remade"]
    assert seen.changes[4:] == ["DELETED deleted", "MODIFIED changed", "DELETED remade", "ADDED remade", "ADDED new"]
    assert script.watched_from == ["7", "30"]


async def test_an_apiserver_whose_state_is_an_earlier_one_again_is_listed_anew() -> None:
    """It takes a watch from a version that it has not come to, and says nothing of what a restore took or brought."""
    script = Script(
        [listed(70, thing("kept", 5), thing("made since", 60)), listed(9, thing("deleted since", 7), thing("kept", 5))],
        [watched(event("MODIFIED", thing("made since", 71))), Answer(cut=True)],
    )

    def until(reflector: Reflector, _seen: Seen) -> bool:
        if reflector.watches == 2:
            script.newest = 12
        return reflector.lists == 2

    _reflector, seen = await follow(script, until, pause=0.1)
    assert seen.changes[:3] == ["ADDED kept", "ADDED made since", "MODIFIED made since"]
    assert seen.changes[3:] == ["DELETED made since", "ADDED deleted since"]


async def test_events_may_end_anywhere_in_a_piece() -> None:
    stream = event("ADDED", thing("ä", 8)) + event("MODIFIED", thing("ä", 9)) + event("DELETED", thing("ä", 10))
    script = Script([listed(7)], [Answer(pieces=tuple(stream[i : i + 1] for i in range(len(stream))))])
    reflector, seen = await follow(script, lambda _r, seen: len(seen.changes) == 3)
    assert seen.changes == ["ADDED ä", "MODIFIED ä", "DELETED ä"]
    assert dict(reflector.items) == {}


async def test_an_outage_and_a_deleted_crd_are_waited_out_with_the_copy_kept() -> None:
    script = Script(
        [listed(7, thing("a", 3)), status(404, "NotFound"), status(503, "ServiceUnavailable"), listed(50)],
        [status(404, "NotFound")],
    )
    kept = []

    def until(reflector: Reflector, _seen: Seen) -> bool:
        if reflector.fault is not None:
            kept.append((reflector.fault.code, reflector.get("a") is not None))
        return len(script.watched_from) == 2

    reflector, seen = await follow(script, until, pause=0.1)
    assert kept
    assert set(kept) <= {("TWR116", True), ("TWR114", True)}
    assert reflector.fault is None
    assert seen.changes == ["ADDED a", "DELETED a"]
    assert script.watched_from[:2] == ["7", "50"]


async def test_a_silent_watch_is_dialled_again() -> None:
    script = Script([listed(7)], [watched(hang=True), watched(event("ADDED", thing("a", 8)), hang=True)])
    await follow(script, lambda _r, seen: bool(seen.changes), silence=0.2)
    assert script.watched_from[:2] == ["7", "7"]


async def test_a_watch_that_ends_at_once_each_time_is_a_failure_with_a_cause() -> None:
    script = Script([listed(7)], [watched()] * 3)
    faults: list[TowerError] = []

    def until(reflector: Reflector, _seen: Seen) -> bool:
        if reflector.fault is not None:
            faults.append(reflector.fault)
        return reflector.watches == 4

    await follow(script, until)
    assert faults
    assert "as soon as they begin" in faults[0].message


async def test_a_line_without_end_and_a_line_that_is_no_event_end_the_watch_only() -> None:
    script = Script(
        [listed(7)], [watched(b"not json\n"), watched(b'{"type": 5}\n'), watched(event("ADDED", thing("a", 8)))]
    )
    reflector, seen = await follow(script, lambda _r, seen: bool(seen.changes))
    assert seen.changes == ["ADDED a"]
    assert reflector.lists == 1


async def test_who_waits_for_the_first_list_hears_what_is_in_its_way() -> None:
    refused = status(403, "Forbidden", 'User "x" cannot list resource "secrets"')
    async with FakeApi(lambda _request: refused).serving() as api:
        client = Client(api, user_agent="test")
        reflector = Reflector(client, SECRETS, namespace="tower-system")
        task = asyncio.create_task(reflector.run())
        async with asyncio.timeout(PATIENCE):
            while reflector.fault is None:
                await asyncio.sleep(0.005)
        with pytest.raises(TowerError) as caught:
            await reflector.wait_synced(0.1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        client.close()
    assert caught.value.code == "TWR115"
    rule = '{apiGroups: [""], resources: ["secrets"], verbs: ["list"]}'
    assert caught.value.mend == f"add to the Role in namespace tower-system of this account: {rule}"


# ---- a real apiserver -------------------------------------------------------------------------------------------


@asynccontextmanager
async def following(plane: ControlPlane, resource: Resource, *, silence: float = 60.0) -> AsyncIterator[Reflector]:
    client = Client(Access.find(plane.admin_kubeconfig), user_agent="reflector-test", deadline=3.0)
    backoff = Backoff(random=lambda: 0.5, minimum=0.05, maximum=0.5)
    reflector = Reflector(client, resource, silence=silence, backoff=backoff)
    task = asyncio.create_task(reflector.run())
    try:
        await reflector.wait_synced(PATIENCE)
        yield reflector
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        client.close()


@pytest.mark.cluster
@pytest.mark.timeout(120)
async def test_a_crd_that_is_deleted_and_made_anew_is_followed_again(host_plane: ControlPlane) -> None:
    crds(host_plane)
    async with following(host_plane, MEMBERS) as reflector:
        seen = Seen()
        reflector.subscribe(seen)
        client = reflector._client
        await client.create(MEMBERS, {"metadata": {"name": "reflected"}})
        await until(lambda: reflector.get("reflected"))
        await asyncio.to_thread(host_plane.kubectl, "delete", "crd", "members.tower.kubesphere.io")
        await until(lambda: reflector.fault is not None)
        await asyncio.to_thread(crds, host_plane)
        await until(lambda: reflector.fault is None)
        await client.create(MEMBERS, {"metadata": {"name": "again"}}, deadline=PATIENCE)
        await until(lambda: reflector.get("again"))
        assert reflector.get("reflected") is None
        assert seen.changes == ["ADDED reflected", "DELETED reflected", "ADDED again"]
        await client.delete(MEMBERS, "again")


@pytest.mark.cluster
@pytest.mark.timeout(120)
async def test_an_apiserver_that_says_nothing_is_waited_out_and_nothing_is_missed(host_plane: ControlPlane) -> None:
    (apiserver,) = [child for child in host_plane.children if child.name == "kube-apiserver"]
    async with following(host_plane, NAMESPACES, silence=1.0) as reflector:
        apiserver.send(signal.SIGSTOP)
        try:
            await until(lambda: reflector.fault is not None and reflector.fault.code == "TWR114")
        finally:
            apiserver.send(signal.SIGCONT)
        name = (await reflector._client.create(NAMESPACES, {"metadata": {"generateName": "seen-"}}))["metadata"]["name"]
        await until(lambda: reflector.get(name))
        assert reflector.lists == 1
