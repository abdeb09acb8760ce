from __future__ import annotations

import time

import pytest

from certs.ca import Authority
from certs.errors import Reason, Untrusted
from protocol import defaults
from tests.tower_server.replicas.kit import certificate

DAY = 86400.0


def test_two_servers_of_a_host_know_each_other_by_name():
    authority = Authority.create("hq", at=time.time())
    one, two = certificate("one", authority), certificate("two", authority)
    assert one.verify(two.issued.chain_der, at=time.time(), name="two").name == "two"
    with pytest.raises(Untrusted, match="called as three is two") as caught:
        one.verify(two.issued.chain_der, at=time.time(), name="three")
    assert "replica.name" in caught.value.mend


def test_strangers_and_nobody_are_refused():
    authority = Authority.create("hq", at=time.time())
    one = certificate("one", authority)
    with pytest.raises(Untrusted) as caught:
        one.verify(certificate("two", Authority.create("hq", at=time.time())).issued.chain_der, at=time.time())
    assert caught.value.reason is Reason.UNKNOWN_ISSUER
    with pytest.raises(Untrusted, match="no certificate"):
        one.verify([], at=time.time())


def test_what_was_verified_once_still_expires():
    one, two = certificate("one"), certificate("two")
    later = time.time() + (defaults.SERVER_CERTIFICATE_DAYS + 1) * DAY
    one.verify(two.issued.chain_der, at=time.time())
    with pytest.raises(Untrusted, match="expired"):
        one.verify(two.issued.chain_der, at=later)


def test_it_follows_a_rotation_of_the_ca():
    authority = Authority.create("hq", at=time.time() - DAY)
    one, two = certificate("one", authority), certificate("two", authority)
    before = two.issued.chain_der
    for later in (authority.with_next(at=time.time()), authority.with_next(at=time.time())):
        assert later.number == 2
    authority.take_over(authority.with_next(at=time.time()))
    authority.take_over(authority.switched())
    two.renew(at=time.time())
    one.renew(at=time.time())
    assert one.verify(two.issued.chain_der, at=time.time()).name == "two"
    assert one.verify(before, at=time.time()).name == "two"
    authority.take_over(authority.finished())
    one.renew(at=time.time())
    with pytest.raises(Untrusted, match="not issued by"):
        one.verify(before, at=time.time())


def test_it_says_when_to_renew():
    one = certificate("one")
    assert time.time() < one.renew_at < one.issued.not_after
