"""How much of the package one cold request runs through, whose provider is ready at once.

    python -m tests.bench.cold_calls [--functions]

Counts with ``sys.setprofile`` in all threads: calls, distinct functions and modules, and how many frames of
the package the caller and the leader are deep. ``--functions`` lists the functions.

A caller that finds its flight landed does not sleep, so the count would depend on which thread runs first.
The provider therefore answers once the caller sleeps, and the count ends when the leader has ended: each run
counts the longest way.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple, cast

import scalezero_wsgi
from scalezero_wsgi import ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi._lib.sleeper import Sleeper
from scalezero_wsgi.coordination.memory import MemoryCoordination
from tests.support.clock import Clock
from tests.support.waiting import until

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

OF_ALL = {"scalezero-heartbeat", "scalezero-lookout"}
"""Threads that all requests share, and that work by the clock."""

PACKAGE = str(Path(scalezero_wsgi.__file__).parent)


class Provider:
    """Its functions are ready as soon as asked to be; it answers when the caller has begun to wait."""

    def __init__(self) -> None:
        self.up: set[str] = set()
        self._caller = threading.get_ident()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        until(lambda: sys._current_frames()[self._caller].f_code is Sleeper.sleep.__code__)
        return ReplicaStatus(1, 1) if name in self.up else ReplicaStatus(0, 0)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self.up.add(name)


class Count(NamedTuple):
    calls: int
    functions: frozenset[str]
    modules: int
    caller_depth: int
    leader_depth: int

    def __str__(self) -> str:
        return (
            f"{self.calls} calls of {len(self.functions)} functions in {self.modules} modules;"
            f" the caller {self.caller_depth} frames deep, the leader {self.leader_depth}"
        )


def count(store: bool) -> Count:
    """Count one cold request, after another function's has made what is made on first use.

    :param store: whether workers meet in a :class:`MemoryCoordination`.
    """

    coordination = MemoryCoordination(clock=Clock()) if store else None  # nor does it tidy up by the clock
    middleware = ScaleZeroMiddleware(_app, Provider(), coordination=coordination)
    calls: list[tuple[str, str]] = []
    depths: dict[str, int] = {}
    caller = threading.current_thread().name

    def seen(frame: FrameType, event: str, _: object) -> None:
        file, name = frame.f_code.co_filename, frame.f_code.co_qualname
        thread = threading.current_thread().name
        if event != "call" or not file.startswith(PACKAGE) or thread in OF_ALL:
            return
        if name.endswith(("comp>", "<genexpr>")):  # a part of its function
            return
        depth, outer = 0, cast("FrameType | None", frame)
        while outer is not None:
            depth += outer.f_code.co_filename.startswith(PACKAGE)
            outer = outer.f_back
        depths[thread] = max(depths.get(thread, 0), depth)
        calls.append((file, name))

    with ended_leaders():
        _ask(middleware, "first")
    threading.setprofile(seen)
    sys.setprofile(seen)
    try:
        with ended_leaders():
            _ask(middleware, "second")
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return Count(
        len(calls),
        frozenset(f"{Path(file).relative_to(PACKAGE)}: {name}" for file, name in calls),
        len({file for file, _ in calls}),
        depths.pop(caller),
        max(depths.values()),
    )


@contextlib.contextmanager
def ended_leaders() -> Iterator[None]:
    """Wait at the end of the block until no thread leads a flight any more."""
    yield
    until(lambda: not any("activation" in thread.name for thread in threading.enumerate()))


def _app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


def _ask(middleware: ScaleZeroMiddleware, name: str) -> None:
    environ = {"PATH_INFO": f"/function/{name}", "REQUEST_METHOD": "GET", "wsgi.multithread": True}
    for _ in middleware(environ, lambda *_: lambda _: None):
        pass


if __name__ == "__main__":
    for store in (False, True):
        counted = count(store)
        print("with the memory store:" if store else "without a store:", counted)
        if "--functions" in sys.argv:
            print(*sorted(counted.functions), sep="\n")
