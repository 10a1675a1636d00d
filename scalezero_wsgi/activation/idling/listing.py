"""Finds the functions that no request has come for: somebody else may have started them."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable

from ...events import ProviderFailed
from ...model import Function, FunctionFailed, FunctionNotFound, ProviderError, TooManyWaiting
from ...providers.base import ListingProvider
from ..refresh import Context, Refresh
from ..single_flight import Flight, SingleFlight
from ..state import NEVER, FunctionState

logger = logging.getLogger("scalezero_wsgi")

LIST_EVERY = 60.0
"""Seconds between two looks at the functions that are not known to be up."""

LIST_PAUSE = 0.02
"""Seconds for each question, at most if they cost next to nothing. Also the shortest pause."""

PAUSE_COSTS = 0.0002
"""Seconds of the processor that a pause takes itself, at most."""

GIVE_UP = 3
"""Questions in a row without an answer after which a look ends."""

REST = 100
"""How many times as long as it uses the processor it rests: so a look takes 1 % of a core, however many
functions there are."""


class Listing:
    """Asks for each function that the provider lists and that is not known to be up, one after another. Safe
    for threads; one for each process.

    A function that is up and was not known to be is refreshed, which tells the other workers. That one is at
    zero is only noted here: it allows nothing, and so it is safe without a lease.

    :param processor_time: seconds for which this thread has used the processor.
    """

    def __init__(
        self,
        context: Context,
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self._context = context
        self._clock = context.clock
        self._processor_time = processor_time
        self._provider = context.provider if isinstance(context.provider, ListingProvider) else None
        self._flights: SingleFlight[None, None] = SingleFlight("scalezero-list", 1, self._clock)
        self._begun_at = NEVER
        self._given_up_at: Function | None = None

    def turn(self, now: float) -> None:
        """Begin a look, if the last one was long enough ago. Never blocks."""
        if self._provider is not None and now >= self._begun_at + LIST_EVERY and self._begin(now):
            self._begun_at = now

    def _begin(self, now: float) -> bool:
        with contextlib.suppress(TooManyWaiting):  # the last one goes on: there are many, or they take long
            return self._flights.join(None, self.look, now).started_at >= now
        return False

    def look(self, flight: Flight[None] | None = None) -> None:  # noqa: ARG002
        """Ask for all of them. Takes up to ``LIST_EVERY`` seconds, and longer if the answers cost much."""
        if self._provider is None:
            return
        try:
            functions = [Function._make(each) for each in self._provider.list_functions()]
        except Exception as error:  # noqa: BLE001  another's provider may raise anything
            logger.warning("the provider cannot list its functions: %s", str(error) or repr(error))
            return
        pause = min(LIST_PAUSE, LIST_EVERY / 2 / max(1, len(functions)))
        begun, asked, paused, failed = self._processor_time(), 0, 0.0, 0
        last = self._given_up_at
        if last is not None and last in functions:  # perhaps only those cannot be asked for: go on after them
            after = functions.index(last) + 1
            functions = functions[after:] + functions[:after]
        self._given_up_at = None
        for function in functions:
            meta = self._context.cache.find(function)
            # A paused one is asked for as well: somebody else may have let it go on.
            if meta is None or meta.status.replicas == 0:
                asked += 1
                failed = 0 if self._ask(function) else failed + 1
                if failed == GIVE_UP:
                    self._given_up_at = function
                    return
                owed = max(asked * pause, REST * (self._processor_time() - begun)) - paused
                if owed >= LIST_PAUSE:
                    at = self._processor_time()
                    self._context.pause(owed)
                    paused += owed
                    # Under gevent the whole worker is one thread: what others use meanwhile is not owed, or
                    # each pause would be several times as long as the last one.
                    begun += max(0.0, self._processor_time() - at - PAUSE_COSTS)

    def _ask(self, function: Function) -> bool:
        """Return whether the provider has answered."""
        cache, asked_at = self._context.cache, self._clock()
        try:
            status = self._context.provider.get_replicas(*function)
            at_zero = not (status.replicas or status.available_replicas or status.paused)
        except FunctionNotFound:
            cache.set_missing(function, asked_at)
            return True
        except FunctionFailed:
            return True  # it does not run
        except Exception as error:  # noqa: BLE001  another's provider may raise anything
            known = error if isinstance(error, ProviderError) else ProviderError(repr(error))
            self._context.report(ProviderFailed(function, known))
            return False
        if at_zero:
            state = cache.peek(function) or FunctionState(function)
            state.observe(status, asked_at)
            cache.set(function.name, status, function.namespace, asked_at=asked_at, state=state)
        else:
            Refresh(self._context, function).run(Flight(self._clock(), self._clock()))
        return True
