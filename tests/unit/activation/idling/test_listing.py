"""Functions that no request has come for: somebody else has started them."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import Function, FunctionNotFound, ProviderError, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.idling import listing
from scalezero_wsgi.activation.idling.listing import GIVE_UP, LIST_EVERY, LIST_PAUSE, REST, Listing
from scalezero_wsgi.events import Event, FunctionPaused, FunctionStopped, ProviderFailed
from tests.support.fakes import HELLO, UP, ZERO, FakeEngine
from tests.support.waiting import until
from tests.support.wsgi import App, ask
from tests.unit.activation.idling.test_ladder import PausingEngine

OTHERS = [Function(name) for name in ("a", "b", "c", "d")]


class Engine(FakeEngine):
    def __init__(self) -> None:
        super().__init__(time.monotonic)
        self.functions: Iterable[Function] | Exception = [HELLO]

    def list_functions(self) -> Iterable[Function]:
        if isinstance(self.functions, Exception):
            raise self.functions
        return self.functions


class Site:
    def __init__(self, engine: Any = None, **settings: Any) -> None:
        self.engine: Any = engine or Engine()
        self.events: list[Event] = []
        defaults: dict[str, Any] = {"idle_after": 0.05, "idle_default": "all", "coordination": "memory://"}
        hooks = [self.events.append]
        self.door = ScaleZeroMiddleware(App(), self.engine, hooks=hooks, **(defaults | settings))

    def told(self, kind: type[Event]) -> int:
        return sum(isinstance(event, kind) for event in self.events)


@pytest.fixture
def soon(at_once: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LIST_EVERY", 0.1)


@pytest.mark.usefixtures("soon")
def test_one_that_was_stopped_here_and_started_by_somebody_else_is_found() -> None:
    """It is known here, as one at zero."""
    site = Site()
    ask(site.door)
    until(lambda: site.told(FunctionStopped) == 1)
    site.engine.put_up("hello")
    until(lambda: site.told(FunctionStopped) == 2)


@pytest.mark.usefixtures("soon")
def test_one_that_is_paused_is_not_at_zero_and_one_that_goes_on_is_found() -> None:
    site = Site(PausingEngine(), idle_action="pause after 50ms, stop after 1h")
    ask(site.door)
    until(lambda: site.told(FunctionPaused) == 1)
    queries = len(site.engine.queries)
    until(lambda: len(site.engine.queries) >= queries + 3)
    idler = site.door._idler
    assert idler is not None
    assert HELLO in idler._candidates._up_since
    site.engine.paused.discard(HELLO)  # somebody else has let it go on
    until(lambda: site.told(FunctionPaused) == 2)
    assert site.engine.done == ["start", "pause", "pause"]


class Bench:
    """A listing alone. Each question takes ``cost`` seconds of the processor."""

    def __init__(self, cost: float = 0.0) -> None:
        self.engine = Engine()
        self.site = Site(self.engine)
        self.context = self.site.door.scaler.context
        self.pauses: list[float] = []
        context = self.context._replace(pause=self.pauses.append)
        self.listing = Listing(context, processor_time=lambda: len(self.engine.queries) * cost)

    def is_known(self, function: Function) -> bool:
        return self.site.door.cache.find(function) is not None


def test_it_takes_one_percent_of_a_core_at_most() -> None:
    bench = Bench(cost=0.002)
    bench.engine.functions = OTHERS
    bench.listing.look()
    assert bench.pauses == pytest.approx([REST * 0.002] * len(OTHERS))


def test_what_others_use_of_its_thread_while_it_pauses_makes_no_pause_longer() -> None:
    """gevent's greenlets are all of one thread."""
    bench, used = Bench(), [0.0]

    def pause(duration: float) -> None:
        bench.pauses.append(duration)
        used[0] += 0.5 * duration

    bench.engine.functions = OTHERS
    Listing(bench.context._replace(pause=pause), processor_time=lambda: used[0]).look()
    assert sum(bench.pauses) < 2.01 * LIST_PAUSE * len(OTHERS)


def test_what_costs_nothing_is_through_before_the_next_look_is_due() -> None:
    bench = Bench()
    bench.engine.functions = OTHERS
    bench.listing.look()
    assert sum(bench.pauses) == pytest.approx(LIST_PAUSE * len(OTHERS))
    bench.engine.functions = [Function(f"f{number}") for number in range(10_000)]
    bench.pauses.clear()
    bench.listing.look()
    assert sum(bench.pauses) * 1.25 < LIST_EVERY  # what a pause may take
    assert len(bench.pauses) < 2_000


def test_one_that_is_up_is_told_to_the_others_and_one_at_zero_is_noted_only() -> None:
    bench = Bench()
    bench.engine.functions = OTHERS
    bench.engine.put_up("b")
    bench.listing.look()
    told = [each for each in OTHERS if bench.context.peers.shared_status(each) is not None]
    assert told == [Function("b")]
    assert bench.site.door.cache.get("b") == (UP, True)
    assert bench.site.door.cache.get("c") == (ZERO, True)


def test_one_that_cannot_be_asked_hides_no_other() -> None:
    class Fails(Engine):
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if name == "b":
                raise ProviderError("unreadable")
            if name == "c":
                raise FunctionNotFound(name, namespace)
            return super().get_replicas(name, namespace)

    bench = Bench()
    bench.engine.functions, bench.engine.__class__ = OTHERS, Fails
    bench.listing.look()
    assert [bench.is_known(each) for each in OTHERS] == [True, False, False, True]
    assert bench.site.told(ProviderFailed) == 1


def test_a_provider_that_does_not_answer_is_left_alone() -> None:
    class Fails(Engine):
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            raise OSError("no route")

    bench = Bench()
    bench.engine.functions, bench.engine.__class__ = [Function(f"f{n}") for n in range(50)], Fails
    bench.listing.look()
    assert bench.site.told(ProviderFailed) == GIVE_UP


def test_several_in_a_row_that_cannot_be_asked_hide_no_other_for_ever() -> None:
    """Such as deployments without a service, of which Kubernetes tells nothing."""

    class Failing(Engine):
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if name != "d":
                raise ProviderError("there are no endpoints")
            return UP

    site = Site(Failing())
    site.engine.functions = OTHERS
    look = Listing(site.door.scaler.context)
    for _ in range(2):
        look.look()
    assert site.door.cache.find(Function("d")) is not None


def test_a_list_that_fails_is_said(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.engine.functions = ProviderError("down")
    with caplog.at_level(logging.WARNING):
        bench.listing.look()
    [record] = caplog.records
    assert record.getMessage() == "the provider cannot list its functions: down"


def test_an_older_answer_does_not_count() -> None:
    """The function is started while the provider is asked, as a request comes."""
    bench = Bench()
    door = bench.site.door

    class Slow(Engine):
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            status = super().get_replicas(name, namespace)
            door.cache.set("hello", replace(UP, endpoint="http://new"))
            return status

    bench.engine.__class__ = Slow
    bench.listing.look()
    assert door.cache.get("hello")[0].endpoint == "http://new"


def test_no_two_looks_go_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "LIST_EVERY", 1.0)
    bench = Bench()
    ended = False
    calls = []

    def hangs() -> list[Function]:
        calls.append(os.getpid())
        until(lambda: ended)
        return []

    bench.engine.list_functions = hangs  # type: ignore[method-assign]
    for now in range(5):
        bench.listing.turn(float(now))
    until(lambda: calls)
    assert len(calls) == 1
    ended = True
    until(lambda: not bench.listing._flights.running())
    bench.listing.turn(10.0)
    until(lambda: len(calls) == 2)
