"""Pass a request down: count it in flight, and hold back an answer that says that the function could not be
reached, so that the request can be retried."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias

from ..activation.request_queue import RequestQueue
from ..activation.scaler import FunctionScaler
from ..activation.state import FunctionMeta
from ..model import ProviderError, TooManyWaiting
from .negotiation import caller_of

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from ..settings import Settings

UNREACHABLE = frozenset({"502", "503", "504"})
"""The statuses of a proxy that could not reach its function, RFC 9110 section 15.6."""


class PassedDown(NamedTuple):
    """A request as it was passed down.

    :ivar meta: the entry that allowed it.
    :ivar passed_at: when it was passed down, in monotonic seconds.
    :ivar path: its ``PATH_INFO``, before the application moved parts to ``SCRIPT_NAME``.
    :ivar last: whether the application's answer stands, whatever it is.
    """

    environ: WSGIEnvironment
    start_response: StartResponse
    meta: FunctionMeta
    passed_at: float
    path: str
    last: bool


class Replay:
    """Decides whether a request is passed down once more. Safe for threads."""

    def __init__(
        self, settings: Settings, scaler: FunctionScaler, queue: RequestQueue, clock: Callable[[], float]
    ) -> None:
        self._settings = settings
        self._scaler = scaler
        self._queue = queue
        self._clock = clock

    def entry(self, call: PassedDown, arrived: float, sent: bool) -> FunctionMeta | None:
        """Note that the application could not reach the function; hold the request until it has started anew.

        :param arrived: when the request came, in monotonic seconds.
        :param sent: whether a head has gone to the client.
        :return: the entry that allows a retry; ``None`` if the application's answer stands.
        :raises ScaleZeroError: the client gets this error instead.
        """
        meta, state = call.meta, call.meta.state
        # Compare with the entry that allowed the request. The result is then the same in the worker that led
        # the start and in those that learned of it.
        woken_since = state.came_up_at > meta.last_refresh
        wanted = woken_since or self._scaler.mark_suspect(meta)
        if not wanted or sent or call.last or not self._settings.replay or not may_be_repeated(call.environ):
            return None
        if self._was_let_go(call):
            return None
        since = call.passed_at if woken_since else self._clock()
        try:
            caller = caller_of(call.environ, arrived, self._settings.page_after, in_app=True)
            renewed = self._queue.hold(state.function, caller, since)
        except (ProviderError, TooManyWaiting):
            return None
        return renewed if renewed.state.came_up_at > meta.last_refresh else None

    def _was_let_go(self, call: PassedDown) -> bool:
        """Return whether the request did not count as use any more: then it starts no function either."""
        settings = self._settings
        if settings.idle_after is None or settings.stream_idle_after is None:
            return False
        return self._clock() > call.passed_at + settings.stream_idle_after


class Use:
    """A token among those in flight, until the use is ended or this object is dropped.

    Dropped: the server, or a middleware above, has never called ``close``. PEP 3333 asks for it, but a worker
    may be told to stop right before, and many a wrapper forgets it.
    """

    __slots__ = ("_in_flight", "_token")

    def __init__(self, in_flight: set[object], token: object) -> None:
        self._in_flight = in_flight
        self._token = token

    def end(self) -> None:
        """Count no more. Repeated calls count once."""
        self._in_flight.discard(self._token)

    def __del__(self) -> None:
        try:  # noqa: SIM105  for each streamed answer
            self._in_flight.discard(self._token)
        except AttributeError:  # it was cut off while it was made
            pass


class InUse(chain[bytes]):
    """An application's iterable that counts as in flight until it is closed, or nobody has it any more.

    It is an iterator in C, so a chunk costs next to nothing. Each answer of Flask and of Django becomes one:
    so :func:`in_use` sets the attributes, and no method calls another one.

    :ivar result: the application's iterable.
    :ivar token: what the request has in ``in_flight``.
    """

    __slots__ = ("in_flight", "result", "token")

    in_flight: set[object]
    result: Iterable[bytes]
    token: object

    def close(self) -> None:
        """Close the application's iterable and end the use."""
        try:
            end = getattr(self.result, "close", None)
            if end is not None:
                end()
        finally:
            self.in_flight.discard(self.token)

    def __del__(self) -> None:
        try:  # noqa: SIM105  for each answer
            self.in_flight.discard(self.token)
        except AttributeError:  # it was cut off while it was made
            pass


class DeferredStart:
    """The head of a gateway error that has not gone to the server yet, so that the request can be retried.

    :ivar released: whether the head was sent: the app called ``write()``, or no retry was made.
    """

    __slots__ = ("_head", "_start_response", "_write", "released")

    def __init__(self, start_response: StartResponse, *head: Any) -> None:
        self._start_response = start_response
        self._head = head if head[-1] is not None else head[:-1]
        self._write: Callable[[bytes], object]
        self.released = False

    def write(self, data: bytes) -> None:
        """Send the head and the first part of the body: the application's answer stands from here."""
        self.release()
        self._write(data)

    def release(self) -> None:
        """Send the answer's head, unless it was sent already."""
        if not self.released:
            self.released = True
            self._write = self._start_response(*self._head)


class _Sent(Enum):
    COMMITTED = "committed"


COMMITTED: Final = _Sent.COMMITTED
"""Instead of a deferred head: it went to the server as it came."""

Head: TypeAlias = DeferredStart | Literal[_Sent.COMMITTED] | None
"""What became of the head of an application's answer; ``None``: it has none yet."""


class LazyBody(Use):
    """The iterable of an application that begins its answer only on iteration, such as a generator.

    :param reconsider: called once, when the answer has begun or failed to begin. Returns another iterable to
        serve instead, or ``None`` if the answer stands.
    """

    __slots__ = ("_reconsider", "_result")

    def __init__(
        self,
        result: Iterable[bytes],
        reconsider: Callable[[BaseException | None], Iterable[bytes] | None],
        in_flight: set[object],
        token: object,
    ) -> None:
        super().__init__(in_flight, token)
        self._result = result
        self._reconsider = reconsider

    def __iter__(self) -> Iterator[bytes]:
        chunks = iter(self._result)
        try:
            first = next(chunks, None)
        except BaseException as error:
            other = self._reconsider(error)
            if other is None:
                raise
        else:
            other = self._reconsider(None)
        if other is not None:
            self._result = other
            chunks = iter(other)
        elif first is not None:
            yield first
        yield from chunks

    def close(self) -> None:
        """Close the iterable that was served, and end the use."""
        try:
            close(self._result)
        finally:
            self.end()


def close(result: object) -> None:
    """Call the iterable's ``close``, if it has one (PEP 3333, "Specification Details")."""
    end = getattr(result, "close", None)
    if end is not None:
        end()


def in_use(
    result: Iterable[bytes], environ: WSGIEnvironment, in_flight: set[object], token: object
) -> Iterable[bytes]:
    """Count ``token`` in flight until the server has closed ``result``."""
    if isinstance(result, (list, tuple)):
        in_flight.discard(token)
        return result
    wrapper = environ.get("wsgi.file_wrapper")
    if wrapper is not None and is_server_file(result, wrapper):
        return _file_in_use(result, in_flight, token)
    use = InUse(result)
    use.in_flight, use.token, use.result = in_flight, token, result
    return use


def is_server_file(result: object, wrapper: Any) -> bool:
    """Return whether the server will recognise ``result`` as its own file wrapper, and send the file."""
    if isinstance(wrapper, type):
        return isinstance(result, wrapper)
    return hasattr(result, "read")  # uWSGI's wrapper is a function that returns the file


def _file_in_use(result: Any, in_flight: set[object], token: object) -> Iterable[bytes]:
    end, use = getattr(result, "close", None), Use(in_flight, token)

    def close_file() -> None:
        try:
            if end is not None:
                end()
        finally:
            use.end()

    with contextlib.suppress(
        AttributeError
    ):  # a C object: the server needs it as it is, so stop counting now
        result.close = close_file
    return result  # type: ignore[no-any-return]


def may_be_repeated(environ: WSGIEnvironment) -> bool:
    """Return whether a request is safe (RFC 9110 section 9.2.1) and has no body."""
    return (
        environ.get("REQUEST_METHOD") in {"GET", "HEAD", "OPTIONS"}
        and environ.get("CONTENT_LENGTH") in {None, "", "0"}
        and "HTTP_TRANSFER_ENCODING" not in environ
    )


def is_connection_error(error: BaseException) -> bool:
    """Return whether a proxying application raised ``error`` because it could not reach its function."""
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    if not isinstance(error, Exception):
        return False
    # Imported late: an application that does not use them should not pay for them.
    import requests
    import urllib3

    return isinstance(error, (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError))


def restore_path(environ: WSGIEnvironment, path: str) -> None:
    """Move back to ``PATH_INFO`` what a dispatcher below has moved to ``SCRIPT_NAME``."""
    whole = environ.get("SCRIPT_NAME", "") + environ.get("PATH_INFO", "")
    if whole.endswith(path):
        environ["SCRIPT_NAME"] = whole[: len(whole) - len(path)]
    environ["PATH_INFO"] = path


def start_with_timing(
    start_response: StartResponse,
    waited: float,
    status: str,
    headers: list[tuple[str, str]],
    exc_info: Any = None,
) -> Any:
    """Start a response that says how long the request waited, in milliseconds (W3C Server Timing).

    :param waited: seconds.
    """
    headers = [*headers, ("Server-Timing", f"cold-start;dur={waited * 1000:.1f}")]
    return start_response(status, headers, *([] if exc_info is None else [exc_info]))
