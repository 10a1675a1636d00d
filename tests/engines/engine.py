"""Where the real engines are.

Each is named by a variable that holds the work directory its start script was given:
``SCALEZERO_TEST_DOCKER`` and ``SCALEZERO_TEST_SWARM`` (``docker.sock`` and ``dockerd.pid`` in it) and
``SCALEZERO_TEST_KUBERNETES`` (``kubeconfig``, ``docker.sock`` and the daemons' ``*.pid``). Without it the
tests are skipped and say so; with ``SCALEZERO_ENGINES=required`` that is an error.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

IMAGE = "scalezero-test/busybox:1"
"""A static busybox and ``/www/index.html``; ``httpd -f -p 8080 -h /www`` serves it."""


def engine(variable: str, what: str = "the work directory of a running engine") -> Path:
    """The work directory of an engine, or its executable."""
    directory = os.environ.get(variable)
    if not directory:
        cannot(f"{variable} does not name {what}")
    return Path(directory)


def as_root() -> None:
    """For what only root can do, such as to become another user."""
    if os.geteuid() != 0:
        cannot("only root can become another user")


def cannot(why: str) -> NoReturn:
    """Skip the test and say why; where all engines are required that is an error."""
    if os.environ.get("SCALEZERO_ENGINES") == "required":
        pytest.fail(why)
    pytest.skip(why)


def build_image(docker_host: str, scratch: Path) -> str:
    """Build ``IMAGE`` from what Debian's busybox-static brings; no registry is asked."""
    root = scratch / "image"
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy("/bin/busybox", root / "busybox")
    (root / "index.html").write_text("hello from busybox\n", encoding="utf-8")
    (root / "Dockerfile").write_text(
        "FROM scratch\n"
        "COPY busybox /bin/busybox\n"
        "COPY busybox /bin/sh\n"
        "COPY index.html /www/index.html\n"
        'CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]\n',
        encoding="utf-8",
    )
    environment = {**os.environ, "DOCKER_HOST": docker_host, "DOCKER_BUILDKIT": "0"}
    command = ["/usr/bin/docker", "build", "-q", "-t", IMAGE, str(root)]
    subprocess.run(command, check=True, env=environment, capture_output=True)
    return IMAGE


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Stop a daemon for a while, as if it hung."""
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(0.05)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
