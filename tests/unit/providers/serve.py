"""A function for tests: a tiny HTTP server that tells about itself and misbehaves on request.

Usage: serve.py PORT [ignore-term] [child] [failing-first] [silent] [many-files]
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

port, *options = sys.argv[1:]
if "ignore-term" in options:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = 0
if "child" in options:
    # A grandchild in the same group that does not care about TERM.
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    child = process.pid
print("listening", flush=True)
if "silent" in options:
    time.sleep(600)
count = (
    1000 if "many-files" in options else 0
)  # of which some are closed after the server's socket, when it ends
resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
pairs = [socket.socketpair() for _ in range(count)]
server = socket.create_server(("127.0.0.1", int(port)))
pairs += [socket.socketpair() for _ in range(count)]
answers = 0
while True:
    connection, _ = server.accept()
    path = connection.recv(65536).decode().partition(" ")[2].partition(" ")[0]
    answers += 1
    status = 503 if "failing-first" in options and answers <= 3 else 200
    about = {
        "pid": os.getpid(),
        "child": child,
        "answers": answers,
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "env": {name: os.environ.get(name) for name in ("GREETING", "PORT", "BASE")},
    }
    body = json.dumps(about).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    if path == "/nonsense":
        head = "nonsense\r\n\r\n"
    with contextlib.suppress(OSError):
        connection.sendall(head.encode() + body)
    connection.close()
    if path.startswith("/exit/"):
        os._exit(int(path.removeprefix("/exit/")))
