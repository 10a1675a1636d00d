"""The hooks that tell others: real sockets, real HTTP."""

from __future__ import annotations

import io
import json
import os
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from webtest import TestApp

from scalezero_wsgi import Function, ProviderError, ScaleZeroMiddleware, SettingError
from scalezero_wsgi.events import (
    CoordinationRestored,
    Event,
    FunctionPaused,
    FunctionReady,
    FunctionStopped,
    ProviderFailed,
    RequestReplayed,
    ScaleRequested,
    StartFailed,
    as_dict,
)
from scalezero_wsgi.integrations import webhook as module
from scalezero_wsgi.integrations.logs import JsonLog
from scalezero_wsgi.integrations.statsd import Statsd
from scalezero_wsgi.integrations.webhook import Webhook
from tests.support.fakes import UP, ZERO, ScriptedProvider
from tests.support.waiting import until

HELLO = Function("hello", "dev")
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PATIENCE = 10.0


@pytest.mark.parametrize(
    ("event", "told"),
    [
        (
            FunctionReady(HELLO, 1.5, False),
            {"event": "function_ready", "function": "hello.dev", "after": 1.5, "led": False},
        ),
        (
            ProviderFailed(HELLO, ProviderError("no")),
            {"event": "provider_failed", "function": "hello.dev", "error": "no"},
        ),
        (CoordinationRestored(), {"event": "coordination_restored"}),
    ],
)
def test_an_event_as_a_dict(event: Event, told: dict[str, Any]) -> None:
    assert as_dict(event) == told


def test_lines_of_json() -> None:
    stream = io.StringIO()
    log = JsonLog(stream, clock=lambda: 1700000000.25)
    log(StartFailed(HELLO, "line\nand \u2603", 2.0))
    log(CoordinationRestored())
    first, second = stream.getvalue().splitlines()
    assert json.loads(first) == {
        "time": 1700000000.25,
        "pid": os.getpid(),
        "event": "start_failed",
        "function": "hello.dev",
        "reason": "line\nand \u2603",
        "retry_after": 2.0,
    }
    assert json.loads(second)["event"] == "coordination_restored"


def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    start_response("502 BAD GATEWAY" if "HTTP_FAIL" in environ else "200 OK", [("Content-Type", "a/b")])
    return [b"ok"]


@pytest.mark.parametrize(
    ("script", "settings", "events"),
    [
        ((ZERO,), {"max_wait": 0.02}, ["wait_given_up"]),
        ((ProviderError("no"),), {"max_wait": 0.02}, ["wait_given_up"]),
        ((UP, ZERO, UP), {"max_wait": 5.0}, ["request_replayed"]),
        ((UP, ZERO, ZERO), {"max_wait": 0.02}, ["wait_given_up"]),
    ],
)
@pytest.mark.parametrize("given", ["a-call", ""])
def test_a_line_about_one_request_has_the_call_id_that_its_client_is_told(
    script: tuple[Any, ...], settings: dict[str, Any], events: list[str], given: str
) -> None:
    stream = io.StringIO()
    client = TestApp(
        ScaleZeroMiddleware(
            app, ScriptedProvider(*script), hooks=[JsonLog(stream)], page_after=None, **settings
        )
    )
    if len(script) > 1:  # it is up at first
        client.get("/function/hello")
    headers = {"Fail": "1", "X-Call-Id": given}
    answer = client.get("/function/hello", headers=headers, expect_errors=True)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    told = [line for line in lines if "call_id" in line]
    assert [line["event"] for line in told] == events
    call_id = told[0]["call_id"]
    assert call_id == given or not given
    if events != ["request_replayed"]:  # its answer is the function's
        assert answer.headers["X-Call-Id"] == call_id != ""


def test_so_has_a_line_about_one_that_was_refused() -> None:
    stream, up = io.StringIO(), threading.Event()
    provider = ScriptedProvider(lambda: UP if up.is_set() else ZERO)
    middleware = ScaleZeroMiddleware(app, provider, hooks=[JsonLog(stream)], max_waiting=1)
    client = TestApp(middleware)
    waits = threading.Thread(target=client.get, args=("/function/hello",))
    waits.start()
    try:
        until(lambda: middleware.queue.waiting() == 1)
        answer = client.get("/function/hello", status=503)
    finally:
        up.set()
        waits.join(PATIENCE)
    (told,) = [json.loads(line) for line in stream.getvalue().splitlines() if "call_id" in line]
    assert (told["event"], told["call_id"]) == ("request_refused", answer.headers["X-Call-Id"])


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_line_of_json_can_be_written_to_any_stream(encoding: str) -> None:
    written = io.BytesIO()
    stream = io.TextIOWrapper(written, encoding)
    JsonLog(stream)(StartFailed(HELLO, "no \u2603 at /srv/\udcff", 2.0))
    assert json.loads(written.getvalue())["reason"] == "no \u2603 at /srv/\udcff"


@pytest.mark.parametrize(
    ("options", "event", "line"),
    [
        ({}, ScaleRequested(HELLO, 0, 1), "scalezero.scale_requested:1|c"),
        ({}, FunctionReady(HELLO, 0.25), "scalezero.function_ready:250.000|ms"),
        ({}, RequestReplayed(HELLO, 0.5), "scalezero.request_replayed:500.000|ms"),
        ({"prefix": ""}, CoordinationRestored(), "coordination_restored:1|c"),
        ({"tags": True}, ScaleRequested(HELLO, 0, 1), "scalezero.scale_requested:1|c|#function:hello.dev"),
        ({"tags": True}, ProviderFailed(HELLO, ProviderError("no")), "scalezero.provider_failed:1|c"),
    ],
)
def test_statsd(options: dict[str, Any], event: Event, line: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        hook = Statsd("127.0.0.1", server.getsockname()[1], **options)
        hook(event)
        assert server.recv(1000).decode() == line
        hook._socket.get().close()


def test_a_start_counts_once_for_statsd_however_many_workers_waited_for_it() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(PATIENCE)
        hook = Statsd("127.0.0.1", server.getsockname()[1])
        hook(FunctionReady(HELLO, 0.25, led=False))
        hook(FunctionReady(HELLO, 0.5))
        assert server.recv(1000) == b"scalezero.function_ready:500.000|ms"
        hook._socket.get().close()


def test_statsd_that_is_not_there_is_not_noticed() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        hook = Statsd("127.0.0.1", server.getsockname()[1])
    for _ in range(3):
        hook(CoordinationRestored())
    hook._socket.get().close()


def test_statsd_names_a_host_that_is_none() -> None:
    with pytest.raises(SettingError, match="statsd: 'no host', port 8125 is not an address"):
        Statsd("no host")


class Receiver:
    """Takes the POSTs, and answers with what is in ``answers``, then with 200."""

    def __init__(self) -> None:
        self.seen: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.seen.append(({name.lower(): text for name, text in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.seen]

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def test_a_webhook_tells_of_starts_and_stops_and_of_nothing_else(receiver: Receiver) -> None:
    hook = Webhook(receiver.url)
    for event in (
        ScaleRequested(HELLO, 0, 1),
        FunctionReady(HELLO, 1.0, led=False),  # a follower's: its leader says the same
        FunctionReady(HELLO, 1.0),
        StartFailed(HELLO, "no", 1.0),
        FunctionStopped(HELLO, 1.0),
        FunctionPaused(HELLO, 1.0),
    ):
        hook(event)
    until(lambda: len(receiver.seen) == 4)
    assert receiver.events() == ["function_ready", "start_failed", "function_stopped", "function_paused"]
    assert "webhook-signature" not in receiver.seen[0][0]


def test_it_is_signed_by_the_standard(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key and the signed text are those of the specification's own example."""
    body = b'{"test": 2432232314}'
    delivery = module._Delivery("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body)
    assert (
        module._signature(module._key(SECRET), delivery) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
    Webhook(receiver.url, secret=SECRET, clock=lambda: 1614265330.5)(FunctionStopped(HELLO, 1.0))
    until(lambda: receiver.seen)
    headers, body = receiver.seen[0]
    told = module._Delivery(headers["webhook-id"], int(headers["webhook-timestamp"]), body)
    assert told.time == 1614265330
    assert headers["webhook-signature"] == module._signature(module._key(SECRET), told)


def test_it_is_tried_again_under_the_same_id(receiver: Receiver) -> None:
    pauses: list[float] = []
    receiver.answers = [500, 503]
    times = iter(range(1000, 1010))
    hook = Webhook(receiver.url, pause=pauses.append, clock=lambda: next(times))
    hook(FunctionStopped(HELLO, 1.0))
    until(lambda: len(receiver.seen) == 3)
    # Each has its own time, for receivers refuse what is old; the event keeps its own.
    stamps = [headers["webhook-timestamp"] for headers, _ in receiver.seen]
    assert stamps == sorted(set(stamps))
    assert {json.loads(body)["time"] for _, body in receiver.seen} == {1000}
    assert len({headers["webhook-id"] for headers, _ in receiver.seen}) == 1
    assert pauses == [1.0, 2.0]


@pytest.mark.parametrize(("answers", "tries"), [([500] * 9, 5), ([410], 1), ([302] * 9, 5)])
def test_one_that_cannot_be_delivered_is_given_up_and_logged(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, answers: list[int], tries: int
) -> None:
    receiver.answers = list(answers)
    Webhook(f"{receiver.url}?token=secret", pause=lambda _: None)(FunctionStopped(HELLO, 1.0))
    until(lambda: "was not delivered" in caplog.text)
    assert len(receiver.seen) == tries
    assert f"it answered {answers[0]}" in caplog.text
    assert "token" not in caplog.text


def test_a_receiver_that_is_not_there_is_logged_without_its_url(caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/?token=secret"
    Webhook(url, pause=lambda _: None)(FunctionStopped(HELLO, 1.0))
    until(lambda: "was not delivered: ConnectionError" in caplog.text)
    assert "token" not in caplog.text


def test_too_many_are_dropped_and_the_hook_never_blocks(
    receiver: Receiver, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 2)
    held = threading.Event()
    receiver.answers = [500]
    hook = Webhook(receiver.url, pause=lambda _: held.wait(PATIENCE))
    hook(FunctionStopped(HELLO, 1.0))
    until(lambda: receiver.seen)  # its thread waits between two tries
    for _ in range(3):
        hook(FunctionStopped(HELLO, 1.0))
    assert "more than 2 events wait; one is dropped" in caplog.text
    held.set()
    until(lambda: len(receiver.seen) == 4)


def test_one_thread_delivers_however_many_events_come_first_at_once(receiver: Receiver) -> None:
    def threads() -> int:
        return sum(thread.name == "scalezero-webhook" for thread in threading.enumerate())

    before, barrier = threads(), threading.Barrier(8)
    hook = Webhook(receiver.url)

    def tell() -> None:
        barrier.wait(PATIENCE)
        hook(FunctionStopped(HELLO, 1.0))

    tellers = [threading.Thread(target=tell) for _ in range(8)]
    for each in tellers:
        each.start()
    for each in tellers:
        each.join(PATIENCE)
    assert threads() == before + 1
    until(lambda: len(receiver.seen) == 8)


@pytest.mark.parametrize("url", ["ftp://host/", "host", "http://", "", "http://[::1/x", "http://host:port/"])
def test_a_url_that_is_none(url: str) -> None:
    with pytest.raises(SettingError, match="must be an http:// or https:// URL"):
        Webhook(url)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_c2hvcnQ=", "whsec_not base64!"])
def test_a_secret_that_is_none_is_not_shown(secret: str) -> None:
    with pytest.raises(SettingError, match="must be 'whsec_' and 24 bytes or more in base64") as raised:
        Webhook("http://127.0.0.1/", secret=secret)
    assert not secret.removeprefix("whsec_") or secret not in str(raised.value)
