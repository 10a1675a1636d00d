"""May this request wait, and until when?

A held request takes one of the worker's places. So only some may wait, each has a deadline, and for each it
is looked up now and then: has its client gone, is the worker told to stop?
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from .bounded import Bounded
from .client import gone_check
from .durations import seconds
from .function_cache import FunctionCache, FunctionMeta
from .lookout import Lookout
from .model import (
    ClientGone,
    Function,
    FunctionNotFound,
    NotAvailable,
    ProviderSilent,
    StillStarting,
    TooManyWaiting,
    WorkerStopping,
)
from .per_process import PerProcess
from .preferences import Preferences, is_navigation, parse_prefer
from .scaler import FunctionScaler
from .server import capacity_of, middleware_made, room_to_wait, this_server, warn_if_waiting_kills
from .single_flight import Flight

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from .settings import Settings

GRACE = 0.1
"""Seconds in which a function of which nothing is known may prove to be available, before its client gets the
page, a 202 or, where all places are taken, a refusal."""

MAX_WAIT_LABEL = "scalezero.max-wait"


class _Places:
    """The places in which this process's requests wait."""

    __slots__ = ("_lock", "by_function", "taken")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.taken = 0
        self.by_function: dict[Function, int] = {}

    def take(self, function: Function, limit: int, of_function: int) -> bool:
        """Take a place, unless ``limit`` are taken already, or ``of_function`` by those for the function."""
        with self._lock:
            here = self.by_function.get(function, 0)
            if self.taken >= limit or here >= of_function:
                return False
            self.taken += 1
            self.by_function[function] = here + 1
            return True

    def give_back(self, function: Function) -> None:
        with self._lock:
            self.taken -= 1
            self.by_function[function] -= 1
            if not self.by_function[function]:
                del self.by_function[function]


class Waiting:
    """Holds requests until their function is available. Safe for threads and after a fork.

    :param scaler: who makes functions available.
    :param cache: what is known of them.
    :param settings: ``max_wait``, ``max_waiting`` and the like.
    :param clock: monotonic seconds.
    """

    def __init__(
        self,
        scaler: FunctionScaler,
        cache: FunctionCache,
        settings: Settings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._scaler = scaler
        self._cache = cache
        self._settings = settings
        self._clock = clock
        self._places: PerProcess[_Places] = PerProcess(_Places)
        self._lookout: PerProcess[Lookout] = PerProcess(Lookout)
        self._next_release: Bounded[Function, float] = Bounded(settings.cache_size)
        middleware_made(max([settings.max_wait, *settings.max_wait_of.values()]))

    def hold(
        self, function: Function, environ: WSGIEnvironment, arrived: float, *, since: float = -math.inf
    ) -> FunctionMeta:
        """Block until the function is available.

        :param arrived: monotonic seconds at which the request came.
        :param since: take no answer of the provider from before that moment.
        :raises TooManyWaiting: there is no place to wait.
        :raises StillStarting: the client would rather have an answer than wait longer.
        :raises ClientGone: the client has gone.
        :raises WorkerStopping: the worker was told to stop.
        :raises ScaleZeroError: it did not become available; see
            :meth:`~scalezero_wsgi.scaler.FunctionScaler.ensure_available`.
        """
        if not environ.get("wsgi.multithread", True):
            warn_if_waiting_kills()
        wish, at_most = self._wish(parse_prefer(environ.get("HTTP_PREFER", "")), environ)
        places = self._places.get()
        limit = self._settings.max_waiting or room_to_wait(capacity_of(environ))
        if not places.take(function, limit, self._settings.max_waiting_per_function or limit):
            return self._without_a_place(function, wish, arrived, since)
        try:
            return self._wait(function, environ, arrived, since, wish, at_most)
        finally:
            places.give_back(function)

    def _wait(
        self,
        function: Function,
        environ: WSGIEnvironment,
        arrived: float,
        since: float,
        wish: str | None,
        at_most: float,
    ) -> FunctionMeta:
        def deadline() -> float:
            # Asked for again and again: a label is known only once the provider has answered.
            return arrived + min(at_most, self.max_wait(function))

        look = _look(environ)
        try:
            meta = self._scaler.ensure_available(
                function, deadline(), since=since, wait=self._waiter(function, deadline, look)
            )
            self._release_gradually(meta, arrived, deadline(), look)
        except (NotAvailable, ProviderSilent) as error:
            max_wait = self.max_wait(function)
            if wish == "respond-async" or (wish == "page" and at_most <= max_wait):
                raise self._still_starting(function, arrived, wish) from None
            if isinstance(error, ProviderSilent) and at_most < max_wait:
                # The client's patience was at an end, which does not make the provider a failure.
                waited = self._clock() - arrived
                raise NotAvailable(function, waited, self._scaler.time_left(function)) from None
            raise
        return meta

    def _without_a_place(
        self, function: Function, wish: str | None, arrived: float, since: float
    ) -> FunctionMeta:
        """The way of a request that may not wait. If only a warm entry has lapsed, it passes."""
        starting = self._scaler.begun_at(function) is not None
        if not starting:
            self._scaler.look(function, GRACE)
            meta = self._cache.find(function)
            asked_after = max(since, arrived - self._cache.expiry)
            if meta is not None and meta.available and meta.last_refresh >= asked_after:
                return meta
            if self._cache.is_missing(function):
                raise FunctionNotFound(*function)
        if wish == "respond-async":  # needs no place
            self._scaler.start(function, arrived)
            raise self._still_starting(function, arrived, wish)
        left = self._scaler.time_left(function) if starting else self._scaler.expected_start(function)
        raise TooManyWaiting(f"no place is left for a request for {function}", left or 1.0)

    def _still_starting(self, function: Function, arrived: float, wish: str) -> StillStarting:
        return StillStarting(function, self._clock() - arrived, self._scaler.time_left(function), wish)

    def _wish(self, preferences: Preferences, environ: WSGIEnvironment) -> tuple[str | None, float]:
        """What the client would rather have than wait longer, and after how many seconds."""
        preferred = math.inf if preferences.wait is None else preferences.wait
        if preferences.respond_async:
            return "respond-async", max(GRACE, preferences.wait or 0.0)
        page_after = self._settings.page_after
        if page_after is not None and page_after < preferred and is_navigation(environ):
            return "page", max(GRACE, page_after)
        return None, preferred

    def max_wait(self, function: Function) -> float:
        """Seconds that a request for the function may be held: by its setting, its label, or the default."""
        own = self._settings.max_wait_of.get(str(function))
        if own is not None:
            return own
        meta = self._cache.find(function)
        label = None if meta is None else meta.status.labels.get(MAX_WAIT_LABEL)
        if label is not None:
            try:
                return seconds(label)
            except ValueError:
                pass
        return self._settings.max_wait

    def waiting(self, function: Function | None = None) -> int:
        """How many requests wait in this process, for one function or in all."""
        places = self._places.get()
        return places.taken if function is None else places.by_function.get(function, 0)

    def by_function(self) -> dict[Function, int]:
        """How many requests wait in this process, for each function."""
        return dict(self._places.get().by_function)

    def _waiter(
        self, function: Function, deadline: Callable[[], float], look: Callable[[], None]
    ) -> Callable[[Flight[FunctionMeta]], bool]:
        def wait(flight: Flight[FunctionMeta]) -> bool:
            def look_up() -> bool:
                """Whether to wait on."""
                if flight.landed():  # our turn to be woken comes
                    return True
                until = deadline()
                if self._clock() >= until:
                    return False
                look()
                if until > flight.until:  # a label allows more than the setting with which we joined
                    self._scaler.start(function, until)
                return True

            with self._lookout.get().watch(look_up) as sleeper:
                while not flight.wait(deadline() - self._clock(), sleeper):
                    if not look_up():
                        return False
            return True

        return wait

    def _release_gradually(
        self, meta: FunctionMeta, arrived: float, deadline: float, look: Callable[[], None]
    ) -> None:
        """After a start, give each request that waited for it a moment of its own.

        :raises NotAvailable: there is none left before the deadline; said at once, for nothing comes of
            waiting.
        """
        rate = self._settings.release_rate
        if rate is None or meta.usage.woken_at < arrived:
            return
        now = turn = self._clock()

        def take(last: float | None) -> float:
            nonlocal turn
            if last is None:
                return now
            turn = max(now, last + 1.0 / rate)
            # Whoever cannot wait for a turn does not use it up.
            return turn if turn <= max(now, deadline) else last

        self._next_release.change(meta.function, take)
        if turn > max(now, deadline):
            raise NotAvailable(meta.function, now - arrived, turn - now)
        if turn <= now:
            return

        def look_up() -> bool:
            look()
            return True

        with self._lookout.get().watch(look_up) as sleeper:
            sleeper.sleep(turn - self._clock())
            while (left := turn - self._clock()) > 0:  # woken before its turn
                look()
                sleeper.sleep(left)


def _look(environ: WSGIEnvironment) -> Callable[[], None]:
    """What a waiting request does now and then; raises if it is to wait no longer."""
    gone = gone_check(environ)
    server = this_server()

    def look() -> None:
        server.keep_alive()
        if server.stopping():
            raise WorkerStopping
        if gone is not None and gone():
            raise ClientGone

    return look
