"""After how many seconds without use is a function idle? By its labels, its annotations, or the settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ..._lib.durations import seconds
from ...model import Function, ReplicaStatus
from .labels import LabelWarnings

IDLE_AFTER = "scalezero.idle-after"
"""A duration, or ``never``."""

IDLE_ACTION = "scalezero.idle-action"
"""What is done to the function once it is idle; see :mod:`.ladder`. It opts in, unless one of the others says
otherwise."""

SCALE_ZERO, ZERO_DURATION = "com.openfaas.scale.zero", "com.openfaas.scale.zero-duration"
"""OpenFaaS's: ``true`` or ``1`` opts in; and after which duration."""

MINIMA = ("scalezero.min", "com.openfaas.scale.min")


def wants_to_idle(status: ReplicaStatus) -> bool:
    """Return whether a function says itself that it may go to zero; that means nothing where nothing does."""
    texts: Mapping[str, str] = {**status.annotations, **status.labels}
    if texts.get(IDLE_AFTER, "never").strip().lower() not in {"never", "off"} or IDLE_ACTION in texts:
        return True
    return texts.get(SCALE_ZERO, "").strip().lower() in {"true", "1"}


class Idleness:
    """Says what idle means, for each function. Safe for threads and after a fork.

    :param idle_after: the setting, in seconds; infinite: there is none.
    :param for_all: whether it holds for functions, too, that do not say that they may go to zero.
    :param is_ours: whether a function is served, and requests may wake it; others are never idle.
    """

    def __init__(
        self, idle_after: float, for_all: bool, is_ours: Callable[[Function], bool] = lambda _: True
    ) -> None:
        self._idle_after = idle_after
        self._for_all = for_all
        self._is_ours = is_ours
        self._warnings = LabelWarnings()

    def __call__(self, function: Function, status: ReplicaStatus) -> float | None:
        """Return the seconds; ``None``: it is never idle.

        The first that is there decides: the label ``scalezero.idle-after``, OpenFaaS's labels, the label
        ``scalezero.idle-action``, the settings.
        A minimum that was set on purpose keeps a function up that does not itself say that it may go to zero.
        """
        return self._of(function, status, self._for_all)

    def may_go(self, function: Function, status: ReplicaStatus) -> bool:
        """Return whether a function may be stopped while it is not used, for a reason other than its idling:
        nothing says that it stays up."""
        return self._of(function, status, True) is not None

    def _of(self, function: Function, status: ReplicaStatus, for_all: bool) -> float | None:
        if not self._is_ours(function):
            return None
        texts: Mapping[str, str] = {**status.annotations, **status.labels}
        own = texts.get(IDLE_AFTER)
        if own is not None:
            if own.strip().lower() in {"never", "off"}:
                return None
            return self._duration(function, IDLE_AFTER, own)
        opted = texts.get(SCALE_ZERO)
        if opted is not None:
            if opted.strip().lower() not in {"true", "1"}:
                if opted.strip().lower() not in {"false", "0", "", "null"}:
                    self._warn(function, SCALE_ZERO, opted, "true, 1, false or 0", "false")
                return None
            told = texts.get(ZERO_DURATION)
            return self._idle_after if told is None else self._duration(function, ZERO_DURATION, told)
        if IDLE_ACTION in texts:
            return self._idle_after
        if not for_all or any(self._is_minimum(texts.get(label)) for label in MINIMA):
            return None
        return self._idle_after

    @staticmethod
    def _is_minimum(text: str | None) -> bool:
        return text is not None and text.strip().isdecimal() and int(text) >= 1

    def _duration(self, function: Function, label: str, text: str) -> float:
        try:
            duration = seconds(text)
        except ValueError:
            duration = 0.0
        if duration > 0:
            return duration
        taken = "never" if self._idle_after == math.inf else f"{self._idle_after:g} s"
        self._warn(function, label, text, "a duration above 0 such as 15m", taken)
        return self._idle_after

    def _warn(self, function: Function, label: str, text: str, allowed: str, taken: str) -> None:
        self._warnings(function, label, text, f"is {text!r}; it must be {allowed}; {taken} is taken")
