"""Durations as people write them: ``2.5``, ``"250ms"``, ``"10m30s"``, ``"1h"``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_NUMBER = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def seconds(value: object) -> float:
    """Read a duration.

    :param value: a number of seconds, or a string: a number, or numbers with units (``d``, ``h``,
        ``m``, ``s``, ``ms``) written one after another.
    :return: seconds, finite and not negative.
    :raises ValueError: anything else; the message says what is allowed.
    """
    number = _parse(value.strip()) if isinstance(value, str) else value
    if isinstance(number, (int, float)) and not isinstance(number, bool):
        try:
            result = float(number)
        except OverflowError:
            result = math.inf
        if math.isfinite(result) and result >= 0:
            return result
    raise ValueError(
        f"{value!r} is not a duration; allowed are seconds, 0 or more, and strings such as"
        " '250ms', '10m30s' or '1h'"
    )


def label_seconds(labels: Mapping[str, str], name: str) -> float | None:
    """Read a duration from a function's label; ``None`` if there is none, or it cannot be read."""
    label = labels.get(name)
    if label is None:
        return None
    try:
        return seconds(label)
    except ValueError:
        return None


def as_text(duration: float) -> str:
    """Write seconds so that :func:`seconds` reads them: ``"15m"``, ``"1h30m"``, ``"250ms"``."""
    parts, left = [], round(duration * 1000)
    for unit, length in (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)):
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _parse(text: str) -> float | None:
    if _NUMBER.fullmatch(text):
        return float(text)
    parts = list(_PART.finditer(text))
    if not parts or "".join(part.group() for part in parts) != text:
        return None
    return sum(float(part[1]) * _UNITS[part[2]] for part in parts)
