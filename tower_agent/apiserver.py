"""The gateway of one host in front of the member's apiserver.

Wires what the rooms offer: the serving certificate, the host's callers, the policy, and the two pools that never mix
(the bearer pool is made without any credential of the agent, the other one carries it).
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import cast

from certs.peers import ClientIdentity
from certs.pemfile import in_memory
from certs.tls import callers_context
from daemon.faults import TowerError
from daemon.kube.access import Access
from gateway.audit import Observer
from gateway.errors import UpstreamError
from gateway.policy import Policy
from gateway.proxy import Gateway
from gateway.tls import Apiserver
from gateway.upstream import Upstreams
from tower_agent.trust import HostTrust


def make_gateway(access: Access, trust: HostTrust, policy: Policy, *, observer: Observer) -> Gateway:
    """The gateway of `trust`'s host; start it, and close it when the host is done with."""
    return Gateway(
        context=serving_context(trust),
        upstreams=make_upstreams(access),
        policy=policy,
        verify_client=trust.verify_client,
        check_client=lambda who: trust.check_client(cast("ClientIdentity", who)),  # only what verify_client gave
        observer=observer,
        cluster=trust.identity.cluster,
    )


def serving_context(trust: HostTrust) -> ssl.SSLContext:
    """What callers see: the serving certificate in use, and the issuers of callers' certificates."""
    identity = trust.identity
    return callers_context(trust.bundle, chain_pem=identity.serving_chain_pem, key_pem=identity.serving_key_pem)


def make_upstreams(access: Access) -> Upstreams:
    """Both pools towards the member's apiserver."""
    apiserver = Apiserver(access.host, access.port, access.server_name or "", access.ca_pem.decode("ascii"))
    pair = access.certificate
    authorization = _authorization(access)
    if pair is None:
        return Upstreams(apiserver, authorization=authorization)
    with in_memory(pair[0]) as certificate, in_memory(pair[1]) as key:
        return Upstreams(apiserver, authorization=authorization, certificate_file=certificate, key_file=key)


def renew_upstreams(upstreams: Upstreams, access: Access) -> None:
    """Both pools by the access as it is now: another authority, certificate or token. What is under way goes on."""
    upstreams.bearer.renew(access.bare_context())
    upstreams.impersonation.renew(access.own_context(), authorization=_authorization(access))


def _authorization(access: Access) -> Callable[[], bytes] | None:
    """Reads the header's value anew for each request; None where the access has no token."""
    if not access.has_token:
        return None

    def read() -> bytes:
        try:
            token = access.token()
        except TowerError as error:
            raise UpstreamError(error.code, error.message) from error
        if token is None:
            raise UpstreamError("TWR309", f"{access.source} has given no token yet")
        return b"Bearer " + token.encode("ascii")

    return read
