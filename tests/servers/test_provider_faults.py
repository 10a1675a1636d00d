"""A provider that asks a real HTTP server, and what becomes of the server's faults."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import requests
from werkzeug.test import Client

from scalezero_wsgi import ReplicaStatus, ScaleZeroMiddleware
from scalezero_wsgi.activation.activation import PROVIDER_PATIENCE
from scalezero_wsgi.providers import CallbackProvider

pytestmark = pytest.mark.soak

ANSWERS: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {
    str(status): lambda handler, status=status: handler.send_error(status)  # type: ignore[misc]
    for status in (401, 403, 429, 500, 503)
}


ANSWERS["hangs"] = lambda handler: time.sleep(30)
ANSWERS["hangs up"] = lambda handler: handler.connection.shutdown(socket.SHUT_RDWR)
ANSWERS["not HTTP"] = lambda handler: handler.connection.sendall(b"nonsense\r\n\r\n") or None
ANSWERS["not JSON"] = lambda handler: _send(handler, b"<html>")
ANSWERS["other JSON"] = lambda handler: _send(handler, b'{"replicas": "many", "available": -1}')


def _send(handler: BaseHTTPRequestHandler, body: bytes) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


@contextlib.contextmanager
def gateway(kind: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            ANSWERS[kind](self)

        def log_message(self, *args: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def ask(url: str, timeout: float, max_wait: float = 6) -> tuple[Any, list[str], float]:
    calls: list[str] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b""]

    def get_replicas(name: str, namespace: str) -> ReplicaStatus:
        reply = requests.get(f"{url}/system/function/{name}", timeout=timeout)
        reply.raise_for_status()
        told = reply.json()
        return ReplicaStatus(told["replicas"], told["available"])

    provider = CallbackProvider(get_replicas=get_replicas, set_replicas=lambda *_: None)
    door = ScaleZeroMiddleware(app, provider, max_wait=max_wait)
    begun = time.monotonic()
    response = Client(door).get("/function/hello")
    return response, calls, time.monotonic() - begun


def test_each_fault_is_502_within_a_bound_and_tells_nothing() -> None:
    def meet(kind: str) -> None:
        with gateway(kind) as url:
            response, calls, taken = ask(url, timeout=1.0)
        assert response.status_code == 502, kind
        assert taken <= PROVIDER_PATIENCE + 2.5, kind
        assert calls == []
        assert "Retry-After" in response.headers
        told = response.get_data(as_text=True) + str(response.headers)
        assert not any(word in told for word in ("127.0.0.1", url.rpartition(":")[2], "system/function"))

    with ThreadPoolExecutor(len(ANSWERS)) as pool:
        assert list(pool.map(meet, ANSWERS)) == [None] * 10


def test_a_gateway_that_refuses_the_connection_is_502() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        response, calls, _ = ask(url, timeout=1.0)
    assert (response.status_code, calls) == (502, [])


def test_a_gateway_that_hangs_is_502_when_the_deadline_comes() -> None:
    with gateway("hangs") as url:
        response, calls, taken = ask(url, timeout=10.0, max_wait=1)
    assert (response.status_code, calls) == (502, [])
    assert 1.0 <= taken <= 1.1
