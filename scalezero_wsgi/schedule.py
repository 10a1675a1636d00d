"""Hours in which functions are to be up: ``"Mon-Fri 08:00-18:00 Europe/Berlin"``, or in cron's form.

A text holds one window or more, with ``"; "`` or ``", "`` between:

- ``[DAYS] HH:MM-HH:MM [ZONE]``: hours as clocks on the wall show them. ``DAYS`` such as ``Mon-Fri`` or
  ``Sat,Sun`` are those on which they begin, by default all. ``22:00-06:00`` ends on the next day,
  ``00:00-24:00`` is a whole one.
- ``cron FIELDS for DURATION [ZONE]``: the five fields say when they begin, the duration how long they last.

``ZONE`` is a name such as ``Europe/Berlin``. One that stands only at the end holds for all windows; without
any it is UTC.

When clocks are put forward, what begins or ends at a time that they skip does so at that moment. When they
are put back, hours begin with the first of a time that they show twice, and end with the last.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from itertools import islice
from typing import NamedTuple, Protocol
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from ._lib.durations import seconds
from .model import MissingExtra

ALLOWED = (
    "hours such as 'Mon-Fri 08:00-18:00 Europe/Berlin', '22:00-06:00' or"
    " 'cron 0 8 * * 1-5 for 10h Europe/Berlin', several with '; ' between"
)

DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")

WHOLE_DAY = 24 * 60
"""Minutes."""

LOOK_AHEAD = 60
"""Days within which a window of the week must come: a zone has left out a day before, but not a week's."""

_BETWEEN = re.compile(r"\s*;\s*|,\s+")
_HOURS = re.compile(
    r"(?:([a-z][a-z,-]*)\s+)?(\d\d?:\d\d)\s*-\s*(\d\d?:\d\d)(?:\s+(\S+))?", re.ASCII | re.IGNORECASE
)
_CRON = re.compile(r"cron\s+(.+?)\s+for\s+(\S+)(?:\s+(\S+))?", re.ASCII | re.IGNORECASE)
_ZONE = re.compile(r"[a-z][\w+-]*(?:/[\w+-]+)*", re.ASCII | re.IGNORECASE)


class Window(Protocol):
    """Hours that come again and again."""

    def next(self, now: float) -> tuple[float, float]:
        """Return when the hours begin and end that are not over at ``now``, the first such if it does not lie
        within any; all in seconds since the epoch, infinite if there are none."""


class Schedule:
    """Says when the hours are. Safe for threads: what it remembers is replaced whole."""

    __slots__ = ("_known", "_windows")

    def __init__(self, *windows: Window) -> None:
        self._windows = windows
        self._known = (math.inf, -math.inf, math.inf)

    def begins(self, now: float) -> float:
        """Return when the hours begin, or began, that are not over yet: up to ``now`` within hours, later
        outside; infinite if there are none.

        :param now: seconds since the epoch.
        """
        known_from, known_until, begins = self._known
        if not known_from <= now < known_until:
            found = [window.next(now) for window in self._windows]
            begins = min(begin for begin, _ in found)
            self._known = now, min(end for _, end in found), begins
        return begins


def schedule(text: object) -> Schedule:
    """Read hours; see the head of this module.

    :raises ValueError: they cannot be read; the message names the text and what is allowed.
    :raises MissingExtra: cron's form needs a library that is not installed.
    """
    try:
        if isinstance(text, str):
            return _read(text)
        raise ValueError("it is no text")
    except ValueError as error:
        raise ValueError(f"{text!r} is not allowed: {error}; it must be {ALLOWED}") from None


def _read(text: str) -> Schedule:
    found = [_part(part) for part in _BETWEEN.split(text.strip())]
    zones = [zone for _, zone in found]
    if any(zones[:-1]) and not all(zones):
        raise ValueError("a time zone must stand with each part, or only at the end for all")
    last = zones[-1] or UTC
    return Schedule(*[make(zone or last) for make, zone in found])


def _part(part: str) -> tuple[Callable[[tzinfo], Window], tzinfo | None]:
    """Read one window; return what makes it of a time zone, and the zone if it names one."""
    if hours := _HOURS.fullmatch(part):
        days, begin, end, zone = hours.groups()
        which, first, last = _days(days), _minutes(begin), _minutes(end)
        if first in (last, WHOLE_DAY):
            raise ValueError(f"{part!r} has no hours; a whole day is 00:00-24:00")
        last += WHOLE_DAY if last < first else 0
        return lambda zone: _Hours(which, first, last, zone), _zone(zone)
    if cron := _CRON.fullmatch(part):
        fields, told, zone = cron.groups()
        duration = seconds(told)
        if duration == 0:
            raise ValueError(f"{told!r} is no time")
        return lambda zone: _Cron(fields, duration, zone), _zone(zone)
    raise ValueError(f"{part!r} cannot be read")


def _days(text: str | None) -> frozenset[int]:
    if text is None:
        return frozenset(range(7))
    found: set[int] = set()
    for part in text.lower().split(","):
        first, dash, last = part.partition("-")
        if first not in DAYS or (dash and last not in DAYS):
            raise ValueError(f"{part!r} is no day; the days are Mon, Tue, Wed, Thu, Fri, Sat and Sun")
        begin = DAYS.index(first)
        length = (DAYS.index(last) - begin) % 7 if dash else 0
        found.update((begin + day) % 7 for day in range(length + 1))
    return frozenset(found)


def _minutes(text: str) -> int:
    hour, minute = map(int, text.split(":"))
    if minute > 59 or hour * 60 + minute > WHOLE_DAY:
        raise ValueError(f"{text!r} is no time from 00:00 to 24:00")
    return hour * 60 + minute


def _zone(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    if name.upper() == "UTC":  # also where there are no files of time zones
        return UTC
    try:
        if _ZONE.fullmatch(name):
            return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        pass
    raise ValueError(
        f"the time zone {name!r} is not known here (zones come with the system, or with the package tzdata)"
    )


class _Hours(NamedTuple):
    """:ivar days: those of the week on which the hours begin; Monday is 0.
    :ivar first: minutes after midnight at which they begin.
    :ivar last: at which they end; beyond those of a day it is on the next one.
    """

    days: frozenset[int]
    first: int
    last: int
    zone: tzinfo

    def next(self, now: float) -> tuple[float, float]:
        today = datetime.fromtimestamp(now, self.zone).date()
        for offset in range(-2, LOOK_AHEAD):
            day = today + timedelta(days=offset)
            if day.weekday() in self.days:
                begin = _moment(_shown(day, self.first), self.zone)
                end = _moment(_shown(day, self.last), self.zone, is_end=True)
                if end > max(now, begin):
                    return begin, end
        return math.inf, math.inf


def _shown(day: date, minutes: int) -> datetime:
    return datetime.combine(day, time()) + timedelta(minutes=minutes)


def _moment(shown: datetime, zone: tzinfo, *, is_end: bool = False) -> float:
    """Return when the clocks of a zone show a time, in seconds since the epoch.

    :param shown: that time. If they skip it: when they are put forward. If they show it twice: the first
        time.
    :param is_end: the second time, unless what comes right before it is not shown again.
    """

    def clock(moment: float) -> datetime:
        return datetime.fromtimestamp(moment, zone).replace(tzinfo=None)

    first, second = (shown.replace(tzinfo=zone, fold=fold).timestamp() for fold in (0, 1))
    if second < first:  # PEP 495: it is skipped, and the change lies between the two
        moments = range(int(second), int(first) + 1)
        return moments[bisect_left(moments, True, key=lambda moment: clock(moment) >= shown)]
    return second if is_end and clock(second - 1) < shown else first


class _Cron:
    """Cron's own rules hold when clocks are changed: a job at a time that they skip runs right after it, one
    at a time that they show twice runs once.

    :raises MissingExtra: the library is not installed.
    :raises ValueError: the fields cannot be read, or the time never comes.
    """

    def __init__(self, fields: str, duration: float, zone: tzinfo) -> None:
        try:
            from cronsim import CronSim, CronSimError
        except ImportError:
            raise MissingExtra("cronsim", "cron") from None
        if len(fields.split()) != 5:
            raise ValueError(f"{fields!r} are not the five fields of cron")
        self._simulation, self._fields, self._duration, self._zone = CronSim, fields, duration, zone
        try:
            begin, _ = self.next(0.0)
        except CronSimError as error:
            raise ValueError(f"cron's fields {fields!r}: {error}") from None
        if begin == math.inf:
            raise ValueError(f"the time of cron's fields {fields!r} never comes")

    def next(self, now: float) -> tuple[float, float]:
        second = math.floor(now)
        until_now = self._simulation(self._fields, self._at(second + 1), reverse=True)
        begins = [begin.timestamp() for begin in islice(until_now, 1)]
        for begin in map(datetime.timestamp, self._simulation(self._fields, self._at(second))):
            begins.append(begin)
            if begin > now:  # not so of one at a time that there is twice
                break
        for begin in begins:
            if begin + self._duration > now:
                return begin, begin + self._duration
        return math.inf, math.inf

    def _at(self, second: int) -> datetime:
        return datetime.fromtimestamp(second, self._zone)
