"""A function that answers slowly, in chunks, and dies at once when told to: ``stream_function.py PORT``.

``/0.2x25`` sends 25 events, each after 0.2 s; ``/1x1,0.2x25`` another one before them. ``/silent`` sends one
and nothing more, ``/mute`` not even a head. A request's body is read first.
"""

import re
import socket
import sys
import threading
import time

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def serve(connection: socket.socket) -> None:
    with connection:
        request = b""
        while b"\r\n\r\n" not in request:
            piece = connection.recv(65536)
            if not piece:
                return
            request += piece
        head, body = request.split(b"\r\n\r\n", 1)
        length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
        while length and len(body) < int(length[1]):
            body += connection.recv(65536)
        what = head.split(b" ", 2)[1].decode().rpartition("/")[2]
        if what == "mute":
            time.sleep(3600)
        connection.sendall(HEAD)
        connection.sendall(chunk(b"data: %d bytes came\n\n" % len(body)))
        if what == "silent":
            time.sleep(3600)
        for pause, count in re.findall(r"([\d.]+)x(\d+)", what):
            for number in range(int(count)):
                time.sleep(float(pause))
                connection.sendall(chunk(b"data: %d\n\n" % number))
        connection.sendall(chunk(b"data: end\n\n") + chunk(b""))


server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
