"""The life of one stream as a table, and what a session keeps for each.

A stream is opened by one end. Data and FIN may follow OPEN at once; the acceptor answers OPEN_OK or OPEN_ERR before
anything else. Each direction ends by FIN; RST ends both at once, also while what was queued before a FIN still waits.
docs/PROTOCOL.md shows TRANSITIONS; a test holds the two equal.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from protocol.flow import ReceiveCredit


class State(Enum):
    """Where a stream is, as one end sees it."""

    OPENING = "opening"  # OPEN sent, no answer yet
    OPENING_FINISHED = "opening, finished"  # the same, and this end has sent FIN
    ASKED = "asked"  # OPEN received, not answered yet
    ASKED_FINISHED = "asked, peer finished"  # the same, and the peer has sent FIN
    OPEN = "open"
    FINISHED = "finished"  # this end has sent FIN
    PEER_FINISHED = "peer finished"
    BOTH_FINISHED = "both finished"  # kept until everything queued was sent and everything received was consumed
    CLOSED = "closed"  # forgotten

    __hash__ = object.__hash__  # Enum's own hashes the name in Python; sets of states are asked for each frame


class Input(Enum):
    """What can happen to a stream. `S_` is done by this end, `R_` is received."""

    S_OK = "send OPEN_OK"
    R_OK = "receive OPEN_OK"
    S_ERR = "send OPEN_ERR"
    R_ERR = "receive OPEN_ERR"
    S_DATA = "send DATA"
    R_DATA = "receive DATA"
    S_FIN = "send FIN"
    R_FIN = "receive FIN"
    S_RST = "send RST"
    R_RST = "receive RST"


def _table() -> dict[tuple[State, Input], State]:
    s, i = State, Input
    table = {
        (s.OPENING, i.R_OK): s.OPEN,
        (s.OPENING, i.R_ERR): s.CLOSED,
        (s.OPENING, i.S_DATA): s.OPENING,
        (s.OPENING, i.S_FIN): s.OPENING_FINISHED,
        (s.OPENING_FINISHED, i.R_OK): s.FINISHED,
        (s.OPENING_FINISHED, i.R_ERR): s.CLOSED,
        (s.ASKED, i.S_OK): s.OPEN,
        (s.ASKED, i.S_ERR): s.CLOSED,
        (s.ASKED, i.R_DATA): s.ASKED,
        (s.ASKED, i.R_FIN): s.ASKED_FINISHED,
        (s.ASKED_FINISHED, i.S_OK): s.PEER_FINISHED,
        (s.ASKED_FINISHED, i.S_ERR): s.CLOSED,
        (s.OPEN, i.S_DATA): s.OPEN,
        (s.OPEN, i.R_DATA): s.OPEN,
        (s.OPEN, i.S_FIN): s.FINISHED,
        (s.OPEN, i.R_FIN): s.PEER_FINISHED,
        (s.FINISHED, i.R_DATA): s.FINISHED,
        (s.FINISHED, i.R_FIN): s.BOTH_FINISHED,
        (s.PEER_FINISHED, i.S_DATA): s.PEER_FINISHED,
        (s.PEER_FINISHED, i.S_FIN): s.BOTH_FINISHED,
    }
    for state in State:
        if state is not s.CLOSED:
            table[state, i.S_RST] = s.CLOSED
            table[state, i.R_RST] = s.CLOSED
    return table


TRANSITIONS: Final = _table()

# The hot path asks these instead of the table; a test holds them equal to it.
MAY_RECEIVE: Final = frozenset({State.ASKED, State.OPEN, State.FINISHED})
MAY_SEND: Final = frozenset({State.OPENING, State.OPEN, State.PEER_FINISHED})


class Stream:
    """What a session keeps for one live stream.

    `state` moves when a frame is *queued*, not when it leaves: after `finish` nothing more may be sent, though queued
    data and the FIN still wait for credit and their turn.
    """

    __slots__ = (
        "charged",
        "credit",
        "cut",
        "deficit",
        "fin_queued",
        "full",
        "id",
        "offered",
        "queue",
        "queued",
        "received",
        "round_ends",
        "scheduled",
        "send_limit",
        "sent",
        "state",
    )

    def __init__(self, stream: int, state: State, credit: ReceiveCredit, *, send_limit: int) -> None:
        self.id = stream
        self.state = state
        self.credit = credit
        self.offered = 0.0  # when it was opened or asked for
        # Sending: what waits, how far the peer's credit reaches, and the scheduler's account.
        self.queue: deque[bytes | memoryview] = deque()
        self.queued = 0
        self.charged = 0  # of `queued`, to the budget
        self.sent = 0
        self.send_limit = send_limit
        self.fin_queued = False
        self.full = False  # `send` said so, WritableAgain is owed
        self.scheduled = False
        self.deficit = 0
        self.round_ends = 0  # the turn up to which it has had its share
        self.received = 0
        self.cut = False  # nobody reads on: what was sent on it need not be sent again

    @property
    def sendable(self) -> bool:
        """Whether a frame of this stream could leave now."""
        return self.sent < self.send_limit if self.queued else self.fin_queued
