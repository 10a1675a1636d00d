"""Very many clients in one process: ``waiting_crowd.py PORT PATH COUNT [END]`` sends so many requests, says
``sent``, and tells as JSON which status lines it was answered with, and how often, once all have been.

An answer that does not end with ``END`` counts as broken.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
from collections import Counter, defaultdict

BODY = "\r\n\r\n{}\n"


def crowd(port: int, path: str, count: int, end: str = BODY) -> Counter[str]:
    selector = selectors.DefaultSelector()
    request = f"GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
    for _ in range(count):
        client = socket.create_connection(("127.0.0.1", port), timeout=60)
        client.sendall(request)
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ, client)
    print("sent", flush=True)

    received: defaultdict[socket.socket, bytes] = defaultdict(bytes)
    answers: Counter[str] = Counter()
    while selector.get_map():
        for key, _ in selector.select():
            sock: socket.socket = key.data
            try:
                data = sock.recv(65536)
            except ConnectionError as error:
                answers[type(error).__name__] += 1
            else:
                received[sock] += data
                if data:
                    continue
                head = received[sock].partition(b"\r\n")[0].decode()
                answers[head if received[sock].endswith(end.encode()) else f"broken: {head}"] += 1
            selector.unregister(sock)
            sock.close()
    return answers


if __name__ == "__main__":
    print(json.dumps(crowd(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), *sys.argv[4:])), flush=True)
