"""Small plots: how long the last starts took, and what became of requests."""

from __future__ import annotations

from collections.abc import Sequence

_HEIGHT = 56
_COLUMN = 48
_BAR = 36
_TOP = 18
"""Room for the value above a bar. All in SVG's user units, here CSS pixels."""


def plot(last_starts: tuple[float, ...], elapsed: float) -> str:
    """Return an HTML figure, or nothing before the first start.

    Colours and sizes are attributes: a strict policy refuses ``style``. The last bar, ``id="now"``, is the
    start under way, and grows with it up to ``data-full`` seconds.

    :param last_starts: seconds, the latest last.
    :param elapsed: seconds since the start under way began.
    """
    if not last_starts:
        return ""
    full = max(*last_starts, elapsed, 0.1)
    now = len(last_starts)
    width, base = _COLUMN * now + _BAR, _TOP + _HEIGHT
    parts = []
    for at, took in enumerate(last_starts):
        parts.append(_text(at, base - _tall(took, full) - 6, _short(took)))
        parts.append(_bar(at, took, full, 'class="bar"'))
    parts.append(_bar(now, elapsed, full, f'class="bar now" id="now" data-full="{full:.2f}"'))
    parts.append(_text(now, base + 16, "now"))
    values = ", ".join(map(in_words, last_starts))
    caption = "The last start" if now == 1 else f"The last {now} starts"
    return (
        f"<figure>\n<figcaption>{caption}</figcaption>\n"
        f'<svg role="img" aria-label="{caption} took {values}" width="{width}" height="{base + 20}"'
        f' viewBox="0 0 {width} {base + 20}" fill="currentColor" font-size="12" text-anchor="middle">'
        f'<path d="M0 {base}.5H{width}" stroke="currentColor" stroke-opacity=".25"/>'
        f"{''.join(parts)}</svg>\n</figure>"
    )


def small_plot(last_starts: tuple[float, ...]) -> str:
    """Return a plot for a table's cell, with the last duration beside it; nothing before the first start.

    :param last_starts: seconds, the latest last.
    """
    if not last_starts:
        return ""
    full, height = max(*last_starts, 0.1), 24
    bars = []
    for at, took in enumerate(last_starts):
        tall = max(2.0, took / full * height)
        name = "bar now" if at == len(last_starts) - 1 else "bar"
        bars.append(
            f'<rect class="{name}" x="{at * 9}" y="{height - tall:.1f}" width="7" height="{tall:.1f}"/>'
        )
    width = len(last_starts) * 9 - 2
    label = f"The last {len(last_starts)} starts took {', '.join(map(_short, last_starts))}"
    return (
        f'<div class="figure"><svg role="img" aria-label="{label}" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}">{"".join(bars)}</svg> <span>{_short(last_starts[-1])}</span></div>'
    )


def shares(counts: Sequence[tuple[str, str, int]], width: int = 72) -> str:
    """Return a bar that is divided as the counts are, with their sum beside it; nothing if that is 0.

    :param counts: of each part its class, its name and how many there are.
    """
    total = sum(count for _, _, count in counts)
    if not total:
        return ""
    parts, begin = [], 0.0
    for name, _, count in counts:
        wide = width * count / total
        parts.append(f'<rect class="{name}" x="{begin:.1f}" y="0" width="{wide:.1f}" height="10"/>')
        begin += wide
    told = ", ".join(f"{count:,} {name}" for _, name, count in counts if count)
    return (
        f'<div class="figure"><svg role="img" aria-label="Requests: {told}" width="{width}" height="10"'
        f' viewBox="0 0 {width} 10"><title>{told}</title>{"".join(parts)}</svg> <span>{total:,}</span></div>'
    )


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    whole = max(0, int(seconds + 0.5))
    if whole < 100:
        return "1 second" if whole == 1 else f"{whole} seconds"
    return f"{whole // 60} min {whole % 60} s"


def _short(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"


def _tall(seconds: float, full: float) -> float:
    return max(2.0, min(1.0, seconds / full) * _HEIGHT)


def _middle(at: int) -> int:
    return at * _COLUMN + _BAR // 2


def _text(at: int, y: float, text: str) -> str:
    return f'<text class="value" x="{_middle(at)}" y="{y:.1f}">{text}</text>'


def _bar(at: int, seconds: float, full: float, attributes: str) -> str:
    tall = _tall(seconds, full)
    y = _TOP + _HEIGHT - tall
    return f'<rect {attributes} x="{at * _COLUMN}" y="{y:.1f}" width="{_BAR}" height="{tall:.1f}" rx="2"/>'
