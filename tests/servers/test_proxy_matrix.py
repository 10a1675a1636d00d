"""The cases of ``proxy_cases``, with raw sockets on both sides, under real servers, and against a peer.

``pytest -s -m engine tests/servers/test_proxy_matrix.py`` compares with Go's ``httputil.ReverseProxy``;
``SCALEZERO_TEST_GO`` names the ``go`` that builds it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.engines.engine import engine
from tests.servers.harness import free_port, gunicorn, serving
from tests.servers.proxy_cases import CASES, Case
from tests.support.raw_http import Message, RawFunction, ask

SITE = "tests.servers.raw_proxy_site:app"


def run(case: Case, address: tuple[str, int], function: RawFunction, path: bytes) -> tuple[bool, Message]:
    function.requests.clear()
    function.behaviour, function.read_body = case.function, case.read_body
    response = Message()
    try:
        response = ask(address, case.request.replace(b"{path}", path), case.then, not case.is_head)
        return response.status != 500 and bool(case.check(response, list(function.requests))), response
    except AssertionError:  # a header that came twice
        return False, response


def failures(address: tuple[str, int], function: RawFunction, path: bytes) -> dict[str, str]:
    failed = {}
    for case in CASES:
        right, response = run(case, address, function, path)
        if not right:
            seen = [(request.line, request.headers, request.body[:50]) for request in function.requests]
            failed[case.name] = f"{response.line!r} {response.body[:50]!r} whole: {response.whole}; {seen}"
    return failed


@contextmanager
def ours(worker: str, log: Path) -> Iterator[tuple[RawFunction, tuple[str, int], Path]]:
    with RawFunction() as function:
        options = ["--threads", "8"] if worker == "gthread" else []
        with gunicorn(SITE, log, *options, worker=worker, env={"FUNCTION": function.url}) as server:
            assert isinstance(server.address, tuple)
            yield function, server.address, log


@pytest.mark.parametrize(
    "worker",
    [
        "gthread",
        pytest.param("gevent", marks=pytest.mark.engine),
        pytest.param("sync", marks=pytest.mark.engine),
    ],
)
def test_every_case(worker: str, tmp_path: Path) -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in CASES}) == len(CASES)
    with ours(worker, tmp_path / "log") as (function, address, log):
        assert failures(address, function, b"/function/hello") == {}
        text = log.read_text(errors="replace")
        assert "Traceback" not in text, text


@pytest.mark.engine
def test_no_peer_is_right_where_ours_is_not(tmp_path: Path) -> None:
    go = engine("SCALEZERO_TEST_GO", "go")
    binary = tmp_path / "reverse_proxy"
    source = Path(__file__).with_name("reverse_proxy.go")
    environment = {**os.environ, "GO111MODULE": "off", "GOCACHE": str(tmp_path / "cache")}
    subprocess.run([go, "build", "-o", binary, source], check=True, env=environment)
    with ExitStack() as stack:
        function, address, _ = stack.enter_context(ours("gthread", tmp_path / "log"))
        behind_go = stack.enter_context(RawFunction())
        port = free_port()
        command = [str(binary), f"127.0.0.1:{port}", behind_go.url]
        stack.enter_context(serving(command, port, tmp_path / "go.log"))
        our_failures = failures(address, function, b"/function/hello")
        go_failures = failures(("127.0.0.1", port), behind_go, b"/function/hello")
    print(f"\n{len(CASES)} cases: ours fails {len(our_failures)}, Go's {len(go_failures)}")
    for name, what in go_failures.items():
        print(f"  Go's: {name}: {what[:150]}")
    assert our_failures == {}
