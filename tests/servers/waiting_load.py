"""Cold requests from a process of its own: ``waiting_load.py PORT PATH COUNT`` keeps so many going.

Each asks anew when it was answered, and heeds ``Retry-After``.
"""

from __future__ import annotations

import sys
import threading
import time

from tests.servers.matrix_client import ask


def keep_asking(port: int, path: str) -> None:
    while True:
        answer = ask(("127.0.0.1", port), path)
        time.sleep(float(answer.headers.get("retry-after", "0")))


if __name__ == "__main__":
    for _ in range(int(sys.argv[3])):
        threading.Thread(target=keep_asking, args=(int(sys.argv[1]), sys.argv[2]), daemon=True).start()
    sys.stdin.read()
