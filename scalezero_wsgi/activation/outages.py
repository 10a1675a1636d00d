"""A provider that fails or is silent for a function, and when it is asked again.

Meanwhile a function that was last seen up goes on being served: *stale if error*, RFC 5861 section 4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from .._lib.backoff import backoff_step
from .._lib.per_process import PerProcess
from ..events import OutageBegan, OutageEnded, Reporter
from ..model import ProviderError, ProviderSilent
from .state import FunctionState, Outage

SILENT = 1.0
"""Seconds after which a provider that has not answered counts as failing."""

FIRST_PAUSE = 0.5
LONGEST_PAUSE = 15.0
"""Seconds without another query after one that failed; they double from one to the other."""

WORKING = 3.0
"""Seconds within which an answer shows that the provider works, be it slowly."""

RECENT = 10.0
"""Seconds for which a failure says that the next query will fail, after the pause that follows it."""

FORGOTTEN = 300.0
"""Seconds after which it is forgotten."""


class Outages:
    """Notes outages in the functions' states. Safe for threads.

    :param clock: monotonic seconds.
    :param report: is told when a function is first served in spite of its provider, and when it need not be
        any more.
    :param jitter: a number from 0 to 1 for each pause.
    """

    def __init__(self, clock: Callable[[], float], report: Reporter, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._report = report
        self._jitter = jitter
        # Looked up late: gevent may replace threading.Lock after this line has run.
        self._lock = PerProcess(lambda: threading.Lock())

    def error(self, state: FunctionState) -> ProviderError | None:
        """Return what the provider failed with last; ``None``: it answers, or it was not asked for long."""
        outage = self._current(state)
        return None if outage is None else outage.error

    def lasts(self, state: FunctionState) -> bool:
        """Return whether the provider failed a moment ago and has not answered since, not even slowly."""
        outage = self._current(state)
        return outage is not None and not outage.slow and self._clock() <= outage.retry_at + RECENT

    def resting(self, state: FunctionState) -> bool:
        """Return whether the provider is left alone for a while."""
        outage = self._current(state)
        return outage is not None and self._clock() < outage.retry_at

    def pause(self, state: FunctionState) -> float:
        """Return for how many seconds the provider is left alone after the next failure, on the average."""
        outage = self._current(state)
        return backoff_step(1 if outage is None else outage.failures + 1, FIRST_PAUSE, LONGEST_PAUSE)

    def failed(self, state: FunctionState, error: ProviderError) -> None:
        """Note that the provider failed, here or in another worker."""
        now = self._clock()
        retry_at = now + self.pause(state) * (0.75 + self._jitter() / 2)
        silent = isinstance(error, ProviderSilent)
        error = ProviderError(str(error))  # without a traceback, which would keep what a request holds
        with self._lock.get():
            known = self._current(state)
            if known is None:
                state.outage = Outage(error, now, now, 1, retry_at, silent)
            else:
                since, failures, served = known.since, known.failures + 1, known.served
                state.outage = Outage(error, since, now, failures, retry_at, silent, served=served)

    def serve(self, state: FunctionState) -> None:
        """Note that the function is served although its provider fails, as was noted."""
        outage = self._current(state)
        if outage is None or outage.served:
            return
        with self._lock.get():
            outage = self._current(state)
            if outage is None or outage.served:
                return
            state.outage = outage._replace(served=True)
        self._report(OutageBegan(state.function, outage.error))

    def answered(self, state: FunctionState, asked_at: float) -> None:
        """Note an answer to a question from that moment.

        One from before the last failure ends nothing, nor does one that took long: the next one would, too.
        """
        outage, now = state.outage, self._clock()
        if outage is None:
            return
        from_before = asked_at < outage.failed_at
        if from_before or (now > asked_at + SILENT and self._current(state) is not None):
            works = now <= asked_at + WORKING and (outage.silent or not from_before)
            if works and not outage.slow:
                state.outage = outage._replace(slow=True)
            return
        state.outage = None
        if outage.served:
            self._report(OutageEnded(state.function, now - outage.since))

    def _current(self, state: FunctionState) -> Outage | None:
        """Return the outage, unless nothing has been heard of it for so long that it says nothing of now."""
        outage = state.outage
        return None if outage is None or self._clock() > outage.retry_at + FORGOTTEN else outage
