"""What is done to an idle function, as people write it: ``"stop"``, ``"pause after 5m, stop after 1h"``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .durations import seconds

_STEP = re.compile(r"(stop|pause)(?:\s+after\s+(\S+))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class IdleAction:
    """One step, or two: to pause first, and to stop later.

    :param pause: whether the first step is to pause; otherwise it is to stop, and the only one.
    :param after: seconds without use after which the first step is taken; ``None``: this does not say.
    :param stop_after: seconds without use after which a paused function is stopped; ``None``: never.
    """

    pause: bool = False
    after: float | None = None
    stop_after: float | None = None

    def __str__(self) -> str:
        """Return it as it is written, with the durations in seconds."""
        first = "pause" if self.pause else "stop"
        first += "" if self.after is None else f" after {self.after:g}s"
        return first if self.stop_after is None else f"{first}, stop after {self.stop_after:g}s"


STOP = IdleAction()
"""What is done if nothing is said."""

ALLOWED = (
    "'stop', 'pause', either with 'after' and a duration, or both such as 'pause after 5m, stop after 1h'"
)
"""What may be written."""


def idle_action(value: object) -> IdleAction:
    """Read what is done to an idle function.

    :raises ValueError: it is not allowed; the message says what is.
    """
    if isinstance(value, IdleAction):
        return value
    steps = [_step(part) for part in value.split(",")] if isinstance(value, str) else []
    match steps:
        case [(name, after)]:
            return IdleAction(name == "pause", after)
        case [("pause", after), ("stop", float(stop_after))] if stop_after > (after or 0.0):
            return IdleAction(True, after, stop_after)
    raise ValueError(f"{value!r} is not allowed; it must be {ALLOWED}, the second later than the first")


def _step(text: str) -> tuple[str, float | None] | None:
    found = _STEP.fullmatch(text.strip())
    if found is None:
        return None
    try:
        after = None if found[2] is None else seconds(found[2])
    except ValueError:
        return None
    return None if after == 0 else (found[1], after)
