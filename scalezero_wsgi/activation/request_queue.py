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

from .._lib.bounded import Bounded
from .._lib.durations import label_seconds
from .._lib.per_process import PerProcess
from ..model import (
    ClientGone,
    Function,
    FunctionNotFound,
    NotAvailable,
    ProviderError,
    ProviderSilent,
    StillStarting,
    TooManyWaiting,
    WorkerStopping,
)
from ..servers.client import gone_check
from ..servers.server import capacity_of, middleware_made, room_to_wait, this_server, warn_if_waiting_kills
from ..servers.watch import Lookout
from ..web.negotiation import Preferences, is_navigation, parse_prefer
from .function_cache import FunctionCache, FunctionMeta
from .outages import SILENT
from .scaler import FunctionScaler
from .single_flight import Flight

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

    from ..settings import Settings

GRACE = 0.1
"""Seconds in which a function of which nothing is known may prove to be available, before its client gets the
page, a 202 or, where all places are taken, a refusal."""

NOTICE = 0.02
"""Seconds in which a request without a place notices that its function has to start."""

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
            :meth:`~scalezero_wsgi.activation.scaler.FunctionScaler.ensure_available`.
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
            meta = self._available(function, since, deadline, look)
            self._release_gradually(meta, arrived, deadline(), look)
        except (NotAvailable, ProviderSilent) as error:
            max_wait = self.max_wait(function)
            shortened = wish != "page" and at_most < max_wait
            if wish == "respond-async" or (wish == "page" and at_most <= max_wait):
                raise self._still_starting(function, arrived, wish, shortened) from None
            if shortened:
                # The client's patience was at an end, which does not make the provider a failure.
                expected = self._scaler.time_left(function)
                left = error.retry_after if isinstance(error, NotAvailable) else expected
                raise NotAvailable(function, self._clock() - arrived, left, shortened) from None
            raise
        return meta

    def _available(
        self, function: Function, since: float, deadline: Callable[[], float], look: Callable[[], None]
    ) -> FunctionMeta:
        try:
            return self._scaler.ensure_available(
                function, deadline(), since=since, wait=self._waiter(function, deadline, look)
            )
        except ProviderError as error:
            if not isinstance(error, ProviderSilent):  # whoever waits for less than a second meets silence
                self._scaler.provider_failed(function, error)
            stale = self._scaler.stale_if_error(function, since)
            if stale is None:
                raise
            return stale

    def _without_a_place(
        self, function: Function, wish: str | None, arrived: float, since: float
    ) -> FunctionMeta:
        """Answer a request that may not wait for a start: it is refused only if there has to be one."""
        before, fresh = self._cache.find(function), max(since, arrived - self._cache.expiry)
        error = self._ask(function, arrived, fresh)
        meta = self._cache.find(function)
        told = meta is not None and (meta is not before or meta.last_refresh >= fresh)
        if meta is not None and told and meta.available and meta.last_refresh >= since:
            return meta
        if error is not None:
            self._scaler.provider_failed(function, error)
            stale = self._scaler.stale_if_error(function, since)
            if stale is not None:
                return stale
        if self._cache.is_missing(function):
            raise FunctionNotFound(*function)
        if wish == "respond-async":  # needs no place
            self._scaler.start(function, arrived)
            raise self._still_starting(function, arrived, wish)
        left = self._scaler.time_left(function)
        raise TooManyWaiting(f"no place is left for a request for {function}", left)

    def _ask(self, function: Function, arrived: float, asked_after: float) -> ProviderError | None:
        """Wait until the provider has told whether the function is up, but not for a start.

        :param asked_after: an answer to a question from before that moment does not do.
        :return: what the matter is with the provider, if it does not tell.
        """
        while True:
            meta, flight = self._cache.find(function), self._scaler.flight(function)
            if meta is not None and meta.last_refresh >= asked_after and not meta.doubted:
                return None
            up = meta is not None and meta.available
            left = arrived + (SILENT if up else GRACE) - self._clock()
            if flight is None:
                return self._scaler.look(function, left)
            if flight.starting or left <= 0 or flight.wait(min(NOTICE, left)):
                return self._failing(flight)

    def _failing(self, flight: Flight[FunctionMeta]) -> ProviderError | None:
        """What the matter is with the provider that a flight asks, as far as can be told."""
        trouble = flight.trouble  # read once: the leader changes it
        if isinstance(trouble, ProviderError) and not isinstance(trouble, ProviderSilent):
            return ProviderError(str(trouble))  # not the one object that all who wait would raise
        if not flight.starting and self._clock() >= flight.begun + SILENT:
            return ProviderSilent("the provider does not answer")
        return None

    def _still_starting(
        self, function: Function, arrived: float, wish: str, shortened: bool = False
    ) -> StillStarting:
        waited, left = self._clock() - arrived, self._scaler.time_left(function)
        return StillStarting(function, waited, left, wish, shortened)

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
        label = None if meta is None else label_seconds(meta.status.labels, MAX_WAIT_LABEL)
        return self._settings.max_wait if label is None else label

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
            joined_at = self._clock()

            def look_up() -> bool:
                """Whether to wait on."""
                if flight.landed():  # our turn to be woken comes
                    return True
                until = deadline()
                if self._clock() >= until:
                    return False
                failing, stale = self._failing(flight), self._cache.last_seen_up(function)
                if failing is not None and stale is not None and stale.last_refresh < flight.begun:
                    self._scaler.provider_failed(function, failing)
                    raise failing
                if not flight.starting and self._clock() >= joined_at + self._scaler.patience(function):
                    raise failing or ProviderSilent("the provider does not answer")
                look()
                if until > flight.until:  # a label allows more than the setting with which we joined
                    self._scaler.prolong(function, flight, until)
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
