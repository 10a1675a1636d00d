"""What keeps a function up on real parts: streams, uploads, and clients that ask for a time of their own."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest

from tests.servers.harness import Server, gunicorn
from tests.support.waiting import until

pytestmark = pytest.mark.soak

SITE = "tests.servers.stream_site:application"
IDLE_AFTER, SILENT_AFTER = 0.5, 1.0
END = "data: end\n\n"
LED = 4.0
"""Seconds within which a fleet that has just begun stops nothing."""


class Fleet:
    """Four workers whose function is up."""

    def __init__(self, base: Path, server: Server) -> None:
        self._files = base / "idle"
        self.server = server
        assert not isinstance(server.address, str)
        self._host, self._port = server.address

    def stopped_at(self, name: str = "f0") -> list[float]:
        """When the function was stopped."""
        lines = [
            line.split() for path in self._files.glob("events.*") for line in path.read_text().splitlines()
        ]
        return [
            float(when) for when, event, function in lines if (event, function) == ("FunctionStopped", name)
        ]

    @contextlib.contextmanager
    def connection(self) -> Iterator[HTTPConnection]:
        connection = HTTPConnection(self._host, self._port, timeout=60)
        try:
            yield connection
        finally:
            connection.close()

    def get(self, what: str, name: str = "f0", **headers: str) -> tuple[int, str]:
        """Return the status, and the text as far as it came."""
        with self.connection() as connection:
            named = {key.replace("_", "-"): text for key, text in headers.items()}
            connection.request("GET", f"/function/{name}/{what}", headers={"Connection": "close", **named})
            response = connection.getresponse()
            text = ""
            with contextlib.suppress(OSError, HTTPException):
                while piece := response.read1(65536):
                    text += piece.decode()
            return response.status, text


@contextlib.contextmanager
def fleet(base: Path, **settings: str) -> Iterator[Fleet]:
    (base / "idle").mkdir()
    (base / "tmp").mkdir()
    env = {
        "IDLE": str(base / "idle"),
        "TMPDIR": str(base / "tmp"),
        "SCALEZERO_IDLE_AFTER": str(IDLE_AFTER),
        "SCALEZERO_IDLE_DEFAULT": "all",
        **settings,
    }
    with gunicorn(SITE, base / "log", "-w", "4", "--threads", "8", env=env) as server:
        yield Fleet(base, server)


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Fleet]:
    """A fleet that lets silent streams go, and has begun to stop functions."""
    with fleet(tmp_path, SCALEZERO_STREAM_IDLE_AFTER=str(SILENT_AFTER)) as it:
        assert it.get("0x1")[0] == 200
        until(it.stopped_at)
        yield it


@pytest.mark.parametrize("what", ["silent", "mute"])
def test_a_stream_that_is_silent_is_let_go(what: str, watched: Fleet) -> None:
    """A server-sent event that is followed by none, and a long poll without an answer."""
    begun = time.monotonic()
    status, text = watched.get(what)
    until(lambda: len(watched.stopped_at()) == 2)
    assert max(watched.stopped_at()) >= begun + SILENT_AFTER + IDLE_AFTER
    if what == "silent":
        assert (status, text) == (200, "data: 0 bytes came\n\n")
    else:
        assert status == 502
    time.sleep(1.0)
    assert len(watched.stopped_at()) == 2  # it was not started again for it


def test_one_that_trickles_is_not_cut(watched: Fleet) -> None:
    status, text = watched.get(f"0.25x{round(10 * SILENT_AFTER / 0.25)}")
    assert (status, text[-len(END) :]) == (200, END)
    assert len(watched.stopped_at()) == 1
    until(lambda: len(watched.stopped_at()) == 2)


def test_one_that_was_let_go_and_carries_again_is_not_cut(tmp_path: Path) -> None:
    with fleet(tmp_path, SCALEZERO_STREAM_IDLE_AFTER="0.3", SCALEZERO_IDLE_AFTER="3") as it:
        it.get("0x1")
        until(it.stopped_at)
        status, text = it.get("2x1,0.1x60")  # let go after 0.3 s, idle after 3.3 s
        assert (status, text[-len(END) :]) == (200, END)
        assert len(it.stopped_at()) == 1


def test_a_slow_upload_is_not_cut(watched: Fleet) -> None:
    """It takes ten times as long as a silent stream may, and a response is not in sight."""
    with watched.connection() as connection:
        connection.putrequest("POST", "/function/f0/0x1")
        connection.putheader("Content-Length", "40")
        connection.putheader("Connection", "close")
        connection.endheaders()
        for _ in range(40):
            time.sleep(SILENT_AFTER / 4)
            connection.send(b"x")
        response = connection.getresponse()
        assert response.status == 200
        assert response.read().decode().startswith("data: 40 bytes came")
    assert len(watched.stopped_at()) == 1


@pytest.mark.parametrize("what", ["0.25x20", "5x1"])
def test_a_response_that_takes_ten_times_idle_after_is_not_cut(what: str, tmp_path: Path) -> None:
    """Without ``stream_idle_after`` it may be as silent as it likes."""
    with fleet(tmp_path) as it:
        it.get("0x1")
        until(it.stopped_at)
        status, text = it.get(what)
        assert (status, text[-len(END) :]) == (200, END)
        assert len(it.stopped_at()) == 1
        until(lambda: len(it.stopped_at()) == 2)


def test_a_client_may_ask_for_longer_whichever_worker_hears_it(tmp_path: Path) -> None:
    durations = {"f0": 6.0, "f1": 3.0, "f2": 9.0}
    with fleet(tmp_path, SCALEZERO_KEEP_ALIVE_MAX="6s") as it:
        time.sleep(LED)
        ended = {}
        for name, duration in durations.items():
            assert it.get("0x1", name, X_Scalezero_Keep_Alive=f"{duration:g}s")[0] == 200
            ended[name] = time.monotonic()
        assert it.get("0x1", "f3")[0] == 200
        until(lambda: it.stopped_at("f3"))
        until(lambda: all(it.stopped_at(name) for name in durations))
        for name, duration in durations.items():
            took = it.stopped_at(name)[0] - ended[name]
            assert min(duration, 6.0) - 0.2 <= took <= min(duration, 6.0) + 3.0, name


def test_a_client_may_ask_for_shorter(tmp_path: Path) -> None:
    with fleet(tmp_path, SCALEZERO_KEEP_ALIVE_MAX="6s", SCALEZERO_IDLE_AFTER="1h") as it:
        assert it.get("0x1", "f1")[0] == 200
        assert it.get("0x1", "f0", X_Scalezero_Keep_Alive="1s")[0] == 200
        until(it.stopped_at)
        assert it.stopped_at("f1") == []
