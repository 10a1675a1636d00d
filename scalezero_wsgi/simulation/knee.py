"""Which of several choices is at the knee of the curve between two costs."""

from __future__ import annotations

from collections.abc import Sequence


def knee(points: Sequence[tuple[float, float]], least_width: float = 0.0) -> int:
    """Return the index of the point that lies farthest below the line between the first and the last one.

    As Satopää et al. have it, "Finding a 'Kneedle' in a Haystack" (2011), with both costs scaled to 0 to 1.
    Of equals the first is taken.

    :param points: what each choice costs in two ways: along them the first rises and the second falls. At
        least one.
    :param least_width: what the first is scaled by at least: differences far below that do not count.
    """
    (x_first, y_first), (x_last, y_last) = points[0], points[-1]
    width, height = max(x_last - x_first, least_width) or 1.0, (y_first - y_last) or 1.0
    below = [1 - (x - x_first) / width - (y - y_last) / height for x, y in points]
    if y_first == y_last:
        return 0  # nothing is gained by what costs more
    highest = max(below)
    return next(index for index, value in enumerate(below) if value >= highest - 1e-12)
