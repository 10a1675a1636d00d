"""Waiting as a client meets it: through the middleware."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterable
from dataclasses import replace
from typing import Any
from wsgiref.validate import validator

import pytest
from werkzeug.test import create_environ

from scalezero_wsgi import (
    Function,
    FunctionNotFound,
    ProviderError,
    ReplicaStatus,
    ScaleZeroMiddleware,
    by_host,
)
from scalezero_wsgi.activation.activation import PROVIDER_PATIENCE
from scalezero_wsgi.events import Event, StatusQueried, WaitGivenUp
from scalezero_wsgi.middleware import CLOSED, WAITED
from scalezero_wsgi.servers.server import Server
from tests.support.clock import Clock, MovingClock
from tests.support.connection import Connection
from tests.support.fakes import HELLO, STARTING, UP, ZERO, FakeEngine, Gate, ScriptedProvider
from tests.support.waiting import PATIENCE, SOON, until
from tests.support.wsgi import (
    BROWSER,
    STATUS,
    App,
    Environ,
    Visit,
    ask,
    begin,
    in_flight,
    state,
    usage,
    visits,
    waiting,
)

UNKNOWN = range(4, 7)
"""The seconds of ``Retry-After`` when nothing tells how long a start takes."""


class TestTooMany:
    def test_one_too_many_is_503_with_retry_after_while_the_app_goes_on_serving(self) -> None:
        app, gate = App(), Gate()
        door = ScaleZeroMiddleware(app, gate, max_waiting=3)
        held = visits(door, 3)
        begun = time.monotonic()
        status, headers, body = ask(validator(door))
        assert time.monotonic() - begun < SOON
        assert status == "503 SERVICE UNAVAILABLE"
        assert int(headers["Retry-After"]) in UNKNOWN
        assert json.loads(body)["detail"] == "Too many requests are waiting already."
        assert ask(door, "/elsewhere")[0] == "200 OK"
        gate.opened.set()
        assert [visit.status for visit in held] == ["200 OK"] * 3
        assert len(app.calls) == 4
        assert waiting(door) == in_flight(door) == 0

    def test_a_warm_function_is_served_while_all_places_are_taken(self) -> None:
        fleet = FakeEngine(time.monotonic, delay=1000.0)
        door = ScaleZeroMiddleware(App(), fleet, max_waiting=1, cache_expiry=0, stale_for=0)
        fleet.put_up("warm")
        (held,) = visits(door, 1)
        for _ in range(5):
            assert ask(door, "/function/warm")[0] == "200 OK"
        assert ask(door)[0] == "503 SERVICE UNAVAILABLE"
        fleet.put_up("hello")
        assert held.status == "200 OK"


class TestPrefer:
    def test_respond_async_is_202_and_the_next_request_finds_the_function_warm(self) -> None:
        app, clock = App(), MovingClock()
        fleet = FakeEngine(clock, delay=20.0)
        door = ScaleZeroMiddleware(app, fleet, clock=clock)
        status, headers, body = ask(validator(door), headers={"Prefer": "respond-async"})
        assert status == "202 ACCEPTED"
        assert headers["Preference-Applied"] == "respond-async"
        assert int(headers["Retry-After"]) in UNKNOWN
        assert json.loads(body)["detail"] == "The function hello is being started."
        assert app.calls == []
        until(lambda: fleet.sets)
        clock.advance(20.0)
        until(lambda: (meta := door.cache.find(HELLO)) and meta.available)
        status, headers, _ = ask(door, headers={"Prefer": "respond-async"})
        assert status == "200 OK"
        assert "Preference-Applied" not in headers
        assert len(fleet.queries) > 1
        assert fleet.sets == [(HELLO, 1)]

    def test_retry_after_is_what_the_last_start_tells(self) -> None:
        clock = MovingClock()
        fleet = FakeEngine(clock, delay=40.0)
        door = ScaleZeroMiddleware(App(), fleet, clock=clock, max_wait=300)
        (held,) = visits(door, 1)
        until(lambda: fleet.sets)
        clock.advance(40.0)
        assert held.status == "200 OK"
        fleet.set_replicas("hello", "", 0)
        clock.advance(10.0)
        fleet.delay = 1000.0
        # After 50 s it takes longer than usual: the half of that more.
        for left in (40, 15, 25):
            _, headers, _ = ask(door, headers={"Prefer": "respond-async"})
            assert 0.8 * (left - 5) <= int(headers["Retry-After"]) <= 1.2 * (left + 5)
            clock.advance(25.0)

    def test_wait_is_applied_with_it(self) -> None:
        clock = MovingClock()
        door = ScaleZeroMiddleware(App(), Gate(), clock=clock, max_wait=300)
        (held,) = visits(door, 1, headers={"Prefer": "wait=7, respond-async"})
        clock.advance(7.5)
        status, headers, _ = held.answer()
        assert (status, headers["Preference-Applied"]) == ("202 ACCEPTED", "respond-async, wait=7")

    def test_wait_0_is_504_at_once(self) -> None:
        app = App()
        door = ScaleZeroMiddleware(app, Gate())
        begun = time.monotonic()
        status, headers, _ = ask(door, headers={"Prefer": "wait=0"})
        assert time.monotonic() - begun < SOON
        assert (status, headers["Preference-Applied"], app.calls) == ("504 GATEWAY TIMEOUT", "wait=0", [])
        assert int(headers["Retry-After"]) in UNKNOWN

    def test_a_wait_that_did_not_shorten_it_is_not_applied(self) -> None:
        door = ScaleZeroMiddleware(App(), Gate(), max_wait=0.1)
        for prefer in ("wait=60", "respond-async, wait=60"):
            _, headers, _ = ask(door, headers={"Prefer": prefer})
            assert "wait" not in headers.get("Preference-Applied", "")

    def test_an_unknown_function_is_404(self) -> None:
        door = ScaleZeroMiddleware(App(), ScriptedProvider(FunctionNotFound("hello")), clock=Clock())
        assert ask(door, headers={"Prefer": "respond-async"})[0] == "404 NOT FOUND"

    def test_of_a_start_that_is_refused_nothing_is_applied(self) -> None:
        door = ScaleZeroMiddleware(App(), ScriptedProvider(ZERO), wake=["other"], no_wake_status=202)
        status, headers, _ = ask(door, headers={"Prefer": "respond-async"})
        assert status == "202 ACCEPTED"
        assert "Preference-Applied" not in headers

    @pytest.mark.parametrize("prefer", ['"', "respond async", "wait=soon", "respond-async=x", "\xff"])
    def test_a_malformed_preference_is_ignored(self, prefer: str) -> None:
        door = ScaleZeroMiddleware(App(), FakeEngine(time.monotonic))
        assert ask(door, environ_overrides={"HTTP_PREFER": prefer})[0] == "200 OK"


class TestThePage:
    def test_a_browser_gets_it_and_then_the_function(self) -> None:
        app, fleet = App(), FakeEngine(time.monotonic, delay=0.3)
        door = ScaleZeroMiddleware(app, fleet, page_after=0.1)
        status, headers, body = ask(validator(door), headers=BROWSER)
        assert status == "503 SERVICE UNAVAILABLE"
        assert headers["Content-Type"] == "text/html; charset=utf-8"
        assert (headers["Cache-Control"], headers["Vary"]) == ("no-store", "Accept, Sec-Fetch-Mode")
        assert int(headers["Retry-After"]) >= 1
        assert (STATUS + "hello").encode() in body
        assert app.calls == []
        assert state(door) == "starting"
        until(lambda: state(door) == "ready")
        assert ask(door, headers=BROWSER)[0] == "200 OK"
        assert fleet.sets == [(HELLO, 1)]

    @pytest.mark.parametrize("stale_for", [0, 5])
    @pytest.mark.parametrize("cache_expiry", [0, 0.25])
    def test_it_ends_however_short_a_count_stays_fresh(self, cache_expiry: float, stale_for: float) -> None:
        clock = MovingClock()
        settings = {"cache_expiry": cache_expiry, "stale_for": stale_for}
        door = ScaleZeroMiddleware(App(), FakeEngine(clock), clock=clock, **settings)  # type: ignore[arg-type]
        begin(door)
        assert state(door) in {"starting", "ready"}
        until(lambda: (meta := door.cache.find(HELLO)) and meta.available)
        clock.advance(2.0)  # until the page asks again
        assert state(door) == "ready"

    def test_at_max_wait_it_is_a_504_for_a_browser_too(self) -> None:
        door = ScaleZeroMiddleware(App(), Gate(), page_after=0.2, max_wait=0.1)
        status, headers, _ = ask(door, headers=BROWSER)
        assert (status, headers["Content-Type"]) == ("504 GATEWAY TIMEOUT", "text/html; charset=utf-8")


RULES: list[tuple[Any, dict[str, Any]]] = [
    ("path=/function/*/healthz", {"path": "/function/hello/healthz"}),
    ("method=OPTIONS", {"method": "OPTIONS"}),
    ("user-agent=*bot*", {"headers": {"User-Agent": "Googlebot/2.1"}}),
    (lambda environ: environ.get("HTTP_X_PROBE"), {"headers": {"X-Probe": "1"}}),
]


@pytest.mark.parametrize(("rule", "options"), RULES, ids=["path", "method", "user-agent", "callable"])
class TestNoWake:
    def test_it_does_not_wake(self, rule: Any, options: Any) -> None:
        app, provider = App(), ScriptedProvider(ZERO)
        door = ScaleZeroMiddleware(app, provider, no_wake=[rule], cache_expiry=60)
        for _ in range(3):
            status, headers, _ = ask(validator(door), **options)
            assert (status, headers["Retry-After"]) == ("503 SERVICE UNAVAILABLE", "1")
        assert (app.calls, provider.sets) == ([], [])
        assert len(provider.queries) == 1  # while the answer counts as fresh
        assert door.scaler.started_at(HELLO) is None

    def test_it_is_served_when_the_function_is_there_and_counts_as_no_use(
        self, rule: Any, options: Any
    ) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            assert in_flight(door) == 0
            assert (environ["scalezero_wsgi.function"], environ["scalezero_wsgi.waited"]) == (HELLO, 0.0)
            assert environ["scalezero_wsgi.endpoint"] == "http://127.0.0.1:1"
            start_response("200 OK", [])
            return [b"x"]

        clock = MovingClock()
        known = replace(UP, endpoint="http://127.0.0.1:1")
        provider = ScriptedProvider(known)
        door = ScaleZeroMiddleware(app, provider, no_wake=[rule], clock=clock)
        assert ask(door, **options)[0] == "200 OK"  # unknown before
        assert ask(door, **options)[0] == "200 OK"  # fresh
        clock.advance(1.0)
        assert ask(door, **options)[0] == "200 OK"  # stale
        until(lambda: len(provider.queries) == 2)
        clock.advance(60.0)
        assert ask(door, **options)[0] == "200 OK"  # lapsed
        assert usage(door).last_used == float("-inf")

    def test_others_wake_and_count(self, rule: Any, options: Any) -> None:
        fleet = FakeEngine(time.monotonic)
        door = ScaleZeroMiddleware(App(), fleet, no_wake=[rule], cache_expiry=60)
        assert ask(door, **options)[0] == "503 SERVICE UNAVAILABLE"
        assert ask(door)[0] == ask(door)[0] == "200 OK"
        assert fleet.sets == [(HELLO, 1)]
        used = usage(door).last_used
        assert used > 0
        assert ask(door, **options)[0] == "200 OK"
        assert usage(door).last_used == used

    def test_an_unknown_function_is_404(self, rule: Any, options: Any) -> None:
        provider = ScriptedProvider(FunctionNotFound("hello"))
        door = ScaleZeroMiddleware(App(), provider, no_wake=[rule], missing_expiry=60)
        assert ask(door, **options)[0] == ask(door, **options)[0] == "404 NOT FOUND"
        assert len(provider.queries) == 1

    def test_its_own_bad_answer_wakes_nothing_either(self, rule: Any, options: Any) -> None:
        fleet = FakeEngine(time.monotonic)
        fleet.set_replicas("hello", "", 1)
        app = App("200 OK", "502 Bad Gateway")
        door = ScaleZeroMiddleware(app, fleet, no_wake=[rule], cache_expiry=60)
        ask(door, **options)
        fleet.set_replicas("hello", "", 0)
        fleet.sets.clear()
        assert ask(door, **options)[0] == "502 Bad Gateway"
        assert (len(app.calls), fleet.sets) == (2, [])


class TestTheFixedAnswer:
    @pytest.mark.parametrize("status", [200, 204, 304, 404, 429, 503, 511])
    def test_a_cold_function_gives_it(self, status: int) -> None:
        door = ScaleZeroMiddleware(
            App(), ScriptedProvider(ZERO), no_wake=lambda environ: True, no_wake_status=status
        )
        line, headers, body = ask(validator(door))
        assert line.startswith(str(status))
        assert ("Retry-After" in headers) == (status != 200)
        assert (body == b"") == (status in (204, 304))

    def test_a_provider_that_hangs_holds_such_a_request_but_a_moment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("scalezero_wsgi.activation.request_queue.REFRESH_TIMEOUT", 0.2)
        gate = threading.Event()
        door = ScaleZeroMiddleware(
            App(), ScriptedProvider(lambda: UP if gate.wait(PATIENCE) else ZERO), no_wake=["path=*"]
        )
        begun = time.monotonic()
        assert ask(door)[0] == "502 BAD GATEWAY"
        assert 0.2 <= time.monotonic() - begun < SOON
        # One moment for all of them: a row of health checks must not take one thread after another.
        begun = time.monotonic()
        assert [ask(door)[0] for _ in range(10)] == ["502 BAD GATEWAY"] * 10
        assert time.monotonic() - begun < 10 * 0.2
        gate.set()

    def test_an_outage_of_the_provider_is_not_taken_for_a_function_at_zero(self) -> None:
        clock = MovingClock()
        provider = ScriptedProvider(ProviderError("down"), ProviderError("down"), ZERO)
        door = ScaleZeroMiddleware(App(), provider, no_wake=["path=*"], no_wake_status=200, clock=clock)
        assert [ask(door)[0] for _ in range(3)] == ["502 BAD GATEWAY"] * 3

        def is_told_later() -> bool:
            clock.advance(1.0)
            return ask(door)[0] == "200 OK"

        until(is_told_later)


class TestTheFence:
    """What ``allow`` and ``deny`` leave out does not exist for clients."""

    @pytest.mark.parametrize(
        "settings",
        [
            {"deny": ["hello"]},
            {"deny": ["hel*"]},
            {"allow": ["other"]},
            {"allow": []},
            {"allow": ["hel*"], "deny": ["*o"]},
            {"deny": ["hello"], "default_namespace": "fn"},
            {"deny": ["hello.fn"], "default_namespace": "fn"},
            {"deny": ["*.fn"], "default_namespace": "fn"},
            {"deny": ["hello"], "no_wake": ["path=*"], "no_wake_status": 200},
            {"deny": ["hello"], "route": by_host("{name}.example.com")},
            {"deny": ["hello"], "route": lambda _: ("hello", "")},
        ],
    )
    @pytest.mark.parametrize("up", [True, False])
    def test_what_is_not_allowed_is_not_served_running_or_not(self, up: bool, settings: Any) -> None:
        fleet, app = FakeEngine(time.monotonic), App()
        told: list[Event] = []
        if up:
            fleet.set_replicas("hello", settings.get("default_namespace", ""), 1)
            fleet.sets.clear()
        door = ScaleZeroMiddleware(app, fleet, hooks=[told.append], **settings)
        threads = threading.active_count()
        for sent in ({}, {"Prefer": "respond-async"}, BROWSER):
            for method in ("GET", "POST"):
                status, headers, _ = ask(
                    door, base_url="http://hello.example.com", method=method, headers=sent
                )
                assert status == "404 NOT FOUND"
                assert "Retry-After" not in headers
        own = "/.scalezero/status/" if "route" in settings else STATUS
        assert state(door, base=own) == "unknown"
        assert (fleet.queries, fleet.sets, app.calls, told) == ([], [], [], [])
        assert (len(door.cache), len(door._segments), door.cache.states()) == (0, 0, [])
        assert not threads < threading.active_count()

    @pytest.mark.parametrize("accept", ["text/html", "text/plain", "application/json"])
    def test_nobody_can_tell_it_from_a_function_that_does_not_exist(self, accept: str) -> None:
        door = ScaleZeroMiddleware(App(), FakeEngine(time.monotonic, known={"hello"}), deny=["hello"])
        sent = {"Accept": accept, "X-Call-Id": "1"}

        def seen(name: str) -> list[Any]:
            answers = [
                ask(door, f"/function/{name}", headers=sent),
                ask(door, f"/function/{name}", method="HEAD", headers=sent),
                ask(door, STATUS + name),
            ]
            return [
                (status, {**headers, "Content-Length": ""}, body.replace(name.encode(), b"NAME"))
                for status, headers, body in answers
            ]

        assert seen("hello") == seen("hallo")

    def test_it_never_takes_the_short_way(self) -> None:
        """It may have come into the cache by another way."""
        app, fleet = App(), FakeEngine(time.monotonic)
        door = ScaleZeroMiddleware(app, fleet, deny=["hello"], cache_expiry=60)
        door.cache.set("hello", UP)
        for path in (
            "/function/hello",
            "/function/hello/",
            "/function/hello/a",
            "/function/hello.fn/../hello",
        ):
            ask(door, path)
        assert [ask(door)[0] for _ in range(3)] == ["404 NOT FOUND"] * 3
        assert door._segments.get("hello") is None
        assert state(door) == "unknown"

    def test_a_name_that_cannot_be_is_a_400_as_ever(self) -> None:
        door = ScaleZeroMiddleware(App(), FakeEngine(time.monotonic), allow=["other"])
        assert ask(door, "/function/Hello")[0] == "400 BAD REQUEST"

    def test_the_others_are_served(self) -> None:
        fleet = FakeEngine(time.monotonic)
        door = ScaleZeroMiddleware(App(), fleet, allow=["hel*"], deny=["help"], cache_expiry=60)
        assert [ask(door)[0] for _ in range(3)] == ["200 OK"] * 3
        assert fleet.sets == [(HELLO, 1)]
        assert door._segments.get("hello") is door.cache.state(HELLO)


class TestWake:
    @pytest.mark.parametrize(
        "settings",
        [
            {"wake": ["other"]},
            {"wake": []},
            {"wake": ["help", "*.fn"]},
            {"wake": ["hello.dev"], "default_namespace": "fn"},
        ],
    )
    def test_what_may_not_be_woken_is_not_in_any_way(self, settings: Any) -> None:
        fleet = FakeEngine(time.monotonic)
        app = App()
        door = ScaleZeroMiddleware(app, fleet, cache_expiry=60, **settings)
        function = Function("hello", settings.get("default_namespace", ""))
        for sent in ({}, {"Prefer": "respond-async"}, BROWSER):
            status, headers, _ = ask(door, headers=sent)
            assert (status, headers["Retry-After"]) == ("503 SERVICE UNAVAILABLE", "1")
        assert state(door) == "unknown"
        assert (fleet.sets, app.calls) == ([], [])
        assert door.scaler.started_at(function) is None

    @pytest.mark.parametrize("settings", [{"wake": []}, {"wake": ["other"]}])
    def test_it_is_served_while_it_is_up_and_not_woken_by_a_replay(self, settings: Any) -> None:
        fleet = FakeEngine(time.monotonic)
        fleet.set_replicas("hello", "", 1)
        fleet.sets.clear()
        app = App("200 OK", "200 OK", "200 OK", "502 Bad Gateway")
        door = ScaleZeroMiddleware(app, fleet, cache_expiry=60, **settings)
        assert [ask(door)[0] for _ in range(3)] == ["200 OK"] * 3
        assert usage(door).last_used > 0  # or it would be taken for idle
        fleet.put_down()
        assert ask(door)[0] == "502 Bad Gateway"
        assert (len(app.calls), fleet.sets) == (4, [])

    def test_the_others_are_woken(self) -> None:
        fleet = FakeEngine(time.monotonic)
        door = ScaleZeroMiddleware(App(), fleet, wake=["hel*"])
        assert ask(door)[0] == "200 OK"
        assert fleet.sets == [(HELLO, 1)]


class TestClientsAndWorkersThatLeave:
    @pytest.mark.usefixtures("usual_checks")
    def test_a_client_that_left_is_not_answered_and_the_app_not_called(self, connection: Connection) -> None:
        app, gate = App(), Gate()
        door = ScaleZeroMiddleware(app, gate)
        (held,) = visits(door, 1, environ_overrides=connection.environ)
        (other,) = visits(door, 1)
        left_at = time.monotonic()
        connection.leave()
        assert held.status == "499 Client Closed Request"
        assert held.ended - left_at < 0.25  # the issue's own bound
        gate.opened.set()
        assert other.status == "200 OK"
        assert len(app.calls) == 1
        assert waiting(door) == in_flight(door) == 0

    def test_a_worker_that_stops_answers_all_who_wait(self, server: Server) -> None:
        stopping = threading.Event()
        server.stopping = stopping.is_set
        app = App()
        door = ScaleZeroMiddleware(app, Gate())
        held = visits(door, 10)
        stopping.set()
        for visit in held:
            status, headers, _ = visit.answer()
            assert (status, headers["Retry-After"]) == ("503 SERVICE UNAVAILABLE", "1")
            assert visit.ended - visit.begun < SOON
        assert (waiting(door), app.calls) == (0, [])


class TestTheStatusUrl:
    def test_it_tells_how_far_a_start_has_come(self) -> None:
        app, clock = App(), MovingClock()
        fleet = FakeEngine(clock, delay=20.0)
        door = ScaleZeroMiddleware(app, fleet, clock=clock)
        assert state(validator(door)) == "unknown"
        begin(door)
        assert state(validator(door)) == "starting"
        until(lambda: fleet.sets)
        clock.advance(20.0)
        until(lambda: state(door) == "ready")
        assert fleet.sets == [(HELLO, 1)]
        assert app.calls == []
        assert ask(door)[0] == "200 OK"

    def test_it_tells_the_elapsed_time_of_the_start_and_not_of_the_visit(self) -> None:
        clock = MovingClock()
        door = ScaleZeroMiddleware(App(), Gate(), clock=clock, max_wait=300)
        begin(door)
        assert state(door) == "starting"
        clock.advance(20.0)
        told = json.loads(ask(door, STATUS + "hello")[2])
        assert 20.0 <= told["elapsed"] < 25.0
        assert told["last_starts"] == []
        assert 20 <= told["retry_after"] <= 25  # as long again

    def test_it_keeps_a_start_going_as_long_as_somebody_asks(self) -> None:
        clock, gate = MovingClock(), Gate()
        door = ScaleZeroMiddleware(App(), gate, clock=clock, linger=1.0)
        begin(door)
        begun = set()
        for _ in range(5):
            assert state(door) == "starting"
            begun.add(door.scaler.started_at(HELLO))
            clock.advance(9.0)
        assert len(begun) == 1
        gate.opened.set()
        until(lambda: state(door) == "ready")

    def test_a_start_that_failed(self) -> None:
        provider = ScriptedProvider(replace(STARTING, failure="crash loop"))
        door = ScaleZeroMiddleware(App(), provider)
        assert ask(door)[0] == "503 SERVICE UNAVAILABLE"
        told = json.loads(ask(door, STATUS + "hello")[2])
        assert (told["state"], told["detail"]) == ("failed", "The function hello could not be started.")
        door = ScaleZeroMiddleware(App(), provider, expose_failures=True)
        assert ask(door)[0] == "503 SERVICE UNAVAILABLE"
        told = json.loads(ask(door, STATUS + "hello")[2])
        assert told["detail"] == "The function hello could not be started: crash loop"

    def test_an_unknown_name_and_a_bad_one(self) -> None:
        provider = ScriptedProvider(FunctionNotFound("hello"))
        door = ScaleZeroMiddleware(App(), provider, missing_expiry=60)
        for _ in range(2):  # before and after a request: nobody learns from it which names there are
            assert state(door) == "unknown"
            assert ask(door)[0] == "404 NOT FOUND"
        assert len(provider.queries) == 1
        for name in ("Hello", "", "a/b", ".", "a..b", "%FF", "x" * 100):
            assert state(door, name) == "failed"
        assert len(provider.queries) == 1

    def test_nothing_of_the_provider_is_told(self) -> None:
        provider = ScriptedProvider(ZERO, STARTING)
        door = ScaleZeroMiddleware(App(), provider)
        begin(door)
        provider.script[:] = [ProviderError("http://admin:secret@10.0.0.1")]
        bodies: list[bytes] = []

        def told() -> bool:
            bodies.append(ask(door, STATUS + "hello")[2])
            return "cannot be told" in json.loads(bodies[-1])["detail"]

        until(told)
        assert not any(word in body for body in bodies for word in (b"secret", b"10.0.0.1", b"http"))

    def test_a_namespace_and_the_default_one(self) -> None:
        fleet = FakeEngine(time.monotonic)
        door = ScaleZeroMiddleware(App(), fleet, default_namespace="fn")
        begin(door)
        begin(door, "/function/hello.dev")
        until(lambda: state(door, "hello.dev") == "ready" and state(door) == "ready")
        assert {function for function, _ in fleet.sets} == {("hello", "dev"), ("hello", "fn")}

    @pytest.mark.parametrize(
        "settings", [{"deny": ["hello"]}, {"wake": ["other"]}, {"no_wake": ["user-agent=*bot*"]}]
    )
    def test_it_wakes_nothing_that_may_not_be_woken(self, settings: Any) -> None:
        provider = ScriptedProvider(ZERO)
        door = ScaleZeroMiddleware(App(), provider, **settings)
        for _ in range(2):
            assert state(door, headers={"User-Agent": "a bot"}) == "unknown"
            assert ask(door, headers={"User-Agent": "a bot"})[0] in {
                "404 NOT FOUND",
                "503 SERVICE UNAVAILABLE",
            }
        assert (provider.sets, door.scaler.started_at(HELLO)) == ([], None)

    def test_who_may_not_wake_a_function_does_not_keep_its_start_going(self) -> None:
        clock, gate = MovingClock(), Gate()
        door = ScaleZeroMiddleware(App(), gate, clock=clock, no_wake=["user-agent=*bot*"])
        begin(door)
        flight = door.scaler.keep_up(HELLO, -math.inf)
        assert flight is not None
        until = flight.until
        clock.advance(20.0)
        assert state(door, headers={"User-Agent": "a bot"}) == "starting"
        assert flight.until == until
        assert state(door) == "starting"
        assert flight.until > until + 15
        gate.opened.set()

    def test_invented_names_take_nothing_while_the_provider_hangs(self) -> None:
        """In process, so that every thread is seen."""
        gate, provider = threading.Event(), FakeEngine(time.monotonic)
        real = provider.get_replicas
        asked = set()

        def get_replicas(name: str, namespace: str) -> ReplicaStatus:
            asked.add(name)
            if name != "hello":
                gate.wait(PATIENCE)
            return real(name, namespace)

        provider.get_replicas = get_replicas  # type: ignore[method-assign]
        door = ScaleZeroMiddleware(App(), provider, max_waiting=2)
        before = threading.active_count()
        environ = create_environ()
        states = set()

        def poll(number: int) -> None:
            path = f"{STATUS}invented-{number}"
            body = door({**environ, "PATH_INFO": path}, lambda *_: lambda _: None)
            states.add(json.loads(b"".join(body))["state"])

        for number in range(5_000):
            poll(number)
        assert ask(door)[0] == "200 OK"
        for number in range(5_000, 10_000):
            poll(number)
        assert threading.active_count() < before + 10
        assert ask(door)[0] == "200 OK"
        gate.set()
        assert (states, asked) == ({"unknown"}, {"hello"})
        assert [len(door.cache), len(door._segments), len(door.cache.states())] == [1, 1, 1]

    def test_it_starts_nothing_that_max_waiting_refuses(self) -> None:
        gate = Gate()
        door = ScaleZeroMiddleware(App(), gate, max_waiting=1)
        (held,) = visits(door, 1, "/function/other")
        assert ask(door)[0] == "503 SERVICE UNAVAILABLE"
        begun = door.scaler.started_at(HELLO)
        assert state(door) == "unknown"
        assert state(door, "other") == "starting"
        assert door.scaler.started_at(HELLO) is begun is None
        gate.opened.set()
        assert held.status == "200 OK"

    def test_after_the_start_has_ended_a_request_goes_on(self) -> None:
        """The page loads itself again when nothing is known any more."""
        clock, provider = MovingClock(), ScriptedProvider(ProviderError("down"))
        door = ScaleZeroMiddleware(App(), provider, clock=clock)
        begun = threading.Thread(target=ask, args=(door,))
        begun.start()
        until(lambda: state(door) == "starting")

        def has_ended_later() -> bool:
            clock.advance(PROVIDER_PATIENCE / 6)
            return not begun.is_alive()

        until(has_ended_later, pause=0.02)
        assert state(door) == "unknown"
        provider.script[:] = [UP]
        assert ask(door, headers=BROWSER)[0] == "200 OK"
        assert state(door) == "ready"

    def test_a_name_with_a_dot_is_read_back_as_it_was_meant(self) -> None:
        gate = Gate()
        door = ScaleZeroMiddleware(
            App(), gate, route=lambda _: ("my.fn", ""), names="openfaas", page_after=0.05
        )
        body = ask(door, headers=BROWSER)[2].decode()
        url = body.partition('data-status="')[2].partition('"')[0]
        assert url == "/.scalezero/status/my.fn."
        assert state(door, "my.fn.", base="/.scalezero/status/") == "starting"
        assert state(door, "my.fn", base="/.scalezero/status/") == "unknown"
        gate.opened.set()

    def test_under_a_mount_and_by_host(self) -> None:
        app, clock = App(), MovingClock()
        door = ScaleZeroMiddleware(app, FakeEngine(clock, delay=20.0), clock=clock, route="/fn")
        begin(door, "/fn/hello", base_url="http://h/mount")
        assert state(door, base="/fn/.scalezero/status/", base_url="http://h/mount") == "starting"
        fleet = FakeEngine(clock, delay=20.0)
        door = ScaleZeroMiddleware(app, fleet, clock=clock, route=by_host("{name}.example.com"))
        options = {"base": "/.scalezero/status/", "base_url": "http://hello.example.com/"}
        begin(door, "/", base_url="http://hello.example.com/")
        until(lambda: fleet.sets)
        clock.advance(20.0)
        until(lambda: state(door, **options) == "ready")
        assert app.calls == []

    def test_what_is_no_status_is_an_asset_or_404(self) -> None:
        app = App()
        door = ScaleZeroMiddleware(app, ScriptedProvider(ZERO))
        for name, media_type in (("page.css", "text/css"), ("page.js", "text/javascript")):
            status, headers, body = ask(validator(door), f"/function/.scalezero/{name}")
            assert (status, headers["Content-Type"]) == ("200 OK", f"{media_type}; charset=utf-8")
            assert headers["X-Content-Type-Options"] == "nosniff"
            assert body
        for name in ("", "page.html", "../page.css", "page.css/", "waking.html", "__init__.py"):
            assert ask(door, f"/function/.scalezero/{name}")[0] == "404 NOT FOUND"
        assert app.calls == []


class TestReplay:
    """The application could not reach its function, which had gone to zero behind our back."""

    @staticmethod
    def scene(provider: Any, *answers: str, **settings: Any) -> tuple[ScaleZeroMiddleware, App]:
        app = App("200 OK", "502 Bad Gateway", *(answers or ["200 OK"]))
        door = ScaleZeroMiddleware(app, provider, cache_expiry=60, **settings)
        assert ask(door)[0] == "200 OK"
        return door, app

    def test_without_a_place_to_wait_the_apps_answer_stands(self) -> None:
        provider = ScriptedProvider(UP, ZERO, STARTING)
        door, app = self.scene(provider, max_waiting=1, max_wait=0.2)
        (held,) = visits(door, 1, "/function/other")
        assert ask(door)[0] == "502 Bad Gateway"
        assert len(app.calls) == 2
        assert held.status == "504 GATEWAY TIMEOUT"
        assert waiting(door) == in_flight(door) == 0

    def test_its_client_may_leave_while_it_waits(self, connection: Connection) -> None:
        door, app = self.scene(ScriptedProvider(UP, ZERO, STARTING))
        (held,) = visits(door, 1, environ_overrides=connection.environ)
        connection.leave()
        assert held.status == "499 Client Closed Request"
        assert len(app.calls) == 2
        assert waiting(door) == in_flight(door) == 0

    def test_its_worker_may_be_told_to_stop(self, server: Server) -> None:
        stopping = threading.Event()
        server.stopping = stopping.is_set
        door, _ = self.scene(ScriptedProvider(UP, ZERO, STARTING))
        (held,) = visits(door, 1)
        stopping.set()
        assert held.status == "503 SERVICE UNAVAILABLE"
        assert waiting(door) == in_flight(door) == 0

    @pytest.mark.parametrize(
        ("headers", "status"),
        [
            ({"Prefer": "respond-async"}, "202 ACCEPTED"),
            ({"Prefer": "wait=0"}, "504 GATEWAY TIMEOUT"),
            (BROWSER, "503 SERVICE UNAVAILABLE"),
        ],
    )
    def test_it_may_rather_have_an_answer(self, headers: dict[str, str], status: str) -> None:
        door, app = self.scene(ScriptedProvider(UP, ZERO, STARTING), page_after=0.1)
        assert ask(door, headers=headers)[0] == status
        assert len(app.calls) == 2
        assert waiting(door) == in_flight(door) == 0

    def test_the_time_that_the_app_took_counts(self) -> None:
        clock = MovingClock()
        app = App("200 OK", "502 Bad Gateway", "200 OK")

        def slow(environ: Environ, start_response: Any) -> Iterable[bytes]:
            clock.advance(11.0)
            return app(environ, start_response)

        provider = ScriptedProvider(UP, ZERO, STARTING)
        door = ScaleZeroMiddleware(slow, provider, clock=clock, max_wait=10, cache_expiry=60)
        assert ask(door)[0] == "200 OK"
        begun = time.monotonic()
        assert ask(door)[0] == "504 GATEWAY TIMEOUT"
        assert time.monotonic() - begun < SOON


class TestGivingUp:
    @pytest.mark.parametrize(
        ("headers", "max_wait", "status", "events"),
        [
            ({}, 0.1, "504 GATEWAY TIMEOUT", [WaitGivenUp]),
            ({"Prefer": "wait=0"}, 60, "504 GATEWAY TIMEOUT", [WaitGivenUp]),
            ({"Prefer": "respond-async"}, 60, "202 ACCEPTED", []),
            (BROWSER, 60, "503 SERVICE UNAVAILABLE", []),
        ],
    )
    def test_a_client_that_would_rather_not_wait_is_not_told_as_one_that_waited_in_vain(
        self, headers: dict[str, str], max_wait: float, status: str, events: list[type[Event]]
    ) -> None:
        told: list[Event] = []
        door = ScaleZeroMiddleware(
            App(), ScriptedProvider(STARTING), max_wait=max_wait, page_after=0.1, hooks=(told.append,)
        )
        assert ask(door, headers=headers)[0] == status
        assert [type(event) for event in told] == [StatusQueried, *events]

    def test_a_provider_that_fails_for_too_long_is(self) -> None:
        told: list[Event] = []
        provider = ScriptedProvider(ProviderError("down"))
        door = ScaleZeroMiddleware(App(), provider, max_wait=0.5, hooks=(told.append,))
        assert ask(door)[0] == "502 BAD GATEWAY"
        (given_up,) = [event for event in told if isinstance(event, WaitGivenUp)]
        assert given_up.after >= 0.5


class TestNothingLeaks:
    @pytest.mark.parametrize("error", [ValueError("bug"), SystemExit(1), KeyboardInterrupt()])
    def test_when_the_app_raises_after_a_wait(self, error: BaseException) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            assert waiting(door) == 0
            raise error

        door = ScaleZeroMiddleware(app, FakeEngine(time.monotonic, delay=0.02))
        with pytest.raises(type(error)):
            ask(door)
        assert waiting(door) == in_flight(door) == 0

    def test_when_a_hook_raises(self) -> None:
        def hook(event: Event) -> None:
            raise ValueError("bug")

        door = ScaleZeroMiddleware(App(), FakeEngine(time.monotonic), hooks=(hook,))
        assert ask(door)[0] == "200 OK"
        door = ScaleZeroMiddleware(App(), Gate(), hooks=(hook,), max_wait=0.1)
        assert ask(door)[0] == "504 GATEWAY TIMEOUT"
        assert waiting(door) == in_flight(door) == 0

    def test_when_a_rule_raises(self) -> None:
        def rule(environ: Environ) -> bool:
            raise ValueError("bug")

        door = ScaleZeroMiddleware(App(), FakeEngine(time.monotonic), no_wake=[rule])
        with pytest.raises(ValueError, match="bug"):
            ask(door)
        assert waiting(door) == in_flight(door) == 0

    @pytest.mark.parametrize("error", [SystemExit(1), KeyboardInterrupt()])
    @pytest.mark.parametrize("replayed", [False, True])
    def test_when_the_server_ends_the_wait(
        self, server: Server, error: BaseException, replayed: bool
    ) -> None:
        def keep_alive() -> None:
            raise error

        if replayed:
            door, _ = TestReplay.scene(ScriptedProvider(UP, ZERO, STARTING))
        else:
            door = ScaleZeroMiddleware(App(), Gate())
        server.keep_alive = keep_alive
        with pytest.raises(type(error)):
            ask(door)
        assert waiting(door) == in_flight(door) == 0

    def test_after_hundreds_of_all_kinds(self) -> None:
        door = ScaleZeroMiddleware(
            App(), FakeEngine(time.monotonic, delay=0.3), max_waiting=20, release_rate=1000
        )
        kinds: list[dict[str, Any]] = [
            {},
            {"headers": {"Prefer": "wait=0"}},
            {"headers": {"Prefer": "respond-async"}},
            {"headers": BROWSER},
        ]
        made = [Visit(door, **kinds[number % 4]) for number in range(200)]
        statuses = {visit.status[:3] for visit in made}
        assert statuses <= {"200", "202", "503", "504"}
        assert waiting(door) == in_flight(door) == 0
        assert ask(door)[0] == "200 OK"


def test_a_request_that_is_turned_back_after_its_wait_has_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker has not seen yet that the stop is over after which the function was started."""
    app = App()
    door = ScaleZeroMiddleware(app, ScriptedProvider(ZERO, UP))
    pass_down, turned_back = door._pass_down, [True]

    def once_closed(*arguments: Any) -> Any:
        return CLOSED if turned_back and turned_back.pop() else pass_down(*arguments)

    monkeypatch.setattr(door, "_pass_down", once_closed)
    assert ask(door)[1]["Server-Timing"].startswith("cold-start;dur=")
    assert app.calls[0][WAITED] > 0
