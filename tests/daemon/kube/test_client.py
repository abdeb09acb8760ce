"""What the client does with an apiserver that is ill, and what a real one makes of its verbs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from email.utils import formatdate
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from daemon.faults import TowerError
from daemon.kube.access import Access
from daemon.kube.client import Client
from daemon.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    Gone,
    KubeError,
    NotFound,
    NotServed,
    Throttled,
    Unreachable,
)
from daemon.kube.resources import CONFIG_MAPS, MEMBERS, NAMESPACES, SECRETS, Object, Resource, name_of, version_of
from tests.daemon.kube.fakeapi import PATIENCE, Answer, FakeApi, Request, status, thing
from tests.lab.controlplane import ControlPlane
from tests.lab.hostplane import crds

pytestmark = pytest.mark.asyncio


def answers(*script: Answer) -> FakeApi:
    """One after the other, the last one for ever."""
    left = list(script)
    return FakeApi(lambda _request: left.pop(0) if len(left) > 1 else left[0])


OK = Answer(body=thing("a", 1))
WRITES = {
    "create": lambda client: client.create(SECRETS, {"metadata": {"name": "a", "namespace": "n"}}),
    "replace": lambda client: client.replace(SECRETS, {"metadata": {"name": "a", "namespace": "n"}}),
    "patch": lambda client: client.patch(SECRETS, "a", {}, namespace="n"),
    "delete": lambda client: client.delete(SECRETS, "a", namespace="n"),
}


async def test_connections_are_kept_for_the_next_call() -> None:
    async with answers(OK).serving() as api:
        client = Client(api, user_agent="tower-server/1")
        for _ in range(5):
            await client.get(SECRETS, "a", namespace="n")
        assert api.connections == 1
        assert api.requests[0].path == "/api/v1/namespaces/n/secrets/a"
        assert api.requests[0].headers["user-agent"] == "tower-server/1"
        assert api.requests[0].headers["authorization"] == "Bearer first"
        client.close()


@pytest.mark.parametrize("verb", WRITES)
async def test_a_write_that_was_throttled_is_said_again(verb: str) -> None:
    busy = Answer(429, status(429, "TooManyRequests").body, {"Retry-After": "0"})
    async with answers(busy, busy, OK).serving() as api:
        client = Client(api, user_agent="x")
        await WRITES[verb](client)
        assert len(api.requests) == 3
        client.close()


@pytest.mark.parametrize("verb", WRITES)
@pytest.mark.parametrize("ill", [status(500, "InternalError"), status(504, "Timeout"), Answer(cut=True)])
async def test_a_write_of_which_nobody_knows_whether_it_was_done_is_not_said_twice(verb: str, ill: Answer) -> None:
    async with answers(ill, OK).serving() as api:
        client = Client(api, user_agent="x")
        with pytest.raises(Unreachable) as caught:
            await WRITES[verb](client)
        assert caught.value.code == "TWR114"
        assert f"{verb} secrets a in namespace n" in caught.value.message
        assert len(api.requests) == 1
        client.close()


@pytest.mark.parametrize("ill", [status(500, "InternalError"), status(503, "ServiceUnavailable"), Answer(cut=True)])
async def test_a_read_is_asked_again(ill: Answer) -> None:
    async with answers(ill, ill, OK).serving() as api:
        client = Client(api, user_agent="x")
        assert name_of(await client.get(SECRETS, "a", namespace="n")) == "a"
        assert len(api.requests) == 3
        client.close()


async def test_a_write_with_the_word_that_nothing_was_done_is_said_again() -> None:
    starting = Answer(503, status(503, "ServiceUnavailable").body, {"Retry-After": "0"})
    async with answers(starting, OK).serving() as api:
        client = Client(api, user_agent="x")
        await WRITES["create"](client)
        assert len(api.requests) == 2
        client.close()


async def test_a_retry_after_beyond_the_deadline_is_handed_on_at_once() -> None:
    async with answers(Answer(429, status(429, "TooManyRequests").body, {"Retry-After": "60"})).serving() as api:
        client = Client(api, user_agent="x")
        started = time.monotonic()
        with pytest.raises(Throttled) as caught:
            await client.get(SECRETS, "a", namespace="n")
        assert caught.value.retry_after == 60
        assert time.monotonic() - started < 5
        client.close()


async def test_silence_ends_with_the_deadline_and_takes_its_connection_along() -> None:
    silent = Answer(pieces=(b'{"meta',), hang=True)
    async with answers(silent, OK).serving() as api:
        client = Client(api, user_agent="x")
        with pytest.raises(Unreachable, match=r"did not answer within 0\.3 s"):
            await client.get(SECRETS, "a", namespace="n", deadline=0.3)
        await client.get(SECRETS, "a", namespace="n")
        assert api.connections == 2
        client.close()


async def test_a_refused_token_is_read_again_once() -> None:
    def respond(request: Request) -> Answer:
        return OK if request.headers["authorization"] == "Bearer second" else status(401, "Unauthorized")

    async with FakeApi(respond).serving() as api:
        api.tokens = ["first", "second"]
        client = Client(api, user_agent="x")
        await client.get(SECRETS, "a", namespace="n")
        api.tokens = ["third"]
        with pytest.raises(Forbidden, match="answered 401 to get secrets a") as caught:
            await client.get(SECRETS, "a", namespace="n")
        assert caught.value.code == "TWR115"
        client.close()


async def test_nobody_there_is_tried_until_the_deadline_and_named() -> None:
    api = FakeApi(lambda _request: OK)
    async with api.serving():
        pass
    client = Client(api, user_agent="x", deadline=0.5)
    with pytest.raises(Unreachable, match="fake:6443") as caught:
        await client.create(SECRETS, thing("a", 1))
    assert caught.value.code == "TWR114"
    client.close()


async def test_a_write_that_finds_the_apiserver_restarting_gets_through() -> None:
    """A refused connection has carried nothing, so any verb may wait for the next one."""
    api = FakeApi(lambda _request: OK)
    async with api.serving():
        pass  # its port is known now, and nobody listens
    client = Client(api, user_agent="x")
    creating = asyncio.ensure_future(client.create(SECRETS, thing("a", 1)))
    await asyncio.sleep(0)
    async with api.serving():
        assert name_of(await creating) == "a"
        client.close()


async def test_an_answer_that_is_no_object_is_no_success() -> None:
    for body in (b"<html>", [1], b"", b"[" * 9999):
        async with answers(Answer(body=body)).serving() as api:
            client = Client(api, user_agent="x")
            with pytest.raises(Unreachable, match="fake:6443 answered get secrets a"):
                await client.get(SECRETS, "a", namespace="n")
            client.close()


async def test_a_list_whose_pages_ran_out_begins_anew() -> None:
    def page(*items: object, more: str = "") -> Answer:
        return Answer(body={"metadata": {"resourceVersion": "9", "continue": more}, "items": list(items)})

    script = [
        page(thing("old", 1), more="x"),
        status(410, "Expired"),
        page(thing("a", 2), more="y"),
        page(thing("b", 3)),
    ]
    async with answers(*script).serving() as api:
        client = Client(api, user_agent="x")
        found = await client.list(SECRETS, namespace="n", labels="a=b")
        assert [name_of(item) for item in found.items] == ["a", "b"]
        assert [request.query.get("continue") for request in api.requests] == [None, "x", None, "y"]
        assert {request.query["labelSelector"] for request in api.requests} == {"a=b"}
        client.close()


async def test_it_knows_how_far_its_clock_is_from_the_apiservers() -> None:
    told = [formatdate(time.time() - 3600.0, usegmt=True), "yesterday", ""]
    script = [Answer(body=thing("a", 1)), *(Answer(body=thing("a", 1), headers={"Date": each}) for each in told)]
    async with answers(*script).serving() as api:
        client = Client(api, user_agent="x")
        found = []
        for _ in script:
            await client.get(SECRETS, "a", namespace="n")
            found.append(round(client.ahead / 60.0))
        assert found == [0, 60, 0, 0]
        client.close()


async def test_a_list_that_is_always_too_old_is_not_asked_for_without_a_pause() -> None:
    async with answers(*[status(410, "Expired") for _ in range(1000)]).serving() as api:
        client = Client(api, user_agent="x")
        with pytest.raises(Gone):
            await client.list(SECRETS, namespace="n", deadline=1.0)
        assert 2 <= len(api.requests) < 50
        client.close()


async def test_each_page_of_a_list_is_cut_before_the_next_is_asked_for() -> None:
    """A thousand objects with all that their writers said of them would be held at once."""
    asked: list[int] = []

    def page(*items: object, more: str = "") -> Answer:
        return Answer(body={"metadata": {"resourceVersion": "9", "continue": more}, "items": list(items)})

    async with answers(page(thing("a", 1), more="x"), page(thing("b", 2))).serving() as api:
        client = Client(api, user_agent="x")

        def keep(body: Object) -> Object:
            asked.append(len(api.requests))
            return {"metadata": {"name": name_of(body)}}

        found = await client.list(SECRETS, namespace="n", keep=keep)
        assert found.items == [{"metadata": {"name": "a"}}, {"metadata": {"name": "b"}}]
        assert asked == [1, 2]
        client.close()


async def test_closing_cuts_what_is_under_way() -> None:
    async with answers(Answer(pieces=(), hang=True)).serving() as api:
        client = Client(api, user_agent="x")
        asking = asyncio.ensure_future(client.get(SECRETS, "a", namespace="n"))
        async with asyncio.timeout(PATIENCE):
            while not api.requests:
                await asyncio.sleep(0.005)
        client.close()
        with pytest.raises(Unreachable):
            await asking
        with pytest.raises(Unreachable, match="is closed"):
            await client.get(SECRETS, "a", namespace="n")


async def test_a_line_break_in_what_is_sent_is_refused() -> None:
    async with answers(OK).serving() as api:
        api.tokens = ["a\r\nX-Evil: b"]
        client = Client(api, user_agent="x")
        with pytest.raises(ValueError, match="line break"):
            await client.get(SECRETS, "a", namespace="n")
        assert api.requests == []
        client.close()


async def test_names_cannot_leave_their_place() -> None:
    async with answers(OK).serving() as api:
        client = Client(api, user_agent="x")
        await client.get(SECRETS, "../../pods?x=#", namespace="n/../..")
        assert api.requests[0].path == "/api/v1/namespaces/n%2F..%2F../secrets/..%2F..%2Fpods%3Fx%3D%23"
        client.close()


# ---- a real apiserver -------------------------------------------------------------------------------------------


@pytest_asyncio.fixture
async def client(host_plane: ControlPlane) -> AsyncIterator[Client]:
    made = Client(Access.find(host_plane.admin_kubeconfig), user_agent="client-test")
    yield made
    made.close()


@pytest_asyncio.fixture
async def namespace(client: Client) -> str:
    made = await client.create(NAMESPACES, {"metadata": {"generateName": "client-"}})
    return name_of(made)


@pytest.mark.cluster
async def test_the_verbs_on_a_real_apiserver(client: Client, namespace: str) -> None:
    body = {"metadata": {"name": "a", "namespace": namespace}, "data": {"x": "1"}}
    made = await client.create(CONFIG_MAPS, body)
    with pytest.raises(AlreadyExists):
        await client.create(CONFIG_MAPS, body)
    changed = await client.replace(CONFIG_MAPS, {**made, "data": {"x": "2"}})
    with pytest.raises(Conflict) as caught:
        await client.replace(CONFIG_MAPS, made)
    assert not isinstance(caught.value, AlreadyExists)
    merged = await client.patch(CONFIG_MAPS, "a", {"data": {"y": "3"}}, namespace=namespace)
    assert merged["data"] == {"x": "2", "y": "3"}
    json_patch = [{"op": "remove", "path": "/data/x"}]
    assert (await client.patch(CONFIG_MAPS, "a", json_patch, namespace=namespace, kind="json"))["data"] == {"y": "3"}
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, "a", namespace=namespace, version=version_of(changed))
    with pytest.raises(Conflict):
        await client.delete(CONFIG_MAPS, "a", namespace=namespace, uid="another")
    await client.delete(CONFIG_MAPS, "a", namespace=namespace, uid=made["metadata"]["uid"])
    for ask in (
        client.get(CONFIG_MAPS, "a", namespace=namespace),
        client.delete(CONFIG_MAPS, "a", namespace=namespace),
    ):
        with pytest.raises(NotFound) as missing:
            await ask
        assert not isinstance(missing.value, NotServed)


@pytest.mark.cluster
async def test_apply_owns_fields_until_forced(client: Client, namespace: str) -> None:
    body = {"metadata": {"name": "a", "namespace": namespace}, "data": {"x": "1"}}
    await client.apply(CONFIG_MAPS, body, field_manager="one")
    again = await client.apply(CONFIG_MAPS, body, field_manager="one")
    with pytest.raises(Conflict, match='conflict with "one"'):
        await client.apply(CONFIG_MAPS, {**body, "data": {"x": "2"}}, field_manager="two")
    assert version_of(await client.get(CONFIG_MAPS, "a", namespace=namespace)) == version_of(again)
    taken = await client.apply(CONFIG_MAPS, {**body, "data": {"x": "2"}}, field_manager="two", force=True)
    assert taken["data"] == {"x": "2"}


@pytest.mark.cluster
async def test_lists_page_and_watches_go_on_from_them(client: Client, namespace: str) -> None:
    for number in range(7):
        await client.create(CONFIG_MAPS, {"metadata": {"name": f"c{number}", "namespace": namespace}})
    found = await client.list(CONFIG_MAPS, namespace=namespace, page=3)
    assert [name_of(item) for item in found.items] == [f"c{number}" for number in range(7)]
    await client.create(CONFIG_MAPS, {"metadata": {"name": "later", "namespace": namespace}})
    async with (
        asyncio.timeout(PATIENCE),
        aclosing(client.watch(CONFIG_MAPS, version=found.version, namespace=namespace)) as events,
    ):
        event = await anext(events)
    assert (event.type, name_of(event.object)) == ("ADDED", "later")


@pytest.mark.cluster
async def test_a_kind_without_a_crd_and_a_version_of_long_ago_have_errors_of_their_own(
    host_plane: ControlPlane, client: Client
) -> None:
    with pytest.raises(NotServed) as caught:
        await client.list(Resource("absent.example.com", "v1", "things", "Thing"))
    assert "things.absent.example.com is not served" in caught.value.message
    crds(host_plane)
    await client.list(MEMBERS)  # waits until the new kind is ready
    async with asyncio.timeout(PATIENCE), aclosing(client.watch(MEMBERS, version="1")) as events:
        with pytest.raises(Gone):
            await anext(events)


@pytest.mark.cluster
async def test_a_token_file_is_read_again_when_the_apiserver_refuses_what_it_held(
    host_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    host_plane.kubectl("create", "serviceaccount", "reader", "-n", namespace)
    token = host_plane.kubectl("create", "token", "reader", "-n", namespace).text
    (tmp_path / "token").write_text("expired")
    config = yaml.safe_load(host_plane.kubeconfig("by-file", token="x").read_text())
    config["users"][0]["user"] = {"tokenFile": str(tmp_path / "token")}
    (tmp_path / "config").write_text(yaml.safe_dump(config))
    made = Client(Access.find(tmp_path / "config"), user_agent="client-test")
    with pytest.raises(Forbidden, match="answered 401"):
        await made.get(CONFIG_MAPS, "a", namespace=namespace)
    (tmp_path / "token").write_text(token)
    with pytest.raises(Forbidden, match=f'User "system:serviceaccount:{namespace}:reader" cannot get') as caught:
        await made.get(CONFIG_MAPS, "a", namespace=namespace)
    assert f"add to the Role in namespace {namespace}" in caught.value.mend
    made.close()


@pytest.mark.cluster
async def test_readiness_and_version_are_plain_paths(client: Client) -> None:
    assert await client.raw("/readyz") == (200, b"ok")
    assert b"v1." in (await client.raw("/version"))[1]
    assert (await client.raw("/nothing"))[0] == 404


async def test_every_error_is_a_fault_with_code_and_mend() -> None:
    async with answers(status(422, "Invalid", "spec.x: must be 5")).serving() as api:
        client = Client(api, user_agent="x")
        with pytest.raises(TowerError, match=r"spec\.x: must be 5") as caught:
            await client.create(SECRETS, thing("a", 1))
        assert isinstance(caught.value, KubeError)
        assert caught.value.code == "TWR116"
        client.close()
