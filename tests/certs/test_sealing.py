from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from certs.ca import Authority
from certs.errors import FingerprintMismatch, MessageError, SealError
from certs.keys import generate_key, signer
from certs.sealing import Sealer, check_offer, open_sealed, seal
from protocol.defaults import SEAL_KEY_LIFETIME
from tests.certs.conftest import AT, DAY

CONTEXT = b"context"


def sealer_of(authority: Authority) -> Sealer:
    key = generate_key()
    issued = authority.issue_server("s1", ["*.members.tower"], public_key=key.public_key(), at=AT)
    return Sealer(bundle=authority.bundle, chain_pem=issued.chain_pem, sign=signer(key))


@pytest.fixture
def sealer(authority: Authority) -> Sealer:
    return sealer_of(authority)


def changed(offer: bytes, **changes: Any) -> bytes:
    return json.dumps(json.loads(offer) | changes).encode()


def test_what_is_sealed_to_an_offered_key_is_opened(authority: Authority, sealer: Sealer) -> None:
    offer = check_offer(sealer.offer(AT), ca=authority.bundle.fingerprint, at=AT)
    assert (offer.host, offer.server.name) == ("hq", "s1")
    sealed = seal(b"secret", offer.seal_key, CONTEXT)
    assert b"secret" not in sealed
    assert sealer.open(sealed, key_id=offer.key_id, context=CONTEXT, at=AT) == b"secret"


def test_another_root_is_named_beside_the_expected_one(
    authority: Authority, other_authority: Authority, sealer: Sealer
) -> None:
    with pytest.raises(FingerprintMismatch, match=r"nothing was sent") as caught:
        check_offer(sealer.offer(AT), ca=other_authority.bundle.fingerprint, at=AT)
    assert authority.bundle.fingerprint in caught.value.text
    assert other_authority.bundle.fingerprint in caught.value.text
    assert caught.value.fault == "TWR223"


def test_a_middle_cannot_put_its_own_key_in(authority: Authority, other_authority: Authority, sealer: Sealer) -> None:
    foreign = json.loads(sealer_of(other_authority).offer(AT))
    for changes in (
        {"seal_key": foreign["seal_key"]},
        {"seal_key": foreign["seal_key"], "signature": foreign["signature"]},
        {"expires": AT + 10 * SEAL_KEY_LIFETIME},
        {"host": "elsewhere"},
    ):
        with pytest.raises(SealError, match=r"nothing was sent"):
            check_offer(changed(sealer.offer(AT), **changes), ca=authority.bundle.fingerprint, at=AT)


def test_the_right_root_above_a_foreign_leaf_vouches_for_nothing(
    authority: Authority, other_authority: Authority, sealer: Sealer
) -> None:
    mine, foreign = json.loads(sealer.offer(AT)), json.loads(sealer_of(other_authority).offer(AT))
    for chain in (
        [*foreign["chain"][:2], mine["chain"][2]],
        [foreign["chain"][0], *mine["chain"][1:]],
        [foreign["chain"][0], mine["chain"][2]],
    ):
        with pytest.raises(SealError, match=r"cannot be trusted.*nothing was sent"):
            check_offer(json.dumps(foreign | {"chain": chain}).encode(), ca=authority.bundle.fingerprint, at=AT)


def test_an_agents_certificate_cannot_offer(authority: Authority) -> None:
    key = generate_key()
    issued = authority.issue_agent("edge-1", "a1", public_key=key.public_key(), at=AT)
    impostor = Sealer(bundle=authority.bundle, chain_pem=issued.chain_pem, sign=signer(key))
    with pytest.raises(SealError, match=r"agent's identity was shown where a tower server's certificate is needed"):
        check_offer(impostor.offer(AT), ca=authority.bundle.fingerprint, at=AT)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"<html>", "not JSON"),
        (b"{}", "'host'"),
        (b"x" * 70_000, "more than the 65536"),
        (b'{"host":"hq","seal_key":"AAAA","expires":1,"signature":"AAAA","chain":[]}', "one to four PEM"),
        (b'{"host":"hq","seal_key":"AAAA","expires":1,"signature":"AAAA","chain":["x"]}', "cannot be read"),
    ],
)
def test_what_is_no_offer_is_refused(authority: Authority, data: bytes, says: str) -> None:
    with pytest.raises(MessageError, match=says):
        check_offer(data, ca=authority.bundle.fingerprint, at=AT)


def test_an_old_offer_is_refused(authority: Authority, sealer: Sealer) -> None:
    offer = sealer.offer(AT)
    check_offer(offer, ca=authority.bundle.fingerprint, at=AT + 2 * SEAL_KEY_LIFETIME)
    with pytest.raises(SealError, match=r"run out.*clock"):
        check_offer(offer, ca=authority.bundle.fingerprint, at=AT + 2 * SEAL_KEY_LIFETIME + 1)


def test_seal_keys_rotate_and_the_last_one_still_opens(authority: Authority, sealer: Sealer) -> None:
    ca = authority.bundle.fingerprint
    first = check_offer(sealer.offer(AT), ca=ca, at=AT)
    assert check_offer(sealer.offer(AT + SEAL_KEY_LIFETIME), ca=ca, at=AT).key_id == first.key_id
    later = AT + SEAL_KEY_LIFETIME + 1
    second = check_offer(sealer.offer(later), ca=ca, at=later)
    assert second.key_id != first.key_id
    sealed = seal(b"x", first.seal_key, CONTEXT)
    assert sealer.open(sealed, key_id=first.key_id, context=CONTEXT, at=later) == b"x"
    with pytest.raises(SealError, match=r"no longer has; fetch the server's offer again"):
        sealer.open(sealed, key_id=first.key_id, context=CONTEXT, at=AT + 2 * SEAL_KEY_LIFETIME + 1)
    with pytest.raises(SealError, match=r"no longer has"):
        sealer.open(sealed, key_id="0" * 16, context=CONTEXT, at=later)


def test_a_renewed_server_certificate_keeps_the_seal_keys(authority: Authority, sealer: Sealer) -> None:
    before = check_offer(sealer.offer(AT), ca=authority.bundle.fingerprint, at=AT)
    key = generate_key()
    issued = authority.issue_server("s2", [], public_key=key.public_key(), at=AT)
    sealer.vouch(bundle=authority.bundle, chain_pem=issued.chain_pem, sign=signer(key))
    after = check_offer(sealer.offer(AT), ca=authority.bundle.fingerprint, at=AT)
    assert (after.server.name, after.key_id) == ("s2", before.key_id)


def test_an_expired_server_certificate_vouches_for_nothing(authority: Authority, sealer: Sealer) -> None:
    late = AT + 40 * DAY
    with pytest.raises(SealError, match=r"expired at"):
        check_offer(sealer.offer(late), ca=authority.bundle.fingerprint, at=late)


def test_what_is_sealed_is_bound_to_key_and_context() -> None:
    private = X25519PrivateKey.generate()
    public = private.public_key().public_bytes_raw()
    sealed = seal(b"x", public, CONTEXT)
    assert open_sealed(sealed, private, CONTEXT) == b"x"
    altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for box, key, context in (
        (sealed, private, b"another"),
        (sealed, X25519PrivateKey.generate(), CONTEXT),
        (altered, private, CONTEXT),
        (b"", private, CONTEXT),
        (sealed[:20], private, CONTEXT),
    ):
        with pytest.raises(SealError, match=r"altered, or is meant for someone else"):
            open_sealed(box, key, context)


@pytest.mark.parametrize("key", [b"", b"\0" * 31, b"\0" * 32])
def test_nothing_is_sealed_to_a_key_that_everyone_has(key: bytes) -> None:
    with pytest.raises(SealError, match=r"nothing can be sealed"):
        seal(b"x", key, CONTEXT)


def test_an_offer_is_signed_once_for_its_key_and_its_certificate(authority: Authority) -> None:
    key, signed = generate_key(), []

    def sign(data: bytes) -> bytes:
        signed.append(data)
        return signer(key)(data)

    issued = authority.issue_server("s1", ["*.members.tower"], public_key=key.public_key(), at=AT)
    sealer = Sealer(bundle=authority.bundle, chain_pem=issued.chain_pem, sign=sign)
    assert sealer.offer(AT) == sealer.offer(AT + 1)
    assert len(signed) == 1
    later = AT + SEAL_KEY_LIFETIME + 1
    assert check_offer(sealer.offer(later), ca=authority.bundle.fingerprint, at=later).seal_key
    assert len(signed) == 2
    renewed = authority.issue_server("s2", ["*.members.tower"], public_key=key.public_key(), at=AT)
    sealer.vouch(bundle=authority.bundle, chain_pem=renewed.chain_pem, sign=sign)
    assert check_offer(sealer.offer(later), ca=authority.bundle.fingerprint, at=later).server.name == "s2"
    assert len(signed) == 3
