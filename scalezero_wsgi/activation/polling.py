"""How long to pause between two queries of a provider that cannot watch for changes by itself.

A pause delays the request by half its length, in the median, if the function becomes ready during it. While
nothing is known about the function's starts, a pause is therefore a fraction of the time that has passed.
Once some starts are known, queries are rare before the expected end and close together around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

LONGEST = 1.0
"""The longest pause, in seconds, while somebody waits."""

DENSE = 0.015
"""The longest pause, in seconds, around the expected time."""

NEAR = 0.04
"""Widen the expected time on both sides by at least this fraction of the shortest start, because the ends of
the last starts were themselves seen only at the next query."""

LATE = 0.1
"""The longest pause, in seconds, after the expected time."""


def pause(elapsed: float, known: Sequence[float]) -> float:
    """Return the seconds until the next query, before jitter.

    :param elapsed: seconds since the start was requested.
    :param known: how long the last starts took, in seconds; empty before the first.
    """
    starts = sorted(known)
    if not starts or starts[-1] > 3 * starts[0]:  # too different to predict the next
        return min(LONGEST, 0.01 + 0.03 * elapsed)
    begin, end = expected_window(starts)
    dense = min(DENSE, max(0.006, (end - begin) / 50))
    if elapsed >= end:
        return min(LATE, dense + 0.03 * (elapsed - end))
    if elapsed < begin:  # it may be faster than before: the image may be on the host by now
        return min(LONGEST, 0.1 + 0.35 * elapsed, max(dense, begin - elapsed))
    # Query closely only from about the mean on: by then fewer other starts are still under way and query in
    # vain.
    dense_from = max(begin, 0.985 * fmean(starts) - 0.1 * (starts[-1] - starts[0]))
    if elapsed < dense_from:
        return max(dense, min(LONGEST, 0.02 * elapsed, dense_from - elapsed))
    return dense


def expected_window(starts: Sequence[float]) -> tuple[float, float]:
    """Return the earliest and the latest probable end of a start, in seconds since its request.

    If durations are spread evenly over a range, its ends lie about one mean gap beyond the shortest and the
    longest of a few samples. A single sample is assumed to vary by a fifth.

    :param starts: how long the last starts took, in seconds, in ascending order; at least one.
    """
    shortest, longest = starts[0], starts[-1]
    gap = (longest - shortest) / (len(starts) - 1) if len(starts) > 1 else 0.2 * longest
    margin = max(min(gap, 0.2 * longest), NEAR * shortest, 0.01)
    return shortest - margin, longest + margin
