from __future__ import annotations

import base64
import json
import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from certs.errors import TokenError
from certs.token import EnrolmentToken, hash_secret, parse_token, secret_matches

CA = "ab" * 32
TOKEN = EnrolmentToken.create(url="https://tower.example:8443", cluster="edge-1", ca=CA)


def packed(**changes: object) -> str:
    parts = json.loads(base64.urlsafe_b64decode(str(TOKEN)[5:] + "==")) | changes
    return "twr1." + base64.urlsafe_b64encode(json.dumps(parts).encode()).rstrip(b"=").decode()


def test_a_token_comes_back_whatever_surrounds_it() -> None:
    assert parse_token(str(TOKEN)) == TOKEN
    assert parse_token(f"\n  {TOKEN}\r\n") == TOKEN


def test_only_the_token_itself_shows_its_secret() -> None:
    assert TOKEN.secret not in repr(TOKEN)
    assert str(TOKEN).startswith("twr1.")


def test_secrets_are_long_and_never_the_same() -> None:
    again = EnrolmentToken.create(url=TOKEN.url, cluster="edge-1", ca=CA)
    assert again.secret != TOKEN.secret
    assert again.id != TOKEN.id
    assert len(base64.urlsafe_b64decode(TOKEN.secret + "=")) == 32


@pytest.mark.parametrize(
    ("given_text", "says"),
    [
        ("", "input is empty"),
        ("   \n", "input is empty"),
        ("eyJhbGciOi", "does not begin with twr1"),
        ("twr2.abc", "another version.*of the server's version"),
        ("twr1.", "nothing after its prefix"),
        ("twr1.%%%", "characters that no token has"),
        (str(TOKEN)[:40] + "\n" + str(TOKEN)[40:], "white space.*wrapped line.*one line"),
        (str(TOKEN)[:-10], "cut off or was altered.*create token"),
        (str(TOKEN)[:-1], "cut off or was altered|wrong form"),
        ("twr1." + "A" * 5000, "5005 characters, which no token has"),
        (packed(url="ftp://tower"), "URL is not one that an agent can dial"),
        (packed(url="https://user@tower:1"), "URL is not one"),
        (packed(url="https://tower:99999"), "URL is not one"),
        (packed(url="https://a b"), "URL is not one"),
        (packed(cluster="../x"), "not a DNS label"),
        (packed(ca="AB" * 32), "wrong form"),
        (packed(id="x"), "wrong form"),
        (packed(secret="short"), "wrong form"),
        (packed(secret=7), "cut off or was altered"),
    ],
)
def test_every_way_to_spoil_a_token_is_named(given_text: str, says: str) -> None:
    with pytest.raises(TokenError, match=says) as caught:
        parse_token(given_text)
    assert caught.value.fault == "TWR207"


@given(st.integers(0, len(str(TOKEN)) - 1), st.characters())
def test_no_complaint_repeats_the_secret(place: int, character: str) -> None:
    spoilt = str(TOKEN)[:place] + character + str(TOKEN)[place + 1 :]
    complaint: BaseException | None = None
    try:
        parse_token(spoilt)
    except TokenError as exc:
        complaint = exc
    printed = "".join(traceback.format_exception(complaint)) if complaint else ""
    assert TOKEN.secret not in printed
    assert spoilt[5:40] not in str(complaint)


@given(st.text(max_size=300))
def test_any_text_is_a_token_or_an_error(text: str) -> None:
    for candidate in (text, "twr1." + text):
        with pytest.raises(TokenError):
            parse_token(candidate)


def test_the_store_keeps_a_hash() -> None:
    stored = hash_secret(TOKEN.secret)
    assert TOKEN.secret not in stored
    assert secret_matches(TOKEN.secret, stored)
    assert not secret_matches(TOKEN.secret[:-1] + "~", stored)
    assert not secret_matches("", stored)
    assert not secret_matches("é", stored)
