"""What happens to a caller when the agent neither accepts nor refuses its stream: the caller is moved to another tunnel
or, where there is none, told so before it gives up by itself.

Moving is safe: until the apiserver's end of TLS has answered, the caller cannot have sent it a request, so nothing is
done twice. Without another tunnel, a silent agent is given as long as one whose tunnel was lost: kubectl gives up a TLS
handshake after ten seconds, and its own message would name no cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from protocol import defaults
from protocol.aio.tunnel import Tunnel
from tower_server.member import Member

LOOK_EVERY: Final = 0.125  # as a part of STALL_AFTER
STILL_SILENT: Final = "its agent is silent still"  # said to those who call after somebody has waited in vain


class UnansweredOpen:
    """Watches one unanswered open to an apiserver. Calls one of the two callbacks, once, unless `over` comes first.

    Args:
        elsewhere: called when there is a better tunnel; None if the caller has been moved often enough.
        in_vain: called with the reason, for the caller, when the tunnel has been silent longer than callers are held.
    """

    __slots__ = ("_asked_at", "_elsewhere", "_in_vain", "_loop", "_member", "_timer", "_tunnel")

    def __init__(
        self,
        member: Member,
        tunnel: Tunnel,
        *,
        elsewhere: Callable[[], None] | None,
        in_vain: Callable[[str], None],
    ) -> None:
        self._member = member
        self._tunnel = tunnel
        self._elsewhere = elsewhere
        self._in_vain = in_vain
        self._loop = asyncio.get_running_loop()
        self._asked_at = self._loop.time()
        self._timer = self._loop.call_later(defaults.STALL_AFTER, self._look)

    def _look(self) -> None:
        member, tunnel = self._member, self._tunnel
        waited = self._loop.time() - self._asked_at
        if self._elsewhere is not None and member.has_better(tunnel):
            self._elsewhere()
        elif tunnel.silent and waited >= member.hold.seconds:
            member.waited_in_vain(tunnel)
            self._in_vain(f"its agent has not answered for {waited:.1f} s")
        else:
            self._timer = self._loop.call_later(LOOK_EVERY * defaults.STALL_AFTER, self._look)

    def over(self) -> None:
        """The open was answered, or nobody waits for it any more. Idempotent."""
        self._timer.cancel()
