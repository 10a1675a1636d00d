"""The two built-in functions of ``serve``: ``python -m scalezero_wsgi.demo hello 8081``."""

from __future__ import annotations

import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

_STARTED = time.monotonic()


class Hello(BaseHTTPRequestHandler):
    """Greets, and tells how long it has been up."""

    def do_GET(self) -> None:
        """Answer."""
        self.answer(f"Hello from process {os.getpid()}, up for {time.monotonic() - _STARTED:.1f} s.\n")

    def answer(self, text: str) -> None:
        """Send text."""
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Echo(Hello):
    """Tells the request as it came."""

    def do_GET(self) -> None:
        """Answer."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.answer(f"{self.requestline}\n{self.headers}{body.decode(errors='replace')}")

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815


class Server(ThreadingHTTPServer):
    """Takes the crowd that waited for it, all at once."""

    request_queue_size = 1024
    daemon_threads = True


def main(name: str, port: str) -> None:
    """Serve one function on a port of 127.0.0.1."""
    Server(("127.0.0.1", int(port)), {"hello": Hello, "echo": Echo}[name]).serve_forever()


if __name__ == "__main__":
    main(*sys.argv[1:])
