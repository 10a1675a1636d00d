"""How soon a thousand held requests are answered once their function is ready, and what they cost."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers.harness import Server, gunicorn
from tests.servers.matrix_client import ask, connect, request
from tests.servers.release_site import HELLO
from tests.servers.test_waiting_gunicorn import HOOK, many_files

pytestmark = [pytest.mark.engine, pytest.mark.measured]

COUNT = 1000
ROUNDS = int(os.environ.get("SCALEZERO_TEST_ROUNDS", "5"))
OPTIONS = {
    "gthread": ["--threads", "1100", "--worker-connections", "2200"],
    "gevent": ["--worker-connections", "2200"],
}


class Crowd:
    """Clients with a connection each, which they keep, all served by one loop."""

    def __init__(self, server: Server, clients: int) -> None:
        self._socks = [connect(server.address, 60) for _ in range(clients)]

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for sock in self._socks:
            sock.close()

    def ask(self, path: str) -> float:
        """Send ``COUNT`` requests, on each connection the next once the last one is answered.

        :return: when the last of them was completely answered, in monotonic seconds.
        """
        data = request(path)
        received: dict[socket.socket, bytes] = dict.fromkeys(self._socks, b"")
        sent = answered = 0
        with selectors.DefaultSelector() as selector:
            for sock in self._socks:
                sock.sendall(data)
                sent += 1
                selector.register(sock, selectors.EVENT_READ, sock)
            while answered < COUNT:
                events = selector.select(60)
                assert events, f"{answered} were answered"
                for key, _ in events:
                    client: socket.socket = key.data
                    received[client] += client.recv(65536)
                    assert received[client].startswith(b"HTTP/1.1 200 "), received[client]
                    if received[client].endswith(HELLO):
                        received[client] = b""
                        answered += 1
                        if sent < COUNT:
                            client.sendall(data)
                            sent += 1
        return time.monotonic()


def told(server: Server) -> Any:
    return ask(server.address, "/told").json


def throughput(server: Server) -> tuple[float, float]:
    """Seconds in which a server answers ``COUNT`` requests of 64 clients, and its processor time for them."""
    with Crowd(server, 64) as crowd:
        used = told(server)["processor_time"]
        begun = time.monotonic()
        taken = crowd.ask("/function/bare") - begun
        return taken, told(server)["processor_time"] - used


def release(server: Server, function: str) -> tuple[float, float]:
    """Seconds from the moment at which the function was ready to the last answer, and the worker's processor
    time for a second in which all waited."""
    with Crowd(server, COUNT) as crowd:
        last = crowd.ask(f"/function/{function}")
    ready, used = told(server)["starts"][function]
    return last - ready, used


@contextlib.contextmanager
def site(worker: str, app: str, log: Path) -> Iterator[Server]:
    env = {"SCALEZERO_MAX_WAITING": str(COUNT), "SCALEZERO_COORDINATION": "memory://", "COUNT": str(COUNT)}
    options = [*HOOK, *OPTIONS[worker]]
    with gunicorn(f"tests.servers.release_site:{app}", log, *options, worker=worker, env=env) as server:
        yield server


@pytest.mark.parametrize("worker", OPTIONS)
def test_a_thousand_are_released_as_fast_as_the_server_can_answer(worker: str, tmp_path: Path) -> None:
    """The last of 1,000 within 1.3 times 1,000 divided by the bare application's throughput.

    Held: 1,000 requests, each on a connection of its own, wait for one function; from the moment at which
    the provider's call to start it ends, in the worker, to the last answer, in the client. Bare: 64
    connections are open; from the first of 1,000 requests on them to the last answer. The same client, the
    same application, the same options of the server; the rounds take turns, each held one between two bare
    ones, and the middle of their ratios counts.

    Holding them takes at most 0.4 times the processor time, per second, that the bare application takes for
    1,000 requests: that is what is left to other requests.
    """
    ratios, shares = [], []
    with (
        many_files(2 * COUNT + 1000),
        site(worker, "bare", tmp_path / "bare") as bare,
        site(worker, "application", tmp_path / "held") as held,
    ):
        throughput(bare)
        release(held, "first")  # starts the threads
        rounds = [(throughput(bare), release(held, f"cold-{number}")) for number in range(ROUNDS)]
        last = throughput(bare)
    for (before, (taken, waiting)), after in zip(
        rounds, [bare for bare, _ in rounds[1:]] + [last], strict=True
    ):
        alone, used = ((one + other) / 2 for one, other in zip(before, after, strict=True))
        ratios.append(taken / alone)
        shares.append(waiting / used)
        print(f"{worker}: {1000 * alone:.0f} ms for {COUNT} alone, {1000 * taken:.0f} ms when held;", end=" ")
        print(f"processor time {1000 * used:.0f} ms alone, {1000 * waiting:.0f} ms per second of waiting")
    print(f"{worker}: in the middle {statistics.median(ratios):.2f} and {statistics.median(shares):.2f}")
    assert statistics.median(ratios) <= 1.3, ratios
    assert statistics.median(shares) <= 0.4, shares
