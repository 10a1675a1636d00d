"""At which hours of the day, or minutes of the hour, is a function used again and again?

What is found is hours as ``keep_warm`` has them (:mod:`scalezero_wsgi.schedule`). A *slot* is an hour of
workdays (0 to 23), an hour of weekends (24 to 47), or five minutes of each hour (48 to 59).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

REGULAR = 0.8
"""The share of the days, or hours, on which it must be used at that time."""

FEWEST_DAYS, FEWEST_HOURS = 3, 12
"""Of which the log must tell, or nothing counts as regular."""

DAYS = ("Mon-Fri", "Sat,Sun")

FIVE_MINUTES, QUARTER, HOUR = 300.0, 900.0, 3600.0
"""Seconds. The clocks of all zones differ by whole quarters of an hour."""

_OF_HOUR = 48
"""The first slot of the hour."""


class Calendar:
    """Says in which slots a moment lies. Of one thread.

    :param zone: whose clocks count.
    """

    def __init__(self, zone: str) -> None:
        self.zone = zone
        self._zone = ZoneInfo(zone)
        self._known: dict[int, tuple[int, int]] = {}

    def at(self, moment: float) -> datetime:
        """Return what clocks show.

        :param moment: seconds since the epoch.
        """
        return datetime.fromtimestamp(moment, self._zone)

    def of_day(self, moment: float) -> tuple[int, int]:
        """Return the slot of the day, and which day it is."""
        quarter = int(moment // QUARTER)
        known = self._known.get(quarter)
        if known is None:
            at = self.at(moment)
            known = self._known[quarter] = at.hour + (24 if at.weekday() >= 5 else 0), at.toordinal()
        return known

    def periods(self, first: float, last: float) -> list[int]:
        """Return how many periods a time has of which each slot may be one part: days or hours."""
        day, end = self.at(first).date(), self.at(last).date()
        days = [0, 0]
        while day <= end:
            days[day.weekday() >= 5] += 1
            day += timedelta(days=1)
        return [days[0]] * 24 + [days[1]] * 24 + [math.ceil((last - first) / HOUR)] * 12


def of_hour(moment: float) -> int:
    """Return the slot of the hour, as UTC has it."""
    return _OF_HOUR + int(moment % HOUR // FIVE_MINUTES)


class Uses:
    """Counts on how many days, or in how many hours, each slot was used. Of one function and thread.

    :ivar until: uses before that change nothing.
    """

    __slots__ = ("_calendar", "_counts", "_last", "until")

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._counts: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self.until = -math.inf

    def note(self, moment: float) -> None:
        """Note that the function was used."""
        self.until = moment - moment % FIVE_MINUTES + FIVE_MINUTES
        slot, day = self._calendar.of_day(moment)
        for number, period in ((slot, day), (of_hour(moment), int(moment // HOUR))):
            if self._last.get(number) != period:
                self._last[number] = period
                self._counts[number] = self._counts.get(number, 0) + 1

    def regular(self, periods: Sequence[int]) -> list[int]:
        """Return the slots in which it is used regularly: of the hour if there are such, else of the day.

        There are none if it is used at all hours.

        :param periods: how many of each the log tells of.
        """
        regular = [
            number
            for number, count in sorted(self._counts.items())
            if count >= REGULAR * periods[number]
            and periods[number] >= (FEWEST_DAYS if number < _OF_HOUR else FEWEST_HOURS)
        ]
        of_hours = [number for number in regular if number >= _OF_HOUR]
        if 0 < len(of_hours) <= 6:  # in more than half of the hour it may as well stay up
            return of_hours
        of_days = [number for number in regular if number < _OF_HOUR]
        return [] if set(of_days) >= {number for number in range(_OF_HOUR) if periods[number]} else of_days


class Spent:
    """Cold starts in each slot, and for how many seconds of it the function was up. Of one thread."""

    __slots__ = ("_calendar", "_edges", "_hours", "_parts", "_rounds", "_starts")

    def __init__(self, calendar: Calendar) -> None:
        self._calendar = calendar
        self._starts: dict[int, int] = {}
        self._hours = array("d", bytes(8 * _OF_HOUR))
        # Of five minutes: the seconds of those that were up in part; and of rows of whole ones how many
        # more end than begin at each slot, and how many hours they span.
        self._parts, self._edges, self._rounds = array("d", bytes(8 * 12)), array("q", bytes(8 * 12)), 0

    def note(self, begin: float, end: float) -> None:
        """Note a time in which it was up, since a cold start."""
        starts, parts = self._starts, self._parts
        first, last = int(begin // FIVE_MINUTES), int(end // FIVE_MINUTES)
        part = first % 12
        starts[_OF_HOUR + part] = starts.get(_OF_HOUR + part, 0) + 1
        if first == last:
            parts[part] += end - begin
        else:
            parts[part] += (first + 1) * FIVE_MINUTES - begin
            parts[last % 12] += end - last * FIVE_MINUTES
            self._edges[last % 12] += 1
            self._edges[(first + 1) % 12] -= 1
            self._rounds += last // 12 - (first + 1) // 12
        slot = self._calendar.of_day(begin)[0]
        starts[slot] = starts.get(slot, 0) + 1
        # Hours of UTC: where clocks differ by less it is about right.
        hour_ends = begin - begin % HOUR + HOUR
        while hour_ends < end:
            self._hours[slot] += hour_ends - begin
            begin, hour_ends = hour_ends, hour_ends + HOUR
            slot = self._calendar.of_day(begin)[0]
        self._hours[slot] += end - begin

    def starts(self, slot: int) -> int:
        """Return how many cold starts were in a slot."""
        return self._starts.get(slot, 0)

    def up(self, slot: int) -> float:
        """Return for how many seconds of a slot it was up."""
        if slot < _OF_HOUR:
            return self._hours[slot]
        number = slot - _OF_HOUR
        whole = self._rounds + sum(self._edges[number + 1 :])
        return self._parts[number] + whole * FIVE_MINUTES


def length_of(slots: Sequence[int], periods: Sequence[int]) -> float:
    """Return how many seconds the slots last in all."""
    return sum(periods[slot] * (HOUR if slot < _OF_HOUR else FIVE_MINUTES) for slot in slots)


def as_hours(slots: Sequence[int], zone: str) -> str:
    """Return slots as ``keep_warm`` has them. There must be one."""
    if slots[0] >= _OF_HOUR:
        runs = _runs([slot - _OF_HOUR for slot in slots])
        crons = [f"cron {5 * first} * * * * for {5 * (last - first)}m" for first, last in runs]
        return "; ".join(crons) + " UTC"
    workdays, weekend = ([slot % 24 for slot in slots if slot // 24 == half] for half in (0, 1))
    by_days = {"": workdays} if workdays == weekend else {DAYS[0]: workdays, DAYS[1]: weekend}
    windows = [
        f"{days} {first:02}:00-{last:02}:00".strip()
        for days, hours in by_days.items()
        for first, last in _runs(hours)
    ]
    return "; ".join(windows) + f" {zone}"


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return where each row of numbers that follow one another begins and ends."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number:
            runs[-1] = runs[-1][0], number + 1
        else:
            runs.append((number, number + 1))
    return runs
