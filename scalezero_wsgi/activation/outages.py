"""Note when a provider fails or is silent for a function, and when to ask it again.

Meanwhile a function that was last seen up is still served: *stale if error*, RFC 5861 section 4.
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
"""Seconds to pause after a failed query: each pause is twice the one before, up to the longest."""

WORKING = 3.0
"""Seconds within which an answer shows that the provider works, if only slowly."""

RECENT = 10.0
"""Seconds, after the pause that follows a failure, within which the next query will probably fail, too."""

FORGOTTEN = 300.0
"""Seconds after that pause at which the outage is forgotten."""


class Outages:
    """Notes outages in the functions' states. Safe for threads.

    :param clock: monotonic seconds.
    :param report: receives an event when a function is first served during an outage, and when that outage
        ends.
    :param jitter: returns a number from 0 to 1 for each pause.
    """

    def __init__(self, clock: Callable[[], float], report: Reporter, jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._report = report
        self._jitter = jitter
        # Looked up late: gevent may replace threading.Lock after this line has run.
        self._lock = PerProcess(lambda: threading.Lock())

    def error(self, state: FunctionState) -> ProviderError | None:
        """Return the provider's last error; ``None`` if it answers, or the error is forgotten."""
        outage = self._current(state)
        return None if outage is None else outage.error

    def lasts(self, state: FunctionState) -> bool:
        """Return whether the provider failed recently and has not answered since, not even slowly."""
        outage = self._current(state)
        return outage is not None and not outage.slow and self._clock() <= outage.retry_at + RECENT

    def resting(self, state: FunctionState) -> bool:
        """Return whether it is too early to ask the provider again."""
        outage = self._current(state)
        return outage is not None and self._clock() < outage.retry_at

    def pause(self, state: FunctionState) -> float:
        """Return the seconds to pause after the next failure, before jitter."""
        outage = self._current(state)
        return backoff_step(1 if outage is None else outage.failures + 1, FIRST_PAUSE, LONGEST_PAUSE)

    def failed(self, state: FunctionState, error: ProviderError) -> None:
        """Note that the provider failed, here or in another worker."""
        now = self._clock()
        retry_at = now + self.pause(state) * (0.75 + self._jitter() / 2)
        silent = isinstance(error, ProviderSilent)
        error = ProviderError(str(error))  # a traceback would keep a request's objects alive
        with self._lock.get():
            known = self._current(state)
            if known is None:
                state.outage = Outage(error, now, now, 1, retry_at, silent)
            else:
                since, failures, served = known.since, known.failures + 1, known.served
                state.outage = Outage(error, since, now, failures, retry_at, silent, served=served)

    def serve(self, state: FunctionState) -> None:
        """Note that the function is served during the outage, if there is one."""
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
        """Note that the provider answered a query that was made at ``asked_at``, in monotonic seconds.

        A query made before the last failure does not end the outage, nor does a slow answer. One that took
        longer than ``WORKING`` seconds counts as the next failure: the next answer will probably be as late.
        """
        outage, now = state.outage, self._clock()
        if outage is None:
            return
        from_before = asked_at < outage.failed_at
        if from_before or (now > asked_at + SILENT and self._current(state) is not None):
            works = now <= asked_at + WORKING and (outage.silent or not from_before)
            if works and not outage.slow:
                state.outage = outage._replace(slow=True)
            elif not from_before and now > asked_at + WORKING:
                self.failed(state, ProviderSilent("it answers slowly"))
            return
        state.outage = None
        if outage.served:
            self._report(OutageEnded(state.function, now - outage.since))

    def _current(self, state: FunctionState) -> Outage | None:
        """Return the outage; ``None`` if there is none, or it is forgotten."""
        outage = state.outage
        return None if outage is None or self._clock() > outage.retry_at + FORGOTTEN else outage
