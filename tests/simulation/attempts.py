"""Attempts to go on with a tunnel that must be refused, and change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocol.constants import Code
from protocol.errors import HandshakeRejected
from protocol.handshake import Resume, Welcome
from tests.protocol.handshakes import Identity
from tests.simulation.ends import End
from tests.simulation.network import Link
from tests.simulation.processes import Agent, Dialing
from tests.simulation.world import Violation, require

if TYPE_CHECKING:
    from tests.simulation.run import Simulation


class Stranger(Agent):
    """Another agent of the same cluster, or one of another; it holds no tunnel of its own."""

    def __init__(self, simulation: Simulation, victim: Agent, *, same_cluster: bool) -> None:
        super().__init__(simulation, victim.index, victim.number)
        cluster = victim.identity.cluster
        self.identity = Identity(cluster if same_cluster else cluster + "-b", "agent-x")


class Attempt:
    """One dial with a resume that the server has to refuse by one of `codes`."""

    slot = 0

    def __init__(self, agent: Agent, resume: Resume, codes: set[Code]) -> None:
        self.agent = agent
        self._resume = resume
        self._codes = codes | {Code.TIMEOUT}

    def begin(self) -> None:
        """Dial."""
        link = self.agent.simulation.connect(self.agent.index)
        if link is not None:
            Dialing(self, link, self._resume)

    def failed(self, retry_after: float | None = None) -> None:
        """The link broke first."""

    def refused(self, error: HandshakeRejected) -> None:
        """As it should be."""
        known = error.code in self._codes
        require(known, "S11 refusal", "%s: refused by %s", self._resume, error.code.name)
        self.agent.world.counts["asked wrongly: " + error.code.name] += 1

    def welcomed(self, link: Link, welcome: Welcome) -> End:
        """As it must not be."""
        identity = self.agent.identity
        raise Violation("S11 resume", f"{identity.agent} of {identity.cluster} got on with {self._resume}")
