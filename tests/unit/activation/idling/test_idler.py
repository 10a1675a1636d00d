"""Back to zero in one process: what counts as use, what keeps a function up, what is done and told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import Function, ProviderError, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation import outages, request_queue, scaler
from scalezero_wsgi.activation.idling import drain
from scalezero_wsgi.coordination.base import Drain, DrainPhase, WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import DrainCancelled, Event, FunctionIdle, FunctionStopped, IdlingOff, StopRefused
from tests.support.fakes import HELLO, UP, FakeEngine
from tests.support.waiting import SOON, until
from tests.support.wsgi import App, Visit, ask, environ_of, in_flight

pytestmark = pytest.mark.usefixtures("at_once")

IDLE_AFTER = 0.03


def start_response(status: str, headers: Any, exc_info: Any = None, /) -> Any: ...


class Engine(FakeEngine):
    """It may refuse zero, change behind one's back, and take its time to stop."""

    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.refusal: Exception | None = None
        self.status = UP
        self.stopping = threading.Event()
        self.may_stop = threading.Event()
        self.may_stop.set()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        status = super().get_replicas(name, namespace)
        return (
            self.status
            if status.available_replicas
            else replace(self.status, replicas=0, available_replicas=0)
        )

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        if replicas == 0:
            self.stopping.set()
            assert self.may_stop.wait(30)
            if self.refusal is not None:
                raise self.refusal
        super().set_replicas(name, namespace, replicas)

    def stops(self) -> int:
        return sum(replicas == 0 for _, replicas in self.sets)


class Site:
    def __init__(self, app: Any = None, **settings: Any) -> None:
        self.engine = Engine()
        self.events: list[Event] = []
        self.store = settings.setdefault("coordination", MemoryCoordination())
        defaults: dict[str, Any] = {
            "idle_after": IDLE_AFTER,
            "idle_default": "all",
            "hooks": [self.events.append],
        }
        self.door = ScaleZeroMiddleware(app or App(), self.engine, **(defaults | settings))

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    def is_at_zero(self) -> bool:
        return self.engine.stops() > 0

    def stays_up(self, seconds: float = 6 * IDLE_AFTER) -> bool:
        time.sleep(seconds)
        return self.engine.stops() == 0


def test_an_unused_function_goes_to_zero_and_is_woken_again() -> None:
    site = Site()
    for count in (1, 2):
        assert ask(site.door)[0] == "200 OK"
        used_at = time.monotonic()
        until(lambda count=count: len(site.told(FunctionStopped)) == count)  # type: ignore[misc]
        noticed_after = time.monotonic() - used_at
        assert noticed_after >= IDLE_AFTER
        assert 0 <= site.told(FunctionStopped)[-1].late <= noticed_after - IDLE_AFTER
    assert site.engine.sets == [(HELLO, 1), (HELLO, 0)] * 2


def test_without_the_setting_there_is_no_thread_and_no_store() -> None:
    door = ScaleZeroMiddleware(App(), Engine())
    ask(door)
    assert door._idler is None
    assert "scalezero-idler" not in {thread.name for thread in threading.enumerate() if not thread.daemon}


def test_a_function_that_does_not_opt_in_stays_up() -> None:
    site = Site(idle_default="labelled")
    ask(site.door)
    assert site.stays_up()


def test_a_label_opts_in() -> None:
    site = Site(idle_default="labelled", idle_after=60)
    site.engine.status = replace(UP, labels={"scalezero.idle-after": "30ms"})
    ask(site.door)
    until(site.is_at_zero)


def test_a_function_that_no_request_may_wake_stays_up() -> None:
    site = Site(wake=["other"])
    site.engine.put_up("hello")
    assert ask(site.door)[0] == "200 OK"
    assert site.stays_up()


def test_a_dry_run_says_what_it_would_do_and_does_nothing() -> None:
    site = Site(dry_run=True)
    ask(site.door)
    until(lambda: site.told(FunctionIdle))
    assert site.told(FunctionIdle)[0].idle_for >= IDLE_AFTER
    assert site.stays_up()
    assert len(site.told(FunctionIdle)) == 1
    assert site.store.drains() == {}


class Streams:
    """An application whose answers go on until they are told to end."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def __call__(self, environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        return self._stream()

    def _stream(self) -> Iterator[bytes]:
        yield b"first"
        assert self.end.wait(30)
        yield b"last"


def test_a_response_that_is_streamed_for_much_longer_is_not_cut() -> None:
    app = Streams()
    site = Site(app)
    visit = Visit(site.door)
    until(lambda: in_flight(site.door))
    assert site.stays_up(10 * IDLE_AFTER)
    app.end.set()
    assert visit.answer()[2] == b"firstlast"
    ended_at = time.monotonic()
    until(site.is_at_zero)
    assert time.monotonic() >= ended_at + IDLE_AFTER / 2  # the store in memory is asked four times as often


def test_a_request_that_uses_nothing_does_not_count() -> None:
    site = Site(no_wake=["path=*/health"])
    ask(site.door)
    end = time.monotonic() + 30
    while not site.is_at_zero():
        assert ask(site.door, "/function/hello/health")[0] in {"200 OK", "503 SERVICE UNAVAILABLE"}
        assert time.monotonic() < end
        time.sleep(0.01)


SILENT = 0.2
"""Seconds, instead of one."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A provider that is silent counts as one that fails soon."""
    for module in (outages, request_queue, scaler):
        monkeypatch.setattr(module, "SILENT", SILENT)


# The hand-shake, with a worker that does not answer, so that the function stays in DRAINING


@pytest.fixture
def draining() -> Site:
    """A site whose function is about to be stopped, and cannot be, for a worker has not acknowledged."""
    site = Site(cache_expiry=0.0)
    site.store.report(WorkerReport("silent/use"), 60)
    ask(site.door)
    until(lambda: phase(site) is DrainPhase.DRAINING)
    return site


def phase(site: Site) -> DrainPhase | None:
    found = site.store.drains().get(HELLO)
    return None if found is None else found.phase


def test_a_request_that_comes_while_it_drains_is_passed_down_at_once(draining: Site) -> None:
    until(lambda: HELLO in draining.door._idler.gate.closed)  # type: ignore[union-attr]
    begun = time.monotonic()
    assert ask(draining.door)[0] == "200 OK"
    assert time.monotonic() < begun + SOON
    assert draining.engine.sets == [(HELLO, 1)]
    assert [event.reason for event in draining.told(DrainCancelled)][:1] == ["a request came"]


def test_a_request_that_undid_one_drain_does_not_open_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was held up right after it had won, and the next drain is acknowledged already."""
    site = Site(idle_after=60)
    ask(site.door)
    idler = site.door._idler
    assert idler is not None
    gate, change = idler.gate, site.store.change_drain
    assert change(HELLO, None, Drain(DrainPhase.DRAINING, 1), 60)
    gate.turn()
    assert gate.closed == {HELLO: 1}

    def change_and_be_late(function: Function, before: Drain, after: Drain, keep: float) -> bool:
        monkeypatch.setattr(site.store, "change_drain", change)
        assert change(function, before, after, keep)
        assert change(HELLO, after, Drain(DrainPhase.DRAINING, 2), 60)
        gate.turn()
        assert change(HELLO, Drain(DrainPhase.DRAINING, 2), Drain(DrainPhase.STOPPING, 2), 60)
        return True

    monkeypatch.setattr(site.store, "change_drain", change_and_be_late)
    assert gate.enter(HELLO)  # it has won, but joins and finds it closed
    assert gate.closed == {HELLO: 2}


def test_a_worker_that_does_not_acknowledge_keeps_it_up_until_it_is_gone(draining: Site) -> None:
    until(lambda: draining.told(DrainCancelled))
    assert "no answer of silent/use" in draining.told(DrainCancelled)[0].reason
    assert draining.engine.stops() == 0


@pytest.mark.usefixtures("impatient")
def test_a_request_that_comes_while_it_stops_waits_and_starts_it_again() -> None:
    site = Site()
    site.engine.may_stop.clear()
    ask(site.door)
    assert site.engine.stopping.wait(30)
    visit = Visit(site.door)
    time.sleep(2 * SILENT)  # a provider that is silent for so long counts as one that fails
    assert site.door.queue.waiting() == 1
    site.engine.may_stop.set()
    assert visit.status == "200 OK"
    assert site.engine.sets[:3] == [(HELLO, 1), (HELLO, 0), (HELLO, 1)]


def test_a_request_that_wakes_nothing_is_refused_while_it_stops() -> None:
    site = Site(no_wake=["path=*/health"])
    site.engine.may_stop.clear()
    ask(site.door)
    assert site.engine.stopping.wait(30)
    assert ask(site.door, "/function/hello/health")[0] == "503 SERVICE UNAVAILABLE"
    site.engine.may_stop.set()


def test_another_writers_change_stands(draining: Site) -> None:
    """It came before the last look at the provider."""
    draining.engine.status = replace(UP, replicas=3, available_replicas=3)
    draining.store.leave("silent/use")
    until(lambda: draining.told(DrainCancelled))
    assert draining.told(DrainCancelled)[0].reason == "somebody else has changed it meanwhile"
    assert draining.engine.stops() == 0


def test_a_provider_that_refuses_is_told_so_once() -> None:
    site = Site()
    site.engine.refusal = ProviderError("at least one")
    ask(site.door)
    until(lambda: site.told(StopRefused))
    assert site.told(StopRefused) == [StopRefused(HELLO, "at least one", 60.0)]
    assert ask(site.door)[0] == "200 OK"
    time.sleep(6 * IDLE_AFTER)
    assert len(site.told(StopRefused)) == 1


@pytest.mark.parametrize("left", [DrainPhase.DRAINING, DrainPhase.STOPPING])
def test_what_a_dead_worker_has_left_is_ended(left: DrainPhase) -> None:
    """The function was not scaled to zero: it is up, and goes on being served."""
    site = Site(idle_after=60)
    ask(site.door)
    assert site.store.change_drain(HELLO, None, Drain(left, 7), 60)
    assert ask(site.door)[0] == "200 OK"
    until(lambda: phase(site) in {None, DrainPhase.READY})
    assert site.engine.stops() == 0


@pytest.mark.usefixtures("impatient")
def test_a_request_waits_while_it_is_found_out_what_a_dead_worker_has_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes longer than a provider may be silent for."""
    monkeypatch.setattr(drain, "SETTLE", 2 * SILENT)
    site = Site(idle_after=60)
    ask(site.door)
    before = len(site.engine.queries)
    assert site.store.change_drain(HELLO, None, Drain(DrainPhase.STOPPING, 7), 60)
    until(lambda: len(site.engine.queries) > before)
    assert ask(site.door)[0] == "200 OK"
    assert phase(site) is None
    assert site.engine.stops() == 0


def test_a_function_that_nobody_has_used_is_found_by_the_providers_list() -> None:
    class Listing(Engine):
        def list_functions(self) -> list[Function]:
            return [HELLO, Function("other")]

    engine = Listing()
    door = ScaleZeroMiddleware(App(), engine, idle_after=IDLE_AFTER, idle_default="all")
    engine.put_up("hello")
    assert door._idler is not None
    door._idler.start(multiprocess=False)
    until(lambda: (HELLO, 0) in engine.sets)
    assert Function("other") not in {function for function, _ in engine.sets}


@pytest.mark.parametrize("rules", [{"allow": ["job-*"]}, {"deny": ["hello"]}])
def test_a_function_that_is_not_served_stays_up(rules: dict[str, Any]) -> None:
    """The provider lists it all the same: a database beside the functions, say."""

    class Listing(Engine):
        def list_functions(self) -> list[Function]:
            return [HELLO, Function("job-1")]

    engine = Listing()
    for name in ("hello", "job-1"):
        engine.put_up(name)
    door = ScaleZeroMiddleware(App(), engine, idle_after=IDLE_AFTER, idle_default="all", **rules)
    assert door._idler is not None
    door._idler.start(multiprocess=False)
    until(lambda: (Function("job-1"), 0) in engine.sets)
    time.sleep(6 * IDLE_AFTER)
    assert (HELLO, 0) not in engine.sets


def test_an_entry_with_another_address_is_not_used_though_the_function_is_up() -> None:
    """It was stopped and started again elsewhere while the request was on its way to the application."""
    site = Site(idle_after=60)
    site.engine.status = replace(UP, endpoint="http://old")
    ask(site.door)
    old = site.door.cache.find(HELLO)
    assert old is not None
    gate = site.door._idler.gate  # type: ignore[union-attr]
    site.door.cache.set("hello", replace(UP, endpoint="http://old"))
    assert gate.is_open(old.state, old)
    site.door.cache.set("hello", replace(UP, endpoint="http://new"))
    assert not gate.is_open(old.state, old)


# What keeps it off


def test_processes_that_do_not_meet_stop_nothing_and_say_so() -> None:
    site = Site()
    for _ in range(2):
        environ = environ_of() | {"wsgi.multiprocess": True}
        assert list(site.door(environ, start_response)) == [b"200 OK"]
    assert len(site.told(IdlingOff)) == 1
    assert site.stays_up()


def test_a_store_without_drains_stops_nothing_and_says_so() -> None:
    class Old:
        """A store that was written before there were drains."""

        def __init__(self) -> None:
            store = MemoryCoordination()
            for method in ("acquire", "renew", "release", "publish", "known", "changes", "report", "leave"):
                setattr(self, method, getattr(store, method))
            self.workers = store.workers

    site = Site(coordination=Old())
    assert ask(site.door)[0] == "200 OK"
    assert [event.reason for event in site.told(IdlingOff)] == [
        "the store Old has no drains() and change_drain()"
    ]
    assert site.stays_up()


def test_a_worker_that_reports_no_use_keeps_all_up() -> None:
    """It is of an earlier release, or has no ``idle_after``: what it passes down is not known."""
    site = Site()
    site.store.report(WorkerReport("old"), 60)
    ask(site.door)
    until(lambda: site.told(DrainCancelled))
    assert "old" in site.told(DrainCancelled)[0].reason
    assert site.engine.stops() == 0


def test_a_function_that_is_busy_without_requests_stays_up() -> None:
    asked = threading.Event()

    def busy(name: str, namespace: str) -> bool:
        asked.set()
        return True

    site = Site(busy=busy)
    ask(site.door)
    assert asked.wait(30)
    assert site.stays_up()
    assert site.store.drains() == {}
