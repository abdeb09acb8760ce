from __future__ import annotations

import copy
import time

import pytest

from certs.keys import generate_key
from daemon.faults import TowerError
from tests.tower_server.admin.standin import NAMESPACE, SERVER, Apiserver, answer
from tower_server.admin.login import (
    KNOWN_BURST,
    LOGIN_BURST,
    NONCE_SECONDS,
    SESSION_SECONDS,
    Logins,
    read_request,
)

pytestmark = pytest.mark.asyncio


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def host() -> Apiserver:
    return Apiserver()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(host: Apiserver, clock: Clock) -> Logins:
    return Logins(host, namespace=NAMESPACE, server=SERVER, clock=clock)  # type: ignore[arg-type]


async def refused(logins: Logins, document: dict, *told: str) -> None:
    with pytest.raises(TowerError) as caught:
        await logins.login(document)
    assert caught.value.code == "TWR613"
    assert caught.value.http_status == 401
    for part in told:
        assert part in caught.value.message


async def test_whoever_holds_the_key_is_who_the_apiserver_wrote_down(logins: Logins, host: Apiserver) -> None:
    key = host.person("alice")
    made = await logins.login(answer(logins.challenge(), key))
    assert made["user"] == "alice"
    person = logins.who(f"Bearer {made['token']}")
    assert (person.name, person.uid, person.groups) == ("alice", "u-1", ("system:authenticated", "ops"))
    assert person.extra == {"example.com/team": ("edge",)}


async def test_another_key_another_server_or_an_old_nonce_is_nobody(
    logins: Logins, host: Apiserver, clock: Clock
) -> None:
    key = host.person("alice")
    await refused(logins, answer(logins.challenge(), generate_key()), "not one of the request's key")
    await refused(logins, answer(logins.challenge(), key, server="tower-server-1"), "not one of the request's key")
    once = answer(logins.challenge(), key)
    await logins.login(once)
    await refused(logins, once, "was used before")
    late = answer(logins.challenge(), key)
    clock.now += NONCE_SECONDS + 1
    await refused(logins, late, "older than a minute")
    foreign = Logins(host, namespace=NAMESPACE, server=SERVER).challenge()  # type: ignore[arg-type]
    await refused(logins, answer(foreign, key), "not one of this server's")
    await refused(
        logins, answer(logins.challenge(), key, request="nobodys"), "has no CertificateSigningRequest nobodys"
    )
    await refused(logins, answer(logins.challenge(), key, request="../x"), "cannot be the name")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda found: found["spec"].update(signerName="kubernetes.io/kube-apiserver-client"), "another purpose"),
        (lambda found: found["metadata"]["labels"].clear(), "not for the tower of namespace tower-system"),
        (lambda found: found.update(status={"conditions": [{"type": "Denied"}]}), "denied or deleted"),
        (lambda found: found["metadata"].update(deletionTimestamp="2024-01-01T00:00:00Z"), "denied or deleted"),
        (
            lambda found: found["metadata"].update(creationTimestamp="2024-01-01T00:00:00Z"),
            "s old, and good for 3600 s",
        ),
        (lambda found: found["metadata"].update(creationTimestamp="2999-01-01T00:00:00Z"), "s old"),
        (lambda found: found["spec"].update(username=""), "names nobody"),
        (lambda found: found["spec"].update(request="%%%"), "not of its form"),
        (lambda found: found["spec"].update(request="aGk="), "cannot be read"),
    ],
)
async def test_a_request_that_is_not_for_this_lets_nobody_in(
    logins: Logins, host: Apiserver, change, told: str
) -> None:
    key = host.person("alice")
    change(host.requests["alices"])
    await refused(logins, answer(logins.challenge(), key), told)


async def test_a_session_ends_and_no_other_header_opens_one(logins: Logins, host: Apiserver, clock: Clock) -> None:
    token = (await logins.login(answer(logins.challenge(), host.person("alice"))))["token"]
    for header in ("", token, f"bearer {token}", f"Basic {token}", f"Bearer {token}x", "Bearer "):
        with pytest.raises(TowerError, match="nobody is logged in by that"):
            logins.who(header)
    clock.now += SESSION_SECONDS + 1
    with pytest.raises(TowerError, match="it is over"):
        logins.who(f"Bearer {token}")


async def paced(logins: Logins, document: dict) -> None:
    with pytest.raises(TowerError) as caught:
        await logins.login(document)
    assert caught.value.code == "TWR615"
    assert caught.value.retry_after


async def test_nobody_has_anothers_nonce_forgotten_by_asking_for_many(logins: Logins, host: Apiserver) -> None:
    first = answer(logins.challenge(), host.person("alice"))
    for _ in range(2000):
        logins.challenge()
    assert await logins.login(first)


async def test_nonces_that_are_none_cost_nobody_a_login(logins: Logins, host: Apiserver) -> None:
    key = host.person("alice")
    for nonce in ("", "AAAA", "A" * 44, answer(logins.challenge(), key)["nonce"][:-6] + "AAAAA="):
        for _ in range(LOGIN_BURST):
            await refused(logins, answer(logins.challenge(), key) | {"nonce": nonce}, "not one of this server's")
    assert await logins.login(answer(logins.challenge(), key))


async def test_logins_are_paced_and_strangers_keep_out_nobody_who_has_been_in(
    logins: Logins, host: Apiserver, clock: Clock
) -> None:
    alice = host.person("alice")
    assert await logins.login(answer(logins.challenge(), alice))
    for number in range(LOGIN_BURST - 1):  # the first login counted
        await refused(logins, answer(logins.challenge(), alice, request=f"nobodys-{number}"), "has no Certificate")
    await paced(logins, answer(logins.challenge(), alice, request="nobodys"))
    for _ in range(KNOWN_BURST):
        assert await logins.login(answer(logins.challenge(), alice))
    await paced(logins, answer(logins.challenge(), alice))
    clock.now += 1
    assert await logins.login(answer(logins.challenge(), alice))
    await refused(logins, answer(logins.challenge(), alice, request="nobodys"), "has no CertificateSigningRequest")


async def test_what_was_read_does_not_change_what_is_held(host: Apiserver) -> None:
    host.person("alice", groups=None, extra=None)
    before = copy.deepcopy(host.requests["alices"])
    person, _ = read_request(host.requests["alices"], namespace=NAMESPACE, at=time.time())
    assert (person.groups, dict(person.extra)) == ((), {})
    assert host.requests["alices"] == before
