"""Streams that carry nothing any more, and long polls: with ``stream_idle_after`` they keep nothing up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from scalezero_wsgi import FunctionCache
from scalezero_wsgi.activation.idling import drain
from scalezero_wsgi.activation.idling.uses import Uses
from scalezero_wsgi.coordination.base import DrainPhase, WorkerReport
from scalezero_wsgi.events import DrainCancelled
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP
from tests.support.waiting import until
from tests.support.wsgi import Visit, ask, in_flight
from tests.unit.activation.idling.test_idler import IDLE_AFTER, Site, phase

pytestmark = pytest.mark.usefixtures("at_once")

SILENT_AFTER = 0.2


class Streams:
    """An application each of whose requests does what its path says, as long as the function is up.

    A function that is stopped ends all that is under way, as a proxy would notice it.
    """

    def __init__(self) -> None:
        self.calls = 0
        self.end = threading.Event()
        self.send = threading.Semaphore(0)
        self.site: Site

    def is_up(self) -> bool:
        return not self.end.is_set() and self.site.engine.stops() == 0

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        self.calls += 1
        act: Callable[[Any, Any], Iterator[bytes]] = getattr(self, environ["PATH_INFO"].rpartition("/")[2])
        return act(environ, start_response)

    def silent(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return self._silent()

    def _silent(self) -> Iterator[bytes]:
        yield b"first"
        while self.is_up():
            if self.send.acquire(timeout=0.001):
                yield b"more"

    def lazy(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield from self._silent()

    def trickling(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return self._trickling()

    def _trickling(self) -> Iterator[bytes]:
        while self.is_up():
            yield b"x"
            time.sleep(0.005)

    def unanswered(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        while self.is_up():
            time.sleep(0.001)
        if not self.end.is_set():
            raise ConnectionResetError
        start_response("200 OK", [])
        return iter([b"done"])


class StreamSite(Site):
    def __init__(self, **settings: Any) -> None:
        self.app = Streams()
        self.app.site = self
        super().__init__(self.app, **({"stream_idle_after": SILENT_AFTER} | settings))


@pytest.fixture
def site() -> Iterator[StreamSite]:
    site = StreamSite()
    yield site
    site.app.end.set()


@pytest.mark.parametrize("kind", ["silent", "lazy"])
def test_a_silent_stream_is_let_go_and_the_function_stops(site: StreamSite, kind: str) -> None:
    begun = time.monotonic()
    visit = Visit(site.door, f"/function/hello/{kind}")
    until(site.is_at_zero)
    assert time.monotonic() >= begun + SILENT_AFTER + IDLE_AFTER
    assert visit.answer()[2] == b"first"
    assert site.told(DrainCancelled) == []


def test_a_long_poll_is_let_go_and_does_not_start_the_function_again(site: StreamSite) -> None:
    visit = Visit(site.door, "/function/hello/unanswered")
    until(site.is_at_zero)
    with pytest.raises(ConnectionResetError):
        visit.answer()
    assert site.app.calls == 1
    assert site.engine.sets == [(HELLO, 1), (HELLO, 0)]


def test_what_sends_something_counts_until_it_is_answered(site: StreamSite) -> None:
    """A slow upload is one."""
    visit = Visit(site.door, "/function/hello/unanswered", method="POST")
    until(lambda: in_flight(site.door))
    assert site.stays_up(SILENT_AFTER + 4 * IDLE_AFTER)
    site.app.end.set()
    assert visit.status == "200 OK"


def test_one_that_trickles_is_not_cut_beside_one_that_was_let_go(site: StreamSite) -> None:
    Visit(site.door, "/function/hello/silent")
    other = Visit(site.door, "/function/hello/trickling")
    until(lambda: in_flight(site.door) == 2)
    assert site.stays_up(SILENT_AFTER + 4 * IDLE_AFTER)
    site.app.end.set()
    other.answer()
    until(site.is_at_zero)


def test_a_stream_that_carries_a_byte_again_undoes_the_drain(
    site: StreamSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drain, "ACKNOWLEDGE", 30.0)
    site.store.report(WorkerReport("slow/use"), 60)  # or it would be stopped before
    Visit(site.door, "/function/hello/silent")
    until(lambda: phase(site) is DrainPhase.DRAINING)
    assert in_flight(site.door) == 1
    site.app.send.release()
    until(lambda: site.told(DrainCancelled))
    assert site.told(DrainCancelled)[0] == DrainCancelled(HELLO, "it is in use")
    assert site.engine.stops() == 0


def test_it_costs_nothing_where_it_is_off() -> None:
    site = StreamSite(stream_idle_after=None)
    assert site.door._used_app is site.app
    site = StreamSite(idle_after=None)
    assert site.door._used_app is site.app
    site.app.end.set()
    assert ask(site.door, "/function/hello/trickling")[0] == "200 OK"


class Token:
    silent_since: float


def test_a_use_by_a_stream_ends_when_it_is_let_go_and_begins_when_it_carries_again() -> None:
    clock, token = Clock(), Token()
    cache = FunctionCache(1.0, clock=clock)
    uses = Uses(cache, dict, clock, stream_idle_after=10.0)
    state = cache.set("hello", UP).state
    state.last_used = 0.0
    state.in_flight.add(token)
    seen = []
    for now, silent_since in [
        (0, 0),
        (9, 0),
        (10, 0),
        (50, 0),
        (60, 55),
        (64, 55),
        (65, 55),
        (100, 80),
        (110, 80),
        (120, 80),
    ]:
        clock.now, token.silent_since = now, silent_since
        uses.look()
        seen.append((now, uses.in_use, uses.unused_for(clock())[HELLO]))
    in_use: dict[Any, int] = {HELLO: 1}
    assert seen == [
        (0, in_use, 0.0),
        (9, in_use, 0.0),
        (10, {}, 0.0),
        (50, {}, 40.0),
        (60, in_use, 0.0),
        (64, in_use, 0.0),
        (65, {}, 0.0),
        (100, in_use, 0.0),
        (110, {}, 0.0),
        (120, {}, 10.0),
    ]
    state.in_flight.add(object())  # it says nothing of itself: it counts
    uses.look()
    assert uses.in_use == in_use
