"""Clients that keep all workers of a server equally busy."""

from __future__ import annotations

import re
import select
import socket
import time
from collections import Counter

END = b"}]"
"""What an answer ends with, and has nowhere else: it is a list of objects in JSON."""


class EvenClients:
    """Connections, as many to each worker, over which one request follows another.

    Other tools leave it to chance which worker accepts a connection, and keep it. Sometimes one gets all of
    them, and the others, and a processor, have nothing to do: a third of the throughput, of any application.

    :param address: of the server, which keeps connections open. It answers with its process in ``X-Worker``.
    :param workers: their processes.
    :param each: how many connections each gets.
    """

    def __init__(self, address: tuple[str, int], path: str, workers: list[int], each: int) -> None:
        self._request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        self._connections: dict[int, socket.socket] = {}
        self._poll = select.poll()
        missing = Counter(dict.fromkeys(workers, each))
        patience = time.monotonic() + 60
        while missing.total():
            assert time.monotonic() < patience, f"no worker accepts for: {missing}"
            connection = socket.create_connection(address, timeout=60)
            worker = self._worker(connection)
            if missing[worker]:
                missing[worker] -= 1
                self._connections[connection.fileno()] = connection
                self._poll.register(connection, select.POLLIN)
            else:
                connection.close()

    def _worker(self, connection: socket.socket) -> int:
        connection.sendall(self._request)
        answer = b""
        while not answer.endswith(END):
            answer += self._received(connection)
        [worker] = re.findall(rb"X-Worker: (\d+)", answer)
        return int(worker)

    def play(self, seconds: float) -> tuple[int, float]:
        """Ask for some seconds; return how many answers came, and after how many seconds all had come."""
        begun, answered, tails = time.perf_counter(), 0, dict.fromkeys(self._connections, b"")
        for connection in self._connections.values():
            connection.sendall(self._request)
        while tails:
            for descriptor, _ in self._poll.poll(60_000):
                connection = self._connections[descriptor]
                piece = self._received(connection)
                if not tails[descriptor]:
                    assert piece.startswith(b"HTTP/1.1 200 "), piece
                tails[descriptor] = (tails[descriptor] + piece)[-len(END) :]
                if tails[descriptor] != END:
                    continue
                answered += 1
                if time.perf_counter() < begun + seconds:
                    tails[descriptor] = b""
                    connection.sendall(self._request)
                else:
                    del tails[descriptor]
        return answered, time.perf_counter() - begun

    @staticmethod
    def _received(connection: socket.socket) -> bytes:
        piece = connection.recv(1 << 16)
        assert piece, "the server has closed the connection"
        return piece

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
