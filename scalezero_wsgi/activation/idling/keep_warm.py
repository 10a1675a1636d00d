"""Hours in which functions are up: they are not stopped then, and started ahead by their usual start time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from ..._lib.backoff import backoff_step
from ..._lib.bounded import Bounded
from ..._lib.per_process import PerProcess
from ...events import KeptWarm
from ...model import Function, MissingExtra, ReplicaStatus, ScaleZeroError
from ...schedule import Schedule, schedule
from ..scaler import FunctionScaler
from ..state import NEVER
from .drain import END
from .labels import LabelWarnings

KEEP_WARM = "scalezero.keep-warm"
"""The label with a function's own hours, or ``never``."""

EARLY = 5.0
"""Seconds for which a function is to be up before its hours: the worker that decides may die just then."""

AHEAD = 900.0
"""Seconds by which a function is started ahead at most."""

UNKNOWN_START = 30.0
"""Seconds that a start is assumed to take if none is known, of this function or of any other."""

NOT_BEFORE = END
"""Seconds for which a function is not stopped before it would be started: a stop may take as long."""

LOOK_EVERY, LOOK_PAUSE = 1.0, 0.001
"""Seconds between two looks at all functions, at least and for each: with 10,000 every 10 s."""

LOOK_AGAIN = 60.0
"""Seconds after which the provider is asked anew for a function that was up: it may have ended."""

LOOKS = 20
"""For how many it is asked in one look: with more than 1,000 that are up, each is asked for less often."""

AT_ONCE = 100
"""Functions that are started at once."""

SAY_AGAIN = 600.0
"""Seconds after which it is said again, with ``dry_run``, what would be started."""

SCHEDULES = 1_000
"""How many labels' different texts are remembered."""


class _Tries(NamedTuple):
    """How often a function was started in vain, and the monotonic seconds of the next try."""

    made: int = 0
    not_before: float = NEVER


class _Notes:
    """What one process has noted."""

    def __init__(self) -> None:
        self.looked_at = NEVER
        self.tries: dict[Function, _Tries] = {}


class KeepWarm:
    """Says when functions are idle, which they are not in their hours, and starts them for these. Safe for
    threads and after a fork.

    :param idleness: says what idle means apart from that.
    :param is_ours: whether a function may be started by its own label.
    :param keep_warm: hours of all functions that are ever idle, unless their labels say others.
    :param dry_run: whether it is only said what would be started.
    :param wall_clock: seconds since the epoch.
    :param may_start: whether a function may be started now, which somebody else may want to be at zero.
    """

    def __init__(
        self,
        scaler: FunctionScaler,
        idleness: Callable[[Function, ReplicaStatus], float | None],
        is_ours: Callable[[Function], bool] = lambda _: True,
        keep_warm: str | None = None,
        dry_run: bool = False,
        wall_clock: Callable[[], float] = time.time,
        may_start: Callable[[Function], bool] = lambda _: True,
    ) -> None:
        self._scaler = scaler
        self._cache, self._report = scaler.context.cache, scaler.context.report
        self._clock, self._wall_clock = scaler.context.clock, wall_clock
        self._idleness, self._is_ours = idleness, is_ours
        self._for_all = None if keep_warm is None else schedule(keep_warm)
        self._dry_run = dry_run
        self._may_start_now = may_start
        self._warnings = LabelWarnings()
        self._read: Bounded[str, Schedule | str] = Bounded(SCHEDULES)
        self._notes = PerProcess(_Notes)

    # What keeps a function up

    def __call__(self, function: Function, status: ReplicaStatus) -> float | None:
        """Return after how many seconds without use the function is idle; ``None``: never, or not now."""
        idle_after = self._idleness(function, status)
        return None if idle_after is None or self.is_due(function, status) else idle_after

    def is_due(self, function: Function, status: ReplicaStatus) -> bool:
        """Return whether the function is to be up for its hours, or is about to be started for them."""
        hours = self._hours(function, status)
        return hours is not None and self._due_for(function, hours, self._wall_clock()) >= -NOT_BEFORE

    def holds(self, function: Function, status: ReplicaStatus) -> bool:
        """Return whether the function should be up for its hours now."""
        hours = self._hours(function, status)
        if hours is None or self._due_for(function, hours, self._wall_clock()) < 0:
            return False
        return self._may_start(function, status, hours)

    def _hours(self, function: Function, status: ReplicaStatus) -> Schedule | None:
        """Return the hours that the function's label or annotation says, or else the setting."""
        text = status.labels.get(KEEP_WARM)
        if text is None:
            text = status.annotations.get(KEEP_WARM)
            if text is None:
                return self._for_all
        if text.strip().lower() in {"never", "off"}:
            return None
        read = self._read.get(text)
        if read is None:
            read = _read(text)
            self._read.set(text, read)
        if isinstance(read, Schedule):
            return read
        self._warnings(function, KEEP_WARM, text, f"counts as not set: {read}")
        return self._for_all

    def _due_for(self, function: Function, hours: Schedule, now: float) -> float:
        """Return for how many seconds the function should have been started; negative: in how many it should.

        :param now: seconds since the epoch.
        """
        left = hours.begins(now) - now
        if (
            left > AHEAD + NOT_BEFORE or left <= 0
        ):  # how long it takes is not asked for each of many functions
            return EARLY - left
        last = self._scaler.last_starts(function)
        usual = max(last) if last else self._scaler.expected_start(function)
        return min(AHEAD, (UNKNOWN_START if usual is None else usual) + EARLY) - left

    # What starts it

    def turn(self) -> None:
        """Start the functions that should be up, as far as this worker knows them, and are not. Never blocks.

        Called again and again, in the one worker of the fleet that decides.
        """
        notes, now, wall_now = self._notes.get(), self._clock(), self._wall_clock()
        if now < notes.looked_at + max(LOOK_EVERY, len(self._cache) * LOOK_PAUSE):
            return
        notes.looked_at = now
        notes.tries, to_start, to_ask = self._due(notes.tries, now, wall_now)
        for _, function in sorted(to_ask)[:LOOKS]:
            self._scaler.refresh(function)
        free = AT_ONCE - sum(self._scaler.flight(function) is not None for function in notes.tries)
        for function, begins_in in to_start:
            tries = notes.tries[function]
            is_due = now >= tries.not_before and self._may_start_now(function)
            if free > 0 and is_due and self._scaler.flight(function) is None:
                notes.tries[function] = self._start(function, begins_in, tries, now)
                free -= 1

    def _due(
        self, tries: dict[Function, _Tries], now: float, wall_now: float
    ) -> tuple[dict[Function, _Tries], list[tuple[Function, float]], list[tuple[float, Function]]]:
        """Look for the functions that should be up now.

        :return: those that are not; of these those at zero, and in how many seconds their hours begin; of the
            others those of which the provider must be asked, and when it was.
        """
        not_up: dict[Function, _Tries] = {}
        at_zero, to_ask = [], []
        for state in self._cache.states():
            function, meta = state.function, state.meta
            hours = None if meta is None else self._hours(function, meta.status)
            if meta is None or hours is None:
                continue
            due_for = self._due_for(function, hours, wall_now)
            is_up = meta.status.available_replicas > 0
            is_known = now <= meta.last_refresh + min(due_for, LOOK_AGAIN)
            if due_for < 0 or (is_up and is_known) or not self._may_start(function, meta.status, hours):
                continue
            if not is_up:
                not_up[function] = tries.get(function, _Tries())
            if not meta.status.replicas:
                at_zero.append((function, hours.begins(wall_now) - wall_now))
            elif not is_known:
                to_ask.append((meta.last_refresh, function))
        return not_up, at_zero, to_ask

    def _may_start(self, function: Function, status: ReplicaStatus, hours: Schedule) -> bool:
        if hours is self._for_all:
            return self._idleness(function, status) is not None
        return self._is_ours(function)

    def _start(self, function: Function, begins_in: float, tries: _Tries, now: float) -> _Tries:
        if not self._dry_run:
            try:
                self._scaler.start(function, now + max(0.0, begins_in) + LOOK_AGAIN)
            except ScaleZeroError:  # it rests after failed starts, or there is no thread
                return tries
        self._report(KeptWarm(function, begins_in, self._dry_run))
        pause = SAY_AGAIN if self._dry_run else backoff_step(tries.made + 1)
        return _Tries(tries.made + 1, now + pause)


def _read(text: str) -> Schedule | str:
    """Return a label's hours, or why it has none."""
    try:
        return schedule(text)
    except MissingExtra as error:
        return f"{text!r}: {error}"
    except ValueError as error:
        return str(error)
