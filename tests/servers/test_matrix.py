"""What a waiting request does, under each server that the package is for.

uWSGI is compiled when it is installed, so it is an engine: ``SCALEZERO_TEST_UWSGI`` names its executable.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from http.client import HTTPResponse
from typing import Any

import pytest

from scalezero_wsgi.servers.server import UNKNOWN_CAPACITY, room_to_wait
from tests.engines.engine import engine
from tests.servers.harness import Server, free_port, serving
from tests.servers.matrix_client import Answer, ask, connect, hold, read, request, reset, sent
from tests.support.waiting import until

# Timed, and more than a minute in all: for CI, with the engines.
pytestmark = [pytest.mark.engine, pytest.mark.measured]

SITE = "tests.servers.matrix_site:application"
MAX_WAIT = 0.5
ENV = {"SCALEZERO_MAX_WAIT_OF": f"late={MAX_WAIT}"}
PYTHON = [sys.executable, "-m"]


@dataclass(frozen=True)
class Setup:
    """A server's command for an address, and how many requests it serves at once.

    ``room`` is how many may wait where they take none of its places.
    """

    command: Callable[[int | str], list[str]]
    places: int
    unix: bool = False
    room: int | None = None

    @property
    def env(self) -> dict[str, str]:
        return ENV if self.room is None else {**ENV, "SCALEZERO_MAX_WAITING": str(self.room)}

    @property
    def alone(self) -> bool:
        return self.places == 1


def gunicorn(worker: str, *options: str) -> Callable[[int | str], list[str]]:
    def command(port: int | str) -> list[str]:
        bind = f"unix:{port}" if isinstance(port, str) else f"127.0.0.1:{port}"
        conf = ["-c", "python:tests.servers.matrix_conf", "--no-control-socket"]
        return [*PYTHON, "gunicorn", SITE, "-b", bind, "-k", worker, *conf, *options]

    return command


def uwsgi(*options: str) -> Callable[[int | str], list[str]]:
    def command(port: int | str) -> list[str]:
        program = str(engine("SCALEZERO_TEST_UWSGI"))
        home = [] if sys.prefix == sys.base_prefix else ["--home", sys.prefix]
        start = [program, "--http-socket", f"127.0.0.1:{port}", "--module", SITE, "--need-app", *home]
        return [*start, "--master", "--die-on-term", "--enable-threads", *options]

    return command


SETUPS = {
    "gunicorn-sync": Setup(gunicorn("sync"), 1),
    "gunicorn-sync-unix": Setup(gunicorn("sync"), 1, unix=True),
    "gunicorn-gthread": Setup(gunicorn("gthread", "--threads", "4"), 4, room=12),
    "gunicorn-gthread-unix": Setup(gunicorn("gthread", "--threads", "4"), 4, unix=True, room=12),
    "gunicorn-gevent": Setup(gunicorn("gevent", "--worker-connections", "16"), 16),
    "gunicorn-gevent-unix": Setup(gunicorn("gevent", "--worker-connections", "16"), 16, unix=True),
    "waitress": Setup(
        lambda port: [*PYTHON, "waitress", f"--listen=127.0.0.1:{port}", "--threads=4", SITE], 4, room=12
    ),
    # By default it has 5 connections wait to be accepted: to others the system answers a second later.
    "cheroot": Setup(
        lambda port: [
            *(*PYTHON, "cheroot", SITE, "--bind", f"127.0.0.1:{port}"),
            *("--threads", "4", "--request-queue-size", "128"),
        ],
        4,
        room=12,
    ),
    "werkzeug": Setup(lambda port: [*PYTHON, "tests.servers.matrix_werkzeug", str(port)], UNKNOWN_CAPACITY),
    "uwsgi-threads": Setup(uwsgi("--threads", "8"), 8),
    "uwsgi-single": Setup(uwsgi(), 1),
    "uwsgi-gevent": Setup(uwsgi("--gevent", "16", "--gevent-monkey-patch"), 16),
}


def params(alone: bool | None = None) -> list[Any]:
    """All setups, or only those that serve one request at a time, or only the others."""
    return [
        pytest.param(setup, id=name, marks=[pytest.mark.engine] if name.startswith("uwsgi") else [])
        for name, setup in SETUPS.items()
        if alone in (None, setup.alone)
    ]


@dataclass(frozen=True)
class Site:
    """A server that runs, and how it was set up."""

    setup: Setup
    server: Server

    def ask(self, path: str) -> Answer:
        return ask(self.server.address, path)

    def counts(self) -> dict[str, Any]:
        counts: dict[str, Any] = self.ask("/counts").json
        return counts

    def until_waiting(self, count: int) -> None:
        """Until so many requests wait. Who serves one at a time cannot be asked, and gets a moment."""
        if self.setup.alone:
            time.sleep(0.3)
        else:
            until(lambda: self.counts()["waiting"] == count)


@pytest.fixture(scope="module", params=params())
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    setup: Setup = request.param
    directory = tmp_path_factory.mktemp("server")
    port = str(directory / "socket") if setup.unix else free_port()
    with serving(setup.command(port), port, directory / "log", setup.env) as server:
        yield Site(setup, server)
        assert "Traceback" not in server.log


def test_the_first_request_wakes_the_function(site: Site) -> None:
    answer = site.ask("/function/after-300-first")
    assert answer.status == 200
    assert answer.seconds >= 0.3
    assert answer.headers["server-timing"].startswith("cold-start;dur=")
    again = site.ask("/function/after-300-first")
    assert again.status == 200
    assert "server-timing" not in again.headers
    assert site.counts()["starts"]["after-300-first"] == 1


def test_the_deadline_is_kept(site: Site) -> None:
    answer = site.ask("/function/late")
    assert answer.status == 504
    assert int(answer.headers["retry-after"]) >= 1
    assert abs(answer.seconds - MAX_WAIT) <= 0.1


@pytest.mark.parametrize("site", params(alone=False), indirect=True, scope="module")
def test_who_finds_no_place_is_refused_at_once_and_others_are_answered(site: Site) -> None:
    room = site.setup.room or room_to_wait(site.setup.places)
    name = f"/function/after-{2500 if room > 50 else 1000}-full"
    held = hold(room, lambda: site.ask(name))
    site.until_waiting(room)

    refused = [site.ask("/function/after-100-refused") for _ in range(5)]
    assert [answer.status for answer in refused] == [503] * 5
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert sorted(answer.seconds for answer in refused)[-2] < 0.05

    others = [site.ask("/other").seconds for _ in range(20)]
    assert sorted(others)[-2] < 0.05
    assert site.counts()["waiting"] == room
    assert held.statuses() == [200] * room
    assert "after-100-refused" not in site.counts()["starts"]


@pytest.mark.parametrize("site", params(alone=True), indirect=True, scope="module")
def test_with_one_place_a_second_request_is_answered_after_the_wait(site: Site) -> None:
    held = hold(1, lambda: site.ask("/function/after-600-alone"))
    site.until_waiting(1)
    other = site.ask("/other")
    assert other.status == 200
    assert other.seconds < 0.5
    assert held.statuses() == [200]


WAYS_TO_GO: dict[str, tuple[bytes, Callable[[socket.socket], object]]] = {
    "close": (b"", lambda sock: sock.close()),
    "half-close": (b"", lambda sock: sock.shutdown(socket.SHUT_WR)),
    "reset": (b"", reset),
    # As much as the sockets' buffers hold: the end of a client is behind what it has still to send.
    "close-behind-a-body": (b"x" * 10_000, lambda sock: sock.close()),
    "reset-behind-a-body": (b"x" * 200_000, reset),
}


def test_a_client_that_has_gone_frees_its_thread_and_not_the_flight(site: Site) -> None:
    for ways in [[way] for way in WAYS_TO_GO] if site.setup.alone else [list(WAYS_TO_GO)]:
        with ExitStack() as stack:
            begun = time.monotonic()
            socks = {way: stack.enter_context(connect(site.server.address)) for way in ways}
            for way, sock in socks.items():
                sock.sendall(request(f"/function/after-800-{way}", "POST", WAYS_TO_GO[way][0]))
            site.until_waiting(len(ways))
            for way, sock in socks.items():
                WAYS_TO_GO[way][1](sock)
            gone = time.monotonic()
            until(lambda: not site.counts()["by_function"], pause=0.005)
            assert time.monotonic() - gone <= 0.25
            counts = site.counts()
            assert all(counts["starts"][f"after-800-{way}"] == 1 for way in ways)
            assert not any(f"after-800-{way}" in counts["calls"] for way in ways)

            time.sleep(max(0.0, begun + 0.5 - time.monotonic()))  # well into the start
            seconds = [site.ask(f"/function/after-800-{way}") for way in ways]
            assert [second.status for second in seconds] == [200] * len(ways)
            assert seconds[0].seconds < 0.8  # a start of its own would take that
            counts = site.counts()
            for way in ways:
                assert counts["starts"][f"after-800-{way}"] == counts["calls"][f"after-800-{way}"] == 1


def test_a_client_that_sends_its_next_request_has_not_gone(site: Site) -> None:
    """Nor one whose body has not been read."""
    data = request("/function/after-500-pipelined", "POST", b"x" * 1000) + request("/other")
    with sent(site.server.address, data) as sock:
        answer = read_one(sock)
        assert answer.status == 200


def read_one(sock: socket.socket) -> Answer:
    begun = time.monotonic()
    with closing(HTTPResponse(sock)) as response:
        response.begin()
        return read(response, begun)
