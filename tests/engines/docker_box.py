"""Containers for the tests, with the engine's own library; removed after each test."""

from __future__ import annotations

import time
from typing import Any

import docker

from tests.engines.engine import IMAGE

HTTPD = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
PREFIX = "sz-test-"


def shell(script: str) -> list[str]:
    """A command; ``$b`` in it is busybox."""
    return ["/bin/sh", "-c", f"b=/bin/busybox; {script}"]


def after(seconds: float) -> list[str]:
    """A server that takes its time to start, and ends when it is told to."""
    return shell(f"$b sleep {seconds}; exec $b httpd -f -p 8080 -h /www")


class Box:
    """Makes containers, and acts behind the provider's back."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api: Any = docker.APIClient(base_url=url, timeout=20)
        self.clear()

    def clear(self) -> None:
        for entry in self.api.containers(all=True, filters={"name": [f"^/?{PREFIX}"]}):
            self.api.remove_container(entry["Id"], force=True)

    def close(self) -> None:
        self.clear()
        self.api.close()

    def add(
        self,
        name: str,
        command: list[str] | None = None,
        *,
        labels: dict[str, str] | None = None,
        publish: bool = True,
        healthcheck: dict[str, Any] | None = None,
        stop_signal: str | None = None,
        stop_timeout: int = 0,
        **host: Any,
    ) -> str:
        """Create a container whose name begins with ``sz-test-``; return its id."""
        if publish:
            host["port_bindings"] = {8080: ("127.0.0.1",)}
        made = self.api.create_container(
            IMAGE,
            command or HTTPD,
            name=PREFIX + name,
            labels=labels,
            ports=[8080] if publish else None,
            healthcheck=healthcheck,
            stop_signal=stop_signal,
            stop_timeout=stop_timeout,
            host_config=self.api.create_host_config(**host),
        )
        return str(made["Id"])

    def state(self, name: str) -> str:
        return str(self.api.inspect_container(PREFIX + name)["State"]["Status"])

    def start(self, name: str) -> None:
        self.api.start(PREFIX + name)

    def stop(self, name: str, timeout: int = 0) -> None:
        self.api.stop(PREFIX + name, timeout=timeout)

    def wait(self, name: str) -> int:
        """Wait for the end of it; return the exit status."""
        return int(self.api.wait(PREFIX + name, timeout=20)["StatusCode"])

    def events(self, since: float, event: str) -> list[str]:
        """The names of the containers with which it has happened."""
        filters = {"type": ["container"], "event": [event]}
        # One that has just happened takes a moment to come into the log.
        until = time.time() + 0.2
        found = self.api.events(since=f"{since:.9f}", until=f"{until:.9f}", filters=filters, decode=True)
        return [each["Actor"]["Attributes"]["name"].removeprefix(PREFIX) for each in found]
