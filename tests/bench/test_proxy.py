"""What a call of the proxy costs: CPU of this process, as a multiple of what it costs urllib3 alone.

Only ratios within one run are bounds: ``pytest tests/bench --benchmark-disable``.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import urllib3

from scalezero_wsgi.proxy import FunctionProxy

CALLS = 1000
ROUNDS = 5

FUNCTION = r"""
import socket, threading
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 12\r\n\r\nhello world\n"
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)

def serve(sock):
    while data := sock.recv(65536):
        sock.sendall(ANSWER)

while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""


@pytest.fixture
def function() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", FUNCTION], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        process.kill()


def cpu_of(call: Callable[[], object]) -> float:
    begun = time.process_time()
    for _ in range(CALLS):
        call()
    return time.process_time() - begun


def test_a_call_costs_less_than_urllib3_alone(function: str) -> None:
    sent = {"Host": "front", "User-Agent": "Mozilla/5.0", "Accept": "*/*", "Accept-Encoding": "gzip"}
    environ: dict[str, Any] = {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/function/hello/a",
        "QUERY_STRING": "x=1",
        "RAW_URI": "/function/hello/a?x=1",
        "REMOTE_ADDR": "192.0.2.7",
        "wsgi.url_scheme": "http",
        "scalezero_wsgi.function": ("hello", ""),
        "scalezero_wsgi.endpoint": function,
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in sent.items()},
    }
    proxy = FunctionProxy()

    def ours() -> bytes:
        return b"".join(proxy(dict(environ), lambda *_: lambda data: None))

    with urllib3.PoolManager() as pool:

        def theirs() -> bytes:
            return pool.request("GET", f"{function}/a?x=1", headers=sent, retries=False).data

        assert ours() == theirs() == b"hello world\n"
        ratios = [cpu_of(ours) / cpu_of(theirs) for _ in range(ROUNDS)]
    print(f"\na call of the proxy: {statistics.median(ratios):.2f} of the CPU of urllib3's")
    assert statistics.median(ratios) < 0.6
