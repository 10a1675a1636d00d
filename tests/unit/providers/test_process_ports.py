"""A function's port is one that nobody else gets before the function listens there."""

from __future__ import annotations

import socket
from itertools import combinations
from pathlib import Path

import pytest

from scalezero_wsgi.providers.process import ports
from scalezero_wsgi.providers.process.ports import APART, free_port


def test_the_kernel_gives_it_to_nobody() -> None:
    first, last = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    for _ in range(200):
        port = free_port()
        assert port in APART
        assert not first <= port <= last


def test_nobody_listens_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = free_port(0, 2), free_port(1, 2)
    monkeypatch.setattr(ports, "APART", (mine, other))
    with socket.create_server(("127.0.0.1", mine)):
        assert free_port() == other


def test_no_two_functions_share_one() -> None:
    given = [{free_port(number, 3000) for _ in range(30)} for number in range(5)]
    assert all(len(each) > 1 for each in given)  # the last one may still be in use
    assert not any(one & other for one, other in combinations(given, 2))


def test_where_there_are_more_functions_than_ports_the_kernel_chooses() -> None:
    assert free_port(len(APART), len(APART) + 1) not in APART


@pytest.mark.parametrize("handed_out", ["1024\t65535\n", "20000 65535"])
def test_where_the_kernel_gives_all_it_is_one_of_these(
    handed_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "range").write_text(handed_out)
    monkeypatch.setattr(ports, "GIVEN_BY_THE_KERNEL", tmp_path / "range")
    assert free_port() not in APART


def test_without_proc_it_is_below_the_dynamic_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "GIVEN_BY_THE_KERNEL", tmp_path / "none")
    assert 20_000 <= free_port() < 30_000
