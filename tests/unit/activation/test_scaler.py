from __future__ import annotations

import itertools
import math
import threading
import time
from collections.abc import Callable
from dataclasses import replace

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
)
from scalezero_wsgi.activation.activation import PROVIDER_PATIENCE
from scalezero_wsgi.activation.outages import FIRST_PAUSE, SILENT
from scalezero_wsgi.activation.scaler import LINGER
from scalezero_wsgi.activation.state import SETTLE, STABLE, FunctionMeta
from scalezero_wsgi.events import Event, FunctionReady, ProviderFailed, Reporter, ScaleRequested, StartFailed
from scalezero_wsgi.model import ProviderSilent
from scalezero_wsgi.providers import Provider
from tests.support.clock import Clock, MovingClock
from tests.support.fakes import HELLO, STARTING, UP, ZERO, FakeEngine, ScriptedProvider, Step
from tests.support.waiting import PATIENCE, ended_threads, until

BROKEN = ProviderError("http://10.0.0.1 said 500")


class Bench:
    """A scaler on a fake clock, which only its leader moves while a test waits for it."""

    def __init__(self, provider: Provider, jitter: float = 0.5) -> None:
        self.clock = Clock()
        self.provider = provider
        self.events: list[Event] = []
        self.cache = FunctionCache(0.25, clock=self.clock)
        self.scaler = FunctionScaler(
            provider,
            self.cache,
            report=Reporter([self.events.append]),
            clock=self.clock,
            sleep=self.clock.sleep,
            jitter=lambda: jitter,
            linger=0.0,
        )

    def wake(self, until: float = 60.0) -> FunctionMeta:
        return self.scaler.ensure_available(HELLO, self.clock() + until)

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]


def test_an_available_function_is_asked_for_once_and_left_as_it_is() -> None:
    provider = ScriptedProvider(UP)
    bench = Bench(provider)
    assert bench.wake().status == UP
    assert (len(provider.queries), provider.sets) == (1, [])
    assert bench.cache.get("hello") == (UP, True)
    assert bench.scaler.last_starts(HELLO) == ()


def test_a_function_at_zero_is_scaled_up_and_waited_for() -> None:
    provider = ScriptedProvider(ZERO, STARTING, STARTING, UP)
    bench = Bench(provider)
    assert bench.wake().available
    assert provider.sets == [(HELLO, 1)]
    assert bench.of(ScaleRequested) == [ScaleRequested(HELLO, 0, 1)]
    assert len(bench.of(FunctionReady)) == 1


@pytest.mark.parametrize(
    ("minimum", "maximum", "asked"), [(0, None, 1), (1, None, 1), (3, None, 3), (3, 2, 2), (5, 0, 1)]
)
def test_the_first_count_is_the_minimum_but_never_above_the_maximum(
    minimum: int, maximum: int | None, asked: int
) -> None:
    provider = ScriptedProvider(ReplicaStatus(0, 0, minimum, maximum), UP)
    Bench(provider).wake()
    assert provider.sets == [(HELLO, asked)]


def test_a_desired_count_above_zero_is_neither_lowered_nor_set_again() -> None:
    provider = ScriptedProvider(replace(STARTING, replicas=7), replace(STARTING, replicas=7), UP)
    Bench(provider).wake()
    assert provider.sets == []


def test_a_count_that_falls_back_to_zero_is_set_again() -> None:
    provider = ScriptedProvider(ZERO, STARTING, lambda: UP if len(provider.sets) > 1 else ZERO)
    Bench(provider).wake()
    assert provider.sets == [(HELLO, 1), (HELLO, 1)]


@pytest.mark.parametrize("shown", [True, False], ids=["shown", "never-shown"])
def test_a_count_that_does_not_stay_is_set_once_a_step(shown: bool) -> None:
    """As of a provider that tells no failures, whose function ends as soon as it was started."""
    sets: list[float] = []

    class Ending(ScriptedProvider):
        def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
            sets.append(bench.clock())

    provider = Ending(lambda: STARTING if shown and sets and bench.clock() < sets[-1] + 0.1 else ZERO)
    bench = Bench(provider)
    with pytest.raises(NotAvailable):
        bench.wake(until=17.0)
    gaps = [later - earlier for earlier, later in itertools.pairwise(sets)]
    assert [math.floor(gap) for gap in gaps] == ([1, 2, 4, 8] if shown else [2, 2, 4, 8])


def test_a_provider_that_is_slow_to_show_the_count_is_not_asked_twice() -> None:
    clock_of: list[Clock] = []

    def lagging() -> ReplicaStatus:
        return UP if clock_of[0]() >= SETTLE * 0.9 else ZERO

    provider = ScriptedProvider(lagging)
    bench = Bench(provider)
    clock_of.append(bench.clock)
    bench.wake()
    assert provider.sets == [(HELLO, 1)]


def test_a_count_that_never_shows_is_set_again_after_a_while() -> None:
    provider = ScriptedProvider(ZERO)
    bench = Bench(provider)
    with pytest.raises(NotAvailable):
        bench.wake(until=2.5 * SETTLE)
    assert len(provider.sets) == 3


def test_polls_of_a_first_start_are_a_part_of_what_has_passed() -> None:
    times: list[float] = []

    def poll() -> ReplicaStatus:
        times.append(bench.clock())
        return STARTING

    bench = Bench(ScriptedProvider(poll))
    with pytest.raises(NotAvailable):
        bench.wake(until=10)
    gaps = [round(later - earlier, 6) for earlier, later in itertools.pairwise(times)]
    assert gaps[0] == pytest.approx(0.01)
    assert all(gap <= 0.02 + 0.04 * at for gap, at in zip(gaps, times, strict=False))
    assert gaps == sorted(gaps)


def test_jitter_spreads_the_polls() -> None:
    spread: set[float] = set()
    for jitter in (0.0, 0.5, 1.0):
        bench = Bench(ScriptedProvider(STARTING, UP), jitter)
        bench.wake()
        spread.add(round(bench.clock(), 6))
    assert len(spread) == 3


def test_one_failed_query_does_not_end_the_wait() -> None:
    provider = ScriptedProvider(ZERO, BROKEN, STARTING, BROKEN, UP)
    bench = Bench(provider)
    assert bench.wake().available
    assert provider.sets == [(HELLO, 1)]
    assert len(bench.of(ProviderFailed)) == 2


def test_a_provider_that_goes_on_failing_ends_the_wait_within_its_patience() -> None:
    provider = ScriptedProvider(BROKEN)
    bench = Bench(provider)
    with pytest.raises(ProviderError):
        bench.wake()
    assert PROVIDER_PATIENCE <= bench.clock() <= PROVIDER_PATIENCE + 1.5
    assert len(provider.queries) < 12


def test_one_that_fails_now_and_then_is_waited_for_however_long() -> None:
    script: list[Step] = [BROKEN, STARTING] * 60
    bench = Bench(ScriptedProvider(*script, UP))
    assert bench.wake().available
    assert bench.clock() > 2 * PROVIDER_PATIENCE


def test_a_scale_up_that_fails_stays_the_trouble_while_queries_work() -> None:
    class Refusing(ScriptedProvider):
        def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
            flight = bench.scaler.flight(HELLO)
            troubles.append(None if flight is None else flight.trouble)
            raise BROKEN

    troubles: list[Exception | None] = []
    bench = Bench(Refusing(ZERO))
    with pytest.raises(ProviderError):
        bench.wake()
    assert len(troubles) > 2
    assert troubles == [None, *[BROKEN] * (len(troubles) - 1)]


def test_one_that_works_in_the_end_is_no_trouble_any_more() -> None:
    troubles: list[Exception | None] = []

    def note() -> ReplicaStatus:
        flight = bench.scaler.flight(HELLO)
        assert flight is not None
        troubles.append(flight.trouble)
        return UP

    bench = Bench(ScriptedProvider(ZERO, ZERO, note, on_set=BROKEN))
    assert bench.wake().available
    assert troubles == [None]


def test_a_scale_up_that_returns_when_the_function_is_ready_is_a_part_of_its_start() -> None:
    class Blocking(ScriptedProvider):
        def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
            bench.clock.advance(3.0)

    bench = Bench(Blocking(ZERO, UP))
    bench.wake()
    (took,) = bench.scaler.last_starts(HELLO)
    assert took == pytest.approx(3.0, abs=0.1)


def test_a_failed_scale_up_is_tried_again_with_back_off() -> None:
    provider = ScriptedProvider(ZERO, ZERO, UP, on_set=BROKEN)
    bench = Bench(provider)
    assert bench.wake().available
    assert provider.sets == [(HELLO, 1), (HELLO, 1)]


def test_a_scale_up_that_goes_on_failing_ends_the_wait_though_queries_work() -> None:
    provider = ScriptedProvider(ZERO)
    provider.set_errors = [BROKEN] * 100
    bench = Bench(provider)
    with pytest.raises(ProviderError):
        bench.wake()
    assert bench.clock() <= PROVIDER_PATIENCE + 1.5
    assert len(provider.sets) < 12


@pytest.mark.parametrize("script", [(), (ZERO, STARTING)])
def test_an_unknown_function_ends_the_wait_and_is_remembered(script: tuple[ReplicaStatus, ...]) -> None:
    provider = ScriptedProvider(*script, FunctionNotFound("hello"))
    bench = Bench(provider)
    with pytest.raises(FunctionNotFound):
        bench.wake()
    assert bench.cache.is_missing(HELLO)
    asked = len(provider.queries)
    with pytest.raises(FunctionNotFound):
        bench.wake()
    assert len(provider.queries) == asked


def test_a_function_that_vanishes_before_it_is_scaled_is_not_found() -> None:
    bench = Bench(ScriptedProvider(ZERO, on_set=FunctionNotFound("hello")))
    with pytest.raises(FunctionNotFound):
        bench.wake()
    assert bench.cache.is_missing(HELLO)


@pytest.mark.parametrize("nonsense", [None, 1, {"replicas": 1}, (1, 1)])
def test_nonsense_is_a_provider_error(nonsense: object) -> None:
    bench = Bench(ScriptedProvider(lambda: nonsense))  # type: ignore[arg-type, return-value]
    with pytest.raises(ProviderError, match="not a ReplicaStatus"):
        bench.wake()


@pytest.mark.parametrize("error", [ValueError("bad"), OSError("gone"), RecursionError()])
def test_any_other_exception_of_a_provider_is_a_provider_error(error: Exception) -> None:
    with pytest.raises(ProviderError):
        Bench(ScriptedProvider(error)).wake()
    provider = ScriptedProvider(ZERO)
    provider.set_errors = [error] * 100
    with pytest.raises(ProviderError):
        Bench(provider).wake()


def test_a_provider_that_raises_a_failure_is_asked_once_a_step() -> None:
    """Whether ``set_replicas`` raises it or ``get_replicas``."""
    failed = FunctionFailed("hello", "its licence has expired")
    for provider in (ScriptedProvider(ZERO, on_set=failed), ScriptedProvider(failed)):
        bench = Bench(provider)
        with pytest.raises(FunctionFailed, match="its licence has expired") as caught:
            bench.wake()
        assert (caught.value.function, caught.value.retry_after) == (HELLO, 1.0)
        assert bench.of(ProviderFailed) == []
        with pytest.raises(FunctionFailed):
            bench.scaler.start(HELLO, bench.clock() + 60)
        bench.clock.advance(1.0)
        provider.script[:] = [ZERO, UP]
        assert bench.wake().available


def test_a_failure_that_get_raises_keeps_the_function_from_being_asked_to_start() -> None:
    provider = ScriptedProvider(FunctionFailed(HELLO, "no"))
    with pytest.raises(FunctionFailed):
        Bench(provider).wake()
    assert provider.sets == []


def test_a_refresh_that_meets_a_failure_ends_what_was_known() -> None:
    provider = ScriptedProvider(UP, FunctionFailed(HELLO, "no"))
    bench = Bench(provider)
    bench.wake()
    assert bench.scaler.wait_for_refresh(HELLO, PATIENCE) is None
    status, _ = bench.cache.get("hello")
    assert (status.available_replicas, status.failure) == (0, "no")
    assert bench.of(ProviderFailed) == []


def test_a_watch_that_ends_in_a_failure() -> None:
    class Watching(ScriptedProvider):
        def wait_for_change(self, name: str, namespace: str, seen: object, timeout: float) -> ReplicaStatus:
            raise FunctionFailed(name, "no")

    bench = Bench(Watching(STARTING))
    with pytest.raises(FunctionFailed, match="no"):
        bench.wake()
    assert len(bench.of(StartFailed)) == 1


def test_the_leader_looks_into_the_cache_again() -> None:
    provider = ScriptedProvider(ZERO)
    bench = Bench(provider)
    bench.cache.set("hello", UP)
    assert bench.wake().available
    assert provider.queries == []


class TestFailedStarts:
    CRASHED = replace(ZERO, failure="exited with status 1")

    def test_a_failure_while_starting_ends_the_wait_at_once(self) -> None:
        bench = Bench(ScriptedProvider(ZERO, STARTING, self.CRASHED))
        with pytest.raises(FunctionFailed, match="exited with status 1") as caught:
            bench.wake()
        assert bench.clock() < 0.1
        assert caught.value.retry_after == pytest.approx(1.0)

    def test_a_failure_of_a_function_that_is_wanted_already_ends_the_wait(self) -> None:
        provider = ScriptedProvider(replace(STARTING, failure="CrashLoopBackOff"))
        with pytest.raises(FunctionFailed):
            Bench(provider).wake()
        assert provider.sets == []

    def test_a_failure_from_before_does_not_stand_against_a_start(self) -> None:
        provider = ScriptedProvider(self.CRASHED, STARTING, UP)
        assert Bench(provider).wake().available

    def test_while_it_rests_nothing_is_asked(self) -> None:
        provider = ScriptedProvider(ZERO, self.CRASHED)
        bench = Bench(provider)
        with pytest.raises(FunctionFailed):
            bench.wake()
        asked = len(provider.queries)
        with pytest.raises(FunctionFailed):
            bench.scaler.ensure_available(HELLO, bench.clock() + 10)
        assert len(provider.queries) == asked

    def test_what_ends_while_it_is_asked_about_is_started_whatever_it_ended_with(self) -> None:
        """A container that is being stopped, and exits with a status that is not 0."""
        ended = replace(ZERO, failure="exited with status 1")
        provider = ScriptedProvider(STARTING, ended, UP)
        assert Bench(provider).wake().available
        assert len(provider.sets) == 1

    def test_one_start_for_each_step_of_the_back_off_which_doubles(self) -> None:
        provider = ScriptedProvider(lambda: self.CRASHED)
        bench = Bench(provider)
        steps: list[float] = []
        for _ in range(9):
            with pytest.raises(FunctionFailed) as caught:
                bench.wake()
            steps.append(round(caught.value.retry_after))
            bench.clock.advance(caught.value.retry_after)
        assert steps == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        assert len(provider.sets) == 9

    def test_a_function_that_dies_soon_after_it_was_ready_rests_as_well(self) -> None:
        provider = ScriptedProvider(ZERO, UP)
        bench = Bench(provider)
        bench.wake()
        provider.script = [self.CRASHED]
        bench.clock.advance(0.5)
        with pytest.raises(FunctionFailed):
            bench.wake()
        assert len(provider.sets) == 1
        bench.clock.advance(1.0)
        provider.script = [self.CRASHED, UP]
        assert bench.wake().available
        assert len(provider.sets) == 2

    def test_a_function_that_dies_long_after_its_start_is_started_at_once(self) -> None:
        provider = ScriptedProvider(ZERO, UP)
        bench = Bench(provider)
        bench.wake()
        bench.clock.advance(STABLE + 1)
        provider.script = [self.CRASHED, UP]
        assert bench.wake().available

    def test_failures_far_apart_are_not_in_a_row(self) -> None:
        bench = Bench(ScriptedProvider(self.CRASHED))
        for _ in range(3):
            with pytest.raises(FunctionFailed) as caught:
                bench.wake()
            assert caught.value.retry_after == pytest.approx(1.0)
            bench.clock.advance(STABLE + 2)


class TestAProviderThatWatches:
    class Watching(ScriptedProvider):
        watched: list[tuple[ReplicaStatus, float]]

        def __init__(
            self, *script: ReplicaStatus | Exception, changes: list[ReplicaStatus | Exception]
        ) -> None:
            super().__init__(*script)
            self.changes = changes
            self.watched = []

        def wait_for_change(
            self, name: str, namespace: str, seen: ReplicaStatus, timeout: float
        ) -> ReplicaStatus:
            self.watched.append((seen, timeout))
            step = self.changes.pop(0) if len(self.changes) > 1 else self.changes[0]
            if isinstance(step, Exception):
                raise step
            return step

    def test_it_is_told_rather_than_asked(self) -> None:
        provider = self.Watching(ZERO, changes=[STARTING, UP])
        bench = Bench(provider)
        assert bench.wake().available
        assert len(provider.queries) == 2  # before the request, and after it
        assert [seen for seen, _ in provider.watched] == [ZERO, STARTING]
        assert bench.clock() == 0.0

    def test_a_start_that_fails_within_a_moment_is_seen_though_nothing_seems_to_have_changed(self) -> None:
        crashed = replace(ZERO, failure="exited with status 3")
        provider = self.Watching(crashed, changes=[crashed])
        bench = Bench(provider)
        with pytest.raises(FunctionFailed):
            bench.wake()
        assert provider.watched == []

    def test_after_each_request_it_is_asked_anew_and_soon_again(self) -> None:
        """A watch would wait for a change that may have come and gone."""
        steps: list[tuple[str, float]] = []

        class Noting(self.Watching):  # type: ignore[name-defined, misc]
            def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
                steps.append(("get", bench.clock()))
                return ZERO

            def wait_for_change(self, *_: object) -> ReplicaStatus:
                steps.append(("watch", bench.clock()))
                return ZERO

            def set_replicas(self, *_: object) -> None:
                steps.append(("set", bench.clock()))

        bench = Bench(Noting(ZERO, changes=[ZERO]))
        with pytest.raises(NotAvailable):
            bench.wake(until=3 * SETTLE)
        requests = [index for index, (step, _) in enumerate(steps) if step == "set"]
        assert len(requests) > 1
        for index in requests:
            after = steps[index + 1 : index + 4]
            assert [step for step, _ in after] == ["get", "watch", "watch"]
            assert after[-1][1] - after[0][1] < 0.01

    def test_one_that_changes_all_the_time_is_watched_to_the_end_of_the_flight_only(self) -> None:
        class Changing(self.Watching):  # type: ignore[name-defined, misc]
            def wait_for_change(self, name: str, namespace: str, seen: ReplicaStatus, *_: object) -> object:
                bench.clock.advance(1.0)
                return replace(STARTING, replicas=3 - seen.replicas)

        bench = Bench(Changing(STARTING, changes=[STARTING]))
        flight = bench.scaler.start(HELLO, 10.0)
        assert flight.wait(PATIENCE)
        with pytest.raises(NotAvailable):
            flight.result()
        assert 10.0 < bench.clock() < 12.0

    def test_a_change_is_as_old_as_its_return_and_no_change_as_old_as_the_watch(self) -> None:
        refreshed: list[float] = []

        class Slow(self.Watching):  # type: ignore[name-defined, misc]
            def wait_for_change(self, *_: object) -> ReplicaStatus:
                meta = bench.cache.find(HELLO)
                assert meta is not None
                refreshed.append(meta.last_refresh)
                bench.clock.advance(3.0)
                return STARTING if len(refreshed) == 1 else UP

        bench = Bench(Slow(STARTING, changes=[STARTING]))
        assert bench.wake().last_refresh == bench.clock()
        assert refreshed == [0.0, 0.0]

    def test_a_watch_that_breaks_is_a_failed_query(self) -> None:
        provider = self.Watching(ZERO, ZERO, STARTING, changes=[BROKEN, UP])
        assert Bench(provider).wake().available
        assert len(provider.queries) == 3

    def test_one_that_returns_too_early_does_not_spin(self) -> None:
        provider = self.Watching(STARTING, changes=[STARTING])
        with pytest.raises(NotAvailable):
            Bench(provider).wake(until=10)
        assert len(provider.watched) < 100


class TestRefresh:
    def test_it_renews_the_entry_behind_the_request(self) -> None:
        provider = ScriptedProvider(UP)
        bench = Bench(provider)
        with ended_threads():
            bench.scaler.refresh(HELLO)
        assert bench.cache.get("hello") == (UP, True)

    def test_only_one_runs_at_a_time(self) -> None:
        gate = threading.Event()
        provider = ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO)
        bench = Bench(provider)
        with ended_threads():
            for _ in range(10):
                bench.scaler.refresh(HELLO)
            gate.set()
        assert len(provider.queries) == 1

    def test_one_that_finds_zero_makes_the_function_cold(self) -> None:
        bench = Bench(ScriptedProvider(ZERO))
        bench.cache.set("hello", UP)
        bench.clock.advance(1)
        with ended_threads():
            bench.scaler.refresh(HELLO)
        meta = bench.cache.find(HELLO)
        assert meta is not None
        assert not meta.available

    def test_one_that_finds_nothing_forgets_the_function(self) -> None:
        provider = ScriptedProvider(FunctionNotFound("hello"))
        bench = Bench(provider)
        bench.cache.set("hello", UP)
        for _ in range(2):
            with ended_threads():
                bench.scaler.refresh(HELLO)
        assert not bench.cache.get("hello")[1]
        assert bench.cache.is_missing(HELLO)
        assert len(provider.queries) == 1

    def test_one_that_hangs_is_given_up_however_many_ask_for_it(self) -> None:
        clock, gate = MovingClock(), threading.Event()
        provider = ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO)
        scaler = FunctionScaler(provider, FunctionCache(0.25, clock=clock), clock=clock)
        for asked in (1, 1, 2):
            scaler.refresh(HELLO)
            until(lambda asked=asked: len(provider.queries) == asked)  # type: ignore[misc]
            clock.advance(LINGER * 0.6)
        gate.set()

    def test_one_too_many_is_reported_and_fails_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("scalezero_wsgi.activation.scaler.MAX_LEADERS", 1)
        gate = threading.Event()
        bench = Bench(ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO))
        bench.scaler.refresh(HELLO)
        bench.scaler.refresh(Function("other"))
        assert [event.function for event in bench.events if isinstance(event, ProviderFailed)] == [
            Function("other")
        ]
        gate.set()

    def test_those_who_wait_for_one_share_the_time(self) -> None:
        clock, gate = MovingClock(), threading.Event()
        provider = ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO)
        scaler = FunctionScaler(provider, FunctionCache(0.25, clock=clock), clock=clock)
        scaler.refresh(HELLO)
        clock.advance(PATIENCE)
        begun = time.monotonic()
        assert isinstance(scaler.wait_for_refresh(HELLO, PATIENCE), ProviderSilent)
        assert time.monotonic() - begun < PATIENCE / 2
        gate.set()

    def test_after_one_that_failed_there_is_a_pause(self) -> None:
        provider = ScriptedProvider(BROKEN)
        bench = Bench(provider)
        for _ in range(5):
            with ended_threads():
                bench.scaler.refresh(HELLO)
        assert len(provider.queries) == 1
        assert len(bench.of(ProviderFailed)) == 1
        bench.clock.advance(1)
        with ended_threads():
            bench.scaler.refresh(HELLO)
        assert len(provider.queries) == 2
        bench.clock.advance(2)
        assert bench.scaler.wait_for_refresh(HELLO, PATIENCE) is not None
        provider.script = [UP]
        bench.clock.advance(4)
        assert bench.scaler.wait_for_refresh(HELLO, PATIENCE) is None


class TestStaleIfError:
    @staticmethod
    def bench(*script: Step) -> Bench:
        bench = Bench(ScriptedProvider(*script))
        bench.cache.stale_if_error = 600.0
        return bench

    def test_an_entry_from_before_a_moment_is_not_served_after_it(self) -> None:
        bench = self.bench(UP, BROKEN)
        meta = bench.wake()
        bench.clock.advance(1.0)
        bench.scaler.provider_failed(HELLO, BROKEN)
        assert bench.scaler.stale_if_error(HELLO, since=bench.clock()) is None
        assert bench.scaler.stale_if_error(HELLO) is meta

    def test_one_failure_that_many_have_seen_is_one(self) -> None:
        bench = self.bench(UP)
        meta = bench.wake()
        for _ in range(3):
            bench.scaler.provider_failed(HELLO, BROKEN)
        assert bench.scaler._outages.pause(meta.state) == 2 * FIRST_PAUSE

    def test_a_silence_is_noted_when_the_application_cannot_reach_the_function(self) -> None:
        gate = threading.Event()
        bench = self.bench(UP, lambda: UP if gate.wait(PATIENCE) else ZERO)
        meta = bench.wake()
        bench.clock.advance(1.0)
        bench.scaler.refresh(HELLO)
        bench.clock.advance(SILENT + 0.1)
        assert bench.scaler._outages.error(meta.state) is None
        assert bench.scaler.mark_suspect(meta)
        assert bench.scaler._outages.error(meta.state) is not None
        gate.set()


class TestThoseWhoWait:
    """Real threads and the real clock."""

    @staticmethod
    def scaler(provider: Provider) -> FunctionScaler:
        return FunctionScaler(provider, FunctionCache(0.25))

    @staticmethod
    def together(count: int, call: Callable[[int], object]) -> list[object]:
        outcomes: list[object] = [None] * count

        def run(index: int) -> None:
            try:
                outcomes[index] = call(index)
            except Exception as error:
                outcomes[index] = error

        threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return outcomes

    def test_300_at_once_cause_one_scale_up(self) -> None:
        fleet = FakeEngine(time.monotonic, delay=0.2)
        scaler = self.scaler(fleet)
        outcomes = self.together(300, lambda _: scaler.ensure_available(HELLO, time.monotonic() + 20))
        assert all(isinstance(outcome, FunctionMeta) and outcome.available for outcome in outcomes)
        assert fleet.sets == [(HELLO, 1)]

    def test_two_functions_do_not_hold_each_other_up(self) -> None:
        gate = threading.Event()

        class Half(FakeEngine):
            def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
                if name == "stuck":
                    gate.wait(20)
                return super().get_replicas(name, namespace)

        scaler = self.scaler(Half(time.monotonic))
        stuck = threading.Thread(
            target=lambda: scaler.ensure_available(Function("stuck"), time.monotonic() + 20)
        )
        stuck.start()
        assert scaler.ensure_available(HELLO, time.monotonic() + 20).available
        assert stuck.is_alive()
        gate.set()
        stuck.join(20)

    def test_one_name_in_two_namespaces_is_two_functions(self) -> None:
        fleet = FakeEngine(time.monotonic)
        scaler = self.scaler(fleet)
        for namespace in ("a", "b"):
            scaler.ensure_available(Function("hello", namespace), time.monotonic() + 20)
        assert {function for function, _ in fleet.sets} == {Function("hello", "a"), Function("hello", "b")}

    def test_each_has_a_deadline_of_its_own_and_the_flight_goes_on(self) -> None:
        fleet = FakeEngine(time.monotonic, delay=0.5)
        scaler = self.scaler(fleet)

        def wait(index: int) -> object:
            return scaler.ensure_available(HELLO, time.monotonic() + (0.1 if index == 0 else 20))

        impatient, *patient = self.together(4, wait)
        assert isinstance(impatient, NotAvailable)
        assert 0.1 <= impatient.waited < 0.5
        assert impatient.retry_after >= 1
        assert all(isinstance(outcome, FunctionMeta) for outcome in patient)
        assert len(fleet.sets) == 1

    def test_a_hanging_provider_is_an_error_of_the_provider_at_the_deadline(self) -> None:
        gate = threading.Event()
        scaler = self.scaler(ScriptedProvider(lambda: UP if gate.wait(20) else ZERO))
        with pytest.raises(ProviderError):
            scaler.ensure_available(HELLO, time.monotonic() + 0.2)
        gate.set()

    def test_an_error_reaches_all_who_wait_and_the_next_starts_afresh(self) -> None:
        gate = threading.Event()

        def fail() -> ReplicaStatus:
            gate.wait(20)
            raise FunctionNotFound("hello")

        provider = ScriptedProvider(fail)
        scaler = FunctionScaler(provider, FunctionCache(0.25, missing_expiry=0.0))
        threading.Timer(0.2, gate.set).start()
        outcomes = self.together(20, lambda _: scaler.ensure_available(HELLO, time.monotonic() + 20))
        assert all(isinstance(outcome, FunctionNotFound) for outcome in outcomes)
        provider.script = [UP]
        time.sleep(0.01)
        assert scaler.ensure_available(HELLO, time.monotonic() + 20).available

    def test_an_answer_from_before_is_not_taken(self) -> None:
        provider = ScriptedProvider(UP)
        scaler = self.scaler(provider)
        scaler.ensure_available(HELLO, time.monotonic() + 20)
        scaler.ensure_available(HELLO, time.monotonic() + 20)
        assert len(provider.queries) == 1
        since = time.monotonic()
        assert scaler.ensure_available(HELLO, since + 20, since=since).last_refresh >= since
        assert len(provider.queries) == 2

    def test_nor_is_it_the_outcome_of_a_flight(self) -> None:
        scaler = FunctionScaler(ScriptedProvider(UP), FunctionCache(60.0))
        scaler.ensure_available(HELLO, time.monotonic() + 20)
        since = time.monotonic()
        flight = scaler.start(HELLO, since + 20, since=since)
        assert flight.wait(PATIENCE)
        assert flight.result().last_refresh >= since

    def test_nor_is_one_that_comes_later_but_was_asked_for_before(self) -> None:
        gate = threading.Event()
        provider = ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO)
        scaler = self.scaler(provider)
        scaler.start(HELLO, time.monotonic() + PATIENCE)
        until(lambda: bool(provider.queries))
        since = time.monotonic()

        def check(_: object) -> float:
            gate.set()
            return since + PATIENCE

        meta = scaler.ensure_available(HELLO, since + PATIENCE, since=since, check=check)
        assert meta.last_refresh >= since

    def test_what_is_left_of_a_start_is_told(self) -> None:
        fleet = FakeEngine(time.monotonic, delay=0.05)
        scaler = self.scaler(fleet)
        assert scaler.expected_start(HELLO) is None
        scaler.ensure_available(HELLO, time.monotonic() + 20)
        expected = scaler.expected_start(HELLO)
        assert expected is not None
        assert 0.05 <= expected < 5


@pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
def test_a_provider_that_would_end_the_process_ends_its_flight_only(error: BaseException) -> None:
    def end() -> ReplicaStatus:
        raise error

    with pytest.raises(ProviderError):
        Bench(ScriptedProvider(end)).wake()
