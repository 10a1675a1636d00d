"""What scaling to zero saves, in a file that ``scalezero-wsgi report`` reads.

::

    savings = Savings("sqlite:///var/lib/app/scalezero/savings.db", provider)
    middleware = ScaleZeroMiddleware(app, provider, hooks=[savings])
    application = savings.wrap(middleware)  # counts the requests that wait

The workers of a host share the file, and each writes what happens at once, so nothing is lost when one is
killed. Starts, stops and pauses are told by events. Of what happens without one (a function crashes, somebody
else scales it, no worker runs) the provider is asked: one worker asks it each second. What was between two
answers counts as "not known".
"""

from __future__ import annotations

import logging
import math
import os
import threading
import time
import uuid
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from .._lib.per_process import PerProcess
from ..events import (
    Event,
    FunctionPaused,
    FunctionReady,
    FunctionStopped,
    ScaleRequested,
    StartFailed,
    WaitGivenUp,
)
from ..middleware import FUNCTION, WAITED
from ..model import Function, FunctionNotFound, InvalidFunctionName, SettingError
from ..providers.base import ListingProvider, Provider
from ..savings import life
from ..savings.book import Answer, Book, BookError, path_of
from ..savings.life import Life, State
from ..savings.prices import Prices
from ..servers.gunicorn import loading_gunicorn
from ..servers.server import when_serving
from ..web.routing import Names

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

logger = logging.getLogger("scalezero_wsgi")

PACE = 1.0
"""Seconds between two looks at what is up."""

LEASE = 3.0
"""Seconds after which another worker looks, when the one that did does so no more."""

LEFT = 10_000
"""What could not be written is tried again: so many changes in a process."""

QUIET = 60.0
"""Seconds for which the same trouble is not logged again."""


def prices(told: float | Mapping[str, float | str] | None, what: str = "cost_per_hour") -> Prices:
    """Return prices as they are told: one, or those of functions by name, with ``""`` for all others.

    :param what: how errors call them.
    :raises SettingError: a name or a number is not allowed.
    """
    names, read = Names("openfaas"), dict[Function | None, float]()
    for name, number in (told if isinstance(told, Mapping) else {} if told is None else {"": told}).items():
        try:
            price = float(number)
        except (TypeError, ValueError):
            price = -1.0
        if not 0 <= price < math.inf:
            raise SettingError(f"{what}: {number!r} is not allowed; it must be a number of 0 or more")
        try:
            read[names.split(name) if name else None] = price
        except InvalidFunctionName as error:
            raise SettingError(f"{what}: {error}") from None
    return Prices(read)


class Savings:
    """A hook, and what wraps the middleware. Safe for threads and after a fork.

    An event is written in the thread in which it happens, which takes well below a millisecond. While another
    process writes it waits for a quarter of a second at most; then the event is left to a thread of this
    object, which starts on first use.

    :param url: of the file, ``sqlite:///path/of/file`` on a local disk. Its directory is made if it is not
        there.
    :param provider: is asked for what is up; ``None``: what happens without an event is not noticed before
        the next one.
    :param cost_per_hour: what an instance costs in an hour: a number, or one for each function, and under
        ``""`` one for all others; for the dashboard and Prometheus.
    :param owner: the user id of the workers; by default that with which gunicorn is to run them, if it loads
        the application before it forks them, else the process's own.
    :param clock: seconds since the epoch.
    :raises SettingError: the URL or a price is not allowed, or the file is open to others.
    """

    def __init__(
        self,
        url: str,
        provider: Provider | None = None,
        *,
        cost_per_hour: float | Mapping[str, float] | None = None,
        owner: int | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        gunicorn = loading_gunicorn()
        if owner is None and gunicorn is not None:
            owner = gunicorn.uid
        self.book = Book(path_of(url), owner=owner)
        self.prices = prices(cost_per_hour)
        self._provider = provider
        self._clock = clock
        self._name = PerProcess(lambda: uuid.uuid4().hex)
        self._left: PerProcess[deque[Callable[[], None]]] = PerProcess(lambda: deque(maxlen=LEFT))
        self._starting = PerProcess(lambda: threading.Lock())
        self._threads: dict[int, threading.Thread] = {}
        self._logged_at = -QUIET
        self._news: dict[Function, tuple[Life, Answer]] = {}
        when_serving(self.start)

    # Events

    def __call__(self, event: Event) -> None:
        """Write down what happened."""
        at = self._clock()
        match event:
            case ScaleRequested(function, _, replicas, took) if replicas:
                change = partial(life.requested, at=at, took=took, replicas=replicas)
                self._write(partial(self.book.change, function, at, change))
            case FunctionReady(function, after, led):
                self._write(
                    partial(self.book.change, function, at, partial(life.ready, at=at, after=after, led=led))
                )
            case FunctionStopped(function):
                self._write(partial(self.book.change, function, at, partial(life.stopped, at=at)))
            case FunctionPaused(function):
                self._write(partial(self.book.change, function, at, partial(life.paused, at=at)))
            case StartFailed(function):
                self._write(partial(self.book.failed, function, at))
            case WaitGivenUp(function, after) if after > 0:
                self._write(partial(self.book.waited, function, at, after))

    def wrap(self, app: WSGIApplication) -> WSGIApplication:
        """Return the middleware, or what is around it, with the requests counted that waited and were passed
        down. Those that gave up are told by an event."""

        def counted(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
            answer = app(environ, start_response)
            waited = environ.get(WAITED)
            if waited:
                write = partial(self.book.waited, environ[FUNCTION], self._clock(), waited)
                self._write(write)
            return answer

        return counted

    def _write(self, write: Callable[[], None]) -> None:
        if os.getpid() not in self._threads:
            self.start()
        left = self._left.get()
        if left:  # in their order
            left.append(write)
            return
        try:
            write()
        except BookError as error:
            left.append(write)
            self.log(error)

    def log(self, error: BookError) -> None:
        """Log that the file cannot be used, now and then."""
        now = time.monotonic()
        if now >= self._logged_at + QUIET:
            self._logged_at = now
            logger.warning("savings cannot be written, and are tried again: %s", error)

    # The thread

    def start(self, multiprocess: bool = True) -> None:  # noqa: ARG002  a server tells it
        """Start this process's thread, unless it runs."""
        with self._starting.get():
            if os.getpid() not in self._threads:
                reference = weakref.ref(self)
                thread = threading.Thread(
                    target=_run, args=(reference,), name="scalezero-savings", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # can't start new thread: the next event tries again
                    return
                self._threads[os.getpid()] = thread

    def turn(self) -> None:
        """Write what is left, and look at the functions if this is the worker that does.

        :raises BookError: the file cannot be used.
        """
        left = self._left.get()
        while left:
            left[0]()
            left.popleft()
        if self._provider is not None and self.book.watches(self._name.get(), self._clock(), LEASE):
            self.look(self._provider)

    def look(self, provider: Provider) -> None:
        """Ask the provider what is up, and write it down.

        What no event has told counts once it is seen in two looks, from the first on: its event may be on its
        way.

        :raises BookError: the file cannot be used.
        """
        before, asked_at = self.book.lives(), self._clock()
        functions = set(before)
        if isinstance(provider, ListingProvider):
            try:
                functions.update(map(Function._make, provider.list_functions()))
            except Exception as error:  # noqa: BLE001  another's provider may raise anything
                logger.debug("savings: the functions cannot be listed: %s", error)
        told: dict[Function, Answer] = {}
        news: dict[Function, tuple[Life, Answer]] = {}
        for function in functions:
            known = before.get(function, life.UNHEARD)
            answer = _ask(provider, function, asked_at)
            if answer is None:
                continue
            if not life.is_news(known, answer.state, answer.replicas):
                told[function] = answer
                continue
            earlier = self._news.get(function)
            if earlier is not None and earlier[0] == known and earlier[1].like(answer):
                told[function] = earlier[1]
            else:
                news[function] = known, answer
        self._news = news
        self.book.look(told, before)


def _ask(provider: Provider, function: Function, at: float) -> Answer | None:
    """Return what the provider tells of a function; ``None``: nothing."""
    try:
        status = provider.get_replicas(*function)
    except FunctionNotFound:
        return Answer(at, State.AT_ZERO, 0)
    except Exception as error:  # noqa: BLE001  another's provider may raise anything
        logger.debug("savings: %s cannot be asked for: %s", function, error)
        return None
    replicas = max(status.replicas, status.available_replicas)
    if replicas:
        return Answer(at, State.UP, replicas)
    return Answer(at, State.PAUSED if status.paused else State.AT_ZERO, 0)


def _run(reference: weakref.ref[Savings]) -> None:
    """Turn until the object is gone."""
    while (savings := reference()) is not None:
        try:
            savings.turn()
        except BookError as error:
            savings.log(error)
        except Exception:
            logger.exception("savings: a look at the functions failed")
        del savings
        time.sleep(PACE)
