from __future__ import annotations

from certs.ca import Authority
from certs.generation import Issued
from certs.peers import rfc3339
from tests.certs.conftest import AT, DAY


def test_renewal_is_due_at_two_thirds_of_the_life(authority: Authority, every_kind: dict[str, Issued]) -> None:
    validity = authority.bundle.verify_agent(every_kind["agent"].chain_der, AT).validity
    assert validity.issued_at == AT
    assert abs(validity.renew_at - (AT + 7 * DAY * 2 / 3)) < 1


def test_times_are_written_as_kubernetes_writes_them() -> None:
    assert rfc3339(0.9) == "1970-01-01T00:00:00Z"
