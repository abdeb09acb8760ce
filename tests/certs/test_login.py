from __future__ import annotations

import itertools

from certs.keys import generate_key, signer, verify_signature
from certs.login import login_statement

LOGIN = {"namespace": "tower-system", "server": "tower-server-0", "request": "tower-operator-1", "nonce": b"n" * 32}


def test_no_two_logins_are_signed_alike() -> None:
    cases = [LOGIN, *({**LOGIN, key: value + value[:1]} for key, value in LOGIN.items())]
    cases.append({**LOGIN, "namespace": "tower-systemt", "server": "ower-server-0"})  # a byte moved across
    for one, other in itertools.combinations([login_statement(**case) for case in cases], 2):
        assert one != other


def test_a_signature_for_one_server_is_none_for_another() -> None:
    key = generate_key()
    signature = signer(key)(login_statement(**LOGIN))
    assert verify_signature(key.public_key(), login_statement(**LOGIN), signature)
    elsewhere = login_statement(**{**LOGIN, "server": "tower-server-1"})
    assert not verify_signature(key.public_key(), elsewhere, signature)
