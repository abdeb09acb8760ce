"""Figures on the terminal, as JSON and as a picture."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

# Ratios to direct in the same run (client, backend, server and agent on the same two cores), and absolute ceilings.
FLOORS = {
    "bulk_down_1": 0.45, "bulk_down_8": 0.35, "get_1": 0.30, "get_16": 0.24, "get_64": 0.25, "connect_8": 0.12,
}  # fmt: skip
CEILINGS = {"rss_server_mib": 96.0, "rss_agent_mib": 96.0, "idle_tunnel_kib": 100.0}
VOID_BELOW = {"get_16": 40_000.0, "bulk_down_1": 600.0}  # direct figures; a slower machine measures itself


@dataclass(frozen=True)
class Row:
    """One figure. `direct` and `ratio` are None where direct has no counterpart; `spread` is (max-min)/median."""

    mode: str
    outer: str
    metric: str
    value: float
    unit: str
    direct: float | None = None
    ratio: float | None = None
    spread: float | None = None

    @property
    def verdict(self) -> str:
        """Against the floor or ceiling that is stated for `l7` over `wss`."""
        if (self.mode, self.outer) != ("l7", "wss"):
            return ""
        if self.metric in FLOORS and self.ratio is not None:
            return _verdict(self.ratio >= FLOORS[self.metric], f">= {FLOORS[self.metric]:.2f}")
        if self.metric in CEILINGS:
            return _verdict(self.value <= CEILINGS[self.metric], f"<= {CEILINGS[self.metric]:.0f}")
        return ""


def _verdict(good: bool, bound: str) -> str:
    return f"{'ok ' if good else 'MISS'} {bound}"


def compared(mode: str, outer: str, metric: str, unit: str, through: Sequence[float], direct: Sequence[float]) -> Row:
    """A row of medians."""
    value, other = statistics.median(through), statistics.median(direct)
    spread = (max(through) - min(through)) / value
    return Row(mode, outer, metric, round(value, 3), unit, round(other, 3), round(value / other, 4), round(spread, 3))


def table(rows: Sequence[Row]) -> str:
    """For the terminal."""
    lines = [f"{'MODE':12} {'OUTER':5} {'METRIC':16} {'TUNNEL':>12} {'DIRECT':>12} {'RATIO':>6} {'SPREAD':>6}  UNIT"]
    for row in rows:
        direct = "-" if row.direct is None else f"{row.direct:,.1f}"
        ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
        spread = "-" if row.spread is None else f"{100 * row.spread:.0f}%"
        start = f"{row.mode:12} {row.outer:5} {row.metric:16} {row.value:12,.1f} {direct:>12} {ratio:>6} {spread:>6}"
        lines.append(f"{start}  {row.unit:8} {row.verdict}".rstrip())
    return "\n".join(lines)


def void(rows: Sequence[Row]) -> list[str]:
    """Why the run says nothing about the tunnel, if so."""
    return [
        f"direct {row.metric} was {row.direct:,.0f}, below {VOID_BELOW[row.metric]:,.0f}"
        for row in rows
        if row.metric in VOID_BELOW and row.direct is not None and row.direct < VOID_BELOW[row.metric]
    ]


def write(folder: Path, rows: Sequence[Row]) -> None:
    """latest.json and latest.svg."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = [{key: value for key, value in asdict(row).items() if key != "spread"} for row in rows]
    (folder / "latest.json").write_text(json.dumps(plain, indent=1) + "\n")
    (folder / "latest.svg").write_text(picture(rows))


def picture(rows: Sequence[Row]) -> str:
    """Bars of the ratios to direct; a mark at each floor."""
    bars = [row for row in rows if row.ratio is not None]
    height, left, width = 20, 250, 420
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height * len(bars) + 40}" '
        'font-family="sans-serif" font-size="12">',
        f'<text x="{left}" y="16" font-weight="bold">throughput through the tunnel, direct = 1</text>',
    ]
    for at, row in enumerate(bars):
        y, ratio = 28 + at * height, row.ratio or 0.0
        label = escape(f"{row.mode} over {row.outer}: {row.metric}")
        parts.append(f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{label}</text>')
        fill = "#3b6ea5" if row.mode == "l7" else "#8aa9c9"
        parts.append(
            f'<rect x="{left}" y="{y}" width="{min(1.0, ratio) * width:.0f}" height="{height - 6}" fill="{fill}"/>'
        )
        parts.append(f'<text x="{left + min(1.0, ratio) * width + 6:.0f}" y="{y + 12}">{ratio:.2f}</text>')
        if (row.mode, row.outer) == ("l7", "wss") and row.metric in FLOORS:
            x = left + FLOORS[row.metric] * width
            parts.append(f'<path d="M{x:.0f} {y - 2} V{y + height - 4}" stroke="#c0392b" stroke-width="2"/>')
    return "\n".join([*parts, "</svg>"]) + "\n"
