"""Read the values of settings, as Python, a mapping or the environment has them.

Each reader returns the value as it is to be, or raises a ``ValueError`` that says what is allowed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from http import HTTPStatus

from .durations import seconds


def one_of(*allowed: str) -> Callable[[object], str]:
    """Return a reader of one of these texts."""

    def read(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise ValueError(f"{value!r} is not allowed; it must be one of {', '.join(map(repr, allowed))}")

    return read


def positive_duration(value: object) -> float:
    """Read a duration of more than 0 seconds."""
    duration = seconds(value)
    if duration == 0:
        raise ValueError(f"{value!r} is not allowed; it must be more than 0 seconds")
    return duration


def count(value: object) -> int:
    """Read an integer of 1 or more."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    raise ValueError(f"{value!r} is not allowed; it must be an integer of 1 or more")


def switch(value: object) -> bool:
    """Read true or false."""
    if isinstance(value, bool):
        return value
    switch = {"1": True, "true": True, "yes": True, "on": True}
    switch |= {"0": False, "false": False, "no": False, "off": False}
    if isinstance(value, str) and value.strip().lower() in switch:
        return switch[value.strip().lower()]
    raise ValueError(f"{value!r} is not allowed; it must be true or false")


def optional(read: Callable[[object], object]) -> Callable[[object], object]:
    """Return a reader of ``None``, an empty text, or what ``read`` reads."""
    return lambda value: None if value is None or value == "" else read(value)


def rate(value: object) -> float:
    """Read a number of requests in a second."""
    try:
        rate = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else 0.0
    except (ValueError, OverflowError):
        rate = 0.0
    if 0 < rate < float("inf"):
        return rate
    raise ValueError(f"{value!r} is not allowed; it must be a number of requests in a second, more than 0")


def file(value: object) -> str:
    """Read the path of a file."""
    if isinstance(value, (str, os.PathLike)) and os.path.isfile(value):  # noqa: PTH113
        return os.fspath(value)
    raise ValueError(f"{value!r} is not allowed; it must be the path of a file")


def http_status(value: object) -> int:
    """Read a known HTTP status that ends a request."""
    allowed = [status.value for status in HTTPStatus if status >= HTTPStatus.OK]
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and value in allowed:
        return int(value)
    raise ValueError(f"{value!r} is not allowed; it must be a known HTTP status from 200 to 599")
