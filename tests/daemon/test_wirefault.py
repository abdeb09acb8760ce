from __future__ import annotations

from daemon.faults import FAULTS
from daemon.wirefault import WIRE_FAULTS, wire_fault
from protocol.constants import Code


def test_every_wire_code_that_is_a_fault_has_one_in_the_table() -> None:
    assert set(Code) - set(WIRE_FAULTS) == {Code.NONE, Code.CANCELLED, Code.REPLACED}
    assert set(WIRE_FAULTS.values()) <= set(FAULTS)


def test_a_number_from_the_wire_is_looked_up_and_an_unknown_one_falls_back() -> None:
    assert wire_fault(int(Code.VERSION), "TWR217") == "TWR218"
    assert wire_fault(Code.FLOW, "TWR201") == "TWR220"
    assert wire_fault(9999, "TWR217") == "TWR217"
