"""Durations of which only quantiles are asked, counted in classes, so that many take no more memory."""

from __future__ import annotations

import math

WIDTH = math.log(1.01)
"""The logarithm of how much wider each class is than the one before: quantiles are 1 % right."""


def class_of(seconds: float) -> int:
    """Return the number of the class in which a duration counts."""
    return math.floor(math.log(max(seconds, 1e-6)) / WIDTH)


class Waits:
    """Of one thread."""

    __slots__ = ("_class", "_classes", "_longest", "_seconds", "count", "sum")

    def __init__(self) -> None:
        self._classes: dict[int, int] = {}
        self._longest: dict[int, float] = {}  # of each class
        self._seconds, self._class = 0.0, 0  # of the last one: many are equal
        self.count, self.sum = 0, 0.0

    def add(self, seconds: float) -> None:
        """Count a wait of more than 0 seconds."""
        if seconds != self._seconds:
            self._seconds = seconds
            self._class = class_of(seconds)
            self._longest[self._class] = max(seconds, self._longest.get(self._class, 0.0))
        self._classes[self._class] = self._classes.get(self._class, 0) + 1
        self.count += 1
        self.sum += seconds

    def add_class(self, number: int, count: int, seconds: float, longest: float) -> None:
        """Count those of a class that were counted before.

        :param seconds: the sum of them.
        :param longest: the longest of them.
        """
        self._classes[number] = self._classes.get(number, 0) + count
        self._longest[number] = max(longest, self._longest.get(number, 0.0))
        self.count += count
        self.sum += seconds

    def include(self, other: Waits) -> None:
        """Count those that the other has counted."""
        for number, count in other._classes.items():
            self._classes[number] = self._classes.get(number, 0) + count
        for number, longest in other._longest.items():
            self._longest[number] = max(longest, self._longest.get(number, 0.0))
        self.count += other.count
        self.sum += other.sum

    def quantile(self, share: float) -> float:
        """Return the seconds that so large a share of them waited at most; 0 if there are none."""
        left = share * self.count
        for number, count in sorted(self._classes.items()):
            left -= count
            if left <= 0:
                return self._longest[number]
        return 0.0
