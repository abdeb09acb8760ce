"""Everything that stands on the wire of `tower.v1`: names, frame types, flags and codes, each with its meaning.

docs/PROTOCOL.md is normative; its tables and this module are compared by a test.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

SUBPROTOCOL: Final = "tower.v1"
RESUME_HEADER: Final = "Tower-Resume"
"""Of the request for the WebSocket: the tunnel that the agent comes back for. A hint, the handshake decides."""
VERSION: Final = 1

# Every frame: type u8, flags u8, reserved u16 (zero), stream id u32, payload length u32; network byte order.
HEADER: Final = Struct("!BBHII")
HEADER_SIZE: Final = HEADER.size

# The stream over which both ends exchange lines of JSON (see protocol.messages); reserved, never a member's service.
CONTROL_SERVICE: Final = "tower.control"

# Both ends count numbered frames and acknowledge them.
FEATURE_ACK: Final = "ack"

# A tunnel outlives its link: what was not acknowledged is sent again on the next one. Needs the one above.
FEATURE_RESUME: Final = "resume"

# An instance that begins like this (no host name can) only tries the way: its tunnel is given no streams.
CHECK_INSTANCE: Final = "check:"


class FrameType(IntEnum):
    """Frame types. Those below 16 are numbered: both ends count them, in order, without a number on the wire."""

    OPEN = 1
    OPEN_OK = 2
    OPEN_ERR = 3
    DATA = 4
    FIN = 5
    RST = 6
    SKIP = 7
    ACK = 16
    PING = 17
    PONG = 18
    GOAWAY = 19
    CREDIT = 20
    CLOSE = 21
    HELLO = 32
    CHALLENGE = 33
    PROOF = 34
    WELCOME = 35
    REJECT = 36


FIRST_UNNUMBERED: Final = 16

# A receiver that does not know a frame's type skips it when this flag is set, and closes the tunnel otherwise.
FLAG_OPTIONAL: Final = 0x80


class Code(IntEnum):
    """Why a stream, an open or a tunnel ended. Carried by OPEN_ERR, RST, GOAWAY, CLOSE and REJECT."""

    NONE = 0  # an orderly end
    INTERNAL = 1  # the sender failed; its log says why
    PROTOCOL = 2  # the peer broke a rule of this protocol
    FLOW = 3  # more bytes than were granted
    TOO_LARGE = 4  # a frame above the limit
    FLOOD = 5  # more control frames than the receiver can answer
    UNKNOWN_SERVICE = 16  # the service is not declared by the member
    FORBIDDEN = 17  # the service exists, but not over this link or for this peer
    DIAL_FAILED = 18  # the destination refused or could not be reached
    DIAL_TIMEOUT = 19  # the destination did not answer in time
    BUDGET = 20  # no memory budget left for another stream
    TOO_MANY = 21  # too many streams, or too many opens waiting
    CANCELLED = 22  # whoever asked no longer waits
    DRAINING = 23  # the sender takes no new streams
    TUNNEL_LOST = 24  # the link died
    DEAD_PEER = 25  # nothing heard from the peer within the deadline
    SHUTDOWN = 26  # the process ends
    REVOKED = 27  # the identity behind the tunnel or stream was revoked
    EXPIRED = 28  # the identity's certificate has run out
    DELETED = 29  # the cluster was deleted
    REPLACED = 30  # the same agent instance opened a newer tunnel
    VERSION = 48  # no version in common
    BAD_SIGNATURE = 49  # a transcript signature does not verify
    UNTRUSTED = 50  # the certificate chain is not one that this peer accepts
    WRONG_CLUSTER = 51  # the identity belongs to another cluster than the one named
    BUSY = 52  # too many handshakes now; retry_after says when
    TIMEOUT = 53  # a deadline of the handshake passed
    UNKNOWN_TUNNEL = 54  # no tunnel of that name waits here for this agent: it ended, or its window has passed
    STALE_LINK = 55  # a newer link carries the tunnel
    POSITION = 56  # the count of frames in a resume lies outside of what was sent and not yet acknowledged
