from __future__ import annotations

import io
import itertools
import json
import logging
import threading
import time
import wsgiref.validate
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import requests
import urllib3
from webtest import TestApp
from webtest.lint import middleware as webtest_lint
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.middleware.lint import LintMiddleware

from scalezero_wsgi import (
    Function,
    FunctionNotFound,
    ProviderError,
    ReplicaStatus,
    ScaleZeroMiddleware,
    SettingError,
    Settings,
    by_header,
    by_host,
)
from scalezero_wsgi.activation.outages import SILENT
from scalezero_wsgi.activation.scaler import OUTAGE_PATIENCE, SUSPECT_PATIENCE
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import Event, OutageBegan, OutageEnded, RequestReplayed
from scalezero_wsgi.providers import CallbackProvider
from tests.support.clock import Clock, MovingClock
from tests.support.fakes import STARTING, UP, ZERO, FakeEngine, ScriptedProvider
from tests.support.waiting import SOON, ended_threads, until
from tests.support.wsgi import App, Environ, Visit, ask, environ_of, held, in_flight, waiting


class TestWhatIsNotAFunctions:
    @pytest.mark.parametrize(
        "path", ["/", "", "/functions/x", "/async-function/x", "/function/", "/function", "/function//x"]
    )
    def test_it_reaches_the_app_untouched(self, path: str) -> None:
        seen: list[object] = []
        answer = (b"a", b"b")

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            seen.extend([environ, start_response, dict(environ)])
            return answer

        provider = ScriptedProvider(ProviderError("not to be asked"))
        environ: Environ = {"PATH_INFO": path}

        def start_response(*args: Any) -> Any:
            raise AssertionError

        assert ScaleZeroMiddleware(app, provider)(environ, start_response) is answer
        assert seen[0] is environ
        assert seen[1] is start_response
        assert seen[2] == {"PATH_INFO": path}
        assert provider.queries == []

    def test_an_environ_without_a_path_is_the_apps(self) -> None:
        app = App()
        ScaleZeroMiddleware(app, ScriptedProvider(UP))({}, lambda *_: lambda _: None)
        assert app.calls == [{}]


class TestTheWayOfARequest:
    def test_a_cold_function_is_woken_and_the_second_request_is_warm(self) -> None:
        app, fleet = App(), FakeEngine(time.monotonic, delay=0.05)
        door = ScaleZeroMiddleware(app, fleet, cache_expiry=60)
        status, headers, _ = ask(door)
        assert status == "200 OK"
        assert headers["Server-Timing"].startswith("cold-start;dur=")
        assert app.calls[0]["scalezero_wsgi.waited"] >= 0.05
        assert app.calls[0]["scalezero_wsgi.function"] == ("hello", "")
        queries = len(fleet.queries)
        for _ in range(100):
            status, headers, _ = ask(door)
            assert "Server-Timing" not in headers
        assert app.calls[-1]["scalezero_wsgi.waited"] == 0.0
        assert len(fleet.queries) == queries
        assert fleet.sets == [(Function("hello"), 1)]

    def test_path_query_and_script_name_are_not_touched(self) -> None:
        app = App()
        ask(
            ScaleZeroMiddleware(app, ScriptedProvider(UP)),
            "/function/hello/a/b?x=1",
            base_url="http://h/mount",
        )
        environ = app.calls[0]
        assert (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["QUERY_STRING"]) == (
            "/mount",
            "/function/hello/a/b",
            "x=1",
        )

    @pytest.mark.parametrize(
        ("path", "function"),
        [
            ("/function/hello", ("hello", "")),
            ("/function/hello/", ("hello", "")),
            ("/function/hello/x/y", ("hello", "")),
            ("/function/hello.prod", ("hello", "prod")),
            ("/function/hello.prod/x.y", ("hello", "prod")),
        ],
    )
    def test_functions_are_found_by_path_cold_and_warm(self, path: str, function: tuple[str, str]) -> None:
        app = App()
        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        for _ in range(3):
            ask(door, path)
        assert [call["scalezero_wsgi.function"] for call in app.calls] == [function] * 3

    def test_the_default_namespace_is_the_same_function_named_or_not(self) -> None:
        provider = ScriptedProvider(UP)
        door = ScaleZeroMiddleware(App(), provider, default_namespace="fn", cache_expiry=60)
        ask(door, "/function/hello")
        ask(door, "/function/hello.fn")
        assert provider.queries == [Function("hello", "fn")]

    @pytest.mark.parametrize(
        "name", ["UP", "a_b", "-a", "a-", "a..b", ".a", "a.", "%20", "a" * 64, "%C3%A9", "a.b.c"]
    )
    def test_a_bad_name_is_refused_without_a_query(self, name: str) -> None:
        app, provider = App(), ScriptedProvider(UP)
        status, _, _ = ask(ScaleZeroMiddleware(app, provider), f"/function/{name}")
        assert status == "400 BAD REQUEST"
        assert (app.calls, provider.queries) == ([], [])

    def test_the_wider_names_of_openfaas(self) -> None:
        app = App()
        ask(ScaleZeroMiddleware(app, ScriptedProvider(UP), names="openfaas"), "/function/My_fn.v2.prod")
        assert app.calls[0]["scalezero_wsgi.function"] == ("My_fn.v2", "prod")

    def test_another_prefix(self) -> None:
        app = App()
        door = ScaleZeroMiddleware(app, ScriptedProvider(UP), route="/fn")
        ask(door, "/fn/hello")
        ask(door, "/function/hello")
        assert [call.get("scalezero_wsgi.function") for call in app.calls] == [("hello", ""), None]

    def test_routing_by_host_and_header(self) -> None:
        app = App()
        door = ScaleZeroMiddleware(app, ScriptedProvider(UP), route=by_host("{name}.fn.example.com"))
        ask(door, "/x", base_url="http://hello.fn.example.com:8080/")
        ask(door, "/x", base_url="http://www.example.com/")
        door = ScaleZeroMiddleware(app, ScriptedProvider(UP), route=by_header("X-Function"))
        ask(door, "/x", headers={"X-Function": "hello.prod"})
        assert [call.get("scalezero_wsgi.function") for call in app.calls] == [
            ("hello", ""),
            None,
            ("hello", "prod"),
        ]

    def test_a_bad_name_from_a_route_of_ones_own_is_refused(self) -> None:
        door = ScaleZeroMiddleware(App(), ScriptedProvider(UP), route=lambda environ: ("Bad name", ""))
        assert ask(door)[0] == "400 BAD REQUEST"

    def test_the_endpoint_is_told_when_there_is_one_and_only_then(self) -> None:
        app = App()
        known = ReplicaStatus(1, 1, endpoint="http://127.0.0.1:1")
        door = ScaleZeroMiddleware(app, ScriptedProvider(known, UP), cache_expiry=0, stale_for=0)
        ask(door)
        environ = environ_of() | {"scalezero_wsgi.endpoint": "http://of-another-door"}
        door(environ, lambda *_: lambda _: None)
        assert app.calls[0]["scalezero_wsgi.endpoint"] == "http://127.0.0.1:1"
        assert "scalezero_wsgi.endpoint" not in app.calls[1]


class TestStaleEntries:
    def test_they_are_served_while_one_refresh_runs(self) -> None:
        clock, app = Clock(), App()
        gate = threading.Event()
        provider = ScriptedProvider(UP, lambda: UP if gate.wait(10) else ZERO)
        door = ScaleZeroMiddleware(app, provider, clock=clock)
        ask(door)
        clock.advance(1)
        for _ in range(20):
            assert ask(door)[0] == "200 OK"
        assert len(provider.queries) == 2
        gate.set()

    def test_they_are_served_while_the_provider_is_down_but_not_for_ever(self) -> None:
        clock = MovingClock()
        events: list[Event] = []
        provider = ScriptedProvider(UP, ProviderError("down"))
        door = ScaleZeroMiddleware(
            App(), provider, clock=clock, max_wait=0.1, stale_if_error="1m", hooks=[events.append]
        )
        ask(door)
        clock.advance(4.9)
        for _ in range(5):
            assert ask(door)[0] == "200 OK"
            clock.advance(10)
        assert [type(event) for event in events if isinstance(event, (OutageBegan, OutageEnded))] == [
            OutageBegan
        ]
        clock.advance(10)
        assert ask(door)[0] == "502 BAD GATEWAY"

    def test_the_first_after_a_pause_is_served_too_when_the_provider_is_found_to_be_down(self) -> None:
        clock, provider = MovingClock(), ScriptedProvider(UP, ProviderError("down"))
        door = ScaleZeroMiddleware(App(), provider, clock=clock)
        ask(door)
        clock.advance(60)
        assert ask(door)[0] == "200 OK"

    def test_or_when_it_has_been_silent_for_a_second(self) -> None:
        clock, gate = Clock(), threading.Event()
        provider = ScriptedProvider(UP, lambda: UP if gate.wait(10) else ZERO)
        door = ScaleZeroMiddleware(App(), provider, clock=clock)
        ask(door)
        clock.advance(60)
        assert held(door, clock, SILENT)[0] == "200 OK"
        begun = time.monotonic()
        for _ in range(100):
            assert ask(door)[0] == "200 OK"
        assert time.monotonic() - begun < 0.5
        gate.set()

    def test_not_one_that_the_app_could_not_reach_meanwhile(self) -> None:
        clock = MovingClock()
        provider = ScriptedProvider(UP, ProviderError("down"))
        door = ScaleZeroMiddleware(App("200 OK", "200 OK", "503 Service Unavailable"), provider, clock=clock)
        ask(door)
        clock.advance(10)
        assert ask(door)[0] == "200 OK"
        clock.advance(10)  # by now the outage has lasted: nobody waits long for the provider
        for expected in ("503 Service Unavailable", "502 BAD GATEWAY", "502 BAD GATEWAY"):
            visit = Visit(door)
            until(lambda visit=visit: waiting(door) or not visit.waits)  # type: ignore[misc]
            clock.advance(SUSPECT_PATIENCE)
            assert visit.status == expected
            assert visit.ended - visit.begun < SOON

    def test_one_whose_query_is_owed_for_a_second_is_served_without_another(self) -> None:
        clock, gate, events = MovingClock(), threading.Event(), list[Event]()
        provider = ScriptedProvider(UP, lambda: UP if gate.wait(10) else ZERO)
        door = ScaleZeroMiddleware(App(), provider, clock=clock, hooks=[events.append])
        ask(door)
        clock.advance(1)
        ask(door)  # stale: asked for again behind it
        clock.advance(9)
        for _ in range(20):
            assert "Server-Timing" not in ask(door)[1]
        assert len(provider.queries) == 2
        assert [type(event) for event in events if isinstance(event, OutageBegan)] == [OutageBegan]
        gate.set()

    def test_nor_does_one_wait_that_dies_in_the_first_second_of_its_providers_silence(self) -> None:
        """Of an outage nothing is known then; but the provider has always answered at once."""
        clock, gate = Clock(), threading.Event()
        provider = ScriptedProvider(UP, lambda: UP if gate.wait(10) else ZERO)
        door = ScaleZeroMiddleware(App("200 OK", "503 Service Unavailable"), provider, clock=clock)
        ask(door)
        clock.advance(0.5)
        for expected in ("503 Service Unavailable", "502 BAD GATEWAY"):
            assert held(door, clock, SUSPECT_PATIENCE)[0] == expected
        gate.set()

    def test_but_a_provider_that_is_slow_as_ever_is_waited_for(self) -> None:
        def slowly() -> ReplicaStatus:
            clock.advance(1.2)
            time.sleep(0.05)  # those who wait are looked after several times meanwhile
            return UP

        clock = MovingClock()
        provider = ScriptedProvider(slowly, slowly, slowly)
        door = ScaleZeroMiddleware(App("200 OK", "503 Service Unavailable", "200 OK"), provider, clock=clock)
        ask(door)
        clock.advance(0.5)
        assert ask(door)[0] == "503 Service Unavailable"  # the provider stands by its answer
        assert ask(door)[0] == "200 OK"

    def test_nor_is_one_waited_for_that_the_app_cannot_reach_then(self) -> None:
        clock, gate = Clock(), threading.Event()
        provider = ScriptedProvider(UP, lambda: UP if gate.wait(10) else ZERO)
        app = App("200 OK", "200 OK", "503 Service Unavailable")
        door = ScaleZeroMiddleware(app, provider, clock=clock)
        ask(door)
        clock.advance(1)
        ask(door)
        clock.advance(2)
        for expected in ("503 Service Unavailable", "502 BAD GATEWAY"):
            assert held(door, clock, OUTAGE_PATIENCE)[0] == expected
        gate.set()

    def test_when_the_provider_answers_again_that_is_said_once(self) -> None:
        clock, events = MovingClock(), list[Event]()
        provider = ScriptedProvider(UP, ProviderError("down"), ProviderError("down"), UP)
        door = ScaleZeroMiddleware(App(), provider, clock=clock, hooks=[events.append])
        ask(door)
        for _ in range(6):
            clock.advance(20)
            with ended_threads():
                assert ask(door)[0] == "200 OK"
        outages = [event for event in events if isinstance(event, (OutageBegan, OutageEnded))]
        assert [type(event) for event in outages] == [OutageBegan, OutageEnded]

    def test_a_provider_that_takes_long_is_waited_for_once_the_function_is_at_zero(self) -> None:
        """Its slowness was taken for a failure while the function was up."""
        clock, status = MovingClock(), UP

        def slowly() -> ReplicaStatus:
            clock.advance(1.2)
            time.sleep(0.05)  # those who wait are looked after several times meanwhile
            return status

        provider = ScriptedProvider(UP, slowly)
        door = ScaleZeroMiddleware(App(), provider, clock=clock)
        ask(door)
        clock.advance(60)
        with ended_threads():
            assert ask(door)[0] == "200 OK"
        assert len(provider.queries) == 2
        status = STARTING
        clock.advance(60)
        assert ask(door)[0] == "200 OK"  # while it is asked for again
        until(lambda: not door.cache.get("hello")[0].available_replicas)
        provider.script[:] = [slowly, slowly, UP]
        assert ask(door)[0] == "200 OK"

    def test_a_request_that_wakes_nothing_is_served_too(self) -> None:
        clock = MovingClock()
        provider = ScriptedProvider(UP, ProviderError("down"))
        door = ScaleZeroMiddleware(App(), provider, clock=clock, no_wake=["method=OPTIONS"])
        ask(door)
        for _ in range(3):
            clock.advance(20)
            ask(door)
            assert ask(door, method="OPTIONS")[0] == "200 OK"

    def test_a_refresh_that_finds_zero_makes_the_function_cold(self) -> None:
        clock = Clock()
        provider = ScriptedProvider(UP, ZERO, ZERO, STARTING, UP)
        door = ScaleZeroMiddleware(App(), provider, clock=clock)
        ask(door)
        clock.advance(1)
        ask(door)
        until(lambda: door.cache.get("hello")[0] == ZERO)
        status, headers, _ = ask(door)
        assert status == "200 OK"
        assert "Server-Timing" in headers
        assert provider.sets == [(Function("hello"), 1)]


class TestAnswers:
    def test_an_unknown_function_is_404_and_remembered(self) -> None:
        app, provider = App(), ScriptedProvider(FunctionNotFound("hello"))
        door = ScaleZeroMiddleware(app, provider, missing_expiry=60)
        for _ in range(5):
            assert ask(door)[0] == "404 NOT FOUND"
        assert len(provider.queries) == 1
        assert app.calls == []

    def test_never_ready_is_504_soon_after_the_deadline(self) -> None:
        app, clock = App(), Clock()
        door = ScaleZeroMiddleware(app, ScriptedProvider(STARTING), max_wait="500ms", clock=clock)
        status, headers, _ = held(door, clock, 0.5)
        assert status == "504 GATEWAY TIMEOUT"
        assert int(headers["Retry-After"]) >= 1
        assert app.calls == []

    @pytest.mark.parametrize("exposed", [False, True])
    def test_a_function_that_cannot_start_is_503_at_once(self, exposed: bool) -> None:
        provider = ScriptedProvider(ZERO, ReplicaStatus(0, 0, failure="exited with status 3"))
        door = ScaleZeroMiddleware(App(), provider, expose_failures=exposed)
        for _ in range(10):
            status, headers, body = ask(door)
            assert status == "503 SERVICE UNAVAILABLE"
            assert headers["Retry-After"] == "1"
            assert ("exited with status 3" in json.loads(body)["detail"]) == exposed
        assert len(provider.sets) == 1

    def test_a_hanging_provider_is_502_at_the_deadline_of_the_request(self) -> None:
        gate = threading.Event()
        app, clock = App(), Clock()
        provider = ScriptedProvider(lambda: UP if gate.wait(10) else ZERO)
        door = ScaleZeroMiddleware(app, provider, max_wait=0.3, clock=clock)
        assert held(door, clock, 0.3)[0] == "502 BAD GATEWAY"
        assert app.calls == []
        gate.set()

    def test_nothing_of_the_provider_is_told(self) -> None:
        error = ProviderError("GET http://admin:secret@10.0.0.1:8080/system/function/hello: 401")
        door = ScaleZeroMiddleware(App(), ScriptedProvider(error), max_wait=0.02)
        for accept in ("application/json", "text/html", "text/plain"):
            _, headers, body = ask(door, headers={"Accept": accept, "X-Call-Id": "abc"})
            told = body.decode() + str(headers)
            words = ("10.0.0.1", "secret", "system", "401", "Traceback")
            assert [word for word in words if word in told] == [], told

    def test_the_call_id_is_kept(self) -> None:
        door = ScaleZeroMiddleware(App(), ScriptedProvider(FunctionNotFound("hello")))
        _, headers, body = ask(door, headers={"X-Call-Id": "abc"})
        assert (headers["X-Call-Id"], json.loads(body)["call_id"]) == ("abc", "abc")

    def test_invented_names_cost_a_query_each_and_no_memory(self) -> None:
        app, provider = App(), ScriptedProvider(FunctionNotFound("x"))
        count = 0

        def get_replicas(name: str, namespace: str) -> ReplicaStatus:
            nonlocal count
            count += 1
            raise FunctionNotFound(name, namespace)

        provider.get_replicas = get_replicas  # type: ignore[method-assign]
        door = ScaleZeroMiddleware(app, provider, cache_size=100)
        environ = environ_of()
        for index in range(500):
            for name in (f"fn-{index}", f"Bad_{index}"):
                door(environ | {"PATH_INFO": f"/function/{name}"}, lambda *_: lambda _: None)
        assert count == 500
        assert len(door.cache) == 0
        assert len(door.cache.states()) == 100
        assert len(door._segments) == 0


class TestWhatCannotBeAProviderOrAnApp:
    """It stops the start, with an error that names it and says what is allowed."""

    class Lacking:
        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            raise NotImplementedError

        def __repr__(self) -> str:
            return "<lacking>"

    class Short(Lacking):
        def set_replicas(self, name: str, replicas: int) -> None: ...

    class Async(Lacking):
        async def set_replicas(self, name: str, namespace: str, replicas: int) -> None: ...

    ALLOWED = (
        "provider must be an object with get_replicas and set_replicas, or a provider's name or URL, not "
    )

    @pytest.mark.parametrize(
        ("provider", "message"),
        [
            (None, f"{ALLOWED}None: it has no get_replicas"),
            (Lacking(), f"{ALLOWED}<lacking>: it has no set_replicas"),
            (CallbackProvider, f"{ALLOWED}the class CallbackProvider: make one, CallbackProvider(…)"),
            (Short(), "provider: set_replicas must be a callable of (name, namespace, replicas), not <bound"),
            (Async(), "provider: set_replicas must be a callable of (name, namespace, replicas), not <bound"),
            ("functions.toml", "provider: 'functions.toml' is a path, "),
            ("dokcer", "provider: there is none called 'dokcer'"),
        ],
    )
    def test_a_provider(self, provider: Any, message: str) -> None:
        with pytest.raises(SettingError) as caught:
            ScaleZeroMiddleware(App(), provider)
        assert str(caught.value).startswith(message)

    @pytest.mark.parametrize("app", [None, "flask_app:app", ScriptedProvider(UP)])
    def test_an_app(self, app: Any) -> None:
        with pytest.raises(SettingError) as caught:
            ScaleZeroMiddleware(app, ScriptedProvider(UP))
        assert str(caught.value) == f"app must be a WSGI application, not {app!r}"


class TestAFunctionScaledDownBehindOurBack:
    START = 0.02

    class Down:
        """An app whose function answers only while the fleet has it up."""

        def __init__(self, fleet: FakeEngine, answer: str | Exception = "502 Bad Gateway") -> None:
            self.fleet = fleet
            self.answer = answer
            self.calls: list[Environ] = []
            self.closed = 0

        def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
            self.calls.append(dict(environ))
            up = self.fleet.get_replicas(*environ["scalezero_wsgi.function"]).available_replicas
            self.fleet.queries.pop()
            if not up and isinstance(self.answer, Exception):
                raise self.answer
            return self.reply(start_response, "200 OK" if up else str(self.answer))

        def reply(self, start_response: Any, status: str) -> Iterable[bytes]:
            start_response(status, [("Content-Type", "text/plain"), ("X-Pass", str(len(self.calls)))])
            return Closing(self, [status.encode()])

    class Generator(Down):
        def reply(self, start_response: Any, status: str) -> Iterator[bytes]:
            try:
                start_response(status, [("Content-Type", "text/plain"), ("X-Pass", str(len(self.calls)))])
                yield status.encode()
            finally:
                self.closed += 1

    class LateRaiser(Down):
        def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
            yield from super().__call__(environ, start_response)

    def scene(
        self, kind: type[Down] = Down, answer: str | Exception = "502 Bad Gateway", **settings: Any
    ) -> tuple[ScaleZeroMiddleware, Down, FakeEngine]:
        fleet = FakeEngine(time.monotonic, self.START)
        app = kind(fleet, answer)
        door = ScaleZeroMiddleware(app, fleet, cache_expiry=60, **settings)
        assert ask(door)[0] == "200 OK"
        fleet.set_replicas("hello", "", 0)
        fleet.sets.clear()
        app.closed = 0
        return door, app, fleet

    @pytest.mark.parametrize("kind", [Down, Generator])
    @pytest.mark.parametrize(
        ("method", "answer"),
        [
            ("GET", "502 Bad Gateway"),
            ("GET", "503 Service Unavailable"),
            ("GET", "504 Gateway Timeout"),
            ("HEAD", "502 Bad Gateway"),
            ("OPTIONS", "503 Service Unavailable"),
        ],
    )
    def test_a_safe_request_waits_and_is_passed_down_once_more(
        self, kind: type[Down], answer: str, method: str
    ) -> None:
        door, app, fleet = self.scene(kind, answer)
        status, headers, _ = ask(LintMiddleware(door) if method == "GET" else door, method=method)
        assert status == "200 OK"
        assert headers["Server-Timing"].startswith("cold-start")
        assert headers["X-Pass"] == "3"
        assert app.calls[-1]["scalezero_wsgi.waited"] >= self.START
        assert fleet.sets == [(Function("hello"), 1)]
        assert app.closed == 2
        assert in_flight(door) == 0

    @pytest.mark.parametrize("kind", [Down, LateRaiser])
    def test_an_app_that_raises_a_connection_error(self, kind: type[Down]) -> None:
        door, _, fleet = self.scene(kind, ConnectionRefusedError("refused"))
        assert ask(door)[0] == "200 OK"
        assert fleet.sets == [(Function("hello"), 1)]
        assert in_flight(door) == 0

    @pytest.mark.parametrize(
        "error",
        [
            requests.ConnectionError("x"),
            requests.Timeout("x"),
            urllib3.exceptions.ProtocolError("x"),
            TimeoutError(),
        ],
    )
    def test_the_connection_errors_of_the_usual_clients(self, error: Exception) -> None:
        door, _, _ = self.scene(answer=error)
        assert ask(door)[0] == "200 OK"

    def test_another_error_is_the_apps_own(self) -> None:
        door, app, fleet = self.scene(answer=ValueError("bug"))
        with pytest.raises(ValueError, match="bug"):
            ask(door)
        assert (len(app.calls), fleet.sets) == (2, [])
        assert in_flight(door) == 0

    @pytest.mark.parametrize(
        "options", [{"method": "POST", "data": b"x"}, {"method": "DELETE"}, {"method": "GET", "data": b"x"}]
    )
    def test_other_requests_get_the_answer_as_it_is_and_the_next_one_wakes(self, options: Any) -> None:
        door, _, fleet = self.scene()
        status, _, body = ask(door, **options)
        assert (status, body) == ("502 Bad Gateway", b"502 Bad Gateway")
        assert fleet.sets == []
        assert ask(door, **options)[0] == "200 OK"
        assert fleet.sets == [(Function("hello"), 1)]

    def test_replay_can_be_switched_off(self) -> None:
        door, _, _ = self.scene(replay=False)
        assert ask(door)[0] == "502 Bad Gateway"
        assert ask(door)[0] == "200 OK"

    def test_many_at_once_cost_one_scale_up_and_no_error(self) -> None:
        door, _, fleet = self.scene()
        statuses: list[str] = []
        threads = [threading.Thread(target=lambda: statuses.append(ask(door)[0])) for _ in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert statuses == ["200 OK"] * 50
        assert fleet.sets == [(Function("hello"), 1)]

    def test_an_error_of_the_functions_own_stands_and_costs_a_query_an_expiry(self) -> None:
        clock, app = Clock(), App("503 Service Unavailable")
        provider = ScriptedProvider(UP)
        door = ScaleZeroMiddleware(app, provider, clock=clock)
        for _ in range(50):
            assert ask(door)[0] == "503 Service Unavailable"
        assert len(provider.queries) == 2
        clock.advance(0.3)
        for _ in range(50):
            ask(door)
        assert len(provider.queries) <= 4
        assert len(app.calls) == 100

    def test_the_second_answer_stands_whatever_it_is(self) -> None:
        fleet = FakeEngine(time.monotonic)
        app = App("200 OK", "502 Bad Gateway")
        door = ScaleZeroMiddleware(app, fleet, cache_expiry=60)
        ask(door)
        fleet.set_replicas("hello", "", 0)
        assert ask(door)[0] == "502 Bad Gateway"
        assert len(app.calls) == 3

    def test_while_the_provider_cannot_tell_the_apps_answer_stands(self) -> None:
        app = App("200 OK", "502 Bad Gateway")
        door = ScaleZeroMiddleware(
            app, ScriptedProvider(UP, ProviderError("down")), max_wait=0.05, cache_expiry=60
        )
        ask(door)
        assert ask(door)[0] == "502 Bad Gateway"

    def test_one_that_does_not_come_back_is_answered_as_such(self) -> None:
        app = App("200 OK", "502 Bad Gateway")
        door = ScaleZeroMiddleware(app, ScriptedProvider(UP, ZERO, STARTING), max_wait=0.05, cache_expiry=60)
        ask(door)
        status, headers, _ = ask(door)
        assert status == "504 GATEWAY TIMEOUT"
        assert "Retry-After" in headers

    def test_what_was_written_cannot_be_taken_back(self) -> None:
        calls = 0

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            nonlocal calls
            calls += 1
            write = start_response("502 Bad Gateway" if calls == 2 else "200 OK", [("X-Pass", str(calls))])
            write(b"written ")
            return [b"returned"]

        fleet = FakeEngine(time.monotonic)
        door = ScaleZeroMiddleware(app, fleet, cache_expiry=60)
        ask(door)
        fleet.set_replicas("hello", "", 0)
        status, _, body = ask(door)
        assert (status, body, calls) == ("502 Bad Gateway", b"written returned", 2)

    def test_an_app_that_thinks_again_before_anything_went_out(self) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("502 Bad Gateway", [])
            try:
                raise ValueError
            except ValueError:
                import sys

                start_response("500 Internal Server Error", [], sys.exc_info())
            return [b"sorry"]

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        assert ask(door)[0] == "500 Internal Server Error"

    def test_a_dispatcher_below_finds_the_path_as_it_was(self) -> None:
        fleet = FakeEngine(time.monotonic)
        app = self.Down(fleet)
        below = DispatcherMiddleware(App(), {"/function": app})
        door = ScaleZeroMiddleware(below, fleet, cache_expiry=60)
        ask(door, "/function/hello/x", base_url="http://h/mount")
        fleet.set_replicas("hello", "", 0)
        assert ask(door, "/function/hello/x", base_url="http://h/mount")[0] == "200 OK"
        for call in app.calls:
            assert (call["SCRIPT_NAME"], call["PATH_INFO"]) == ("/mount/function", "/hello/x")

    def test_it_is_told_to_hooks(self) -> None:
        events: list[Event] = []
        door, _, _ = self.scene(hooks=[events.append])
        ask(door)
        assert [type(event) for event in events].count(RequestReplayed) == 1

    @pytest.mark.parametrize("answer", ["500 Internal Server Error", "502 Bad Gateway"])
    def test_a_callback_that_only_scales_up_is_called_again(
        self, answer: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("scalezero_wsgi.providers.callback._DOUBT_EVERY", 0.0)
        ups: list[str] = []
        app = App("200 OK", answer, "200 OK")
        provider = CallbackProvider(scale_up=lambda name, namespace: ups.append(name))
        door = ScaleZeroMiddleware(app, provider, cache_expiry=60)
        assert [ask(door)[0] for _ in range(3)] == ["200 OK"] * 3
        assert ups == ["hello", "hello"]
        assert len(app.calls) == 4

    def test_a_500_of_the_functions_own_stands_and_costs_one_scale_up_in_5_seconds(self) -> None:
        clock, app = MovingClock(), App("500 Internal Server Error")
        ups: list[float] = []
        provider = CallbackProvider(scale_up=lambda *_: ups.append(clock()), clock=clock)
        door = ScaleZeroMiddleware(app, provider, clock=clock)
        begun = clock()
        for second in range(0, 200, 3):
            for method in ("GET", "POST"):
                assert ask(door, method=method)[0] == "500 Internal Server Error"
            clock.now = second / 10
        assert all(later - earlier >= 5.0 for earlier, later in itertools.pairwise(ups))
        assert 3 <= len(ups) <= (clock() - begun) / 5.0 + 1
        assert len(app.calls) <= 2 * 67 + 2 * len(ups)

    def test_the_500s_of_two_workers_cost_one_scale_up_in_5_seconds_too(self) -> None:
        clock, app = MovingClock(), App("500 Internal Server Error")
        store = MemoryCoordination(clock=clock)
        ups: list[float] = []
        doors = [
            ScaleZeroMiddleware(
                app,
                CallbackProvider(scale_up=lambda *_: ups.append(clock()), clock=clock),
                clock=clock,
                coordination=store,
            )
            for _ in range(2)
        ]
        begun = clock()
        for step in range(80):
            for door in doors:
                assert ask(door)[0] == "500 Internal Server Error"
            clock.now = step * 0.3
        assert all(later - earlier >= 5.0 for earlier, later in itertools.pairwise(ups))
        assert 3 <= len(ups) <= (clock() - begun) / 5.0 + 1

    def test_a_500_is_no_reason_to_doubt_where_the_provider_knows_better(self) -> None:
        app, provider = App("500 Internal Server Error"), ScriptedProvider(UP)
        door = ScaleZeroMiddleware(app, provider, cache_expiry=60)
        for _ in range(5):
            assert ask(door)[0] == "500 Internal Server Error"
        assert len(provider.queries) == 1
        asked = CallbackProvider(get_replicas=provider.get_replicas, set_replicas=provider.set_replicas)
        door = ScaleZeroMiddleware(app, asked, cache_expiry=60)
        for _ in range(5):
            ask(door)
        assert len(provider.queries) == 2

    def test_a_scale_up_that_raises_is_503_at_once_and_tried_once_a_step(self) -> None:
        """With 10 requests at once, over and over, for three steps: 1, 2 and 4 s."""
        clock, app = MovingClock(), App()
        ups: list[float] = []

        def scale_up(name: str, namespace: str) -> None:
            ups.append(clock())
            time.sleep(0.02)
            raise OSError("connection refused by 10.0.0.1")

        door = ScaleZeroMiddleware(app, CallbackProvider(scale_up=scale_up, clock=clock), clock=clock)
        begun = clock()
        while clock() < begun + 7.5:
            with ThreadPoolExecutor(10) as pool:
                answers = list(pool.map(lambda _: ask(door), range(10)))
            for status, headers, _ in answers:
                assert status == "503 SERVICE UNAVAILABLE"
                assert 1 <= int(headers["Retry-After"]) <= 8 * 1.2 + 0.5  # the step, and its jitter
            clock.advance(0.1)
        assert len(ups) == 4
        gaps = [later - earlier for earlier, later in itertools.pairwise(ups)]
        assert all(gap >= step for gap, step in zip(gaps, (1, 2, 4), strict=True))
        assert app.calls == []


class Closing:
    """An iterable that counts how often it was closed."""

    def __init__(self, owner: Any, chunks: list[bytes]) -> None:
        self.owner = owner
        self.chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.chunks)

    def close(self) -> None:
        self.owner.closed += 1


WRAPPERS: list[Callable[[Any], Any]] = [
    lambda app: app,
    wsgiref.validate.validator,
    LintMiddleware,
    webtest_lint,
]


class TestTheContractOfWSGI:
    """Each app, warm and passed through, with the checkers of three projects above and below the door."""

    @staticmethod
    def both_ways(app: Any, wrap: Callable[[Any], Any]) -> list[Any]:
        door = ScaleZeroMiddleware(wrap(app), ScriptedProvider(UP), cache_expiry=60)
        ask(door)
        return [(wrap(door), "/function/hello"), (wrap(door), "/other")]

    @pytest.mark.parametrize("wrap", WRAPPERS)
    def test_a_list(self, wrap: Callable[[Any], Any]) -> None:
        for app, path in self.both_ways(App(), wrap):
            assert ask(app, path)[0] == "200 OK"

    @pytest.mark.parametrize("wrap", WRAPPERS)
    def test_a_generator(self, wrap: Callable[[Any], Any]) -> None:
        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])
            yield b"one "
            yield b"two"

        for door, path in self.both_ways(app, wrap):
            assert ask(door, path)[2] == b"one two"

    @pytest.mark.parametrize("wrap", WRAPPERS)
    def test_write(self, wrap: Callable[[Any], Any]) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain")])(b"written ")
            return [b"returned"]

        for door, path in self.both_ways(app, wrap):
            assert ask(door, path)[2] == b"written returned"

    @pytest.mark.parametrize("wrap", [wrap for wrap in WRAPPERS if wrap is not LintMiddleware])
    def test_head(self, wrap: Callable[[Any], Any]) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "5")])
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"hello"]

        for door, path in self.both_ways(app, wrap):
            assert ask(door, path, method="HEAD") == (
                "200 OK",
                {"Content-Type": "text/plain", "Content-Length": "5"},
                b"",
            )

    @pytest.mark.parametrize("wrap", WRAPPERS[:3])
    def test_exc_info(self, wrap: Callable[[Any], Any]) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            import sys

            start_response("200 OK", [("Content-Type", "text/plain")])
            try:
                raise ValueError
            except ValueError:
                start_response("500 Oops", [("Content-Type", "text/plain")], sys.exc_info())
            return [b"sorry"]

        for door, path in self.both_ways(app, wrap):
            assert ask(door, path)[0] == "500 Oops"

    @pytest.mark.parametrize("wrap", WRAPPERS)
    def test_our_own_answers(self, wrap: Callable[[Any], Any]) -> None:
        for error in (FunctionNotFound("hello"), ProviderError("x")):
            door = wrap(ScaleZeroMiddleware(App(), ScriptedProvider(error), max_wait=0.3))
            # werkzeug's checker knows no HEAD: it counts the body that is not there.
            for method in ("GET",) if wrap is LintMiddleware else ("GET", "HEAD"):
                assert ask(door, method=method)[0][:3] in {"404", "502"}

    def test_close_is_called_once_and_the_use_ends(self) -> None:
        class Owner:
            closed = 0

        owner = Owner()

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return Closing(owner, [b"x"])

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP), cache_expiry=60)
        ask(door)
        result = door(environ_of(), lambda *_: lambda _: None)
        assert list(result) == [b"x"]
        assert in_flight(door) == 1
        result.close()  # type: ignore[attr-defined]
        result.close()  # type: ignore[attr-defined]
        assert in_flight(door) == 0

    def test_a_close_that_raises_ends_the_use_all_the_same(self) -> None:
        class Bad(list[bytes]):
            def close(self) -> None:
                raise OSError("disk")

        class Result:
            def __iter__(self) -> Iterator[bytes]:
                return iter([b""])

            def close(self) -> None:
                raise OSError("disk")

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return Result()

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP), cache_expiry=60)
        with pytest.raises(OSError, match="disk"):
            ask(door)
        assert in_flight(door) == 0

    def test_pieces_are_seen_as_they_come_and_cost_nothing(self) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"one"
            yield b"two"

        made = pieces()

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return made

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        result = door(environ_of(), lambda *_: lambda _: None)
        # No Python code runs for a piece.
        assert type(iter(result)).__next__ is itertools.chain.__next__

    def test_a_generator_that_is_closed_before_it_is_read(self) -> None:
        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("200 OK", [])
            yield b"x"

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        result = door(environ_of(), lambda *_: lambda _: None)
        assert in_flight(door) == 1
        result.close()  # type: ignore[attr-defined]
        assert in_flight(door) == 0

    def test_a_generator_that_raises_at_once(self) -> None:
        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            yield environ["no.such.key"]

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        with pytest.raises(KeyError):
            ask(door)
        assert in_flight(door) == 0

    def test_a_tuple_is_handed_on_as_it_is(self) -> None:
        answer = (b"x",)

        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            return answer

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        assert door(environ_of(), lambda *_: lambda _: None) is answer
        assert in_flight(door) == 0

    def test_an_empty_generator(self) -> None:
        def app(environ: Environ, start_response: Any) -> Iterator[bytes]:
            start_response("204 No Content", [])
            yield from ()

        assert ask(ScaleZeroMiddleware(app, ScriptedProvider(UP)))[::2] == ("204 No Content", b"")

    @pytest.mark.parametrize("error", [ValueError("bug"), SystemExit(1), KeyboardInterrupt()])
    def test_an_app_that_raises_ends_the_use(self, error: BaseException) -> None:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            raise error

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        with pytest.raises(type(error)):
            ask(door)
        assert in_flight(door) == 0


class TestFileWrappers:
    class FileWrapper:
        """As gunicorn and wsgiref make theirs."""

        def __init__(self, file: io.BytesIO, size: int = 8192) -> None:
            self.file = file
            self.close = file.close

        def __iter__(self) -> Iterator[bytes]:
            return iter([self.file.read()])

    def call(self, wrapper: Any, file: Any) -> tuple[ScaleZeroMiddleware, Any]:
        def app(environ: Environ, start_response: Any) -> Iterable[bytes]:
            start_response("200 OK", [])
            result: Iterable[bytes] = environ["wsgi.file_wrapper"](file)
            return result

        door = ScaleZeroMiddleware(app, ScriptedProvider(UP))
        return door, door(environ_of() | {"wsgi.file_wrapper": wrapper}, lambda *_: lambda _: None)

    def test_the_server_gets_its_own_wrapper_and_its_close_counts(self) -> None:
        file = io.BytesIO(b"x")
        door, result = self.call(self.FileWrapper, file)
        assert type(result) is self.FileWrapper
        assert in_flight(door) == 1
        result.close()
        assert in_flight(door) == 0
        assert file.closed

    def test_a_wrapper_that_is_a_function_as_uwsgis(self) -> None:
        file = io.BytesIO(b"x")
        door, result = self.call(lambda file: file, file)
        assert result is file
        assert in_flight(door) == 1
        result.close()
        assert in_flight(door) == 0

    def test_a_file_that_takes_no_attribute_is_handed_on_as_it_is(self) -> None:
        class File:
            __slots__ = ()

            def read(self) -> bytes:
                return b""

        file = File()
        door, result = self.call(lambda file: file, file)
        assert result is file
        assert in_flight(door) == 0

    def test_a_wrapper_is_closed_though_its_file_has_no_close(self) -> None:
        class Bare:
            def __init__(self, file: object) -> None:
                pass

            def __iter__(self) -> Iterator[bytes]:
                return iter([])

        door, result = self.call(Bare, None)
        result.close()
        assert in_flight(door) == 0

    def test_another_iterable_beside_a_wrapper(self) -> None:
        door, result = self.call(lambda file: iter([b"x"]), None)
        assert list(result) == [b"x"]
        result.close()
        assert in_flight(door) == 0


class TestSettings:
    def test_keywords_win_over_settings(self) -> None:
        settings = Settings.from_mapping({"max_wait": "3s", "replay": False}, prefix="")
        door = ScaleZeroMiddleware(App(), ScriptedProvider(UP), settings=settings, max_wait=4)
        assert (door.settings.max_wait, door.settings.replay) == (4.0, False)

    @pytest.mark.parametrize("provider", [None, object(), "http://gateway", "dokcer"])
    def test_a_provider_that_is_none_stops_the_start(self, provider: Any) -> None:
        with pytest.raises(SettingError, match="provider"):
            ScaleZeroMiddleware(App(), provider)

    def test_an_unknown_keyword_is_named(self) -> None:
        with pytest.raises(SettingError, match="max_wiat is not a setting; did you mean max_wait"):
            ScaleZeroMiddleware(App(), ScriptedProvider(UP), max_wiat=3)  # type: ignore[call-arg]


def test_the_log_tells_of_a_wake(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "scalezero_wsgi")
    ask(ScaleZeroMiddleware(App(), FakeEngine(time.monotonic)))
    assert "hello: requested 0 → 1 replicas" in caplog.text
    assert "hello: ready after 0." in caplog.text


def test_webtest_can_drive_it() -> None:
    client = TestApp(ScaleZeroMiddleware(App(), FakeEngine(time.monotonic)))
    assert client.get("/function/hello").body == b"200 OK"
    assert client.get("/function/Bad", status=400).json["title"] == "Bad Request"
