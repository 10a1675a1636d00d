"""What scaling to zero saved in the last days, in a sentence and as JSON."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ..._lib.per_process import PerProcess

if TYPE_CHECKING:
    from ...savings.book import Entry
    from ...savings.prices import Cost
    from ..savings import Savings

_log = logging.getLogger("scalezero_wsgi")

DAYS = 30

READ_EVERY = 60.0
"""Seconds between two looks into the file: with many functions one takes a while."""


class Sum(NamedTuple):
    """All functions as one.

    :ivar cost: of those whose price is known; ``None``: that of none is.
    """

    entry: Entry
    cost: Cost | None


class Saved:
    """What one process knows of it. Safe for threads and after a fork: one thread reads, the others take what
    was read before.

    :param wall_clock: seconds since the epoch.
    """

    def __init__(self, savings: Savings, wall_clock: Callable[[], float] = time.time) -> None:
        self._savings = savings
        self._clock = wall_clock
        self._reading = PerProcess(lambda: threading.Lock())
        self._read_at = 0.0
        self._last: Sum | None = None

    def look(self) -> Sum | None:
        """Return it as it was a minute ago at most; ``None``: nothing is known of any function."""
        reading = self._reading.get()
        if abs(self._clock() - self._read_at) >= READ_EVERY and reading.acquire(blocking=False):
            try:
                self._read()
            finally:
                reading.release()
        return self._last

    def _read(self) -> None:
        from ...savings.book import BookError, total  # late: a Python without sqlite3 has a dashboard, too

        self._read_at = now = self._clock()
        try:
            entries = self._savings.book.entries(now, now - DAYS * 86400.0)
        except BookError as error:
            _log.warning("what was saved is not shown anew: %s", error)
        else:
            entry = total(entries)
            self._last = Sum(entry, self._savings.prices.total(entries)) if entry.always_on else None


def as_fields(saved: Sum) -> dict[str, Any]:
    """Return it for JSON."""
    entry, cost = saved
    return {
        "days": DAYS,
        "seconds_up": round(entry.up, 3),
        "seconds_always_on": round(entry.always_on, 3),
        "seconds_saved": round(entry.saved, 3),
        "starts": entry.starts,
        "waited": entry.waits.count,
        "wait_p50": round(entry.waits.quantile(0.5), 3),
        "wait_p99": round(entry.waits.quantile(0.99), 3),
        "cost": None if cost is None else round(cost.spent, 4),
        "cost_saved": None if cost is None else round(cost.saved, 4),
    }


def as_sentence(saved: Sum) -> str:
    """Return it for people."""
    entry, cost = saved
    up, always_on, waits = entry.up / 3600, entry.always_on / 3600, entry.waits
    text = f"In the last {DAYS} days: up for {up:,.1f} h of {always_on:,.1f} h"
    text += f" ({entry.saved / entry.always_on:.0%} saved), starts: {entry.starts:,}"
    if waits.count:
        half, most = waits.quantile(0.5), waits.quantile(0.99)
        text += f"; {waits.count:,} waited, half of them up to {half:.2g} s, 99% up to {most:.2g} s"
    if cost is not None:
        text += f"; cost {cost.spent:,.2f}, saved {cost.saved:,.2f}"
    return f"{text}."
