"""Read access logs: common and combined, also with more fields at the end, and JSON lines of usual servers.

Known without being told are the fields of nginx, Apache, gunicorn, Caddy, Traefik and Envoy, and those of
this package's ``JsonLog``. What a line's time means differs: nginx, gunicorn and Caddy tell when the request
ended, Apache when it came; JSON lines of Traefik and Envoy say so by the field's name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

_TEXT = re.compile(r'[^\[]*\[([^\]]+)\] "[^ "]+ ([^ "]+)[^"]*" (\d{3}) (?:\d+|-)(.*)', re.DOTALL)
_DURATION = re.compile(r"(?:^|[\s=])(\d+(?:\.\d+)?)(us|µs|ms|s)?(?=\s|$)", re.ASCII)
_COLD_START = re.compile(r"cold-start;dur=(\d+(?:\.\d+)?)", re.ASCII)

UNITS = {"s": 1.0, "ms": 1e-3, "us": 1e-6}

_ENDED = ("time", "timestamp", "ts", "@timestamp", "time_iso8601", "msec", "time_local")
_CAME = ("StartUTC", "StartLocal", "start_time")  # Traefik, Envoy
_PATHS = ("path", "uri", "request_uri", "url", "RequestPath")
_STATUSES = ("status", "DownstreamStatus", "response_code", "status_code")
_DURATIONS = (
    ("request_time", 1.0),  # nginx, in seconds
    ("duration", 1.0),  # Caddy, in seconds; Envoy's are milliseconds, see below
    ("duration_ms", 1e-3),
    ("duration_us", 1e-6),
    ("Duration", 1e-9),  # Traefik
)
_WAITED = ("waited", "server_timing", "resp_headers", "downstream_Server-Timing")
_MINUTES_KEPT = 1000
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class WrongLine(ValueError):
    """A line that cannot be read."""


class Entry(NamedTuple):
    """One request of a log.

    :ivar path: with its query.
    :ivar came_at: seconds since the epoch.
    :ivar duration: seconds that it took, without those that it waited for a start where the log tells them;
        0 if the log does not say.
    """

    path: str
    came_at: float
    duration: float
    status: int


class Told(NamedTuple):
    """One line of ``JsonLog``: the event's fields."""

    fields: Mapping[str, Any]


class LineReader:
    """Reads lines, each of whatever format it is. Of one thread.

    :param stamp: what a line's time is, ``"end"`` or ``"start"``, where its format does not say.
    :param unit: of a duration that has none, a key of ``UNITS``; ``None``: with a decimal point it is in
        seconds, as nginx and gunicorn's ``%(L)s`` have it, else in microseconds as ``%D``.
    """

    def __init__(self, stamp: str = "end", unit: str | None = None) -> None:
        self._from_end = stamp == "end"
        self._unit = None if unit is None else UNITS[unit]
        self._minutes: dict[str, float] = {}

    def __call__(self, line: str) -> Entry | Told:
        """Read a line.

        :raises WrongLine: it is no line of an access log.
        """
        try:
            if line[:1] == "{":
                return self._read_json(json.loads(line))
            return self._read_text(line)
        except WrongLine:
            raise
        except (ValueError, TypeError, OverflowError, RecursionError) as error:
            raise WrongLine(str(error)) from None

    def _read_text(self, line: str) -> Entry:
        match = _TEXT.match(line)
        if match is None:
            raise WrongLine("it is neither common nor combined")
        stamp, path, status, tail = match.groups()
        at, duration, waited = self._seconds_at(stamp), 0.0, 0.0
        found = _DURATION.search(tail, tail.rfind('"') + 1)
        if found is not None:
            number, unit = found.groups()
            duration = float(number) * (self._factor(number, unit))
        if "cold-start" in tail:
            waited = _cold_start(tail)
        came_at = at - duration if self._from_end else at
        return Entry(path, came_at, max(0.0, duration - waited) if waited else duration, int(status))

    def _read_json(self, told: Any) -> Entry | Told:
        if not isinstance(told, dict):
            raise WrongLine("it is no object")
        if "event" in told and "pid" in told:
            return Told(told)
        request = told.get("request")
        if isinstance(request, dict):  # Caddy
            path = request.get("uri")
        elif isinstance(request, str) and request.count(" "):
            path = request.split(" ")[1]
        else:
            path = _first(told, _PATHS)
        came, ended, status = _first(told, _CAME), _first(told, _ENDED), _first(told, _STATUSES)
        at = ended if came is None else came
        if not isinstance(path, str) or at is None:
            raise WrongLine("it has no path, or no time")
        duration = 0.0
        for name, unit in _DURATIONS:
            if name in told and told[name] not in (None, "", "-"):
                if name == "duration" and "start_time" in told:
                    unit = 1e-3
                text = str(told[name])
                duration = float(text) * (unit if self._unit is None else self._unit)
                break
        seconds = self._seconds_at(at.strip("[]")) if isinstance(at, str) else at
        from_end = self._from_end and came is None
        code = int(status) if status not in (None, "", "-") else 200
        return self._entry(path, float(seconds), duration, _waited(told), code, from_end)

    @staticmethod
    def _entry(path: str, at: float, duration: float, waited: float, status: int, from_end: bool) -> Entry:
        if not (abs(at) < 1e11 and 0 <= duration < 1e9):  # also not a number
            raise WrongLine("its time or its duration cannot be")
        return Entry(path, at - duration if from_end else at, max(0.0, duration - waited), status)

    def _factor(self, number: str, unit: str | None) -> float:
        if unit is not None:
            return UNITS["us" if unit == "µs" else unit]
        if self._unit is not None:
            return self._unit
        return 1.0 if "." in number else 1e-6

    def _seconds_at(self, text: str) -> float:
        """Read ``29/Nov/2026:11:36:04 +0000``, also with fractions; ISO 8601; or seconds since the epoch."""
        if text[2:3] != "/":
            if text[4:5] != "-":
                return float(text)
            at = datetime.fromisoformat(text)
            return (at if at.tzinfo is not None else at.replace(tzinfo=UTC)).timestamp()
        minute = text[:18] + text[-6:]
        begun = self._minutes.get(minute)
        if begun is None:
            month = _MONTHS.index(text[3:6]) + 1  # strptime takes ten times as long
            at = datetime.fromisoformat(f"{text[7:11]}-{month:02}-{text[:2]}T{text[12:17]}{text[-5:]}")
            begun = at.timestamp()
            if len(self._minutes) >= _MINUTES_KEPT:
                self._minutes.clear()
            self._minutes[minute] = begun
        return begun + float(text[18:-6])


def _first(told: Mapping[str, Any], names: tuple[str, ...]) -> Any:
    for name in names:
        if name in told:
            return told[name]
    return None


def _waited(told: Mapping[str, Any]) -> float:
    """Return for how many seconds the request waited for a start; 0 if that is not told."""
    value = _first(told, _WAITED)
    if isinstance(value, dict):  # Caddy
        value = value.get("Server-Timing")
    if isinstance(value, int | float):
        return float(value)
    return _cold_start(str(value))


def _cold_start(text: str) -> float:
    found = _COLD_START.search(text)
    return 0.0 if found is None else float(found[1]) / 1000
