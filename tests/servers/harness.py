"""Starts real servers in processes of their own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from gunicorn.config import KNOWN_SETTINGS

from tests.support.waiting import until

ROOT = Path(__file__).parents[2]

# gunicorn has one from 25 on, in a place that several gunicorns would share.
NO_CONTROL_SOCKET = (
    ["--no-control-socket"] if any(each.name == "control_socket" for each in KNOWN_SETTINGS) else []
)


def free_port() -> int:
    """One that the kernel gives to nobody, and a provider to no function, until the server listens there."""
    while True:
        port = random.SystemRandom().randrange(10_000, 20_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]
    log_path: Path
    address: str | tuple[str, int]

    @property
    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def get(
        self, path: str, timeout: float = 30.0, headers: dict[str, str] | None = None, **options: Any
    ) -> requests.Response:
        # Or gunicorn, told to stop, would wait for two seconds for another request.
        headers = {"Connection": "close", **(headers or {})}
        return requests.get(self.url + path, timeout=timeout, headers=headers, **options)

    def workers(self) -> list[int]:
        return children(self.process.pid)


def children(pid: int) -> list[int]:
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    return [int(child) for child in listed.split()]


def is_up(port: int | str) -> bool:
    with socket.socket(socket.AF_UNIX if isinstance(port, str) else socket.AF_INET) as sock:
        return sock.connect_ex(address_of(port)) == 0


def address_of(port: int | str) -> str | tuple[str, int]:
    """Where a server listens: on a port of this host, or on a Unix socket at that path."""
    return port if isinstance(port, str) else ("127.0.0.1", port)


@contextlib.contextmanager
def serving(
    command: list[str], port: int | str, log: Path, env: dict[str, str] | None = None, root: Path = ROOT
) -> Iterator[Server]:
    """Run ``command`` until the block ends; it must listen on ``port`` or a Unix socket's path soon.

    ``root`` is where the package and its tests are.
    """
    environment = {**os.environ, "PYTHONPATH": str(root), **(env or {})}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=root)
    server = Server(f"http://127.0.0.1:{port}", process, log, address_of(port))
    try:
        until(lambda: process.poll() is not None or is_up(port))
        assert process.poll() is None, server.log
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            # gunicorn waits for 30 s when a worker that was still booting has missed the signal; who kills
            # it before that keeps on_exit from running.
            process.wait(45)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)


@contextlib.contextmanager
def gunicorn(
    app: str,
    log: Path,
    *options: str,
    worker: str = "gthread",
    env: dict[str, str] | None = None,
    unix: str = "",
    root: Path = ROOT,
) -> Iterator[Server]:
    """Run ``app`` under gunicorn.

    ``unix`` is the path of a Unix socket in place of a port; without ``worker`` the options say which.
    """
    port = unix or free_port()
    bind = f"unix:{unix}" if unix else f"127.0.0.1:{port}"
    command = [sys.executable, "-m", "gunicorn", app, "-b", bind, *(["-k", worker] if worker else [])]
    command += [*NO_CONTROL_SOCKET, "--graceful-timeout", "5", *options]
    with serving(command, port, log, env, root) as server:
        yield server
