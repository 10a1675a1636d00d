"""Connections that are kept: for how long, how many, and what of them is used again."""

from __future__ import annotations

import gc
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from scalezero_wsgi.proxy import FunctionProxy, exchange
from scalezero_wsgi.proxy import pool as pools
from scalezero_wsgi.proxy.errors import FunctionError, FunctionTimeout
from scalezero_wsgi.proxy.pool import Connection, Origin, Pool, endpoint_of
from tests.support.clock import Clock
from tests.support.raw_http import RawFunction, says
from tests.support.waiting import until
from tests.unit.proxy.test_proxy import environ_for


@pytest.fixture
def function() -> Iterator[RawFunction]:
    with RawFunction(lambda wire, _: True) as it:
        yield it


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pool(clock: Clock) -> Pool:
    return Pool(5.0, clock)


def origin_of(function: RawFunction) -> Origin:
    return endpoint_of(function.url).origin


def kept(pool: Pool, function: RawFunction) -> Connection:
    connection = pool.connect(origin_of(function), 0.0)
    pool.give_back(connection)
    return connection


def test_the_one_used_last_is_taken_first(pool: Pool, function: RawFunction) -> None:
    first, second = pool.connect(origin_of(function), 0.0), pool.connect(origin_of(function), 0.0)
    pool.give_back(first)
    pool.give_back(second)
    assert pool.take(origin_of(function)) is second
    assert pool.take(origin_of(function)) is first
    assert pool.take(origin_of(function)) is None
    assert first.reused
    assert second.reused


def test_one_that_was_idle_for_too_long_is_not_used(pool: Pool, function: RawFunction, clock: Clock) -> None:
    connection = kept(pool, function)
    clock.advance(pools.MAX_IDLE - 1.0)
    assert pool.take(origin_of(function)) is connection
    pool.give_back(connection)
    clock.advance(pools.MAX_IDLE + 1.0)
    assert pool.take(origin_of(function)) is None
    assert connection.sock.fileno() == -1


def test_one_that_is_too_old_is_not_used(pool: Pool, function: RawFunction, clock: Clock) -> None:
    connection = pool.connect(origin_of(function), 0.0)
    clock.advance(pools.MAX_AGE + 1.0)
    pool.give_back(connection)
    assert pool.take(origin_of(function)) is None
    assert connection.sock.fileno() == -1


def test_what_is_idle_for_too_long_is_closed_when_another_comes_back(
    pool: Pool, function: RawFunction, clock: Clock
) -> None:
    old = kept(pool, function)
    clock.advance(pools.MAX_IDLE + 1.0)
    with RawFunction(lambda wire, _: True) as other:
        kept(pool, other)
        assert old.sock.fileno() == -1
        assert pool.idle == {origin_of(other): 1}


def test_their_number_is_bounded(pool: Pool, function: RawFunction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "POOL_SIZE", 2)
    connections = [pool.connect(origin_of(function), 0.0) for _ in range(4)]
    for connection in connections:
        pool.give_back(connection)
    assert pool.idle == {origin_of(function): 2}
    assert [connection.sock.fileno() == -1 for connection in connections] == [True, True, False, False]


def test_one_that_the_function_closed_is_not_used(pool: Pool) -> None:
    with RawFunction(lambda wire, _: True) as function:
        kept(pool, function)
        origin = origin_of(function)
    until(lambda: pool.take(origin) is None)
    assert pool.idle in ({}, {origin: 0})


def test_one_on_which_something_came_unasked_is_not_used(pool: Pool, function: RawFunction) -> None:
    connection = kept(pool, function)
    until(lambda: bool(function._open))
    for sock in function._open:
        sock.sendall(b"HTTP/1.1 408 Timeout\r\n\r\n")
    connection.sock.settimeout(5.0)
    assert connection.sock.recv(1, socket.MSG_PEEK)
    connection.sock.settimeout(0.0)
    assert pool.take(origin_of(function)) is None


def test_a_pool_that_is_gone_leaves_nothing_open(function: RawFunction) -> None:
    pool = Pool(5.0)
    kept(pool, function)
    del pool
    assert function.closed.wait(5.0)


@pytest.mark.parametrize("idle", [False, True])
def test_one_lost_in_a_cycle_is_closed_without_a_warning(
    idle: bool, function: RawFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    pool = Pool(5.0)
    cycle: list[object] = [pool, kept(pool, function) if idle else pool.connect(origin_of(function), 0.0)]
    cycle.append(cycle)
    del pool, cycle
    gc.collect()
    assert function.closed.wait(5.0)
    assert ignored == []


@pytest.mark.parametrize(
    "step",
    ["Outgoing.send", "Exchange._receive", "ResponseReader.feed", "start_response", "Exchange.next_piece"],
)
@pytest.mark.parametrize("reused", [False, True])
def test_whatever_is_raised_at_any_step_closes_it(
    step: str, reused: bool, function: RawFunction, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as gunicorn's ``SystemExit`` in a worker that is too slow."""
    function.behaviour = says(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nwhole")
    proxy = FunctionProxy()
    begun: list[str] = []

    def start_response(status: str, *_: object) -> Callable[[bytes], object]:
        begun.append(status)
        if step == "start_response" and len(begun) > reused:
            raise SystemExit
        return lambda data: None

    def abort(*_: object) -> None:
        raise SystemExit

    if reused:
        assert b"".join(proxy(environ_for("/", function.url), start_response)) == b"whole"
    function.behaviour = says(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart")
    if step != "start_response":
        owner, _, name = step.partition(".")
        monkeypatch.setattr(getattr(exchange, owner), name, abort)

    def serve() -> None:
        pieces = proxy(environ_for("/", function.url), start_response)
        with closing(pieces):  # type: ignore[type-var]
            list(pieces)

    with pytest.raises(SystemExit) as raised:
        serve()
    assert function.closed.wait(5.0)
    assert function.connections == 1
    assert raised.tb is not None  # which keeps all that was in use


def test_a_connection_that_is_not_accepted_in_time_is_a_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        address = full.getsockname()
        waiting = [socket.socket() for _ in range(4)]  # more than the backlog takes
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(address)
        with pytest.raises(FunctionTimeout, match=r"within 0\.2 s"):
            Pool(0.2).connect(Origin("http", *address), 0.0)
        for sock in waiting:
            sock.close()


@pytest.mark.parametrize(
    ("url", "origin", "path", "authority"),
    [
        ("http://a", ("http", "a", 80), "", "a"),
        ("https://A.b:8443/x/", ("https", "a.b", 8443), "/x", "A.b:8443"),
        ("http://u:p@[::1]:81", ("http", "::1", 81), "", "[::1]:81"),
    ],
)
def test_an_endpoint_is_taken_apart(
    url: str, origin: tuple[str, str, int], path: str, authority: str
) -> None:
    assert endpoint_of(url) == (origin, path, authority)


@pytest.mark.parametrize("url", ["", "a:80", "ftp://a", "http://", "http://a:99999", "http://[::1", "//a"])
def test_what_is_no_endpoint_is_refused_without_being_shown(url: str) -> None:
    with pytest.raises(FunctionError, match="its endpoint is not"):
        endpoint_of(url)
