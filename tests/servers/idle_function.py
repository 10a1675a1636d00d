"""A function that starts as fast as Python does, works for some milliseconds, and dies at once when told to:
``python -I -S idle_function.py PORT``. A request that it does not answer to the end is lost."""

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
        path = request.split(b" ", 2)[1].strip(b"/")
        time.sleep(float(path) if path else random.random() * 0.02)
        body = b"%d" % os.getpid()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        connection.sendall(head + body)


server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=128)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
