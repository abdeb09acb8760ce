"""KubeSphere's own configuration, and the proof by which two ends compare a secret that neither shows."""

from __future__ import annotations

from typing import Any

import pytest

from daemon.kubesphere import KEY, jwt_secret, proof

SECRET = "thirty-two-letters-of-no-real-one"


def config(text: str) -> dict[str, Any]:
    return {"kind": "ConfigMap", "data": {KEY: text}}


@pytest.mark.parametrize(
    "text",
    [
        f"authentication:\n  authenticateRateLimiterMaxTries: 10\n  jwtSecret: {SECRET}\nmulticluster: {{}}\n",
        f'authentication:\n  issuer:\n    url: http://host\n    jwtSecret: "{SECRET}"\n',
    ],
    ids=["3.x", "4.x"],
)
def test_the_secret_is_found_where_either_line_of_releases_keeps_it(text: str) -> None:
    assert jwt_secret(config(text)) == SECRET


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "no kubesphere.yaml"),
        ({"data": None}, "no kubesphere.yaml"),
        (config("authentication: {"), "not YAML"),
        (config("authentication: &a {b: *a}"), "not YAML"),
        (config("[" * 300), "not YAML"),
        (config("[]"), "no authentication.jwtSecret"),
        (config("authentication: text"), "no authentication.jwtSecret"),
        (config("authentication: {jwtSecret: ''}"), "no authentication.jwtSecret"),
        (config("authentication: {jwtSecret: 12}"), "no authentication.jwtSecret"),
        (config("x" * (1024 * 1024 + 1)), "no kubesphere.yaml"),
    ],
)
def test_what_is_missing_is_named_and_shows_nothing_of_it(body: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        jwt_secret(body)


def test_a_proof_is_for_one_comparison_of_one_cluster_of_one_host() -> None:
    given: dict[str, Any] = {"host": "hq", "cluster": "edge", "server_nonce": b"s" * 32, "agent_nonce": b"a" * 32}
    made = proof(SECRET, **given)
    assert made == proof(SECRET, **given)
    others = [{"host": "x"}, {"cluster": "x"}, {"server_nonce": b"a" * 32}, {"agent_nonce": b"s" * 32}]
    assert len({made, *(proof(SECRET, **{**given, **other}) for other in others), proof("x", **given)}) == 6
    assert SECRET.encode() not in made
