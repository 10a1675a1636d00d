from __future__ import annotations

from collections.abc import Iterator

import pytest

from scalezero_wsgi.servers.server import Server, this_server
from tests.support.connection import Connection


@pytest.fixture
def server() -> Iterator[Server]:
    """What this process's server has told; forgotten again after the test."""
    server = this_server()
    before = {name: getattr(server, name) for name in Server.__slots__}
    yield server
    for name, value in before.items():
        setattr(server, name, value)


@pytest.fixture
def connection() -> Iterator[Connection]:
    connection = Connection()
    yield connection
    connection.close()
