"""What functions cost, and what was saved of that."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ..model import Function
from .book import Entry


class Cost(NamedTuple):
    """In the unit of the prices."""

    spent: float
    saved: float


class Prices:
    """What an instance costs in an hour.

    :param of: by function; ``None`` for those that are not named.
    """

    def __init__(self, of: Mapping[Function | None, float]) -> None:
        self._of = of

    def unknown(self, entries: Iterable[Entry]) -> list[str]:
        """Return the functions with a price that are not among these."""
        known = {entry.function for entry in entries}
        return sorted(str(each) for each in self._of if each is not None and each not in known)

    def cost(self, entry: Entry) -> Cost | None:
        """Return what a function has cost; ``None``: its price is not known."""
        price = self._of.get(entry.function, self._of.get(None))
        return None if price is None else Cost(price * entry.up / 3600, price * entry.saved / 3600)

    def total(self, entries: Iterable[Entry]) -> Cost | None:
        """Return what all of them have cost whose price is known; ``None``: that of none is."""
        known = [cost for entry in entries if (cost := self.cost(entry)) is not None]
        if not known:
            return None
        return Cost(math.fsum(cost.spent for cost in known), math.fsum(cost.saved for cost in known))
