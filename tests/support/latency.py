"""How often the added latency of a cold start is measured, and what it may be."""

from __future__ import annotations

import os
import statistics

ROUNDS = int(os.environ.get("SCALEZERO_TEST_ROUNDS", "7"))
BOUND = 0.010
"""Seconds between the first answer to a direct probe and the one through the middleware, at most."""


def is_enough(added: list[float]) -> bool:
    """Tell whether the bound is shown, or was not in five times as many rounds.

    A start beside the load of others on the host says little.
    """
    return len(added) >= ROUNDS and (statistics.median(added) <= BOUND or len(added) >= 5 * ROUNDS)
