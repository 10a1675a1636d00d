"""Amounts of memory as people write them: ``1073741824``, ``"512MiB"``, ``"1.5GB"``, ``"4Gi"``."""

from __future__ import annotations

import math
import re

_UNITS = {
    "": 1,
    "b": 1,
    **{f"{prefix}b": 1000**power for power, prefix in enumerate("kmgt", 1)},
    **{f"{prefix}i{b}": 1024**power for power, prefix in enumerate("kmgt", 1) for b in ("", "b")},
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)", re.ASCII | re.IGNORECASE)


def memory(value: object) -> int:
    """Read an amount of memory.

    :param value: a number of bytes, or a string: a number, with ``B``, ``kB``, ``MB``, ``GB``, ``TB``,
        ``KiB``, ``MiB``, ``GiB`` or ``TiB`` after it, in upper or lower case; without the last ``B``, ``Gi``
        and the like are as in Kubernetes.
    :return: bytes, 1 or more.
    :raises ValueError: anything else; the message says what is allowed.
    """
    number = _parse(value.strip()) if isinstance(value, str) else value
    if isinstance(number, int) and not isinstance(number, bool) and number > 0:
        return number
    raise ValueError(
        f"{value!r} is not allowed; it must be a number of bytes, 1 or more, or a string such as '512MiB' or"
        " '8GiB'"
    )


def shown(size: float) -> str:
    """Return an amount of memory as people write it."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size >= 1024**power:
            return f"{round(size / 1024**power, 2):g} {unit}"
    return f"{size:.0f} B"


def _parse(text: str) -> int | None:
    found = _SIZE.fullmatch(text)
    unit = None if found is None else _UNITS.get(found[2].lower())
    if found is None or unit is None:
        return None
    size = float(found[1]) * unit
    return int(size) if size < math.inf else None
