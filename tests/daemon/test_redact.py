from __future__ import annotations

import pytest

from daemon.redact import REDACTED, is_secret_name, redact, redact_text

KEY = "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEEIB\nabc=\n-----END EC PRIVATE KEY-----"


@pytest.mark.parametrize("name", ["token", "secret", "proxy_password", "Authorization", "key", "clientKey", "seal-key"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "x"}) == {name: REDACTED}


@pytest.mark.parametrize(
    "name", ["token_id", "key_file", "secret_name", "monkey", "keys_path", "tokenExpires", "cluster", "keystone"]
)
def test_names_of_harmless_things(name: str) -> None:
    assert redact({name: "x"}) == {name: "x"}


@pytest.mark.parametrize(
    "text",
    [
        "join with twr1.eyJ1cmwiOiJodHRwcyJ9_-x now",
        "got header Bearer abc.def.ghi from caller",
        "got header bearer abcdef0123 from caller",
        "Basic dXNlcjpwYXNz and more",
        "base64url.bearer.authorization.k8s.io.c2VjcmV0 offered",
        f"file holds {KEY} at the end",
        "cut short -----BEGIN PRIVATE KEY-----\nMIG",
        "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJrdWJlIn0.c2ln",
        "proxy http://user:hunter22@squid:3128 refused",
    ],
)
def test_texts_that_look_like_secrets(text: str) -> None:
    shown = redact_text(text)
    assert REDACTED in shown
    for secret in ("eyJ", "abc.def", "abcdef0123", "dXNl", "c2Vj", "MHc", "MIG", "hunter22"):
        assert secret not in shown


def test_what_is_no_secret_stays_as_it_is() -> None:
    for text in (
        "tunnel open",
        "bearer tokens are passed on",
        "https://tower.example.com:8443/v1/tunnel",
        "a@b.example",
    ):
        assert redact_text(text) == text


def test_secrets_are_found_inside_containers_and_bytes_are_not_shown() -> None:
    value = {"a": [{"password": "x"}, "Bearer abcdefgh"], "b": b"raw", "n": 3, "none": None}
    assert redact(value) == {"a": [{"password": REDACTED}, REDACTED], "b": "<3 bytes>", "n": 3, "none": None}
    assert value["a"][0] == {"password": "x"}


def test_depth_is_bounded() -> None:
    value: dict[str, object] = {}
    value["self"] = value
    assert "..." in str(redact(value))


def test_an_object_is_shown_by_its_redacted_text() -> None:
    assert redact(ValueError("bad twr1.abcdefghijk")) == f"bad {REDACTED}"
