from __future__ import annotations

import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from scalezero_wsgi import (
    Function,
    FunctionCache,
    FunctionFailed,
    FunctionNotFound,
    FunctionScaler,
    NotAvailable,
    ProviderError,
    ReplicaStatus,
    Settings,
    TooManyWaiting,
)
from scalezero_wsgi._lib.per_process import PerProcess
from scalezero_wsgi.activation.outages import SILENT
from scalezero_wsgi.activation.places import EMPTY, Places, Token
from scalezero_wsgi.activation.request_queue import MAX_WAIT_LABEL, Caller, RequestQueue
from scalezero_wsgi.activation.scaler import LATE, UNKNOWN_START
from scalezero_wsgi.activation.single_flight import Flight
from scalezero_wsgi.activation.state import FunctionMeta
from scalezero_wsgi.model import ClientGone, ProviderSilent, StillStarting, WorkerStopping
from scalezero_wsgi.providers import Provider
from scalezero_wsgi.servers import watch
from scalezero_wsgi.servers.server import Server
from scalezero_wsgi.servers.watch import Lookout
from scalezero_wsgi.web.negotiation import caller_of
from tests.support.clock import Clock, MovingClock
from tests.support.connection import Connection
from tests.support.fakes import HELLO, STARTING, UP, ZERO, FakeEngine, Gate, ScriptedProvider
from tests.support.waiting import PATIENCE, SOON, until

OTHER = Function("other")
LONG = 20.0
"""Seconds for which a request may wait, unless a test says otherwise."""

NAVIGATION = {"HTTP_SEC_FETCH_MODE": "navigate"}

Environ = dict[str, Any]
NOTHING_MORE: Environ = {}
Outcome = FunctionMeta | BaseException


class Bench:
    """A Waiting over a real cache and scaler, and requests in threads of their own."""

    def __init__(
        self, provider: Provider, clock: Callable[[], float] = time.monotonic, **settings: Any
    ) -> None:
        self.settings = Settings(**{"max_wait": LONG, **settings})
        self.cache = FunctionCache(
            self.settings.cache_expiry, stale_if_error=self.settings.stale_if_error, clock=clock
        )
        # A leader's pause of seconds would go on when the test has put the clock forward.
        self.scaler = FunctionScaler(
            provider, self.cache, clock=clock, sleep=lambda duration: time.sleep(min(duration, 0.05))
        )
        self.waiting = RequestQueue(self.scaler, self.cache, self.settings, clock)
        self.clock = clock

    def hold(
        self, function: Function = HELLO, prefer: str | None = None, environ: Environ = NOTHING_MORE
    ) -> FunctionMeta:
        environ = {"REQUEST_METHOD": "GET", "wsgi.multithread": True, **environ}
        if prefer is not None:
            environ["HTTP_PREFER"] = prefer
        caller = caller_of(environ, self.clock(), self.settings.page_after)
        return self.waiting.hold(function, caller)

    def begin(
        self, function: Function = HELLO, prefer: str | None = None, environ: Environ = NOTHING_MORE
    ) -> Request:
        return Request(lambda: self.hold(function, prefer, environ))

    def fill(
        self,
        number: int,
        function: Function = HELLO,
        prefer: str | None = None,
        environ: Environ = NOTHING_MORE,
    ) -> list[Request]:
        """Have that many requests wait."""
        before = self.waiting.waiting()
        requests = [self.begin(function, prefer, environ) for _ in range(number)]
        until(lambda: self.waiting.waiting() == before + number)
        return requests

    def assert_empty(self) -> None:
        assert (self.waiting.waiting(), self.waiting.by_function()) == (0, {})


class Request:
    """A request that waits in a thread of its own."""

    def __init__(self, hold: Callable[[], FunctionMeta]) -> None:
        self._hold = hold
        self._outcome: Outcome
        self.begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome = self._hold()
        except BaseException as error:
            self._outcome = error
        self.ended = time.monotonic()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def outcome(self) -> Outcome:
        self._thread.join(PATIENCE)
        assert not self.waits
        return self._outcome

    @property
    def taken(self) -> float:
        self.outcome()
        return self.ended - self.begun


def woken(bench: Bench, gate: Gate) -> float:
    """Open the gate; when the function came up, by the bench's clock."""
    until(lambda: bench.cache.find(HELLO))  # known to be unavailable: only then does it come up
    gate.opened.set()
    until(lambda: (meta := bench.cache.find(HELLO)) and meta.state.came_up_at > 0)
    meta = bench.cache.find(HELLO)
    assert meta is not None
    return meta.state.came_up_at


def served(outcome: Outcome) -> bool:
    return isinstance(outcome, FunctionMeta) and outcome.available


def kinds(requests: list[Request]) -> Counter[type]:
    return Counter(type(request.outcome()) for request in requests)


class TestAdmission:
    @pytest.mark.parametrize(
        ("capacity", "room"), [(1, 1), (2, 1), (3, 2), (4, 3), (5, 3), (8, 6), (10, 7), (40, 30)]
    )
    def test_a_quarter_of_the_servers_places_stays_free_and_one_at_least(
        self, server: Server, capacity: int, room: int
    ) -> None:
        server.capacity = capacity
        gate = Gate()
        bench = Bench(gate)
        requests = bench.fill(room)
        with pytest.raises(TooManyWaiting):
            bench.hold()
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: room}
        bench.assert_empty()

    def test_a_server_with_one_thread_holds_one(self) -> None:
        gate = Gate()
        bench = Bench(gate)
        (request,) = bench.fill(1, environ={"wsgi.multithread": False})
        with pytest.raises(TooManyWaiting):
            bench.hold(environ={"wsgi.multithread": False})
        gate.opened.set()
        assert served(request.outcome())

    def test_max_waiting_counts_for_all_functions_together(self, server: Server) -> None:
        server.capacity = 4
        gate = Gate()
        bench = Bench(gate, max_waiting=5)
        requests = bench.fill(3) + bench.fill(2, OTHER)
        assert (bench.waiting.waiting(), bench.waiting.waiting(HELLO), bench.waiting.waiting(OTHER)) == (
            5,
            3,
            2,
        )
        for function in (HELLO, OTHER):
            with pytest.raises(TooManyWaiting):
                bench.hold(function)
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: 5}
        bench.assert_empty()

    def test_one_function_cannot_take_the_places_of_the_others(self) -> None:
        gate = Gate()
        bench = Bench(gate, max_waiting=5, max_waiting_per_function=2)
        requests = bench.fill(2)
        with pytest.raises(TooManyWaiting):
            bench.hold()
        requests += bench.fill(2, OTHER)
        with pytest.raises(TooManyWaiting):
            bench.hold(OTHER)
        requests += bench.fill(1, Function("third"))
        with pytest.raises(TooManyWaiting):
            bench.hold(Function("fourth"))
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: 5}
        bench.assert_empty()

    def test_the_refusal_comes_at_once(self) -> None:
        gate = Gate()
        bench = Bench(gate, max_waiting=1)
        bench.fill(1)
        begun = time.monotonic()
        for _ in range(100):
            with pytest.raises(TooManyWaiting, match="hello"):
                bench.hold()
        assert time.monotonic() - begun < SOON
        gate.opened.set()

    def test_exactly_as_many_wait_as_may_when_a_hundred_come_at_once(self) -> None:
        gate = Gate()
        bench = Bench(gate, max_waiting=10, max_waiting_per_function=4)
        together = threading.Barrier(100)

        def come(function: Function) -> FunctionMeta:
            together.wait(PATIENCE)
            return bench.hold(function)

        functions = [HELLO, OTHER, Function("third"), Function("fourth")] * 25
        requests = [Request(lambda function=function: come(function)) for function in functions]  # type: ignore[misc]
        until(lambda: sum(request.waits for request in requests) == 10)
        assert bench.waiting.waiting() == 10
        assert max(bench.waiting.by_function().values()) <= 4
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: 10, TooManyWaiting: 90}
        bench.assert_empty()

    def test_those_who_come_at_the_same_moment_are_counted_one_by_one(self) -> None:
        class SlowFunction(Function):
            """Lets the other threads run whenever it is looked up."""

            __slots__ = ()

            def __hash__(self) -> int:
                time.sleep(0.001)
                return super().__hash__()

        gate = Gate()
        bench = Bench(gate, max_waiting=20, max_waiting_per_function=10)
        together = threading.Barrier(30)

        def come() -> FunctionMeta:
            function = SlowFunction("hello")
            together.wait(PATIENCE)
            return bench.hold(function)

        requests = [Request(come) for _ in range(30)]
        until(lambda: sum(request.waits for request in requests) == 10)
        assert bench.waiting.by_function() == {HELLO: 10}
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: 10, TooManyWaiting: 20}
        bench.assert_empty()

    def test_the_count_stays_right_while_requests_come_and_go(self) -> None:
        bench = Bench(ScriptedProvider(UP), max_waiting=3, max_waiting_per_function=2, cache_expiry=0)
        over: list[int] = []

        def come_and_go() -> None:
            for number in range(100):
                with suppress(TooManyWaiting):
                    bench.hold(Function(f"f{number % 3}"), prefer="wait=1")
                over.append(bench.waiting.waiting())

        threads = [threading.Thread(target=come_and_go) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert len(over) == 800
        assert max(over) <= 3
        bench.assert_empty()

    def test_functions_for_which_nobody_waits_any_more_take_no_memory(self) -> None:
        places, waits = Places(), Token()
        assert places.take(waits, HELLO, 10, 1)
        for number in range(1000):
            token = Token()
            assert places.take(token, Function(f"f{number}"), 10, 1)
            del places.tokens[token], token.beside[token]
        assert len(places._of) < 2 * EMPTY
        assert (places.count(HELLO), places.count(Function("f999"))) == (1, 0)
        assert not places.take(Token(), HELLO, 10, 1)


def stop(server: Server) -> None:
    server.stopping = lambda: True


def exit_in_the_wait(server: Server) -> None:
    def keep_alive() -> None:
        raise SystemExit(1)

    server.keep_alive = keep_alive


WAYS_OUT: list[tuple[type, Provider, Any, Any]] = [
    (FunctionMeta, ScriptedProvider(UP), {}, None),
    (FunctionMeta, ScriptedProvider(ZERO, STARTING, UP), {"release_rate": 100}, None),
    (FunctionNotFound, ScriptedProvider(FunctionNotFound("hello")), {}, None),
    (FunctionFailed, ScriptedProvider(replace(STARTING, failure="crash loop")), {}, None),
    (ProviderError, ScriptedProvider(ProviderError("down")), {"max_wait": 0.1}, None),
    (NotAvailable, Gate(), {"max_wait": 0.03}, None),
    (NotAvailable, Gate(), {"prefer": "wait=0"}, None),
    (StillStarting, Gate(), {"prefer": "respond-async"}, None),
    (StillStarting, Gate(), {"page_after": 0.03, **NAVIGATION}, None),
    (WorkerStopping, Gate(), {}, stop),
    (SystemExit, Gate(), {}, exit_in_the_wait),
]


@pytest.mark.parametrize(("kind", "provider", "given", "prepare"), WAYS_OUT)
def test_the_place_is_given_back_on_every_way_out(
    server: Server, kind: type, provider: Provider, given: dict[str, Any], prepare: Any
) -> None:
    if prepare is not None:
        prepare(server)
    names = Settings.__dataclass_fields__
    bench = Bench(provider, max_waiting=1, **{name: given[name] for name in given if name in names})
    for _ in range(2):
        prefer = given.get("prefer")
        request = bench.begin(HELLO, prefer, {name: given[name] for name in given if name.isupper()})
        assert type(request.outcome()) is kind
        bench.assert_empty()


def test_the_place_of_a_client_that_left_is_given_back(connection: Connection) -> None:
    bench = Bench(Gate(), max_waiting=1)
    (request,) = bench.fill(1, environ=connection.environ)
    connection.leave()
    assert type(request.outcome()) is ClientGone
    bench.assert_empty()


def test_the_place_is_given_back_when_a_signal_ends_the_wait_as_gunicorns_sync_worker_does() -> None:
    provider = Gate()
    bench = Bench(provider, max_waiting=1)

    def handle_abort(number: int, frame: FrameType | None) -> None:
        raise SystemExit(1)

    def abort() -> None:
        until(lambda: len(provider.queries) > 1)  # so the request waits, and is not still on its way there
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle_abort)  # SIGABRT is the tests' own, of those that hang
    arbiter = threading.Thread(target=abort)
    try:
        arbiter.start()
        with pytest.raises(SystemExit):
            bench.hold()
    finally:
        arbiter.join()
        signal.signal(signal.SIGUSR1, before)
    bench.assert_empty()


class TestWithoutAPlace:
    """All places are taken by requests for OTHER, which never comes up."""

    class BesideOther(ScriptedProvider):
        def __init__(self, *script: Any) -> None:
            super().__init__(*script)
            self.asked_for_other = threading.Event()

        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if name == "other":
                self.asked_for_other.set()
                return STARTING
            return super().get_replicas(name, namespace)

        def take_the_places(self, bench: Bench) -> None:
            bench.fill(bench.settings.max_waiting or 0, OTHER)
            assert self.asked_for_other.wait(PATIENCE)

    def scene(
        self, *script: Any, clock: Callable[[], float] = time.monotonic, **settings: Any
    ) -> tuple[Bench, ScriptedProvider]:
        provider = self.BesideOther(*script)
        bench = Bench(provider, clock, **{"max_waiting": 1, "max_wait": 3.0, **settings})
        provider.take_the_places(bench)
        return bench, provider

    def test_a_warm_function_is_served_though_its_entry_has_lapsed(self) -> None:
        clock = MovingClock()
        bench, _ = self.scene(UP, clock=clock, max_wait=1000.0)
        assert bench.hold().available
        clock.advance(bench.settings.cache_expiry + 0.05)
        assert bench.hold().available

    def test_even_if_no_entry_is_ever_fresh(self) -> None:
        bench, _ = self.scene(UP, cache_expiry=0)
        assert bench.hold().available

    @pytest.mark.parametrize("status", [ZERO, STARTING])
    def test_a_cold_one_is_refused_and_not_woken(self, status: ReplicaStatus) -> None:
        bench, provider = self.scene(status)
        with pytest.raises(TooManyWaiting):
            bench.hold()
        assert provider.sets == []
        assert bench.scaler.started_at(HELLO) is None

    def test_an_answer_from_before_the_moment_asked_for_does_not_count(self) -> None:
        bench, _ = self.scene(UP)
        with pytest.raises(TooManyWaiting):
            bench.waiting.hold(HELLO, Caller(time.monotonic()), since=time.monotonic() + 60)

    def test_an_unknown_one_is_unknown(self) -> None:
        bench, _ = self.scene(FunctionNotFound("hello"))
        with pytest.raises(FunctionNotFound):
            bench.hold()

    def test_of_a_burst_on_a_function_last_seen_up_nobody_is_refused(self) -> None:
        """Its one query holds those who have no place as well: nothing has to start, as far as is known."""
        for places_are_free in (False, True):
            asked, gate = threading.Event(), threading.Event()

            def slowly(asked: threading.Event = asked, gate: threading.Event = gate) -> ReplicaStatus:
                asked.set()
                gate.wait(PATIENCE)
                return UP

            clock = MovingClock()
            provider = self.BesideOther(UP, slowly)
            bench = Bench(provider, clock, max_waiting=2)
            bench.hold()
            clock.advance(60.0)
            if not places_are_free:
                provider.take_the_places(bench)
            requests = [bench.begin() for _ in range(30)]
            assert asked.wait(PATIENCE)
            gate.set()
            assert all(request.outcome().available for request in requests)  # type: ignore[union-attr]
            assert len(provider.queries) == 2

    def test_nor_when_its_provider_fails_or_is_silent(self) -> None:
        clock, gate = MovingClock(), threading.Event()

        def say_nothing() -> ReplicaStatus:
            clock.advance(SILENT)
            return UP if gate.wait(PATIENCE) else ZERO

        for step in (say_nothing, ProviderError("down")):
            provider = self.BesideOther(UP, step)
            bench = Bench(provider, clock, max_waiting=1)
            bench.hold()
            clock.advance(60.0)
            provider.take_the_places(bench)
            assert bench.hold().available
        gate.set()

    def test_but_those_for_whom_it_turns_out_to_be_at_zero(self) -> None:
        asked, gate = threading.Event(), threading.Event()

        def slowly() -> ReplicaStatus:
            asked.set()
            gate.wait(PATIENCE)
            return ZERO

        clock = MovingClock()
        bench = Bench(ScriptedProvider(UP, slowly, STARTING), clock, max_waiting=2)
        bench.hold()
        clock.advance(60.0)
        requests = [bench.begin() for _ in range(10)]
        assert asked.wait(PATIENCE)
        gate.set()
        until(lambda: sum(request.waits for request in requests) == 2)
        refused = [request for request in requests if not request.waits]
        assert all(isinstance(request.outcome(), TooManyWaiting) for request in refused)
        assert max(request.taken for request in refused) < SOON

    def test_a_provider_that_hangs_or_fails_delays_the_refusal_by_no_more_than_a_moment(self) -> None:
        gate = threading.Event()
        for step in (lambda: UP if gate.wait(PATIENCE) else ZERO, ProviderError("down")):
            bench, _ = self.scene(step)
            begun = time.monotonic()
            with pytest.raises(TooManyWaiting):
                bench.hold()
            assert time.monotonic() - begun < SOON
        gate.set()

    def test_respond_async_needs_no_place(self) -> None:
        clock = MovingClock()
        bench, provider = self.scene(ZERO, ZERO, STARTING, UP, clock=clock, max_wait=1000.0)
        with pytest.raises(StillStarting) as caught:
            bench.hold(prefer="respond-async")
        assert caught.value.wish == "respond-async"

        def is_up_later() -> bool:
            clock.advance(1.0)  # nobody waits for it: it is asked for every few seconds
            return (meta := bench.cache.find(HELLO)) is not None and meta.available

        until(is_up_later, pause=0.02)
        assert provider.sets == [(HELLO, 1)]
        assert bench.waiting.waiting() == bench.waiting.waiting(OTHER)


DEADLINES: list[tuple[Any, dict[str, str], str | None, float]] = [
    ({"max_wait": 0.5}, {}, None, 0.5),
    ({"max_wait_of": {"hello": 0.5}}, {}, None, 0.5),
    ({"max_wait_of": {"other": 0.1}, "max_wait": 0.5}, {}, None, 0.5),
    ({}, {MAX_WAIT_LABEL: "500ms"}, None, 0.5),
    ({"max_wait_of": {"hello": 0.5}}, {MAX_WAIT_LABEL: "10s"}, None, 0.5),
    ({"max_wait": 0.1}, {MAX_WAIT_LABEL: "0.5"}, None, 0.5),
    ({"max_wait": 0.5}, {MAX_WAIT_LABEL: "soon"}, None, 0.5),
    ({}, {}, "wait=1", 1.0),
    ({"max_wait": 0.5}, {}, "wait=60", 0.5),
    ({"max_wait": 0.5}, {}, "wait=soon", 0.5),
    ({"max_wait": 0.5}, {MAX_WAIT_LABEL: "10s"}, "wait=1", 1.0),
    ({}, {}, "wait=0", 0.0),
]


class TestDeadlines:
    @pytest.mark.usefixtures("usual_checks")
    def test_a_request_is_held_until_its_deadline_and_no_longer(self) -> None:
        late = DEADLINES
        for _ in range(3):  # a busy machine makes one of them late now and then, but none of them each time
            late = self.late(late)
        assert late == []

    @staticmethod
    def late(cases: list[tuple[Any, dict[str, str], str | None, float]]) -> list[Any]:
        """Those that were held for longer than the issue's own bound; a label, too, is read in time."""
        requests = [
            Bench(ScriptedProvider(replace(STARTING, labels=labels)), **settings).begin(prefer=prefer)
            for settings, labels, prefer, _ in cases
        ]
        for request, case in zip(requests, cases, strict=True):
            outcome = request.outcome()
            assert type(outcome) is NotAvailable, case
            assert case[-1] <= request.taken, case
            assert outcome.waited <= request.taken
        return [
            case for request, case in zip(requests, cases, strict=True) if request.taken >= case[-1] + 0.1
        ]

    def test_wait_0_wakes_all_the_same(self) -> None:
        clock = MovingClock()
        fleet = FakeEngine(clock, delay=20.0)
        bench = Bench(fleet, clock)
        with pytest.raises(NotAvailable):
            bench.hold(prefer="wait=0")
        until(lambda: fleet.sets)
        clock.advance(20.0)
        until(lambda: (meta := bench.cache.find(HELLO)) and meta.available)
        assert bench.hold(prefer="wait=1").available

    def test_a_label_that_becomes_known_late_counts_from_the_arrival(self) -> None:
        gate, clock = Gate(), MovingClock()
        bench = Bench(gate, clock, max_wait=100.0)
        (request,) = bench.fill(1)
        until(lambda: gate.queries)
        clock.advance(50.0)
        gate.status = replace(STARTING, labels={MAX_WAIT_LABEL: "40s"})
        assert type(request.outcome()) is NotAvailable
        assert request.taken < SOON

    def test_a_label_may_allow_more_than_the_flight_was_begun_for(self) -> None:
        clock = MovingClock()
        fleet = FakeEngine(clock, delay=200.0)
        get_replicas = fleet.get_replicas
        labels = {MAX_WAIT_LABEL: "1000"}
        fleet.get_replicas = lambda *of: replace(get_replicas(*of), labels=labels)  # type: ignore[method-assign]
        bench = Bench(fleet, clock, max_wait=10.0)
        # One alone: a second one would know the label, and join with it.
        (request,) = bench.fill(1)
        until(lambda: (flight := bench.scaler.flight(HELLO)) and flight.until > clock() + 500)
        clock.advance(100.0)
        asked = len(fleet.queries)
        until(lambda: len(fleet.queries) > asked)  # before, the leader has looked at its end
        assert request.waits
        clock.advance(150.0)
        assert served(request.outcome())
        assert fleet.sets == [(HELLO, 1)]

    def test_a_shorter_deadline_does_not_end_the_wait_of_others(self) -> None:
        gate = Gate()
        bench = Bench(gate)
        patient = bench.begin()
        assert type(bench.begin(prefer="wait=0").outcome()) is NotAvailable
        assert patient.waits
        gate.opened.set()
        assert served(patient.outcome())


class TestRespondAsync:
    def test_it_is_answered_at_once_and_the_waking_goes_on(self) -> None:
        clock = MovingClock()
        fleet = FakeEngine(clock, delay=20.0)
        bench = Bench(fleet, clock)
        request = bench.begin(prefer="respond-async")
        outcome = request.outcome()
        assert isinstance(outcome, StillStarting)
        assert (outcome.wish, outcome.function) == ("respond-async", HELLO)
        assert request.taken < SOON
        until(lambda: fleet.sets)
        clock.advance(20.0)
        until(lambda: (meta := bench.cache.find(HELLO)) and meta.available)
        assert bench.hold(prefer="respond-async").available
        assert fleet.sets == [(HELLO, 1)]

    @pytest.mark.parametrize("prefer", ["respond-async", "respond-async, wait=0", "respond-async, wait=9"])
    def test_an_available_function_is_served_though_nothing_was_known_of_it(self, prefer: str) -> None:
        assert Bench(ScriptedProvider(UP), Clock()).hold(prefer=prefer).available

    @pytest.mark.parametrize("prefer", ["respond-async", "respond-async, wait=9"])
    def test_an_unknown_or_failed_function_is_told_as_such(self, prefer: str) -> None:
        with pytest.raises(FunctionNotFound):
            Bench(ScriptedProvider(FunctionNotFound("hello")), Clock()).hold(prefer=prefer)
        with pytest.raises(FunctionFailed):
            Bench(ScriptedProvider(replace(STARTING, failure="crash loop")), Clock()).hold(prefer=prefer)

    def test_with_wait_it_waits_so_long_before(self) -> None:
        gate, clock = Gate(), MovingClock()
        bench = Bench(gate, clock)
        short, long = bench.fill(1, prefer="respond-async, wait=9") + bench.fill(
            1, prefer="respond-async, wait=19"
        )
        clock.advance(10.0)
        assert type(short.outcome()) is StillStarting
        assert short.taken < SOON
        assert long.waits
        gate.opened.set()
        assert served(long.outcome())

    def test_max_wait_ends_it_with_the_answer_that_was_preferred(self) -> None:
        request = Bench(Gate(), max_wait=0.15).begin(prefer="respond-async, wait=60")
        assert type(request.outcome()) is StillStarting
        assert request.taken < SOON


OTHERS: list[tuple[Any, Environ]] = [
    ({}, {}),
    ({}, {"HTTP_ACCEPT": "*/*"}),
    ({}, {"HTTP_ACCEPT": "application/json"}),
    ({}, {"HTTP_ACCEPT": "text/html", "HTTP_SEC_FETCH_MODE": "cors"}),
    ({}, {"REQUEST_METHOD": "POST", **NAVIGATION}),
    ({}, {"REQUEST_METHOD": "HEAD", **NAVIGATION}),
    ({"page_after": None}, NAVIGATION),
    ({"page_after": 5.0}, NAVIGATION),
]


class TestThePage:
    """A start takes 0.3 s."""

    @staticmethod
    def begin(
        prefer: str | None = None, environ: Environ = NAVIGATION, *, page_after: float | None = 0.1
    ) -> Request:
        fleet = FakeEngine(time.monotonic, delay=0.3)
        return Bench(fleet, page_after=page_after).begin(HELLO, prefer, environ)

    def test_a_navigation_gets_it_after_page_after(self) -> None:
        clock = MovingClock()
        (request,) = Bench(Gate(), clock, page_after=9.0).fill(1, environ=NAVIGATION)
        clock.advance(6.0)
        time.sleep(3 * watch.CHECK_EVERY)
        assert request.waits
        clock.advance(3.0)
        outcome = request.outcome()
        assert isinstance(outcome, StillStarting)
        assert outcome.wish == "page"
        assert outcome.waited >= 9.0
        assert request.taken < SOON

    def test_and_who_accepts_html_first(self) -> None:
        assert type(self.begin(environ={"HTTP_ACCEPT": "text/html,*/*;q=0.8"}).outcome()) is StillStarting

    def test_others_never_see_it(self) -> None:
        requests = [self.begin(environ=environ, **settings) for settings, environ in OTHERS]
        for request, case in zip(requests, OTHERS, strict=True):
            assert served(request.outcome()), case

    def test_who_prefers_to_wait_less_gets_no_page(self) -> None:
        assert type(self.begin("wait=0").outcome()) is NotAvailable
        clock = MovingClock()
        (request,) = Bench(Gate(), clock, page_after=9.0).fill(1, HELLO, "wait=9", NAVIGATION)
        clock.advance(10.0)
        assert type(request.outcome()) is NotAvailable

    def test_who_prefers_to_wait_longer_gets_it_all_the_same(self) -> None:
        assert type(self.begin("wait=10").outcome()) is StillStarting

    def test_who_prefers_an_answer_at_once_gets_that(self) -> None:
        outcome = self.begin("respond-async").outcome()
        assert isinstance(outcome, StillStarting)
        assert outcome.wish == "respond-async"

    def test_a_page_at_once_is_not_shown_for_a_function_that_is_there(self) -> None:
        def slow() -> ReplicaStatus:
            time.sleep(0.01)
            return UP

        assert Bench(ScriptedProvider(slow), Clock(), page_after=0).hold(environ=NAVIGATION).available

    def test_a_function_whose_requests_may_not_wait_so_long_has_none(self) -> None:
        bench = Bench(Gate(), max_wait=0.1, page_after=0.2)
        assert type(bench.begin(environ=NAVIGATION).outcome()) is NotAvailable


class TestAProviderThatDoesNotAnswer:
    @pytest.fixture
    def hanging(self) -> Iterator[ScriptedProvider]:
        gate = threading.Event()
        yield ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO)
        gate.set()

    @pytest.mark.parametrize(
        ("prefer", "environ", "wish"),
        [("respond-async", {}, "respond-async"), (None, NAVIGATION, "page")],
    )
    def test_the_function_is_still_starting_as_far_as_one_knows(
        self, hanging: Provider, prefer: str | None, environ: Any, wish: str
    ) -> None:
        with pytest.raises(StillStarting) as caught:
            Bench(hanging, page_after=0.1).hold(HELLO, prefer, environ)
        assert caught.value.wish == wish

    def test_the_clients_own_impatience_is_not_the_providers_fault(self, hanging: Provider) -> None:
        assert type(Bench(hanging).begin(prefer="wait=0").outcome()) is NotAvailable
        clock = MovingClock()
        (request,) = Bench(hanging, clock).fill(1, prefer="wait=9")
        clock.advance(10.0)
        assert type(request.outcome()) is NotAvailable

    def test_at_max_wait_it_has_failed(self, hanging: Provider) -> None:
        for environ in ({}, NAVIGATION, {"HTTP_PREFER": "wait=15"}):
            clock = MovingClock()
            (request,) = Bench(hanging, clock, max_wait=9.0, page_after=12.0).fill(1, environ=environ)
            clock.advance(10.0)
            assert type(request.outcome()) is ProviderSilent

    def test_one_that_answered_with_an_error_has_failed(self) -> None:
        cases: list[tuple[str | None, Environ]] = [
            ("respond-async", {}),
            (None, NAVIGATION),
            ("wait=1", {}),
            (None, {}),
        ]
        provider = ScriptedProvider(ProviderError("down"))
        requests = [
            Bench(provider, page_after=0.1, max_wait=0.2).begin(HELLO, prefer, environ)
            for prefer, environ in cases
        ]
        for request, case in zip(requests, cases, strict=True):
            assert type(request.outcome()) is ProviderError, case

    def test_an_error_of_a_class_of_its_own_is_told_too(self) -> None:
        class Refused(ProviderError):
            def __init__(self, status: int, body: str) -> None:
                super().__init__(f"{status}: {body}")

        bench = Bench(ScriptedProvider(Refused(403, "no")), max_wait=0.1)
        with pytest.raises(ProviderError, match="403: no"):
            bench.hold()

    def test_a_trouble_that_passes_while_it_is_looked_at_does_no_harm(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The leader clears its flight's trouble in another thread, at any moment."""
        looks, caller = iter([ProviderError("down")]), threading.current_thread()

        def look(_: object) -> ProviderError | None:
            return next(looks, None) if threading.current_thread() is caller else None

        monkeypatch.setattr(Flight, "trouble", property(look, lambda _, error: None))
        scaler = Bench(Gate()).scaler
        with pytest.raises(ProviderError, match="down"):
            scaler.ensure_available(HELLO, time.monotonic() + LONG, check=lambda _: -LONG)


class TestRetryAfter:
    """From how long the last starts took, on a clock that the test puts forward."""

    @staticmethod
    def scene(*starts: float) -> tuple[Bench, MovingClock, FakeEngine]:
        clock = MovingClock()
        fleet = FakeEngine(clock, delay=1000.0)
        bench = Bench(fleet, clock, max_wait=500.0, max_waiting=1)
        for seconds in starts:
            fleet.delay = seconds
            (request,) = bench.fill(1)
            until(lambda: fleet.sets)
            clock.advance(seconds)
            assert served(request.outcome())
            fleet.set_replicas("hello", "", 0)
            fleet.sets.clear()
            clock.advance(1.0)
        fleet.delay = 1000.0
        return bench, clock, fleet

    def left(self, bench: Bench, prefer: str = "wait=0") -> float:
        outcome = bench.begin(prefer=prefer).outcome()
        assert isinstance(outcome, (NotAvailable, TooManyWaiting))
        return outcome.retry_after

    @pytest.mark.parametrize("prefer", ["wait=0", "respond-async"])
    def test_it_is_what_is_left_of_a_usual_start(self, prefer: str) -> None:
        bench, clock, _ = self.scene(20.0)
        assert 15.0 < self.left(bench, prefer) < 25.0
        clock.advance(10.0)
        assert 5.0 < self.left(bench, prefer) < 15.0
        clock.advance(30.0)
        assert 20.0 <= self.left(bench, prefer) < 25.0  # it takes longer than usual: the half of 40 more

    def test_the_median_of_the_last_starts_is_the_usual_one(self) -> None:
        bench, _, _ = self.scene(20.0, 100.0, 30.0)
        assert 25.0 < self.left(bench) < 35.0

    def test_a_refusal_tells_what_is_left_of_the_start_under_way(self) -> None:
        bench, clock, _ = self.scene(20.0)
        bench.fill(1)
        clock.advance(10.0)
        assert 5.0 < self.left(bench) < 15.0

    def test_or_how_long_one_takes_that_has_not_begun(self) -> None:
        bench, _, _ = self.scene(20.0)
        bench.fill(1, OTHER)
        assert 15.0 < self.left(bench) < 25.0

    def test_nothing_is_known_before_the_first_start(self) -> None:
        bench, clock, _ = self.scene()
        bench.fill(1, OTHER)
        assert self.left(bench) == UNKNOWN_START
        bench, clock, _ = self.scene()
        assert UNKNOWN_START - 1.0 < self.left(bench) <= UNKNOWN_START
        clock.advance(4.0)
        assert 2.0 <= self.left(bench) < 3.0
        clock.advance(2.0)
        assert 6.0 <= self.left(bench) < 7.0
        clock.advance(10.0)
        assert 16.0 <= self.left(bench) < 17.0

    def test_a_start_that_is_a_little_late_is_given_some_seconds(self) -> None:
        bench, clock, _ = self.scene(1.0)
        self.left(bench)
        clock.advance(2.0)
        assert self.left(bench) == LATE

    @pytest.mark.parametrize("jitter", [0.8, 1.0, 1.2])
    @pytest.mark.parametrize("expected", [None, 0.3, 2.0, 5.0, 8.0, 60.0])
    def test_three_more_tries_outlast_a_start_of_ten_seconds(
        self, expected: float | None, jitter: float, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of which none was measured, refused at once at each of them."""
        monkeypatch.setattr(FunctionScaler, "expected_start", lambda *_: expected)
        bench, clock, _ = self.scene()
        begun = clock()
        bench.fill(1)
        for _ in range(3):
            clock.advance(max(1, round(math.ceil(self.left(bench)) * jitter)))
        assert clock() > begun + 10.0

    def test_one_that_a_client_gave_up_waiting_for_says_whose_deadline_it_was(self) -> None:
        bench, clock, _ = self.scene()
        (request,) = bench.fill(1, prefer="wait=9")
        clock.advance(9.5)
        outcome = request.outcome()
        assert isinstance(outcome, NotAvailable)
        assert outcome.shortened
        bench = Bench(Gate(), max_wait=0.1)
        outcome = bench.begin(prefer="wait=9").outcome()
        assert isinstance(outcome, NotAvailable)
        assert not outcome.shortened


@pytest.fixture
def own_lookout(monkeypatch: pytest.MonkeyPatch) -> set[threading.Thread]:
    """Have requests looked after by a thread of this test's own, and return those that there were before.

    A request of another test may still wait, by a clock that stands still.
    """
    own = PerProcess(Lookout).get
    monkeypatch.setattr("scalezero_wsgi.activation.scaler.lookout", own)
    monkeypatch.setattr("scalezero_wsgi.activation.request_queue.lookout", own)
    return set(threading.enumerate())


@pytest.mark.usefixtures("usual_checks")
class TestLookingUp:
    def test_a_client_that_left_is_noticed_and_the_flight_goes_on(self, connection: Connection) -> None:
        gate = Gate()
        bench = Bench(gate)
        request, other = bench.fill(1, environ=connection.environ) + bench.fill(1)
        left_at = time.monotonic()
        connection.leave()
        assert type(request.outcome()) is ClientGone
        assert request.ended - left_at < 0.25  # the issue's own bound
        gate.opened.set()
        assert served(other.outcome())

    def test_a_worker_that_is_told_to_stop_lets_all_go(self, server: Server) -> None:
        stopping = threading.Event()
        server.stopping = stopping.is_set
        bench = Bench(Gate())
        requests = bench.fill(20)
        stopping.set()
        assert kinds(requests) == {WorkerStopping: 20}
        assert max(request.taken for request in requests) < SOON
        bench.assert_empty()

    def test_the_servers_master_is_told_that_its_worker_lives(self, server: Server) -> None:
        beats: list[float] = []
        server.keep_alive = lambda: beats.append(time.monotonic())
        gate = Gate()
        bench = Bench(gate)
        (request,) = bench.fill(1)
        until(lambda: len(beats) > 3)
        gate.opened.set()
        assert served(request.outcome())
        assert max(later - sooner for sooner, later in pairwise(beats)) < 1.0

    def test_nobody_looks_up_before_a_first_moment_has_passed(
        self, server: Server, connection: Connection
    ) -> None:
        stop(server)
        connection.leave()
        assert Bench(ScriptedProvider(UP)).hold(environ=connection.environ).available

    def test_each_of_very_many_looks_less_often(
        self, server: Server, monkeypatch: pytest.MonkeyPatch, own_lookout: set[threading.Thread]
    ) -> None:
        monkeypatch.setattr("scalezero_wsgi.servers.watch.CHECKS_PER_SECOND", 200)
        looks: Counter[int] = Counter()
        others = {thread.ident for thread in own_lookout}
        server.keep_alive = lambda: looks.update({threading.get_ident()} - others)
        gate = Gate()
        bench = Bench(gate, max_waiting=100)
        requests = bench.fill(50)
        time.sleep(0.3)
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: 50}
        # Every 0.25 s instead of every 0.01 s; a few came before the others.
        assert 0 < sum(looks.values()) < 50 * 4
        assert len(looks) == 1  # thread, for all of them

    def test_a_deadline_that_a_label_brings_nearer_is_kept(self) -> None:
        gate = Gate()
        bench = Bench(gate)
        (request,) = bench.fill(1)
        gate.status = replace(gate.status, labels={MAX_WAIT_LABEL: "300ms"})
        assert isinstance(request.outcome(), NotAvailable)
        assert request.taken < SOON
        bench.assert_empty()

    @pytest.mark.usefixtures("own_lookout")
    def test_where_no_thread_can_be_started_nobody_waits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        gate = Gate()
        bench = Bench(gate)
        start = threading.Thread.start

        def refuse(thread: threading.Thread) -> None:
            if thread.name == "scalezero-lookout":
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", refuse)
        assert isinstance(bench.begin().outcome(), TooManyWaiting)
        bench.assert_empty()
        monkeypatch.undo()
        gate.opened.set()
        assert served(bench.begin().outcome())

    def test_the_thread_that_looks_ends_when_nobody_waits_any_more(
        self, own_lookout: set[threading.Thread]
    ) -> None:
        def looking() -> int:
            running = set(threading.enumerate()) - own_lookout
            return sum(thread.name == "scalezero-lookout" for thread in running)

        gate = Gate()
        bench = Bench(gate)
        requests = bench.fill(20)
        assert looking() == 1
        gate.opened.set()
        assert kinds(requests) == {FunctionMeta: 20}
        until(lambda: not looking())


def test_who_waits_no_time_is_not_served_for_a_provider_that_has_not_answered_yet() -> None:
    """It has not failed, nor been silent for a second."""
    clock, gate = MovingClock(), threading.Event()
    bench = Bench(ScriptedProvider(UP, lambda: UP if gate.wait(PATIENCE) else ZERO), clock)
    bench.hold()
    clock.advance(60.0)
    with pytest.raises(NotAvailable):
        bench.hold(prefer="wait=0")
    gate.set()


class TestReleaseRate:
    @staticmethod
    def scene(rate: float | None, number: int, **settings: Any) -> tuple[Bench, list[Request], float]:
        """Requests that waited for one start, and when it came to an end."""
        gate = Gate()
        bench = Bench(gate, release_rate=rate, **{"max_waiting": 1000, "cache_expiry": 60, **settings})
        requests = bench.fill(number)
        return bench, requests, woken(bench, gate)

    def test_those_who_waited_go_on_one_after_another(self) -> None:
        bench, requests, woken_at = self.scene(80, 20)
        assert kinds(requests) == {FunctionMeta: 20}
        for number, ended in enumerate(sorted(request.ended for request in requests)):
            assert ended >= woken_at + number / 80
        assert max(request.ended for request in requests) < woken_at + 20 / 80 + SOON
        bench.assert_empty()

    def test_without_a_rate_all_go_on_at_once(self) -> None:
        _, requests, woken_at = self.scene(None, 50)
        assert kinds(requests) == {FunctionMeta: 50}
        assert max(request.ended for request in requests) < woken_at + SOON

    def test_hundreds_are_all_served(self) -> None:
        bench, requests, woken_at = self.scene(1000, 300)
        assert kinds(requests) == {FunctionMeta: 300}
        assert max(request.ended for request in requests) >= woken_at + 299 / 1000
        bench.assert_empty()

    def test_whoever_comes_after_the_start_is_not_held_up(self, server: Server) -> None:
        bench, requests, _ = self.scene(0.1, 5, max_wait=60.0)
        request = bench.begin()
        assert served(request.outcome())
        assert request.taken < SOON
        assert sum(request.waits for request in requests) == 4
        stop(server)
        assert kinds(requests) == {FunctionMeta: 1, WorkerStopping: 4}

    @pytest.mark.usefixtures("usual_checks")
    def test_no_turn_lies_beyond_a_deadline_and_who_has_none_is_told_so_at_once(self) -> None:
        _, requests, woken_at = self.scene(4, 10, max_wait=1.0)
        outcomes = kinds(requests)
        assert 1 <= outcomes[FunctionMeta] <= 4
        assert outcomes[NotAvailable] == 10 - outcomes[FunctionMeta]
        for request in requests:
            outcome = request.outcome()
            if isinstance(outcome, NotAvailable):
                assert request.ended < woken_at + 0.5
                assert outcome.retry_after > 0.5
            else:
                assert request.taken < 1.1  # the issue's own bound

    def test_who_has_no_turn_is_not_taken_for_one_whose_provider_fails(self) -> None:
        _, requests, _ = self.scene(1, 5, max_wait=1.0, stale_if_error=600.0)
        outcomes = [request.outcome() for request in requests]
        assert sum(isinstance(outcome, NotAvailable) for outcome in outcomes) >= 3

    def test_who_cannot_wait_for_a_turn_leaves_it_to_others(self) -> None:
        gate, clock = Gate(), MovingClock()
        bench = Bench(gate, clock, release_rate=10, max_wait=60.0)
        hasty, patient = bench.fill(50, prefer="wait=9"), bench.fill(6)
        clock.advance(8.5)
        woken_at = woken(bench, gate) - clock.now
        assert kinds(patient) == {FunctionMeta: 6}
        # Five of the hasty ones can have had a turn; the others' would have reached five seconds on, and
        # some of the patient ones, whose order is chance, would have come after them.
        assert max(request.ended for request in patient) < woken_at + 2.5
        assert kinds(hasty)[NotAvailable] >= 44

    @pytest.mark.parametrize(
        ("prefer", "environ", "wish"),
        [(None, NAVIGATION, "page"), ("respond-async, wait=2", {}, "respond-async")],
    )
    def test_who_would_rather_have_an_answer_than_a_late_turn_gets_it(
        self, prefer: str | None, environ: Any, wish: str
    ) -> None:
        gate = Gate()
        bench = Bench(gate, release_rate=0.1, page_after=2.0)
        requests = bench.fill(5, HELLO, prefer, environ)
        woken(bench, gate)
        outcomes = [request.outcome() for request in requests]
        assert sum(served(outcome) for outcome in outcomes) == 1
        assert [outcome.wish for outcome in outcomes if isinstance(outcome, StillStarting)] == [wish] * 4

    def test_a_client_that_leaves_the_queue_is_noticed(self, connection: Connection) -> None:
        gate = Gate()
        bench = Bench(gate, release_rate=0.1, max_wait=60.0)
        requests = bench.fill(3, environ=connection.environ)
        woken(bench, gate)
        until(lambda: sum(request.waits for request in requests) == 2)
        connection.leave()
        assert kinds(requests) == {FunctionMeta: 1, ClientGone: 2}
        bench.assert_empty()

    def test_a_worker_that_is_told_to_stop_empties_the_queue(self, server: Server) -> None:
        stopping = threading.Event()
        server.stopping = stopping.is_set
        gate = Gate()
        bench = Bench(gate, release_rate=0.1, max_wait=60.0)
        requests = bench.fill(3)
        woken(bench, gate)
        until(lambda: sum(request.waits for request in requests) == 2)
        stopping.set()
        assert kinds(requests) == {FunctionMeta: 1, WorkerStopping: 2}
        bench.assert_empty()
