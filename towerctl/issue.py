"""A client certificate for a caller: the key is made here and never leaves this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from certs.keys import generate_key, key_to_pem, make_csr
from towerctl import times
from towerctl.client import AdminClient, path_of
from towerctl.errors import not_understood
from towerctl.lookup import suggesting
from towerctl.output import Object


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate with its key; `answer` is what the server said about it."""

    chain_pem: bytes
    key_pem: bytes
    not_after: float
    answer: Object


def issue(
    client: AdminClient, cluster: str, *, user: str | None, ttl: float | None, groups: Sequence[str] = ()
) -> Issued:
    """A certificate for `user` (the host's admin when None) and `groups` in `cluster`, good for `ttl` seconds."""
    key = generate_key()
    body: Object = {"csr": make_csr(key).decode()}
    body |= {name: value for name, value in (("user", user), ("ttl", ttl)) if value is not None}
    if groups:
        body["groups"] = list(groups)
    with suggesting(client, cluster):
        answer = client.post(path_of("clusters", cluster, "credentials"), body)
    chain = answer.get("chain")
    not_after = times.seconds(answer.get("expires"))
    if not isinstance(chain, str) or not_after is None:
        raise not_understood("a client certificate without chain or end")
    return Issued(chain.encode(), key_to_pem(key), not_after, answer)
