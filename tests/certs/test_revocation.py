from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs import codec
from certs.ca import Authority
from certs.errors import ListRefused
from certs.keys import generate_key, signer
from certs.revocation import RevocationList, list_age, newer, verify_list
from protocol import defaults
from tests.certs.conftest import AT, DAY

FULL = RevocationList(
    7,
    "hq",
    AT,
    serials={5: AT + DAY, 2**127: AT + 2 * DAY},
    agents={("edge-1", "a1"): AT, ("edge-2", "*"): AT},
    users={"alice": AT},
)


def read(authority: Authority, encoded: bytes) -> RevocationList:
    return verify_list(encoded, issuers=authority.bundle.revocation_keys(), host="hq")


def test_a_signed_list_comes_back(authority: Authority) -> None:
    encoded = FULL.sign(authority.revocation_signer())
    assert read(authority, encoded) == FULL
    assert list_age(encoded)[0] == 7


def test_revoked_up_to_a_time_and_good_again_after_it() -> None:
    assert FULL.revokes_user(serial=1, user="alice", issued_at=AT)
    assert not FULL.revokes_user(serial=1, user="alice", issued_at=AT + 1)
    assert not FULL.revokes_user(serial=1, user="bob", issued_at=AT - 1)
    assert FULL.revokes_user(serial=5, user="bob", issued_at=AT + 1)
    assert FULL.revokes_agent(serial=1, cluster="edge-1", agent="a1", issued_at=AT)
    assert not FULL.revokes_agent(serial=1, cluster="edge-1", agent="a2", issued_at=AT)
    assert not FULL.revokes_agent(serial=1, cluster="edge-1", agent="a1", issued_at=AT + 1)
    assert FULL.revokes_agent(serial=1, cluster="edge-2", agent="any", issued_at=AT)
    assert FULL.revokes_agent(serial=2**127, cluster="edge-3", agent="a", issued_at=AT + 1)


def test_who_was_revoked_comes_back_with_a_new_certificate(authority: Authority) -> None:
    listed = RevocationList(1, "hq", AT, users={"alice": AT + 10.5})
    public = generate_key().public_key()
    old = authority.issue_client("alice", public_key=public, at=AT + 10)
    new = authority.issue_client("alice", public_key=public, at=AT + 11)
    verify = authority.bundle.verify_client
    assert verify(new.chain_der, AT + 12, revocations=listed).user == "alice"
    with pytest.raises(Exception, match=r"revoked"):
        verify(old.chain_der, AT + 12, revocations=listed)


def test_members_are_not_told_of_each_other() -> None:
    assert FULL.for_members() == replace(FULL, agents={})


def test_what_no_living_certificate_can_match_is_dropped() -> None:
    late = AT + (defaults.MAX_CALLER_DAYS + 1) * DAY
    assert FULL.pruned(AT) == FULL
    assert FULL.pruned(AT + DAY).serials == {2**127: AT + 2 * DAY}
    assert FULL.pruned(late) == RevocationList(7, "hq", AT)
    still_renewable = AT + (defaults.AGENT_IDENTITY_DAYS + defaults.EXPIRED_IDENTITY_GRACE_DAYS - 1) * DAY
    assert FULL.pruned(still_renewable).agents == FULL.agents


def test_only_the_hosts_clients_issuer_signs(authority: Authority, other_authority: Authority) -> None:
    for sign in (other_authority.revocation_signer(), signer(generate_key())):
        with pytest.raises(ListRefused, match=r"not signed by the clients issuer of hq") as caught:
            read(authority, FULL.sign(sign))
        assert caught.value.fault == "TWR506"


def test_a_list_of_another_host_is_refused(authority: Authority) -> None:
    with pytest.raises(ListRefused, match=r"that of elsewhere, not of hq"):
        read(authority, replace(FULL, host="elsewhere").sign(authority.revocation_signer()))


def test_numbers_only_rise() -> None:
    assert newer(None, FULL) is FULL
    assert newer(FULL, replace(FULL, number=8)).number == 8
    assert newer(FULL, replace(FULL)) is FULL
    again, before = (replace(FULL, issued_at=FULL.issued_at + shift) for shift in (60, -60))
    assert newer(FULL, again) is again
    assert newer(FULL, before) is FULL
    with pytest.raises(ListRefused, match=r"number 6, lower than 7 .*revoke again what was revoked since"):
        newer(FULL, replace(FULL, number=6))
    with pytest.raises(ListRefused, match=r"two different revocation lists have the number 7"):
        newer(FULL, replace(FULL, users={}))


def test_a_list_fits_the_control_stream_or_is_not_made(authority: Authority) -> None:
    serials = {(1 << 127) + i: AT for i in range(5000)}
    with pytest.raises(ListRefused, match=r"more than the .* allowed; revoke by user"):
        replace(FULL, serials=serials).sign(authority.revocation_signer())
    with pytest.raises(ListRefused, match=r"more than allowed"):
        read(authority, b"x" * (defaults.MAX_REVOCATION_BYTES + 1))


@pytest.mark.parametrize(
    "change",
    [
        {"number": "7"},
        {"number": True},
        {"number": -1},
        {"serials": [["zz", 1]]},
        {"serials": [["1" * 41, 1]]},
        {"serials": {"5": 1}},
        {"agents": [["edge-1", 1]]},
        {"agents": [["*", "a1", 1]]},
        {"users": [["a\nb", 1]]},
        {"users": [["alice", "now"]]},
        {"issued_at": None},
    ],
)
def test_signed_nonsense_is_refused_too(authority: Authority, change: dict[str, object]) -> None:
    good = {"number": 1, "host": "hq", "issued_at": AT, "serials": [], "agents": [], "users": []}
    payload = codec.encode(good | change)
    signature = authority.revocation_signer()(b"tower revocation list v1\x00" + payload)
    with pytest.raises(ListRefused, match=r"the revocation list"):
        read(authority, codec.base64_text(signature).encode() + b"." + payload)


SAMPLE = Authority.create("hq", at=AT)
ENCODED = FULL.sign(SAMPLE.revocation_signer())


@given(st.data())
def test_no_altered_byte_gets_through(data: st.DataObject) -> None:
    altered = bytearray(ENCODED)
    altered[data.draw(st.integers(0, len(ENCODED) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ListRefused):
        read(SAMPLE, bytes(altered))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_name(data: bytes) -> None:
    with pytest.raises(ListRefused):
        read(SAMPLE, data)
    assert list_age(data) == (-1, 0.0)
