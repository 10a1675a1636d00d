"""The counts of use do not leak, wherever a request is cut.

What ends a request from outside is an exception of a signal's handler (gunicorn's sync worker leaves by
``SystemExit``), of ``PyThreadState_SetAsyncExc`` or of a greenlet's time-out. CPython looks for one when it
enters a Python function, after each call, and when a loop goes round; a greenlet is switched inside a call.
So a request is cut here at each of the first two, in its whole thread, the server's part included, and once
only.

What no Python code can survive, and is not tried: a second exception, while the first is dealt with; and a
signal whose handler raises while the main thread waits for a lock to give its place back. An exception that
comes within a destructor Python drops. One within ``logging`` may leave a handler locked for all threads.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from inspect import CO_GENERATOR
from io import BytesIO
from types import FrameType
from typing import Any

import pytest

from scalezero_wsgi import ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.idling import idler as idling
from scalezero_wsgi.servers.watch import lookout
from scalezero_wsgi.web.replay import close
from tests.support.fakes import STARTING, UP, ZERO
from tests.support.idlers import end_idlers
from tests.support.waiting import until
from tests.support.wsgi import BROWSER, ask, environ_of


class Cut:
    """Raises at the n-th step that the thread makes after this was installed by ``sys.setprofile``.

    :ivar steps: how many it has made; ``where`` is the last.
    """

    def __init__(self, at: float, error: type[BaseException]) -> None:
        self._at = at
        self._error = error
        self.steps = 0
        self.where = ""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event not in ("call", "return", "c_return"):
            return
        if frame.f_code.co_filename == logging.__file__:
            return
        if event == "return" and frame.f_code.co_flags & CO_GENERATOR:
            return  # nobody looks for an exception here; the profiler's would not meet a ``finally``
        self.steps += 1
        if self.steps >= self._at and not self.happened and not is_dropped(frame):
            self.where = f"{event} {frame.f_code.co_qualname}:{frame.f_lineno}"
            raise self._error("cut")

    @property
    def happened(self) -> bool:
        return bool(self.where)


def is_dropped(frame: FrameType | None) -> bool:
    """Return whether Python drops what is raised there: within a destructor, for a weak reference, or in what
    the collector calls.

    The garbage of earlier tests may be collected at any step, and hypothesis has the collector call it then.
    """
    called_by_the_collector = [getattr(callback, "__code__", None) for callback in gc.callbacks]
    while frame is not None:
        if frame.f_code.co_name in ("__del__", "_remove") or frame.f_code in called_by_the_collector:
            return True
        frame = frame.f_back
    return False


class Engine:
    """Functions that start at once, unless it is ``slow``."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self.slow = False
        self.stops = 0

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return UP if name in self.up and not self.slow else STARTING if name in self.up else ZERO

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        (self.up.add if replicas else self.up.discard)(name)
        self.stops += not replicas


class Streams:
    """What an application returns that is no list."""

    def __init__(self, breaks: bool = False) -> None:
        self._pieces = iter([b"one", b"two", b"three"])
        self._breaks = breaks

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._breaks:
            raise RuntimeError("app")
        return next(self._pieces)

    def close(self) -> None:
        pass


class File:
    """What the server knows as its own: as gunicorn's and werkzeug's it has its file's ``close``."""

    def __init__(self) -> None:
        file = BytesIO(b"whole")
        self.read, self.close = file.read, file.close

    def __getitem__(self, key: int) -> bytes:
        piece = self.read(2)
        if not piece:
            raise IndexError
        return piece


class Site:
    """An application that does what the path says."""

    def __init__(self, **options: Any) -> None:
        self.engine = Engine()
        self.asked: set[str] = set()
        settings: dict[str, Any] = {"idle_after": 60.0, "idle_default": "all"} | options
        self.door: Any = ScaleZeroMiddleware(self._app, self.engine, **settings)

    def _app(self, environ: Any, start_response: Any) -> Any:
        _, _, name, kind = environ["PATH_INFO"].split("/")

        def begin(status: str = "200 OK") -> None:
            start_response(status, [])

        match kind:
            case "streamed":
                begin()
                return Streams()
            case "generated":
                return self._generated(begin)
            case "file":
                begin()
                return File()
            case "breaks":
                begin()
                return Streams(breaks=True)
            case "raises":
                raise RuntimeError("app")
            case "replayed" if name not in self.asked:
                self.asked.add(name)
                self.engine.up.discard(name)  # it has died
                begin("502 Bad Gateway")
                return [b""]
            case "replayed-late" if name not in self.asked:
                self.asked.add(name)
                self.engine.up.discard(name)
                return self._generated(begin, reached=False)
        begin()
        return [b"whole"]

    @staticmethod
    def _generated(begin: Callable[[], object], reached: bool = True) -> Iterator[bytes]:
        if not reached:
            raise ConnectionError("app")
        begin()
        yield b"one"
        yield b"two"

    def counts(self) -> dict[str, object]:
        """What is left of requests; empty if nothing is."""
        door = self.door
        left: dict[str, Any] = {
            "in flight": {str(state.function) for state in door.cache.states() if state.in_flight},
            "waiting": door.queue.waiting(),
            "by function": door.queue.by_function(),
            "places": sum(door.queue.waiting(state.function) for state in door.cache.states()),
            "watched": len(lookout()._watched),
        }
        return {what: count for what, count in left.items() if count}


@pytest.fixture(autouse=True)
def no_idler_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(idling, "NEWLY_LED", 0.0)  # a store in memory forgets nothing
    yield
    end_idlers()


def cut(site: Site, path: str, at: float, error: type[BaseException]) -> Cut:
    """Send a request and cut it at its n-th step; whatever becomes of it is right."""
    cutter, environ = Cut(at, error), environ_of(path) | {"wsgi.file_wrapper": File}
    with contextlib.suppress(BaseException):
        sys.setprofile(cutter)
        try:
            serve(site.door, environ)
        finally:
            sys.setprofile(None)
    return cutter


def serve(door: Any, environ: Any) -> None:
    """Be a server, as PEP 3333 has it."""
    result = door(environ, lambda *_: None)
    try:
        for _ in result:
            pass
    finally:
        if hasattr(result, "close"):
            result.close()


@dataclass(frozen=True)
class Case:
    """:ivar warm: whether the function is up and known before the request comes."""

    kind: str
    warm: bool


CASES = [
    Case(kind, warm)
    for kind in ("whole", "streamed", "generated", "file", "breaks", "raises", "replayed", "replayed-late")
    for warm in (True, False)
]
LATE = Case("late", warm=False)
"""One that waits in vain."""
ERRORS = [SystemExit, GeneratorExit, RuntimeError, ConnectionError]


def cut_at_every_step(case: Case, error: type[BaseException]) -> int:
    """Cut requests of one kind, until one goes through whole. Return how many were."""
    site = Site(max_wait=0.02 if case is LATE else 30.0)
    site.engine.slow = case is LATE
    names = (f"f{number}" for number in itertools.count())

    def path() -> str:
        name = next(names)
        if case.warm:
            site.engine.up.add(name)
            ask(site.door, f"/function/{name}/whole")
        return f"/function/{name}/{case.kind}"

    cut(site, path(), float("inf"), error)  # what is imported late, and made on first use
    for at in itertools.count(1):
        cutter = cut(site, path(), at, error)
        left = site.counts()
        assert not left, (case, at, cutter.where, left)
        if not cutter.happened:
            return at - 1
    raise AssertionError


@pytest.mark.parametrize("case", [case for case in CASES if case.warm], ids=str)
def test_a_warm_request_that_is_cut_at_any_step_leaves_nothing(case: Case) -> None:
    assert cut_at_every_step(case, SystemExit) > 20


# The standard library's threads do not survive that their start is cut.
CUT_STARTS = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@CUT_STARTS
@pytest.mark.soak
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("case", [*CASES, LATE], ids=str)
def test_a_request_that_is_cut_at_any_step_leaves_nothing(case: Case, error: type[BaseException]) -> None:
    print(case, error.__name__, cut_at_every_step(case, error))


def drop(site: Site, path: str) -> None:
    """Be a server, or a middleware above, that never closes what it was given."""
    for _ in site.door(environ_of(path), lambda *_: None):
        pass


def leave(site: Site, path: str) -> None:
    """Be a server whose client goes after the first piece."""
    result = site.door(environ_of(path), lambda *_: None)
    next(iter(result), None)
    close(result)


@pytest.mark.parametrize("end", [drop, leave])
@pytest.mark.parametrize("kind", ["streamed", "generated", "file", "breaks", "replayed-late"])
def test_a_server_that_does_not_close_an_answer_leaves_nothing(
    end: Callable[[Site, str], None], kind: str
) -> None:
    """But for one whose errors and frames keep each other alive: that one waits for the garbage collector."""
    site = Site()
    with contextlib.suppress(RuntimeError):
        end(site, f"/function/hello/{kind}")
    assert not site.counts()


def test_who_keeps_an_answers_iterator_alone_uses_the_function() -> None:
    """As a wrapper does that forgets ``close``: its request must not be cut."""
    site = Site()
    pieces = iter(site.door(environ_of("/function/hello/streamed"), lambda *_: None))
    assert next(pieces) == b"one"
    assert site.counts() == {"in flight": {"hello"}}
    assert list(pieces) == [b"two", b"three"]
    del pieces
    assert not site.counts()


ENDS = 10_000
THREADS = 8


@CUT_STARTS
@pytest.mark.soak
def test_after_10_000_requests_that_ended_anyhow_nothing_stays_up() -> None:
    """Cut at any step, dropped, left, given up, while their functions go to zero and come back."""
    site = Site(idle_after=0.05, max_wait=0.05)
    kinds, seen = sorted({case.kind for case in CASES}), Counter[str]()

    def client(number: int) -> None:
        luck = random.Random(number)
        for _ in range(ENDS // THREADS):
            path = f"/function/f{luck.randrange(20)}/{luck.choice(kinds)}"
            site.asked.clear()
            if luck.random() < 0.05:
                site.engine.slow = luck.random() < 0.2  # for some time no start gets ready in time
            end = luck.choice(["cut", "cut", "drop", "leave", "whole", "async", "page"])
            with contextlib.suppress(Exception):
                if end == "cut":
                    end += str(cut(site, path, luck.randrange(1, 600), luck.choice(ERRORS)).happened)
                elif end in ("drop", "leave"):
                    (drop if end == "drop" else leave)(site, path)
                else:
                    headers = {"async": {"Prefer": "respond-async"}, "page": BROWSER, "whole": {}}[end]
                    end += ask(site.door, path, headers=headers)[0]
            seen[end] += 1
            if luck.random() < 0.01:
                time.sleep(0.1)

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(dict(seen), "stops", site.engine.stops)
    site.engine.slow = False
    assert seen["cutTrue"] > ENDS / 10
    assert site.engine.stops > 20
    until(lambda: not site.engine.up)
    until(lambda: not site.counts())
