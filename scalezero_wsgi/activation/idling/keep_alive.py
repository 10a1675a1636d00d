"""For how long clients ask that functions stay up, longer or shorter than ``idle_after``: ``keep_alive_max``.

Each use keeps its function up from its end on, for as long as its client has asked, else for ``idle_after``.
The longest of all holds, so a client that asks for less shortens nobody else's time.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import NamedTuple

from ..._lib.durations import seconds
from ...model import Function, ReplicaStatus
from ..function_cache import FunctionCache
from ..state import NEVER

logger = logging.getLogger("scalezero_wsgi")

MOST = 10_000
"""Requests that may ask between two looks; of more it is not heeded."""

LONGEST_TEXT = 40

WARN_EVERY = 60.0
"""Seconds between two lines in the log about values that cannot be read."""


class Asked(NamedTuple):
    """A request in flight that asks for something.

    :ivar token: what it has among those in flight.
    :ivar duration: seconds.
    """

    function: Function
    token: object
    duration: float


class KeepAlive:
    """What clients ask for. Requests call :meth:`note`, which takes no lock; one thread at a time the rest.

    :param longest: the setting ``keep_alive_max``, in seconds.
    :param idle_after: returns after how many seconds a function is idle; ``None``: never.
    :param cache: knows the functions' labels.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        longest: float,
        idle_after: Callable[[Function, ReplicaStatus], float | None],
        cache: FunctionCache,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._longest = longest
        self._idle_after = idle_after
        self._cache = cache
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Start as a worker whose clients have asked for nothing yet, after a fork as well."""
        self._noted: deque[tuple[Function, object, str]] = deque()
        self._unasked: set[Function] = set()
        self._asking: list[Asked] = []
        self._unasked_in_flight: set[Function] = set()
        self._asked_until: dict[Function, float] = {}
        self._unasked_at: dict[Function, float] = {}
        self._warned_at = NEVER

    def note(self, function: Function, token: object, text: str | None) -> None:
        """Note a request that has joined those in flight.

        :param text: for how long it asks that the function stays up; ``None``: for nothing.
        """
        if text is None or len(self._noted) >= MOST:
            self._unasked.add(function)
        else:
            self._noted.append((function, token, text[: LONGEST_TEXT + 1]))

    def begin_look(self) -> None:
        """Take what was noted. Call this before those in flight are read: each that asks is known by then."""
        while self._noted:
            function, token, text = self._noted.popleft()
            duration = self._read(text)
            if duration is None:
                self._unasked.add(function)
            else:
                self._asking.append(Asked(function, token, duration))

    def look(self, now: float, in_flight: Mapping[Function, list[object]]) -> None:
        """Note until when the functions are to stay up.

        :param in_flight: the tokens that count as use.
        """
        tokens = {token for function in in_flight for token in in_flight[function]}
        for asked in self._asking:
            idle_after = self._of(asked.function) or 0.0
            until = now + min(asked.duration, max(self._longest, idle_after))
            self._asked_until[asked.function] = max(until, self._asked_until.get(asked.function, NEVER))
        # Of those in flight that do not ask some may be about to: then the longer time holds, this once.
        asking = {asked.token for asked in self._asking}
        self._asking = [asked for asked in self._asking if asked.token in tokens]
        unasked = {function for function, tokens in in_flight.items() if not asking.issuperset(tokens)}
        for function in {*list(self._unasked), *unasked, *self._unasked_in_flight}:
            self._unasked.discard(function)
            self._unasked_at[function] = now
        self._unasked_in_flight = unasked

    def kept_for(self, function: Function, now: float) -> float | None:
        """Return for how many seconds a function is to stay up yet for the uses that were seen; 0 or less: it
        need not; ``None``: that cannot be said, for its labels are not known."""
        idle_after = self._of(function)
        if idle_after is None:
            return None
        until = max(
            self._asked_until.get(function, NEVER), self._unasked_at.get(function, NEVER) + idle_after
        )
        return 0.0 if until == NEVER else until - now

    def forget(self, function: Function) -> None:
        """Forget a function that is at zero."""
        self._asked_until.pop(function, None)
        self._unasked_at.pop(function, None)

    def _of(self, function: Function) -> float | None:
        meta = self._cache.find(function)
        return None if meta is None else self._idle_after(function, meta.status)

    def _read(self, text: str) -> float | None:
        try:
            if len(text) <= LONGEST_TEXT:
                return seconds(text)
        except ValueError:
            pass
        now = self._clock()
        if now >= self._warned_at + WARN_EVERY:
            self._warned_at = now
            logger.warning(
                "a request's X-Scalezero-Keep-Alive is %r; it must be a duration such as 30m; it is ignored,"
                " and so are others like it, without a word, for %g s",
                text,
                WARN_EVERY,
            )
        return None
