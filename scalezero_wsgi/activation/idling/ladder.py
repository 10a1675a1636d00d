"""What is done to an idle function, and when: it is stopped, or paused, or paused first and stopped later.

Each is a step on the way to zero, and goes by the same hand-shake (:mod:`.drain`). That a function is paused,
and not stopped, is known to its provider alone, which tells it with each status; since when, the workers tell
each other (``SharedStatus.paused_for``).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ..._lib.idle_action import ALLOWED, IdleAction, idle_action
from ...model import Function, ReplicaStatus
from ...providers.base import PausingProvider, Provider
from ..state import NEVER, FunctionMeta, FunctionState
from .idleness import IDLE_ACTION
from .labels import LabelWarnings

logger = logging.getLogger("scalezero_wsgi")

IdleAfter = Callable[[Function, ReplicaStatus], float | None]
"""Returns after how many seconds without use a function is idle; ``None``: never, or not now."""

ToZero = Callable[[Function, ReplicaStatus], None]
"""Takes a function of that status to zero, and returns when that was asked for, or is done."""


def stop_by(provider: Provider) -> ToZero:
    """Return what stops a function, paused or not."""
    return lambda function, _: provider.set_replicas(*function, 0)


def held_since(state: FunctionState | None, now: float) -> float:
    """Return since when a function that is seen for the first time holds its memory, as far as is known."""
    return now if state is None or state.paused_at == NEVER else state.paused_at


def status_by(meta: FunctionMeta, used_at: float) -> ReplicaStatus:
    """Return an entry's status; if the function was used since, it is not paused any more."""
    is_past = meta.status.paused and meta.seen_at < used_at
    return replace(meta.status, paused=False) if is_past else meta.status


class _Times(NamedTuple):
    """After how many seconds without use a function is paused, and is stopped; ``None``: never."""

    pause: float | None
    stop: float | None


class Ladder:
    """Says when the next step of a function is due, and takes it. Safe for threads and after a fork.

    A step that the provider cannot take is left out, which is logged once: with ``pause`` alone the function
    stays up, for whoever wants its memory kept would lose it by a stop.

    :param action: the setting; the label ``scalezero.idle-action`` goes before it.
    :param idle_after: says after how many seconds without use a function is idle; ``None``: never, or not
        now. A label's action may say another time.
    """

    def __init__(
        self,
        action: IdleAction,
        idle_after: IdleAfter,
        provider: Provider,
    ) -> None:
        self._action = action
        self._idle_after = idle_after
        self._provider = provider
        self._pausing = provider if isinstance(provider, PausingProvider) else None
        self._stop = stop_by(provider)
        self._warnings = LabelWarnings()
        self._said = False

    def __call__(self, function: Function, status: ReplicaStatus) -> float | None:
        """Return after how many seconds the next step is due; ``None``: never.

        They are seconds without use or, of a paused function, since it was paused.
        """
        idle_after = self._idle_after(function, status)
        if idle_after is None:
            return None
        times = self._times(function, status, idle_after)
        if not status.paused:
            return times.stop if times.pause is None else times.pause
        # What is paused although the settings do not say so was paused by somebody else, and stays so.
        return None if times.pause is None or times.stop is None else times.stop - times.pause

    def take(self, function: Function, status: ReplicaStatus) -> None:
        """Take the next step of a function of that status: pause or stop it, as the provider's methods do.

        :raises ScaleZeroError: as those.
        """
        # It may not be idle any more, for its hours have just begun: the step is the same all the same.
        idle_after = self._idle_after(function, status) or 0.0
        pauses = not status.paused and self._times(function, status, idle_after).pause is not None
        if self._pausing is not None and pauses:
            self._pausing.pause(*function)
        else:
            self._stop(function, status)

    def _times(self, function: Function, status: ReplicaStatus, idle_after: float) -> _Times:
        action = self._action
        text = status.labels.get(IDLE_ACTION) or status.annotations.get(IDLE_ACTION)
        if text is not None:
            try:
                action = idle_action(text)
                idle_after = action.after or idle_after
            except ValueError:
                line = f"is {text!r}; it must be {ALLOWED}; {action} is taken"
                self._warnings(function, IDLE_ACTION, text, line)
        if not action.pause:
            return _Times(None, idle_after)
        if self._pausing is None:
            self._say_once()
            return _Times(None, action.stop_after and max(idle_after, action.stop_after))
        if action.stop_after is not None and action.stop_after <= idle_after:
            return _Times(None, idle_after)  # its label puts the first step off beyond the second
        return _Times(idle_after, action.stop_after)

    def _say_once(self) -> None:
        if not self._said:
            self._said = True
            kind = type(self._provider).__name__
            logger.warning("idle_action: %s cannot pause functions; that step is left out", kind)
