"""What the Flask and the Django site share: a function that is a real process, and a count of the queries."""

from __future__ import annotations

import os
import sys
import threading

from scalezero_wsgi import ReplicaStatus
from scalezero_wsgi.providers import ProcessProvider
from scalezero_wsgi.providers.process.provider import ProcessFunction, Ready

HELLO = ProcessFunction([sys.executable, "-m", "scalezero_wsgi.demo", "echo", "{port}"], Ready("/"))


class Counting(ProcessProvider):
    """A process provider that counts what it is asked."""

    queries = 0
    starts = 0
    _counting = threading.Lock()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        with self._counting:
            self.queries += 1
        return super().get_replicas(name, namespace)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        with self._counting:
            self.starts += 1
        super().set_replicas(name, namespace, replicas)


FUNCTIONS = {"hello": HELLO, "other": HELLO}
settings = {"cache_expiry": "30s"}


def provider() -> Counting:
    return Counting(FUNCTIONS, state_dir=os.environ["STATE_DIR"])
