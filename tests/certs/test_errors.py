from __future__ import annotations

import pytest

from certs import errors
from certs.errors import CertsError, Reason, Untrusted
from daemon.faults import FAULTS


def every_error() -> list[type[CertsError]]:
    return [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, CertsError)]


@pytest.mark.parametrize("kind", every_error())
def test_every_error_has_a_code_of_the_table(kind: type[CertsError]) -> None:
    assert kind.fault in FAULTS


@pytest.mark.parametrize("caller", [True, False])
@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_a_code_whose_status_is_the_answer(reason: Reason, caller: bool) -> None:
    exc = Untrusted(reason, "why", caller=caller)
    assert exc.http_status in {401, 403}
    if caller:
        assert FAULTS[exc.fault].http_status == exc.http_status or exc.fault == "TWR507"
    else:
        assert exc.fault in FAULTS


def test_what_people_read_ends_with_the_mend() -> None:
    assert str(CertsError("the key is gone", "restore it")) == "the key is gone; restore it"
    assert str(CertsError("the key is gone")) == "the key is gone"
