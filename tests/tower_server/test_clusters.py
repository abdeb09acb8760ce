"""Clusters as operators add and delete them."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from certs.keys import generate_key
from certs.revocation import ALL_AGENTS
from certs.token import parse_token
from daemon.faults import TowerError
from protocol.aio.hops import DialError
from protocol.constants import Code
from tests.tower_server.kit import Agent, Running, admin, call, enrol, following, joined, running
from tests.waiting import until
from tower_server.records import Claim, Cluster
from tower_server.revocation_sync import sync_revocations
from tower_server.revocations import Revocations
from tower_server.store.base import Change, Data, Kind, Listing, Record, Version

pytestmark = pytest.mark.asyncio


async def test_of_many_who_add_one_name_one_succeeds(tmp_path):
    async with running(tmp_path) as server:
        answers = await asyncio.gather(*(admin(server, "POST", "/v1/clusters", {"name": "edge-1"}) for _ in range(10)))
        assert sorted(answer.status for answer in answers) == [201] + [409] * 9
        assert {answer.json()["code"] for answer in answers if answer.status == 409} == {"TWR604"}
        assert len((await server.services.store.list(Kind.CLAIM)).items) == 1


async def test_names_that_cannot_stand_in_a_certificate_are_refused(tmp_path):
    cases = ["", "Edge", "a_b", "-a", "a.b", "a" * 64, "../x"]
    async with running(tmp_path) as server:
        for name in cases:
            answer = await admin(server, "POST", "/v1/clusters", {"name": name})
            assert (answer.status, answer.json()["code"]) == (400, "TWR605")
            assert "hyphens" in answer.json()["mend"]


async def test_no_two_clusters_and_no_cluster_and_tower_share_a_serving_name(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1", serving_names=["10.20.30.40"])
        for names in (["10.20.30.40"], ["localhost"], ["127.0.0.1"], ["edge-1.members.tower"], ["*.example.com"]):
            answer = await admin(server, "POST", "/v1/clusters", {"name": "edge-2", "serving_names": names})
            assert (answer.status, answer.json()["code"]) == (400, "TWR605"), names


async def test_deleting_takes_everything_of_the_cluster_away(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-2"):
        agent = Agent(server, await enrol(server, await server.add("edge-1")))
        await agent.connect()
        port = server.port("edge-1")
        answer = await admin(server, "DELETE", "/v1/clusters/edge-1")
        assert answer.json()["name"] == "edge-1"
        await until(lambda: agent.closed)
        assert agent.closed[0].code is Code.DELETED
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", port)) != 0
        for kind in (Kind.CLUSTER, Kind.CLAIM, Kind.TOKEN, Kind.AGENT):
            left = (await server.services.store.list(kind)).items
            assert not [record for record in left if record.data.get("cluster", record.name) == "edge-1"]
        assert b'"edge-1"' not in server.services.metrics.render()
        assert (await admin(server, "GET", "/v1/clusters/edge-1")).json()["code"] == "TWR603"
        assert (await call(server, "edge-2")).status == 200
        await server.add("edge-1")
        assert server.port("edge-1") == port


async def test_an_exhausted_range_leaves_no_half_made_cluster(tmp_path):
    async with running(tmp_path) as server:
        first, last = server.config.ports.range
        for number in range(last - first + 1):
            await server.add(f"c{number}")
        answer = await admin(server, "POST", "/v1/clusters", {"name": "late"})
        assert (answer.status, answer.json()["code"]) == (507, "TWR109")
        assert "late" not in server.services.clusters.names()
        await admin(server, "DELETE", "/v1/clusters/c0")
        await server.add("late")


async def test_an_addition_that_fails_tells_its_first_cause_and_what_it_could_not_take_away(tmp_path, monkeypatch):
    async with running(tmp_path) as server:
        store = server.services.store
        create, delete = store.create, store.delete

        async def over_quota(kind: Kind, name: str, data: Data) -> Record:
            if kind is Kind.CLAIM:
                raise TowerError("TWR115", "exceeded quota: leases", mend="raise the quota")
            return await create(kind, name, data)

        async def away(*_what: object, **_more: object) -> None:
            raise TowerError("TWR114", "no answer")

        monkeypatch.setattr(store, "create", over_quota)
        monkeypatch.setattr(store, "delete", away)
        said = (await admin(server, "POST", "/v1/clusters", {"name": "edge-1"})).json()
        assert said["code"] == "TWR115"
        assert "exceeded quota: leases; and the record of cluster edge-1 stays" in said["message"]
        assert "no answer" in said["message"]
        assert said["mend"].startswith("raise the quota; ")
        monkeypatch.setattr(store, "delete", delete)
        assert (await admin(server, "POST", "/v1/clusters", {"name": "edge-2"})).json()["message"].endswith("leases")
        assert [record.name for record in (await store.list(Kind.CLUSTER)).items] == ["edge-1"]


async def test_an_addition_that_cannot_be_noted_tells_that_and_gives_its_port_back_or_leaves_it(tmp_path, monkeypatch):
    async with running(tmp_path) as server:
        store, delete = server.services.store, server.services.store.delete

        async def away(*_what: object, **_more: object) -> Record:
            raise TowerError("TWR114", "no answer to the update")

        async def claims_stay(kind: Kind, name: str, *, expect: Version | None = None) -> None:
            if kind is Kind.CLAIM:
                raise TowerError("TWR114", "no answer to the release")
            await delete(kind, name, expect=expect)

        with monkeypatch.context() as patch:
            patch.setattr(store, "update", away)
            patch.setattr(store, "delete", claims_stay)
            said = (await admin(server, "POST", "/v1/clusters", {"name": "edge-1"})).json()
            assert (said["code"], said["message"]) == ("TWR114", "no answer to the update")
        await server.add("edge-1")


async def test_what_a_controller_noted_on_a_cluster_goes_with_it_where_this_server_has_not_heard_of_it(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        store, port = server.services.store, server.config.ports.range[1]
        record = await store.get(Kind.CLUSTER, "edge-1")
        held = Cluster.read(record)
        await store.create(Kind.CLAIM, f"port-{port}", Claim("edge-1", held.uid, "kubesphere").data())
        noted = replace(held, ports={**held.ports, "kubesphere": port})
        await store.update(Kind.CLUSTER, "edge-1", noted.data(), expect=record.version)
        assert (await admin(server, "DELETE", "/v1/clusters/edge-1")).status == 200
        assert not (await store.list(Kind.CLAIM)).items


async def test_a_start_after_a_death_in_the_middle_puts_right_what_was_left(tmp_path):
    async with running(tmp_path) as server:
        settings = {"ports": {"range": server.config.ports.range, "bind": "127.0.0.1"}}
        store = server.services.store
        await store.create(Kind.CLUSTER, "half", Cluster("half", "uid-1", 1.0).data())
        first = server.config.ports.range[0]
        await store.create(Kind.CLAIM, f"port-{first}", {"cluster": "x", "uid": "gone", "service": "kubernetes"})
    async with running(tmp_path, **settings) as server:
        assert server.port("half") == first
        assert (await call(server, "half")).status == 503


async def test_a_cluster_without_a_port_does_not_keep_the_others_down(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        port = server.port("edge-1")
        await server.services.store.create(Kind.CLUSTER, "half", Cluster("half", "uid-1", 1.0).data())
    async with running(tmp_path, ports={"range": (port, port), "bind": "127.0.0.1"}) as server:
        assert (await call(server, "edge-1")).status == 503
        view = (await admin(server, "GET", "/v1/clusters/half")).json()
        assert (view["ports"], view["server"]) == ({}, None)


async def test_whether_a_cluster_ever_connected_survives_a_restart(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1"):
        pass
    async with running(tmp_path) as server:
        verdict = server.member("edge-1").verdict
        assert (verdict.state, verdict.code) == ("TunnelDown", "TWR201")
        assert server.member("edge-1").hold.return_likely


async def test_what_is_not_there_is_named(tmp_path):
    async with running(tmp_path) as server:
        with pytest.raises(TowerError, match="nowhere"):
            server.services.clusters.get("nowhere")


async def test_a_deletion_that_the_store_cuts_short_is_a_deletion_or_none(tmp_path, monkeypatch):
    async with running(tmp_path) as server, joined(server, "edge-1"):
        store = server.services.store
        delete = store.delete

        async def fails(kind, name, **more):
            raise TowerError("TWR105", "the disk is full")

        monkeypatch.setattr(store, "delete", fails)
        answer = await admin(server, "DELETE", "/v1/clusters/edge-1")
        assert (answer.status, answer.json()["code"]) == (503, "TWR105")
        assert (await call(server, "edge-1")).status == 200
        monkeypatch.setattr(store, "delete", delete)
        assert (await admin(server, "DELETE", "/v1/clusters/edge-1")).status == 200
        assert server.services.clusters.names() == []


@pytest.mark.parametrize("change", [{"uid": "of somebody else"}, {"resource": "of a resource"}], ids=str)
async def test_a_cluster_that_somebody_has_made_another_meanwhile_is_not_taken(tmp_path, change):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        store = server.services.store
        record = await store.get(Kind.CLUSTER, "edge-1")
        await store.update(Kind.CLUSTER, "edge-1", {**record.data, **change}, expect=record.version)
        answer = await admin(server, "DELETE", "/v1/clusters/edge-1")
        assert (answer.status, answer.json()["code"]) == (409, "TWR108")
        assert "made anew, or taken over" in answer.json()["message"]
        assert "look at it again" in answer.json()["mend"]
        assert (await store.get(Kind.CLUSTER, "edge-1")).data == {**record.data, **change}
        assert len((await store.list(Kind.AGENT)).items) == 1
        assert not server.services.revocations.current.agents
        assert not agent.closed
        assert (await call(server, "edge-1")).status == 200


async def test_a_cluster_whose_name_was_given_to_another_since_it_was_looked_at_is_not_taken(tmp_path):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        clusters = server.services.clusters
        seen, _ = clusters.get("edge-1")
        await admin(server, "DELETE", "/v1/clusters/edge-1")
        await server.add("edge-1")
        with pytest.raises(TowerError, match="made anew") as caught:
            await clusters.delete(seen)
        assert caught.value.code == "TWR108"
        assert clusters.names() == ["edge-1"]
        assert len((await server.services.store.list(Kind.CLUSTER)).items) == 1


async def test_a_write_of_somebody_else_between_a_look_and_the_deletion_does_not_keep_the_cluster(
    tmp_path, monkeypatch
):
    async with running(tmp_path) as server:
        await server.add("edge-1")
        store = server.services.store
        delete, wrote = store.delete, []

        async def late(kind, name, *, expect=None):
            if kind is Kind.CLUSTER and not wrote:
                wrote.append(await store.update(kind, name, (await store.get(kind, name)).data, expect=expect))
            await delete(kind, name, expect=expect)

        monkeypatch.setattr(store, "delete", late)
        assert (await admin(server, "DELETE", "/v1/clusters/edge-1")).status == 200
        assert wrote
        assert not (await store.list(Kind.CLUSTER)).items


async def test_what_hangs_on_a_cluster_that_somebody_else_deletes_first_is_taken_and_nothing_of_the_next(tmp_path):
    async with running(tmp_path) as server:
        identity = await enrol(server, await server.add("edge-1"))
        store = server.services.store
        (old,) = (await store.list(Kind.AGENT)).items
        await store.delete(Kind.CLUSTER, "edge-1")
        await store.create(Kind.AGENT, "edge-1.new", {**old.data, "name": "new", "uid": "of the next"})
        assert (await admin(server, "DELETE", "/v1/clusters/edge-1")).status == 200
        assert set(server.services.revocations.current.agents) == {("edge-1", identity.reply.agent)}
        assert [record.name for record in (await store.list(Kind.AGENT)).items] == ["edge-1.new"]


@pytest.mark.slow
@pytest.mark.parametrize("writes", range(1, 5))
async def test_a_server_that_dies_while_it_deletes_lets_nobody_of_that_cluster_into_the_next(tmp_path, writes):
    async with running(tmp_path) as server:
        keys = {"key": generate_key(), "serving_key": generate_key()}
        identity = await enrol(server, await server.add("edge-1"), **keys)
        store, done = server.services.store, []

        def dying(write):
            async def until_it_dies(*what, **more):
                if len(done) == writes:
                    raise TowerError("TWR105", "the machine is gone")
                done.append(what)
                return await write(*what, **more)

            return until_it_dies

        with pytest.MonkeyPatch.context() as patch:
            for verb in ("create", "update", "delete"):
                patch.setattr(store, verb, dying(getattr(store, verb)))
            assert (await admin(server, "DELETE", "/v1/clusters/edge-1")).status == 503
    async with running(tmp_path, ports={"range": server.config.ports.range, "bind": "127.0.0.1"}) as server:
        listed = server.services.revocations
        await until(lambda: listed.current.agents, what="the next server puts right what was left")
        token = await server.add("edge-1")
        with pytest.raises(DialError) as caught:
            await Agent(server, identity).connect()
        assert caught.value.code == Code.REVOKED
        await until(lambda: time.time() > max(listed.current.agents.values()) + 1.0, what="a second's ties are over")
        again = Agent(server, await enrol(server, token, **keys))
        await again.connect()
        with pytest.raises(DialError) as caught:
            await Agent(server, identity).connect()
        assert caught.value.code == Code.REVOKED
        await again.close()


async def test_records_that_others_write_are_followed(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        store, clusters = server.services.store, server.services.clusters
        async with following(server):
            port = server.config.ports.range[0] + 5
            await store.create(Kind.CLUSTER, "edge-2", Cluster("edge-2", "u2", 1.0).data())
            await until(lambda: "edge-2" in clusters.names())
            record = await store.get(Kind.CLUSTER, "edge-2")
            noted = Cluster("edge-2", "u2", 1.0, ports={"kubernetes": port})
            await store.update(Kind.CLUSTER, "edge-2", noted.data(), expect=record.version)
            await until(lambda: [each.service for each in clusters.ports.of("edge-2")] == ["kubernetes"])
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
            assert server.member("edge-2").verdict.state == "NeverConnected"
            record = await store.get(Kind.CLUSTER, "edge-2")
            seen = replace(noted, connected=time.time())
            await store.update(Kind.CLUSTER, "edge-2", seen.data(), expect=record.version)
            await until(lambda: server.member("edge-2").verdict.state == "TunnelDown")
            await store.delete(Kind.CLUSTER, "edge-2")
            await until(lambda: "edge-2" not in clusters.names())
            assert not clusters.ports.of("edge-2")
            await store.delete(Kind.CLUSTER, "edge-1")
            again = Cluster("edge-1", "another", 1.0)
            await store.create(Kind.CLUSTER, "edge-1", again.data())
            await until(lambda: "edge-1" in clusters.names() and clusters.get("edge-1")[0].uid == "another")
            await until(lambda: agent.tunnel.closed is not None)
            assert agent.tunnel.closed.code == Code.DELETED
            assert clusters.get("edge-1")[1].tunnels == []


@asynccontextmanager
async def followed_late(server: Running, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[asyncio.Event]:
    """The server follows its store by a watch that is behind until the event is set."""
    store, told, listed = server.services.store, asyncio.Event(), asyncio.Event()
    watch = store.watch

    async def late(kind: Kind, *, since: Version) -> AsyncIterator[Change]:
        listed.set()
        async for change in watch(kind, since=since):
            await told.wait()
            yield change

    monkeypatch.setattr(store, "watch", late)
    async with following(server):
        await until(listed.is_set)
        yield told


async def all_told(server: Running, told: asyncio.Event) -> None:
    """The watch tells what it held back, and all that was written until now."""
    told.set()
    await server.services.store.create(Kind.CLUSTER, "last", Cluster("last", "u2", 1.0).data())
    await until(lambda: "last" in server.services.clusters.names())


async def test_what_a_watch_tells_late_does_not_undo_what_this_server_wrote_since(tmp_path, monkeypatch):
    async with running(tmp_path) as server, followed_late(server, monkeypatch) as told:
        clusters, seen = server.services.clusters, []
        await server.add("edge-1")  # a record, and then its port
        first = clusters.get("edge-1")[0]
        await clusters.delete(first)
        async with joined(server, "edge-1") as agent:
            await clusters.save()
            now = clusters.get("edge-1")[0]
            clusters.subscribe(lambda change, name: name == "last" or seen.append((change, clusters.get(name)[0])))
            await all_told(server, told)
            assert all(each == ("MODIFIED", now) for each in seen)  # a probe that is over, at most
            assert clusters.get("edge-1")[0] == now != first
            assert agent.tunnel.closed is None
            assert (await call(server, "edge-1")).status == 200


async def test_what_others_wrote_counts_although_this_server_wrote_over_it_before_it_was_told(tmp_path, monkeypatch):
    async with running(tmp_path) as server:
        store, clusters = server.services.store, server.services.clusters
        made = Cluster("edge-1", "u1", 1.0)
        await store.create(Kind.CLUSTER, "edge-1", made.data())
        async with followed_late(server, monkeypatch) as told:
            port = server.config.ports.range[0]
            record = await store.get(Kind.CLUSTER, "edge-1")
            noted = replace(made, ports={"kubernetes": port})
            await store.update(Kind.CLUSTER, "edge-1", noted.data(), expect=record.version)
            await clusters.set_legacy("edge-1", legacy_token="hash")
            await all_told(server, told)
            assert clusters.get("edge-1")[0] == replace(noted, legacy_token="hash")
            assert (await call(server, "edge-1")).status == 503


async def test_another_port_on_the_record_is_listened_on_in_place_of_the_one_before(tmp_path, monkeypatch):
    """A store that was put back had not noted the port yet, and a controller gave another."""
    async with running(tmp_path) as server, joined(server, "edge-1"), followed_late(server, monkeypatch) as told:
        told.set()
        store, before = server.services.store, server.port("edge-1")
        record = await store.get(Kind.CLUSTER, "edge-1")
        without = await store.update(Kind.CLUSTER, "edge-1", {**record.data, "ports": {}}, expect=record.version)
        await until(lambda: not server.services.clusters.get("edge-1")[0].ports)
        with socket.create_connection(("127.0.0.1", before), timeout=5):  # nobody has another for it yet
            pass
        noted = {**record.data, "ports": {"kubernetes": before + 1}}
        await store.update(Kind.CLUSTER, "edge-1", noted, expect=without.version)
        await until(lambda: [each.port for each in server.services.clusters.ports.of("edge-1")] == [before + 1])
        assert (await call(server, "edge-1")).status == 200
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", before)) != 0


async def test_a_server_that_notes_a_tunnel_spares_neither_the_old_cluster_nor_the_one_made_anew(tmp_path, monkeypatch):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        store, clusters = server.services.store, server.services.clusters
        async with followed_late(server, monkeypatch) as told:
            await store.delete(Kind.CLUSTER, "edge-1")
            again = Cluster("edge-1", "another", 1.0)
            await store.create(Kind.CLUSTER, "edge-1", again.data())
            await clusters.save()
            await all_told(server, told)
            await until(lambda: agent.tunnel.closed is not None, what="the tunnel of the deleted cluster ends")
            assert agent.tunnel.closed.code == Code.DELETED
            assert clusters.get("edge-1")[1].uid == "another"
            assert server.member("edge-1").verdict.state == "NeverConnected"


async def test_a_cluster_whose_end_is_told_before_the_answer_to_a_write_stays_away(tmp_path, monkeypatch):
    async with running(tmp_path) as server, followed_late(server, monkeypatch) as told:
        store, clusters = server.services.store, server.services.clusters
        await server.add("edge-1")
        update, deleted, answered = store.update, asyncio.Event(), asyncio.Event()

        async def slow(kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
            done = await update(kind, name, data, expect=expect)
            await store.delete(kind, name)
            deleted.set()
            await answered.wait()
            return done

        monkeypatch.setattr(store, "update", slow)
        server.member("edge-1").noted(time.time())
        noting = asyncio.create_task(clusters.save())
        await until(deleted.is_set)
        await all_told(server, told)
        assert clusters.names() == ["last"]
        answered.set()
        await noting
        assert clusters.names() == ["last"]
        assert not clusters.ports.of("edge-1")


async def test_a_deleted_cluster_is_let_go_with_the_revocation_of_its_agents_however_late_the_watch_is(
    tmp_path, monkeypatch
):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent, joined(server, "edge-2") as other:
        services, store = server.services, server.services.store
        async with followed_late(server, monkeypatch) as told:
            await store.delete(Kind.CLUSTER, "edge-1")
            elsewhere = await Revocations.load(store, services.authority, at=time.time())
            await elsewhere.revoke_agents({("edge-1", ALL_AGENTS): 1.0, ("edge-2", ALL_AGENTS): 1.0}, at=time.time())
            await sync_revocations(services.revocations, services.registry, services.clusters.look)
            await until(lambda: agent.tunnel.closed is not None)
            assert agent.tunnel.closed.code == Code.DELETED
            assert services.clusters.names() == ["edge-2"]
            assert not services.clusters.ports.of("edge-1")
            await all_told(server, told)
            assert services.clusters.names() == ["edge-2", "last"]
            assert other.tunnel.closed is None


async def test_a_server_stops_although_others_deleted_a_cluster_that_it_has_not_heard_of(tmp_path):
    async with running(tmp_path) as server, joined(server, "edge-1") as agent:
        store = server.services.store
        await store.delete(Kind.CLUSTER, "edge-1")
        await server.server.stop()
        await until(lambda: agent.tunnel.closed is not None)
        with pytest.raises(TowerError, match="closed"):
            await store.list(Kind.CLUSTER)


async def test_a_cluster_that_is_added_while_its_name_is_being_freed_is_brought_up_once(tmp_path, monkeypatch):
    async with running(tmp_path) as server, followed_late(server, monkeypatch) as told:
        store, clusters = server.services.store, server.services.clusters
        told.set()
        await server.add("edge-1")
        listing, update = store.list, store.update
        freed, written, answered = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def slow_list(kind: Kind, *, prefix: str = "") -> Listing:
            if kind is Kind.TOKEN:
                await freed.wait()
            return await listing(kind, prefix=prefix)

        async def slow_update(kind: Kind, name: str, data: Data, *, expect: Version) -> Record:
            done = await update(kind, name, data, expect=expect)
            if kind is Kind.CLUSTER:
                written.set()
                await answered.wait()
            return done

        monkeypatch.setattr(store, "list", slow_list)
        monkeypatch.setattr(store, "update", slow_update)
        asked = clusters.get("edge-1")[0]
        deletion = asyncio.create_task(clusters.delete(asked))
        await until(lambda: not clusters.names())
        addition = asyncio.create_task(clusters.create("edge-1"))
        await asyncio.sleep(0)  # it waits for its name
        freed.set()
        await deletion
        await until(written.is_set)
        for _ in range(100):  # what the watch tells of it meanwhile waits too
            await asyncio.sleep(0)
        answered.set()
        token = parse_token((await server.services.tokens.create(await addition)).text)
        agent = Agent(server, await enrol(server, token))
        await agent.connect()
        assert [port.problem for port in clusters.ports.of("edge-1")] == [None]
        assert (await call(server, "edge-1")).status == 200
        await agent.close()


async def test_a_cluster_that_is_added_while_the_records_are_listed_stays(tmp_path, monkeypatch):
    async with running(tmp_path) as server:
        store, clusters = server.services.store, server.services.clusters
        listing, answered, listed = store.list, asyncio.Event(), asyncio.Event()

        async def slow(kind: Kind, *, prefix: str = "") -> Listing:
            found = await listing(kind, prefix=prefix)
            if kind is Kind.CLUSTER:
                listed.set()
                await answered.wait()
            return found

        await server.add("gone")
        monkeypatch.setattr(store, "list", slow)
        async with following(server):
            await until(listed.is_set)
            async with joined(server, "edge-1") as agent:
                await clusters.delete(clusters.get("gone")[0])
                answered.set()
                await store.create(Kind.CLUSTER, "last", Cluster("last", "u2", 1.0).data())
                await until(lambda: "last" in clusters.names())
                assert clusters.names() == ["edge-1", "last"]
                assert agent.tunnel.closed is None
