"""A request whose rest is sent by a thread of its own, at the edges."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest

from scalezero_wsgi.proxy import FunctionProxy
from scalezero_wsgi.proxy.sender import STOP_PATIENCE
from tests.support.raw_http import Message, RawFunction, Wire
from tests.support.waiting import PATIENCE
from tests.unit.proxy.test_proxy import environ_for

CHUNK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n"


def body_threads() -> list[str]:
    return [each.name for each in threading.enumerate() if each.name == "scalezero-body"]


def test_a_broken_answer_to_http_1_0_resets_a_client_whose_body_still_comes() -> None:
    breaks = threading.Event()

    def behave(wire: Wire, _: Message) -> bool:
        wire.sock.sendall(CHUNK)
        breaks.wait(PATIENCE)
        wire.sock.sendall(b"no chunk\r\n")
        return False

    with ExitStack() as stack:
        function = stack.enter_context(RawFunction(behave))
        function.read_body = False
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        server = stack.enter_context(listener.accept()[0])
        client.settimeout(PATIENCE)
        client.sendall(b"x" * 100)

        class Input:
            def read(self, size: int) -> bytes:
                return server.recv(size)

        environ = {"wsgi.input": Input(), "CONTENT_LENGTH": "1000000", "REQUEST_METHOD": "POST"}
        environ |= {"werkzeug.socket": server, "SERVER_PROTOCOL": "HTTP/1.0"}
        environ = environ_for("/function/hello", function.url, environ=environ)
        answer: Any = FunctionProxy()(environ, lambda *_: lambda _: None)
        assert next(answer) == b"abc"
        breaks.set()
        begun = time.monotonic()
        with pytest.raises(ConnectionResetError, match="a chunk is not valid"):
            next(answer)
        answer.close()
        server.close()
        assert time.monotonic() - begun < STOP_PATIENCE / 2
        assert body_threads() == []
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_over_http_2_nobody_reads_the_client_while_its_answer_goes_out() -> None:
    """Its connection has one state for both ways. Here the function answers before it has the body."""
    readers: list[str] = []

    class Input:
        left = 200_000

        def read(self, size: int) -> bytes:
            readers.append(threading.current_thread().name)
            time.sleep(0.02)
            size = min(size, self.left)
            self.left -= size
            return b"x" * size

    def behave(wire: Wire, _: Message) -> bool:
        wire.sock.sendall(CHUNK + b"0\r\n\r\n")
        return False

    stream = Input()
    with RawFunction(behave) as function:
        function.read_body = False
        environ: dict[str, Any] = {"wsgi.input": stream, "CONTENT_LENGTH": "200000", "REQUEST_METHOD": "POST"}
        environ["SERVER_PROTOCOL"] = "HTTP/2.0"
        answer: Any = FunctionProxy()(
            environ_for("/function/hello", function.url, environ=environ), lambda *_: lambda _: None
        )
        assert body_threads() == []
        read = len(readers)
        assert b"".join(answer) == b"abc"
        if hasattr(answer, "close"):
            answer.close()
        assert len(readers) == read
    assert readers


GEVENT = """
    from gevent import monkey; monkey.patch_all()
    import io, os, socket, ssl, sys, tempfile, threading, time
    import gevent, trustme
    from scalezero_wsgi.proxy.body import ArrivedBody
    from scalezero_wsgi.proxy.sender import Outgoing, Sender, SharedTls

    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    listener = socket.create_server(("127.0.0.1", 0))

    def reads_nothing():
        accepted = context.wrap_socket(listener.accept()[0], server_side=True)
        time.sleep(60)

    gevent.spawn(reads_nothing)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    sock = client.wrap_socket(socket.create_connection(listener.getsockname()), server_hostname="127.0.0.1")
    body = ArrivedBody(io.BytesIO(b"x" * 50_000_000), 50_000_000)
    threading.Thread(target=lambda: Sender(SharedTls(sock, 0.5), Outgoing(b"head", body))).start()
    for _ in range(5):
        time.sleep(0.05)
    print("others go on", flush=True)
    os._exit(0)
    """


@pytest.mark.server
def test_a_function_with_tls_that_reads_nothing_does_not_freeze_gevent() -> None:
    """gevent's TLS says that it has sent nothing where it would block."""
    command = [sys.executable, "-c", textwrap.dedent(GEVENT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout == "others go on\n", done.stderr
