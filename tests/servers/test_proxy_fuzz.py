"""Requests of random bytes against ``serve``.

``SCALEZERO_SOAK`` sets how many: ``SCALEZERO_SOAK=20000 pytest -s -m soak tests/servers/test_proxy_fuzz.py``.
"""

from __future__ import annotations

import os
import random
import socket
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.servers.test_serve import serve
from tests.support.raw_http import Message, Wire, response_of
from tests.support.waiting import until

pytestmark = pytest.mark.soak

SOAK = int(os.environ.get("SCALEZERO_SOAK", "1000"))
THREADS = 8

LINES = [
    b"Host: front",
    b"Host: front",
    b"Host: a b",
    b"Content-Length: 5",
    b"Content-Length: 5",
    b"Content-Length: -5",
    b"Content-Length: 5, 5",
    b"Content-Length: 99999999999999999999",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: gzip",
    b"Transfer-Encoding:\x0bchunked",
    b"Connection: close",
    b"Connection: Upgrade",
    b"Upgrade: websocket",
    b"Upgrade: h2c",
    b"Expect: 100-continue",
    b"Cookie: a=1",
    b"Cookie: b=2",
    b"nocolon",
    b"X Y: z",
    b"X: \x00",
    b" folded",
    b"X: " + b"y" * 9000,
    b"X-Forwarded-Proto: https",
    b"Forwarded: for=evil",
    b"TE: trailers",
    b"Range: bytes=0-",
    b"Prefer: wait=1",
    b"Proxy: http://evil",
]
METHODS = [
    b"GET",
    b"GET",
    b"GET",
    b"HEAD",
    b"POST",
    b"PUT",
    b"OPTIONS",
    b"CONNECT",
    b"TRACE",
    b"get",
    b"B\0D",
    b"",
]
TARGETS = [
    b"/function/hello",
    b"/function/hello",
    b"/function/echo/a?b",
    b"/function/echo",
    b"/function/nope",
    b"/",
    b"*",
    b"http://front/function/hello",
    b"/function/hello/../../x",
    b"/function/%00",
    b"/function/\xff",
    b"//",
    b"?",
    b"/function/hello%2Fa",
    b"/function/.scalezero/status/hello",
    b"/function/" + b"a" * 5000,
]
BODIES = [b"", b"hello", b"5\r\nhello\r\n0\r\n\r\n", b"zz\r\n", b"-1\r\nx", b"hello" * 5000, b"\x00\xff" * 50]


def any_request(chance: random.Random) -> bytes:
    version = chance.choice([*[b"HTTP/1.1"] * 9, b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1 x"])
    line = b" ".join((chance.choice(METHODS), chance.choice(TARGETS), version))
    lines = [
        line,
        *([b"Host: front"] if chance.random() < 0.95 else []),
        *chance.sample(LINES, chance.choice([0, 0, 1, 2, 4])),
    ]
    data = b"\r\n".join(lines) + b"\r\n\r\n" + chance.choice(BODIES)
    for _ in range(chance.choice([0, 0, 0, 1, 5])):  # spoil some bytes
        place = chance.randrange(len(data))
        data = data[:place] + bytes([chance.randrange(256)]) + data[place + chance.randrange(3) :]
    return data


def answer_to(address: tuple[str, int], data: bytes, patient: bool) -> str:
    with socket.create_connection(address, 30) as sock:
        try:
            sock.sendall(data)
            if not patient:
                return "left"
            sock.shutdown(socket.SHUT_WR)
            response: Message = response_of(Wire(sock), expects_body=not data.startswith(b"HEAD"))
        except (ConnectionError, ValueError, IndexError, AssertionError) as error:
            return type(error).__name__
        return str(response.status)


def test_no_request_harms_serve(tmp_path: Path) -> None:
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with serve(tmp_path, "--workers", "1", "--threads", str(THREADS)) as server:
        assert isinstance(server.address, tuple)
        for name in ("hello", "echo"):
            assert server.get(f"/function/{name}").status_code == 200
        requests = [(any_request(chance), chance.random() < 0.9) for _ in range(SOAK)]
        with ThreadPoolExecutor(THREADS) as threads:
            answers = Counter(threads.map(lambda one: answer_to(server.address, *one), requests))  # type: ignore[arg-type]
        print(dict(answers))
        assert "500" not in answers, server.log
        assert "TimeoutError" not in answers
        assert answers["200"] > 0
        assert "Traceback" not in server.log, server.log

        # Each of its threads is free again: as many requests as there are threads are served at once.
        def served() -> bool:
            with ThreadPoolExecutor(THREADS) as threads:
                begun = time.monotonic()
                got = list(threads.map(lambda _: server.get("/function/hello").status_code, range(THREADS)))
            return got == [200] * THREADS and time.monotonic() - begun < 1.0

        until(served)
