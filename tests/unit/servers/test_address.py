"""Where a server is to listen."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from scalezero_wsgi.model import SettingError
from scalezero_wsgi.servers.address import check_bind, only_this_host


@pytest.mark.parametrize(
    ("bind", "told"),
    [
        ("127.0.0.1:8080", True),
        ("127.1.2.3:80", True),
        ("localhost:8080", True),
        ("tcp://LOCALHOST:8080", True),
        ("[::1]:8080", True),
        ("unix:/run/functions.sock", True),
        ("127.0.0.1:8080,[::1]:8080", True),
        ("0.0.0.0:8080", False),
        (":8080", False),
        ("8080", False),
        ("", False),
        ("[::]:8080", False),
        ("10.0.0.1:8080", False),
        ("functions.example:8080", False),
        ("fd://3", False),
        ("127.0.0.1:8080,0.0.0.0:8081", False),
        ("127.0.0.1.example:8080", False),
    ],
)
def test_only_this_host(bind: str, told: bool) -> None:
    assert only_this_host(bind) == told


@pytest.mark.parametrize(
    ("bind", "says"),
    [
        ("8080", "it must be HOST:PORT, such as 127.0.0.1:8080"),
        ("127.0.0.1:http", "'http' is not a valid port number"),
        ("127.0.0.1:70000", "the port must be 0 to 65535"),
        ("192.0.2.1:8080", "Cannot assign requested address"),
        ("127.0.0.1", "it must be HOST:PORT, such as 127.0.0.1:8080"),
        ("127.0.0.1:0,8080", "--bind 8080: it must be"),
        ("fd://three", "'three' is not a valid file descriptor"),
        ("unix:/nowhere/socket", "/nowhere is not there, or not to be written to"),
        ("unix:/etc/passwd", "There is a file that is no socket"),
    ],
)
def test_an_impossible_address_is_named(bind: str, says: str) -> None:
    with pytest.raises(SettingError) as raised:
        check_bind(bind)
    assert says in str(raised.value)
    assert f"--bind {bind.split(',')[-1]}: " in str(raised.value)


@pytest.mark.parametrize("kind", ["port", "path"])
def test_a_taken_address_is_named(kind: str, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX if kind == "path" else socket.AF_INET) as taken:
        taken.bind(str(tmp_path / "socket") if kind == "path" else ("127.0.0.1", 0))
        taken.listen()
        name = taken.getsockname()
        with pytest.raises(SettingError, match="choose another address or port"):
            check_bind(f"unix:{name}" if kind == "path" else f"127.0.0.1:{name[1]}")


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "[::1]:0", "tcp://localhost:0", "unix:{}/new", "fd://3", ""])
def test_a_possible_address_is_let_be(bind: str, tmp_path: Path) -> None:
    check_bind(bind.format(tmp_path) or "127.0.0.1:0")
    assert list(tmp_path.iterdir()) == []


def test_the_socket_that_a_dead_server_left_is_no_hindrance(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "socket"))
    check_bind(f"unix:{tmp_path / 'socket'}")
