"""What is told of a function: the latest of all that is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import Function, ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.state import LastFailure
from scalezero_wsgi.coordination.base import Failure, SharedStatus, Start, WorkerReport
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.integrations.dashboard.overview import FRESH, Overview, Row
from scalezero_wsgi.integrations.dashboard.survey import LEAST_REST
from tests.support.clock import MovingClock
from tests.support.fakes import HELLO, STARTING, UP, ZERO
from tests.support.waiting import until
from tests.support.wsgi import App
from tests.unit.integrations.dashboard.test_survey import Listing

IDLE_AFTER = 900.0


class Pausing(Listing):
    def pause(self, name: str, namespace: str) -> None:
        raise AssertionError("looking changes nothing")


class Site:
    def __init__(self, status: ReplicaStatus | None = ZERO, metrics: Any = None, **settings: Any) -> None:
        self.clock = MovingClock()
        self.store = MemoryCoordination(clock=self.clock)
        self.provider = Pausing(self.clock, **({} if status is None else {"hello": status}))
        defaults: dict[str, Any] = {
            "idle_after": IDLE_AFTER,
            "idle_default": "all",
            "coordination": self.store,
        }
        self.door = ScaleZeroMiddleware(App(), self.provider, clock=self.clock, **(defaults | settings))
        self.overview = Overview(self.door, metrics, self.clock)

    def report(self, worker: str = "other", **told: Any) -> None:
        self.store.report(WorkerReport(worker, **{name: {HELLO: value} for name, value in told.items()}), 1e6)

    def publish(self, status: ReplicaStatus | None, **told: Any) -> None:
        lease = self.store.acquire(HELLO, "other", 60.0)
        assert lease is not None
        self.store.publish(lease, SharedStatus(status, **told))
        self.store.release(lease)

    def row(self) -> Row:
        self.clock.advance(2 * FRESH)
        self.overview.forget()  # on a busy machine it took long, and is shown for longer
        [row] = self.overview.now(self.overview.rows())
        return row


@pytest.mark.parametrize(
    ("status", "state"),
    [
        (UP, "ready"),
        (STARTING, "starting"),
        (ZERO, "at zero"),
        (replace(ZERO, paused=True), "paused"),
        (replace(ZERO, failure="it is broken"), "failed"),
        (OSError("no route"), "unknown"),
    ],
)
def test_its_state(status: Any, state: str) -> None:
    row = Site(status).row()
    assert (row.function, row.key, row.state) == (HELLO, "hello", state)
    assert row.failure == {"failed": "it is broken", "unknown": "OSError: no route"}.get(state, "")


def test_what_another_worker_has_published_since_goes_before_what_the_provider_said() -> None:
    site = Site(ZERO)
    assert site.row().state == "at zero"
    site.publish(UP, durations=(1.5, 0.5))
    row = site.row()
    assert (row.state, row.replicas, row.available_replicas, row.last_starts) == ("ready", 1, 1, (1.5, 0.5))


def test_what_the_provider_says_since_goes_before_what_was_published() -> None:
    site = Site(ZERO)
    site.publish(UP)
    site.clock.advance(2 * LEAST_REST)
    until(lambda: site.row().state == "at zero")


def test_one_that_is_up_here_is_up() -> None:
    site = Site(None)
    site.door.cache.set("hello", UP)
    assert site.row().state == "ready"


def test_one_that_only_a_worker_reports_is_shown() -> None:
    site = Site(None)
    site.report(in_flight=2)
    assert (site.row().state, site.row().in_flight) == ("unknown", 2)


def test_one_that_is_not_served_is_not_shown() -> None:
    site = Site(None, deny=["hello"])
    site.report(in_flight=2)
    assert site.overview.rows() == []


def test_one_for_which_requests_wait_is_starting() -> None:
    site = Site(ZERO)
    site.report(waiting=3)
    row = site.row()
    assert (row.state, row.waiting) == ("starting", 3)


def test_uses_of_all_workers_count_once_each() -> None:
    site = Site(UP)
    for worker, count, unused_for in (("a", 1, 50.0), ("a/use", 1, 51.0), ("b", 2, 8.0), ("b/use", 2, 9.0)):
        site.report(worker, in_flight=count, unused_for=unused_for)
    row = site.row()
    assert (row.in_flight, row.unused_for, row.idle_in) == (3, 8.0, None)


def test_the_time_until_it_is_idle_goes_by_its_own_label_its_last_use_and_what_clients_ask() -> None:
    site = Site(replace(UP, labels={"scalezero.idle-after": "100s"}))
    assert site.row().idle_in is None  # since when it is up nobody has said
    site.report("other/use", unused_for=30.0)
    assert site.row().idle_in == 70.0
    site.report("other/use", unused_for=30.0, kept_for=500.0)
    assert site.row().idle_in == 500.0
    site.report("other/use", unused_for=300.0)
    assert site.row().idle_in == 0.0


def test_one_that_has_just_come_up_is_not_idle_by_a_use_before_that() -> None:
    site = Site(UP)
    site.report("other/use", unused_for=IDLE_AFTER)
    site.publish(UP, start=Start("one", 60.0, True, 50.0))
    assert site.row().idle_in == pytest.approx(IDLE_AFTER - 50.0, abs=5)


def test_a_paused_one_that_is_to_be_stopped_later() -> None:
    site = Site(replace(ZERO, paused=True), idle_action="pause, stop after 1h")
    assert site.row().idle_in is None  # since when it is paused nobody has said
    site.publish(replace(ZERO, paused=True), paused_for=600.0)
    assert site.row().idle_in == pytest.approx(3600 - IDLE_AFTER - 600, abs=5)


@pytest.mark.parametrize(
    "settings", [{"idle_default": "labelled"}, {"idle_after": None, "idle_default": "labelled"}]
)
def test_one_that_never_goes_to_zero(settings: Any) -> None:
    site = Site(UP, **settings)
    site.report("other/use", unused_for=30.0)
    assert site.row().idle_in is None


def test_one_that_is_kept_up() -> None:
    site = Site(UP)
    site.report("other/use", unused_for=30.0)
    assert site.door._idler is not None
    assert site.door._idler.kept_up is not None
    site.door._idler.kept_up.keep(HELLO, 3600.0)
    row = site.row()
    assert row.kept_up_for == pytest.approx(3600.0, abs=10)
    assert row.idle_in is None


def test_its_last_failure_by_whoever_knows_it() -> None:
    site = Site(ZERO)
    state = site.door.cache.state(HELLO)
    state.failure = LastFailure(1, "one", "here", site.clock() + 10)
    assert (site.row().state, site.row().failure) == ("failed", "here")
    site.publish(ZERO, failure=Failure(2, "two", "elsewhere", 5.0))
    assert site.row().failure == "elsewhere"


def test_its_requests_are_counted_now_and_then() -> None:
    class Metrics:
        counts = 0

        def requests(self) -> dict[str, dict[str, int]]:
            self.counts += 1
            return {"hello": {"warm": self.counts}}

    metrics = Metrics()
    site = Site(UP, metrics)
    site.row()
    assert site.row().requests == {"warm": 1}
    site.clock.advance(10)
    assert site.row().requests == {"warm": 2}
    assert Site(UP).row().requests is None


def test_what_was_put_together_is_shown_again_to_those_who_come_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(UP)
    site.overview.rows()
    monkeypatch.setattr(site.door, "reports", lambda: pytest.fail("it was put together anew"))
    site.overview.rows()


def test_names_that_cannot_be_read_twice_have_keys_of_their_own() -> None:
    site = Site(None, names="openfaas")
    for function in (Function("my.name"), Function("my", "name")):
        site.door.cache.set(function.name, UP, function.namespace)
    keys = [row.key for row in site.overview.rows()]
    assert keys == ["my.name", "my.name."]
    assert [site.overview.find(key) for key in keys] == [Function("my", "name"), Function("my.name")]
    assert site.overview.find("other") is None
