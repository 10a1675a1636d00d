"""How long to pause between two queries of a provider that cannot tell by itself when a function is ready.

What is added to a wait is, in the median, half of the pause in which the function became ready. So a pause
is a fraction of what has passed while nothing is known of the function's starts. Once some are known, they
say when the next one will probably end: queries are rare before that time and close together around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

LONGEST = 1.0
"""Seconds that no pause exceeds while somebody waits."""

DENSE = 0.015
"""Seconds between two queries around the expected time, at the most."""

NEAR = 0.04
"""The least part of the shortest start by which the expected time is widened to both sides, for the last
starts were themselves only seen at the next query."""

LATE = 0.1
"""Seconds that no pause exceeds after the expected time."""


def pause(elapsed: float, known: Sequence[float]) -> float:
    """Seconds until the next query, before jitter.

    :param elapsed: seconds since the start was asked for.
    :param known: how long the last starts took, in seconds; empty before the first.
    """
    starts = sorted(known)
    if not starts or starts[-1] > 3 * starts[0]:  # starts that differ so much foretell nothing
        return min(LONGEST, 0.01 + 0.03 * elapsed)
    begin, end = expected_window(starts)
    dense = min(DENSE, max(0.006, (end - begin) / 50))
    if elapsed >= end:
        return min(LATE, dense + 0.03 * (elapsed - end))
    if elapsed < begin:  # it may be faster than ever, as with an image that is on the host by now
        return min(LONGEST, 0.1 + 0.35 * elapsed, max(dense, begin - elapsed))
    # Only from about the mean on are they close together: the later a start ends, the fewer other starts ask
    # in vain at that time.
    dense_from = max(begin, 0.97 * fmean(starts) - 0.1 * (starts[-1] - starts[0]))
    if elapsed < dense_from:
        return max(dense, min(LONGEST, 0.02 * elapsed, dense_from - elapsed))
    return dense


def expected_window(starts: Sequence[float]) -> tuple[float, float]:
    """From when until when a start will probably end, in seconds since it was asked for.

    For times spread evenly over a range, the shortest and the longest of some lie inside it by about the
    mean gap between them; a single one is taken to vary by a fifth.

    :param starts: how long the last ones took, in ascending order; one at least.
    """
    shortest, longest = starts[0], starts[-1]
    gap = (longest - shortest) / (len(starts) - 1) if len(starts) > 1 else 0.2 * longest
    margin = max(min(gap, 0.2 * longest), NEAR * shortest, 0.01)
    return shortest - margin, longest + margin
