"""One worker of a fleet, as a process that a test can kill, stop and starve.

``python -m tests.unit.coordination.crowd '{"directory": …, "url": …}'`` serves a middleware to threads.
The functions are files in the directory, so that all workers have the same; what happens is a line each in
their log. Commands are lines of JSON, and so is the answer to each; at the end of its input a worker leaves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.test import create_environ, run_wsgi_app

from scalezero_wsgi import ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.coordination import Coordination, make_coordination
from scalezero_wsgi.coordination.base import Lease, SharedStatus
from scalezero_wsgi.events import CoordinationLost, CoordinationRestored, Event

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

ASKED, ZERO, STARTING, SETTING = "asked", "zero", "starting", "setting"
"""Moments of a flight: before the query, after one that told of zero, after one that told of a start under
way, and after the last check before the function is scaled up."""


@dataclass(frozen=True)
class Setup:
    """What a worker is told.

    :param start: seconds that a function needs to start.
    :param log: the file descriptor of the log.
    :param humble: whether a root worker loses the right to do what modes of files forbid.
    """

    directory: str
    url: str
    start: float = 1.0
    log: int = -1
    humble: bool = False


class Site:
    """The functions that a fleet has in common, and its log: a pipe, whose size no limit cuts."""

    def __init__(self, directory: Path, log: int) -> None:
        self.directory = directory
        self._log = log

    def write(self, what: str, function: str = "-", detail: object = "-") -> float:
        """Add a line to the log, whole whoever else does; return its time."""
        now = time.monotonic()
        os.write(self._log, f"{now:.6f} {os.getpid()} {what} {function} {detail}\n".encode()[:1000])
        return now

    def status(self, function: str) -> ReplicaStatus:
        try:
            ready_at = float(self._file(function).read_text("utf-8"))
        except FileNotFoundError:
            return ReplicaStatus(0, 0)
        return ReplicaStatus(1, int(time.monotonic() >= ready_at))

    def scale_up(self, function: str, start: float) -> None:
        half = self.directory / f"half-{os.getpid()}-{threading.get_ident()}"
        half.write_text(f"{time.monotonic() + start}", "utf-8")
        half.replace(self._file(function))

    def to_zero(self, function: str) -> float:
        self._file(function).unlink(missing_ok=True)
        return self.write("gone", function)

    def stop_at(self, moment: str) -> None:
        """Have the first worker stopped whose flight comes to that moment."""
        (self.directory / f"stop-{moment}").touch()

    def reach(self, moment: str, function: str) -> None:
        try:
            (self.directory / f"stop-{moment}").unlink()
        except FileNotFoundError:
            return
        self.write("stopped", function, moment)
        # This thread, at once; os.kill() might reach another one first.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    def _file(self, function: str) -> Path:
        return self.directory / f"up-{function}"


class FileProvider:
    def __init__(self, site: Site, start: float) -> None:
        self._site = site
        self._start = start

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        self._site.write("get", name)
        self._site.reach(ASKED, name)
        status = self._site.status(name)
        self._site.write("got", name, f"{status.replicas}/{status.available_replicas}")
        if not status.available_replicas:
            self._site.reach(STARTING if status.replicas else ZERO, name)
        return status

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self._site.reach(SETTING, name)
        self._site.write("set", name, replicas)
        self._site.scale_up(name, self._start)


def watch(store: Coordination, site: Site) -> Coordination:
    """Have the log tell which publications were taken."""
    publish = store.publish

    def told(lease: Lease, known: SharedStatus) -> bool:
        taken = publish(lease, known)
        site.write("published", lease.function.name, taken)
        return taken

    store.publish = told  # type: ignore[method-assign]
    return store


def app(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    start_response("200 OK", [])
    return [b""]


class Worker:
    def __init__(self, setup: Setup) -> None:
        self.site = Site(Path(setup.directory), setup.log)
        self._answers: Counter[str] = Counter()
        self._slowest = 0.0
        self._loading = threading.Event()
        self._loaders: list[threading.Thread] = []
        self._middleware = ScaleZeroMiddleware(
            app,
            FileProvider(self.site, setup.start),
            coordination=watch(make_coordination(setup.url), self.site),
            hooks=(self._note,),
            max_waiting=1000,
        )

    def _note(self, event: Event) -> None:
        if isinstance(event, CoordinationLost | CoordinationRestored):
            error = getattr(event, "error", "")
            self.site.write("event", "-", f"{type(event).__name__} {error}".replace("\n", " "))

    def request(self, function: str) -> str:
        environ = create_environ(f"/function/{function}")
        return run_wsgi_app(self._middleware, environ)[1]

    def ask(self, function: str, threads: int, at: float) -> list[tuple[float, str]]:
        """So many requests at once, at a time; when each was answered, and with what."""
        answers: list[tuple[float, str]] = []

        def one() -> None:
            time.sleep(max(0.0, at - time.monotonic()))
            status = self.request(function)
            answers.append((time.monotonic(), status))

        run([one] * threads)
        return answers

    def load(self, functions: Sequence[str]) -> None:
        """Begin a steady load: one thread for each function."""

        def steadily(function: str) -> None:
            answers: Counter[str] = Counter()
            while self._loading.is_set():
                begun = time.monotonic()
                answers[self.request(function)] += 1
                self._slowest = max(self._slowest, time.monotonic() - begun)
                time.sleep(0.01)
            self._answers += answers

        self._loading.set()
        self._loaders = [threading.Thread(target=steadily, args=(each,)) for each in functions]
        for thread in self._loaders:
            thread.start()

    def unload(self) -> tuple[dict[str, int], float]:
        """End the load; how many answers of each kind there were, and after how many seconds the slowest."""
        self._loading.clear()
        for thread in self._loaders:
            thread.join()
        done = dict(self._answers), self._slowest
        self._answers, self._slowest = Counter(), 0.0
        return done

    def measure(self) -> tuple[int, int]:
        """Threads and open files."""
        return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def run(calls: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main(setup: Setup) -> None:
    worker = Worker(setup)
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, command)(*arguments)), flush=True)


def command(setup: Setup) -> list[str]:
    humbled = ["setpriv", "--bounding-set=-dac_override"] if setup.humble and os.geteuid() == 0 else []
    return [*humbled, sys.executable, "-m", "tests.unit.coordination.crowd", json.dumps(asdict(setup))]


if __name__ == "__main__":
    arguments: dict[str, Any] = json.loads(sys.argv[1])
    main(Setup(**arguments))
