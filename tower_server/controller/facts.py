"""What the controller knows of a member beyond its resource, as seen through the tunnel by the server that holds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tower_server.controller.desired import Replica
from tower_server.state import Verdict


@dataclass(frozen=True, slots=True)
class Observed:
    """One member as it is now. `report` is what its agent last said of it."""

    verdict: Verdict
    tunnels: int
    report: Mapping[str, Any] = field(default_factory=dict)
    flapping: str = ""
    """That it comes and goes, in words that do not change meanwhile; empty: it does not."""
    tunnel_flaps: bool = False
    cluster: str = ""

    @property
    def healthy(self) -> bool:
        """A request got through lately, and it is not to be expected that the next one fails."""
        return self.tunnels > 0 and self.verdict.ready == "True" and not self.flapping

    @property
    def uid(self) -> str:
        """The uid of the member's kube-system namespace; empty while unknown."""
        found = self.report.get("uid")
        return found if isinstance(found, str) else ""


class Facts(Protocol):
    """Where it is known from."""

    def observed(self, cluster: str) -> Observed | None:
        """None: nobody knows the member (yet)."""

    def replicas(self) -> Sequence[Replica]:
        """The tower servers of this host that were heard of lately."""
