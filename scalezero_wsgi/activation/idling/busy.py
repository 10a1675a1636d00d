"""Is a function that serves no request busy all the same? It is asked by HTTP, or a callback is."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from ..._lib.bounded import Bounded
from ...model import Function, ReplicaStatus, TooManyWaiting
from ..single_flight import Flight, SingleFlight

BUSY = "scalezero.busy"
"""The label with the path that is asked: 204 and 404 say that it is not, any other 2xx that it is."""

TIMEOUT = 2.0
"""Seconds within which the function or the callback has to answer."""

AT_ONCE = 100
"""Functions that may be asked at once, those included whose callback hangs."""

IDLE_STATUSES = (204, 404)

Callback = Callable[[str, str], object]


class _Answer(NamedTuple):
    """:ivar failed: whether none came, or one that says nothing."""

    busy: bool
    failed: bool = False


class Busy:
    """Asks. Safe for threads and after a fork.

    :param callback: is given name and namespace, and returns whether the function is busy; ``None``: there is
        none.
    :param cap: seconds for which a function counts as busy that cannot be asked.
    :param clock: monotonic seconds.
    """

    def __init__(
        self, callback: Callback | None, cap: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._callback = callback
        self._cap = cap
        self._clock = clock
        self._questions: SingleFlight[Function, _Answer] = SingleFlight("scalezero-busy", AT_ONCE, clock)
        self._failing_since: Bounded[Function, float] = Bounded(10_000)

    def __call__(self, function: Function, status: ReplicaStatus) -> bool:
        """Return whether the function is busy. Blocks for at most ``TIMEOUT`` seconds."""
        path = {**status.annotations, **status.labels}.get(BUSY)
        if path is None and self._callback is None:
            return False
        answer = self._ask(function, status.endpoint, path)
        if not answer.failed:
            self._failing_since.pop(function)
            return answer.busy
        now = self._clock()
        since = self._failing_since.change(function, lambda before: now if before is None else before)
        return now <= since + self._cap

    def _ask(self, function: Function, endpoint: str | None, path: str | None) -> _Answer:
        question = partial(self._question, function, endpoint, path)
        try:  # one that hangs is not asked a second time
            flight = self._questions.join(function, question, self._clock() + self._cap)
        except TooManyWaiting:
            return _Answer(busy=True, failed=True)
        return flight.result() if flight.wait(TIMEOUT) else _Answer(busy=True, failed=True)

    def _question(
        self,
        function: Function,
        endpoint: str | None,
        path: str | None,
        flight: Flight[_Answer],  # noqa: ARG002
    ) -> _Answer:
        try:
            if self._callback is not None and self._callback(*function):
                return _Answer(busy=True)
            return _Answer(busy=False) if path is None else _get(endpoint, path)
        except Exception:  # noqa: BLE001  the application's callback may raise anything
            return _Answer(busy=True, failed=True)


def _get(endpoint: str | None, path: str) -> _Answer:
    import requests  # late: an application without such labels should not pay for it

    if endpoint is None:
        return _Answer(busy=True, failed=True)
    url = f"{endpoint.rstrip('/')}/{path.lstrip('/')}"
    with requests.get(url, timeout=TIMEOUT / 2, allow_redirects=False, stream=True) as answer:
        status = answer.status_code
    if status in IDLE_STATUSES:
        return _Answer(busy=False)
    return _Answer(busy=True, failed=not 200 <= status < 300)
