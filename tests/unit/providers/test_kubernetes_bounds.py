"""What an API server that means ill, or is none, can cost: little memory and no more time than was given."""

from __future__ import annotations

import contextlib
import gzip
import itertools
import json
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import httpcore2  # noqa: F401  else a measured block would import it
import pytest
import yaml
from lightkube.config import client_adapter  # noqa: F401

from scalezero_wsgi import ProviderError, ReplicaStatus
from scalezero_wsgi.providers import KubernetesProvider, answer

LIMIT = 2**18
"""Bytes of an answer in these tests; 16 MiB would take as many times longer."""

MANY = 64
"""How many times the limit is sent: what is held whole is far above the noise."""

PIECE = b" " * 2**16
SEEN = ReplicaStatus(0, 0)


@pytest.fixture(autouse=True)
def _limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "MAX_ANSWER", LIMIT)


@contextlib.contextmanager
def api_server(answer: Callable[[bytes], Iterable[bytes]]) -> Iterator[str]:
    """An API server that sends what ``answer`` makes of a request's head, as long as somebody listens."""

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while head := connection.recv(65536):
                for piece in answer(head):
                    connection.sendall(piece)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=serve, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def provider(tmp_path: Path) -> Callable[..., KubernetesProvider]:
    def make(url: str, timeout: float = 20.0, **user: str) -> KubernetesProvider:
        config = {
            "clusters": [{"name": "c", "cluster": {"server": url, "insecure-skip-tls-verify": True}}],
            "users": [{"name": "u", "user": user or {"token": "t"}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path = tmp_path / "kubeconfig"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return KubernetesProvider(kubeconfig=path, service=None, timeout=timeout)

    return make


def head(status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def pieces() -> Iterator[bytes]:
    return itertools.repeat(PIECE, MANY * LIMIT // len(PIECE))


def long(status: str = "200 OK") -> Iterator[bytes]:
    yield head(status, f"Content-Length: {MANY * LIMIT}")
    yield from pieces()


def chunked(status: str = "200 OK") -> Iterator[bytes]:
    yield head(status, "Transfer-Encoding: chunked")
    for piece in pieces():
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"


BOMB = gzip.compress(b"[" + b" " * (MANY * LIMIT) + b"]")


def bomb(status: str = "200 OK") -> Iterator[bytes]:
    yield head(status, "Content-Encoding: gzip", f"Content-Length: {len(BOMB)}")
    yield BOMB


LIST = json.dumps({"metadata": {"resourceVersion": "1"}, "items": [{"metadata": {"name": "hello"}}]}).encode()
OK = head("200 OK", f"Content-Length: {len(LIST)}") + LIST


def only_watches(answer: Callable[[], Iterator[bytes]]) -> Callable[[bytes], Iterable[bytes]]:
    return lambda request: answer() if b"watch=true" in request else [OK]


@contextlib.contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Twice the answer while the buffer grows and is copied, and what modules take that are imported first.
    assert peak < MANY * LIMIT / 4, f"{peak / 2**20:.0f} MiB"


def ask(kube: KubernetesProvider) -> None:
    kube.get_replicas("hello", "")


def watch(kube: KubernetesProvider) -> None:
    assert kube.wait_for_change("hello", "", SEEN, 0.15) == SEEN


@pytest.mark.parametrize(
    ("send", "says", "status"),
    [
        (long, "longer than", "200 OK"),
        (chunked, "longer than", "200 OK"),
        (bomb, "coding 'gzip'", "200 OK"),
        (long, "longer than", "401 Unauthorized"),
        (bomb, "coding 'gzip'", "401 Unauthorized"),
        (chunked, "longer than", "500 Oops"),
    ],
)
def test_a_long_answer_is_not_held(
    send: Callable[[str], Iterator[bytes]],
    says: str,
    status: str,
    provider: Callable[..., KubernetesProvider],
) -> None:
    with api_server(lambda _: send(status)) as url:
        kube = provider(url)
        with little_memory(), pytest.raises(ProviderError, match=says):
            ask(kube)


@pytest.mark.parametrize("send", [long, bomb])
def test_nor_is_one_to_a_token_that_may_have_been_rotated(
    send: Callable[[str], Iterator[bytes]], provider: Callable[..., KubernetesProvider], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("t", encoding="utf-8")
    with api_server(lambda _: send("401 Unauthorized")) as url:
        kube = provider(url, tokenFile=str(tmp_path / "token"))
        with little_memory(), pytest.raises(ProviderError, match=r"longer than|coding 'gzip'"):
            ask(kube)


@pytest.mark.parametrize(
    ("send", "status"), [(long, "200 OK"), (chunked, "200 OK"), (bomb, "200 OK"), (long, "500 Oops")]
)
def test_nor_is_a_watch(
    send: Callable[[str], Iterator[bytes]], status: str, provider: Callable[..., KubernetesProvider]
) -> None:
    with api_server(only_watches(lambda: send(status))) as url:
        kube = provider(url)
        with little_memory():
            watch(kube)


def test_an_answer_of_the_greatest_length_is_read(provider: Callable[..., KubernetesProvider]) -> None:
    body = LIST.ljust(LIMIT - 1000)
    with api_server(lambda _: [head("200 OK", f"Content-Length: {len(body)}"), body]) as url:
        assert provider(url).get_replicas("hello", "").replicas == 0


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_depth_is_an_error_like_any_other(
    opening: bytes, provider: Callable[..., KubernetesProvider]
) -> None:
    body = opening * 40_000
    with (
        api_server(lambda _: [head("200 OK", f"Content-Length: {len(body)}"), body]) as url,
        pytest.raises(ProviderError, match="no JSON object"),
    ):
        ask(provider(url))


def test_depth_in_an_event(provider: Callable[..., KubernetesProvider]) -> None:
    with api_server(only_watches(lambda: iter([head(), b"[" * 100_000 + b"\n"]))) as url:
        watch(provider(url))


def slowly(*first: bytes, rest: bytes) -> Callable[[bytes], Iterator[bytes]]:
    def send(_: bytes) -> Iterator[bytes]:
        yield from first
        for _time in range(200):  # WHOLE in all
            time.sleep(0.05)
            yield rest

    return send


DRIPS = {
    "status": slowly(rest=b"H"),
    "header": slowly(b"HTTP/1.1 200 OK\r\nX: ", rest=b"y"),
    "interim": slowly(rest=b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "chunk": slowly(head("200 OK", "Transfer-Encoding: chunked"), b"1;", rest=b"x"),
    "body": slowly(head("200 OK", "Content-Length: 200"), rest=b" "),
}
WHOLE = 10.0
"""Seconds that each of them takes; what is given up in time is far from it."""


@pytest.mark.parametrize("drip", DRIPS)
def test_an_answer_that_drips_ends_in_time(drip: str, provider: Callable[..., KubernetesProvider]) -> None:
    with api_server(DRIPS[drip]) as url:
        kube = provider(url, timeout=0.15)
        begun = time.monotonic()
        with pytest.raises(ProviderError, match=r"in time|ReadTimeout|ReadError"):
            ask(kube)
        assert time.monotonic() - begun < WHOLE / 4


@pytest.mark.parametrize("drip", ["header", "body"])
def test_a_watch_that_drips_ends_in_time(drip: str, provider: Callable[..., KubernetesProvider]) -> None:
    with api_server(lambda request: DRIPS[drip](request) if b"watch=true" in request else [OK]) as url:
        kube = provider(url)
        begun = time.monotonic()
        watch(kube)
        assert time.monotonic() - begun < WHOLE / 4


def test_interim_answers_without_end_are_not_waited_for(provider: Callable[..., KubernetesProvider]) -> None:
    flood: Any = itertools.repeat(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)
    with api_server(lambda _: flood) as url:
        begun = time.monotonic()
        with pytest.raises(ProviderError, match=r"in time|longer than"):
            ask(provider(url, timeout=0.15))
        assert time.monotonic() - begun < WHOLE / 4
