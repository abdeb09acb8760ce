"""What happens to a caller whose stream the agent neither accepts nor refuses: another tunnel is asked in its place, or
the server gives up before the caller does.

Until the apiserver's end of TLS has spoken, the caller cannot have asked it for anything, so another tunnel may be
asked without doing something twice. Where there is none, a silent agent is waited for as long as one that was lost:
kubectl gives up a TLS handshake after ten seconds, and would then hear of no cause.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from protocol import defaults
from protocol.aio.tunnel import Tunnel
from tower_server.member import Member

LOOK_EVERY: Final = 0.125  # of the time after which a tunnel stalls: what was asked last is not overdue at once
STILL_SILENT: Final = "its agent is silent still"  # to callers after one who waited in vain


class Doubt:
    """Belongs to one unanswered open to an apiserver. Calls one of the two, once, unless it is `over` before.

    Args:
        elsewhere: called when there is a better tunnel; None if the caller has been moved often enough.
        in_vain: called with the reason, for the caller, when the tunnel has stalled for longer than callers are held.
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
        elif tunnel.stalled and waited >= member.hold.seconds:
            member.waited_in_vain(tunnel)
            self._in_vain(f"its agent has not answered for {waited:.1f} s")
        else:
            self._timer = self._loop.call_later(LOOK_EVERY * defaults.STALL_AFTER, self._look)

    def over(self) -> None:
        """The open was answered, or nobody waits for it any more. Idempotent."""
        self._timer.cancel()
