"""The middleware's two neighbours: an application behind it, and a server with its clients before it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from werkzeug.test import EnvironBuilder

from scalezero_wsgi import Function, ScaleZeroMiddleware
from scalezero_wsgi.activation.state import FunctionState
from scalezero_wsgi.servers import watch
from tests.support.clock import Clock
from tests.support.fakes import HELLO
from tests.support.waiting import PATIENCE, until

Environ = dict[str, Any]
Answer = tuple[str, dict[str, str], bytes]

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8", "Sec-Fetch-Mode": "navigate"}
STATUS = "/function/.scalezero/status/"


class App:
    """A WSGI app that writes down what it gets and answers by a script whose last step repeats."""

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers or ["200 OK"])
        self.calls: list[Environ] = []

    def __call__(self, environ: Environ, start_response: Any) -> Iterable[bytes]:
        self.calls.append(dict(environ))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        body = answer.encode()
        start_response(answer, [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
        return [body]


def environ_of(path: str = "/function/hello", **options: Any) -> Environ:
    return EnvironBuilder(path, multithread=True, **options).get_environ()


def ask(app: Any, path: str = "/function/hello", **options: Any) -> tuple[str, dict[str, str], bytes]:
    """Be the server of PEP 3333: the head goes out with the first piece, until then it may change."""
    head: list[Any] = []
    pieces: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        assert exc_info or not head, "start_response was called twice"
        if exc_info and pieces:
            raise exc_info[1]
        head[:] = [status, headers]
        return pieces.append

    result = app(environ_of(path, **options), start_response)
    try:
        pieces.extend(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    return head[0], dict(head[1]), b"".join(pieces)


class Visit:
    """A request in a thread of its own."""

    def __init__(self, door: Any, path: str = "/function/hello", **options: Any) -> None:
        self._ask: Callable[[], Answer] = lambda: ask(door, path, **options)
        self._answer: Answer | BaseException
        self.begun = time.monotonic()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._answer = self._ask()
        except BaseException as error:
            self._answer = error
        self.ended = time.monotonic()

    @property
    def waits(self) -> bool:
        return self._thread.is_alive()

    def answer(self) -> Answer:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        if isinstance(self._answer, BaseException):
            raise self._answer
        return self._answer

    @property
    def status(self) -> str:
        return self.answer()[0]


def waiting(door: ScaleZeroMiddleware) -> int:
    return door.queue.waiting()


def visits(
    door: ScaleZeroMiddleware, number: int, path: str = "/function/hello", **options: Any
) -> list[Visit]:
    """Requests of which all wait already."""
    before = waiting(door)
    made = [Visit(door, path, **options) for _ in range(number)]
    until(lambda: waiting(door) == before + number)
    return made


def held(door: ScaleZeroMiddleware, clock: Clock, seconds: float, **options: Any) -> Answer:
    """The answer to a request that waits for so long by a clock that stands still, and not twice as long."""
    visit = Visit(door, **options)
    until(lambda: waiting(door) or not visit.waits)
    clock.advance(0.99 * seconds)
    time.sleep(3 * watch.CHECK_EVERY)
    assert visit.waits, visit.answer()
    clock.advance(seconds)  # it may have begun to count after the clock was put forward
    return visit.answer()


def usage(door: ScaleZeroMiddleware) -> FunctionState:
    meta = door.cache.find(HELLO)
    assert meta is not None
    return meta.state


def state(door: Any, name: str = "hello", base: str = STATUS, **options: Any) -> str:
    status, headers, body = ask(door, base + name, **options)
    assert (status, headers["Content-Type"], headers["Cache-Control"]) == (
        "200 OK",
        "application/json",
        "no-store",
    )
    return str(json.loads(body)["state"])


def begin(door: Any, path: str = "/function/hello", **options: Any) -> None:
    """Have a function's start begun, as only a request can."""
    answer = ask(door, path, headers={"Prefer": "respond-async", "User-Agent": "curl"}, **options)
    assert answer[0] in {"200 OK", "202 ACCEPTED"}


def in_flight(door: ScaleZeroMiddleware, name: str = "hello") -> int:
    meta = door.cache.find(Function(name))
    return 0 if meta is None else len(meta.state.in_flight)
