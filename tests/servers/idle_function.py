"""A function that starts as fast as Python does, works for some milliseconds, and dies at once when told to:
``python -I -S idle_function.py PORT [SECONDS]``, the latter to start. A request that it does not answer to
the end is lost.

``/3`` takes three seconds, ``/stream/3`` is streamed for as long, ``/ask/http://…`` asks another function,
``/compute/3`` is answered at once and computed for as long, of which ``/busy`` tells.
"""

import os
import random
import socket
import sys
import threading
import time


def serve(connection: socket.socket) -> None:
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = connection.recv(65536)
            if not piece:
                return
            request += piece
        path = request.split(b" ", 2)[1].decode().strip("/")
        kind, slash, rest = path.partition("/")
        answer(connection, kind if slash else "", rest if slash else path)


def answer(connection: socket.socket, kind: str, rest: str) -> None:
    global computes_until
    status, body, pieces = "200 OK", b"%d" % os.getpid(), 1
    if kind == "stream":
        pieces = int(10 * float(rest))
    elif kind == "ask":
        address, _, path = rest.removeprefix("http://").partition("/")
        host, _, port = address.partition(":")
        with socket.create_connection((host, int(port))) as other:
            other.sendall(f"GET /{path} HTTP/1.0\r\n\r\n".encode())
            reply = b"".join(iter(lambda: other.recv(65536), b""))
        status, body = reply.split(b"\r\n")[0].decode().partition(" ")[2], reply.partition(b"\r\n\r\n")[2]
    elif kind == "compute":
        computes_until = time.monotonic() + float(rest)
    elif rest == "busy":
        status = "200 OK" if time.monotonic() < computes_until else "204 No Content"
    else:
        time.sleep(float(rest) if rest else random.random() * 0.02)
    length = 0 if status[:3] == "204" else len(body) * pieces
    connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n".encode())
    for _ in range(pieces if length else 0):
        connection.sendall(body)
        time.sleep(0.1 if pieces > 1 else 0.0)


time.sleep(float(sys.argv[2]) if len(sys.argv) > 2 else 0.0)
computes_until = 0.0
server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
