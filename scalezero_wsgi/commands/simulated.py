"""The table and the plot of what was simulated."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from .._lib.durations import as_text
from ..simulation.simulation import Outcome, Prediction

_BAR = 20
_HEAD = ("  IDLE AFTER", "COLD STARTS", "WAITED", "P50", "P99", "HOURS UP", "OF ALWAYS ON")
_WIDTH, _HEIGHT, _MARGIN = 640, 300, 50
MOST_PLOTS = 20
"""Functions that have a plot of their own."""


def table(outcomes: Sequence[Outcome], always_on: float, recommended: int | None = None) -> str:
    """Return the outcomes as a table with bars: of the hours, and of the cold starts.

    :param always_on: seconds for which all would have been up.
    :param recommended: the index of the one that gets a mark.
    """
    most_starts = max(outcome.cold_starts for outcome in outcomes) or 1
    rows = [(*_HEAD, "HOURS".ljust(_BAR), "COLD STARTS")]
    for index, outcome in enumerate(outcomes):
        share = outcome.up / always_on if always_on else 0.0
        mark = "*" if index == recommended else " "
        rows.append((
            f"{mark} {as_text(outcome.idle_after)}",
            str(outcome.cold_starts),
            str(outcome.waits.count),
            f"{outcome.waits.quantile(0.5):.2f} s",
            f"{outcome.waits.quantile(0.99):.2f} s",
            f"{outcome.up / 3600:.2f}",
            f"{share:.1%}",
            _bar(share),
            _bar(outcome.cold_starts / most_starts),
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            text.rjust(width) if 0 < number < len(_HEAD) else text.ljust(width)
            for number, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _bar(share: float) -> str:
    return "#" * round(_BAR * min(1.0, share))


def chart(together: Sequence[Outcome], predictions: Sequence[Prediction]) -> str:
    """Return plots as SVG, one below the other: cold starts against hours, of all functions and of each."""
    busiest = sorted(predictions, key=lambda prediction: -prediction.requests)[:MOST_PLOTS]
    plots: list[tuple[str, Sequence[Outcome], int | None]] = [("all functions", together, None)]
    plots += [(str(each.function), each.outcomes, each.recommended) for each in busiest]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT * len(plots)}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT * len(plots)}" fill="white"/>',
    ]
    for number, plot in enumerate(plots):
        parts += [f'<g transform="translate(0 {_HEIGHT * number})">', *_plot(*plot), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _plot(title: str, outcomes: Sequence[Outcome], recommended: int | None) -> list[str]:
    most_hours = max(outcome.up for outcome in outcomes) or 1.0
    most_starts = max(outcome.cold_starts for outcome in outcomes) or 1
    left, right, top, bottom = _MARGIN, _WIDTH - _MARGIN, _MARGIN, _HEIGHT - _MARGIN
    points = [
        (
            left + (right - left) * outcome.up / most_hours,
            bottom - (bottom - top) * outcome.cold_starts / most_starts,
        )
        for outcome in outcomes
    ]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    parts = [
        f'<text x="{left}" y="{top - 32}" font-size="14">{escape(title)}</text>',
        f'<path d="M{left} {top}V{bottom}H{right}" fill="none" stroke="black"/>',
        f'<text x="{left}" y="{top - 16}">cold starts, up to {most_starts}</text>',
        f'<text x="{right}" y="{bottom + 32}" text-anchor="end">hours up, to {most_hours / 3600:.2f}</text>',
        f'<polyline points="{line}" fill="none" stroke="#1f6feb" stroke-width="2"/>',
    ]
    labelled: list[tuple[float, float]] = []
    in_turn = sorted(range(len(points)), key=lambda index: index != recommended)
    for index in in_turn:
        x, y = points[index]
        color, radius = ("#d1242f", 6) if index == recommended else ("#1f6feb", 3)
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{color}"/>')
        if all(abs(x - other_x) > 30 or abs(y - other_y) > 12 for other_x, other_y in labelled):
            labelled.append((x, y))
            text = as_text(outcomes[index].idle_after)
            parts.append(f'<text x="{x + 8:.1f}" y="{y - 6:.1f}">{text}</text>')
    return parts
