"""OpenFaaSProvider without a gateway: its settings, and answers that no gateway gives on demand.

``Fake`` is a small HTTP server that answers by a script; the gateway with real containers behind it is in
``tests/engines``.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from scalezero_wsgi import (
    Function,
    FunctionNotFound,
    NotAvailable,
    ProviderError,
    ReplicaStatus,
    SettingError,
)
from scalezero_wsgi.providers import OpenFaaSProvider, make_provider
from scalezero_wsgi.providers import answer as engine_answer
from scalezero_wsgi.providers.base import DoubtingProvider, ListingProvider, WatchingProvider
from scalezero_wsgi.providers.openfaas import http as openfaas_http
from scalezero_wsgi.providers.openfaas import provider as openfaas
from scalezero_wsgi.testing import HOSTILE_NAMES
from scalezero_wsgi.testing.providers import asked_by_workers
from tests.support.waiting import until

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Asked:
    method: str
    path: str
    headers: dict[str, str]
    content: Any
    connection: int


def reply(status: int = 200, content: object = b"", **headers: str) -> Reply:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return status, {name.replace("_", "-"): value for name, value in headers.items()}, body


@dataclass
class Fake:
    """Answers by path, else by method, else with ``{}``; writes down what it was asked."""

    url: str = ""
    replies: dict[str, Reply] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)

    def provider(self, **keywords: Any) -> OpenFaaSProvider:
        return OpenFaaSProvider(self.url, **{"timeout": 10, **keywords})


@pytest.fixture
def fake() -> Iterator[Fake]:
    script = Fake()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            content = json.loads(body) if body else None
            script.asked.append(
                Asked(self.command, self.path, dict(self.headers), content, self.client_address[1])
            )
            path = self.path.partition("?")[0]
            status, headers, body = (
                script.replies.get(path) or script.replies.get(self.command) or reply(200, {})
            )
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if status >= 200 and "Transfer-Encoding" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        script.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.002,))
        thread.start()
        yield script
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def raw_server(*turns: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server that does with each connection what the next turn says; the last one repeats."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(5)
        script = list(turns)
        stop = threading.Event()

        def serve(connection: socket.socket, turn: Callable[[socket.socket], None]) -> None:
            with connection, contextlib.suppress(OSError):
                turn(connection)

        def accept() -> None:
            threads = []
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    if stop.is_set():
                        connection.close()
                        break
                    turn = script.pop(0) if len(script) > 1 else script[0]
                    threads.append(threading.Thread(target=serve, args=(connection, turn)))
                    threads[-1].start()
            for each in threads:
                each.join()

        thread = threading.Thread(target=accept)
        thread.start()
        port = listener.getsockname()[1]
        yield f"http://127.0.0.1:{port}"
        stop.set()
        socket.create_connection(("127.0.0.1", port)).close()
        thread.join()


def trickle(head: bytes, pause: float = 0.05) -> Callable[[socket.socket], None]:
    """Send ``head`` at once, and then a byte at a time without an end."""

    def turn(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(head)
        for _ in range(200):
            connection.sendall(b"x")
            time.sleep(pause)

    return turn


def say(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answer one request after another on the connection, then close it."""

    def turn(connection: socket.socket) -> None:
        for answer in answers:
            if not connection.recv(4096):
                return
            connection.sendall(answer)

    return turn


OK = b'HTTP/1.1 200 OK\r\nContent-Length: 14\r\n\r\n{"replicas": 2}'
OK = OK.replace(b"14", str(len(b'{"replicas": 2}')).encode())


# -- settings


def test_what_it_offers() -> None:
    provider = OpenFaaSProvider("http://gateway:8080")
    assert isinstance(provider, ListingProvider)
    assert isinstance(provider, DoubtingProvider)
    assert not isinstance(provider, WatchingProvider)


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"url": None}, "url = None"),
        ({"url": "gateway:8080"}, "url = 'gateway:8080'"),
        ({"url": "ftp://gateway"}, "url = 'ftp://gateway'"),
        ({"url": "http://"}, "url = 'http://'"),
        ({"url": "http://gateway:port"}, "url = 'http://gateway:port'"),
        ({"url": "http://gate way"}, "url = 'http://gate way'"),
        ({"url": "http://gate..way"}, "url = 'http://gate..way'"),
        ({"url": "http://gateway/?a=b"}, "url = 'http://gateway/'"),
        ({"url": "http://gateway/#a"}, "url = 'http://gateway/'"),
        ({"timeout": "soon"}, "timeout: 'soon'"),
        ({"timeout": 0}, "timeout = 0"),
        ({"connect_timeout": -1}, "connect_timeout: -1"),
        ({"connect_timeout": "0s"}, "connect_timeout = '0s'"),
        ({"namespace": None}, "namespace = None"),
        ({"namespace": "a/b"}, "namespace = 'a/b'"),
        ({"namespaces": 3}, "namespaces = 3"),
        ({"namespaces": "a,,b"}, "namespaces = 'a,,b'"),
        ({"namespaces": ["a/b"]}, "namespaces = ['a/b']"),
        ({"namespaces": [7]}, "namespaces = [7]"),
        ({"endpoint": 8080}, "endpoint = 8080"),
        ({"endpoint": "functions"}, "endpoint = 'functions'"),
        ({"endpoint": "http://{host}"}, "endpoint = 'http://{host}'"),
        ({"endpoint": "http://{name.x}"}, "endpoint = 'http://{name.x}'"),
        ({"endpoint": "http://{name"}, "endpoint = 'http://{name'"),
        ({"endpoint": "http://{name}:http"}, "endpoint = 'http://{name}:http'"),
        ({"endpoint": "http://{name}/?x"}, "endpoint = 'http://{name}/'"),
        ({"ready": "/_/ready"}, "ready = '/_/ready'"),
        ({"ready": "ready", "endpoint": "gateway"}, "ready = 'ready'"),
        ({"ready": "/a b", "endpoint": "gateway"}, "ready = '/a b'"),
        ({"ca_file": "/no/such/file"}, "ca_file = '/no/such/file'"),
        ({"token": "two words"}, "token"),
        ({"token": ""}, "token"),
        ({"username": "admin"}, "password"),
        ({"password": "secret-pw"}, "username"),
        ({"username": "a:b", "password": "secret-pw"}, "username"),
        ({"username": "a", "password": "secret-pw\n"}, "password"),
        ({"username": "a", "password": 7}, "password"),
        ({"username": "a", "password": "secret-pw", "token": "secret-tk"}, "one way only"),
        ({"url": "http://a:secret-pw@gateway", "token": "secret-tk"}, "one way only"),
        ({"url": "http://a@gateway"}, "password"),
    ],
)
def test_a_wrong_setting_is_named(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError) as caught:
        OpenFaaSProvider(**{"url": "http://gateway:8080", **keywords})
    assert named in str(caught.value)
    assert "secret" not in str(caught.value).replace("secret_mount_path", "")
    assert "two words" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://admin:secret-pw@gateway:port",
        "http://admin:secret-pw@",
        "http://admin:secret?pw@gateway",
        "http://admin:secret#pw@gateway",
        "http://admin:secret/pw@gateway",
        "http://admin:secret pw@gateway",
        "http://admin:secret@pw@gate way",
        "admin:secret-pw@gateway",
        "http://admin:pw?secret@gateway",
        "http://admin:secret@[gateway",
        "http://admin:secret@gate\u2100way",
        "http://gateway?password=secret-pw",
    ],
)
def test_no_error_shows_what_is_in_the_url(url: str) -> None:
    query = "&nonsense=1" if "?" in url else "?nonsense=1"
    with pytest.raises(SettingError) as caught:
        OpenFaaSProvider(url)
    assert "secret" not in str(caught.value)
    with pytest.raises(SettingError) as caught:
        make_provider(f"openfaas+{url}{query}")
    assert "secret" not in str(caught.value).replace("secret_mount_path", "")


def test_the_url_of_a_provider_names_its_keywords(tmp_path: Path) -> None:
    provider = make_provider(
        "openfaas+https://admin:p%40ss@gateway:8443/of/?timeout=1500ms&connect_timeout=1&namespaces=a,b"
        "&endpoint=gateway&ready=/_/ready"
    )
    assert repr(provider) == "OpenFaaSProvider('https://gateway:8443/of')"
    assert "p@ss" not in str(vars(provider))
    assert "cEBzcw" not in str(vars(provider))
    for url, named in (
        ("openfaas+http://gateway?tiemout=3", "'tiemout' is not a parameter"),
        ("openfaas+http://gateway?url=x", "'url' is not a parameter"),
        ("openfaas+http://gateway?timeout=3&timeout=4", "'timeout' is given twice"),
        ("openfaas+http://gateway?timeout=", "timeout: ''"),
        ("openfaas://gateway", "url = 'openfaas://gateway'"),
        ("openfaas+ftp://gateway", "url = 'openfaas+ftp://gateway'"),
    ):
        with pytest.raises(SettingError) as caught:
            make_provider(url)
        assert named in str(caught.value)


def test_credentials_in_every_way(fake: Fake, tmp_path: Path) -> None:
    (tmp_path / "basic-auth-user").write_text("admin\n")
    (tmp_path / "basic-auth-password").write_text("  pässword:1\r\n")
    host = fake.url.removeprefix("http://")
    basic = "Basic YWRtaW46cMOkc3N3b3JkOjE="
    for provider, sent in (
        (fake.provider(), None),
        (fake.provider(username="admin", password="pässword:1"), basic),
        (fake.provider(secret_mount_path=tmp_path), basic),
        (fake.provider(token="abc.def"), "Bearer abc.def"),
        (make_provider(f"openfaas+http://admin:p%C3%A4ssword%3A1@{host}/"), basic),
        (make_provider(f"openfaas+http://{host}?token=abc.def"), "Bearer abc.def"),
        (make_provider("openfaas", url=fake.url, secret_mount_path=str(tmp_path)), basic),
    ):
        provider.get_replicas("hello", "")
        assert fake.asked[-1].headers.get("Authorization") == sent


def test_a_missing_secret_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "basic-auth-user").write_text("admin")
    with pytest.raises(SettingError, match=str(tmp_path / "basic-auth-password")):
        OpenFaaSProvider("http://gateway", secret_mount_path=tmp_path)
    (tmp_path / "basic-auth-password").write_bytes(b"\xff")
    with pytest.raises(SettingError, match="basic-auth-password is not UTF-8"):
        OpenFaaSProvider("http://gateway", secret_mount_path=tmp_path)
    (tmp_path / "basic-auth-password").write_text("\n")
    with pytest.raises(SettingError, match=f"secret_mount_path = '{tmp_path}': password"):
        OpenFaaSProvider("http://gateway", secret_mount_path=tmp_path)


def test_the_environment_does_not_count(fake: Fake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    fake.provider().get_replicas("hello", "")
    assert "Authorization" not in fake.asked[-1].headers
    with pytest.raises(requests.ConnectionError):  # the variables do work
        requests.get(fake.url, timeout=2)


# -- what is asked


@pytest.mark.parametrize("base", ["", "/", "/of", "/of/"])
def test_the_calls_as_the_api_has_them(fake: Fake, base: str) -> None:
    provider = OpenFaaSProvider(fake.url + base)
    provider.get_replicas("hello", "fn")
    provider.set_replicas("hello", "fn", 2)
    provider.get_replicas("hello", "")
    provider.set_replicas("hello", "", 0)
    under = base.rstrip("/")
    assert [(each.method, each.path, each.content) for each in fake.asked] == [
        ("GET", f"{under}/system/function/hello?namespace=fn", None),
        (
            "POST",
            f"{under}/system/scale-function/hello?namespace=fn",
            {"serviceName": "hello", "replicas": 2, "namespace": "fn"},
        ),
        ("GET", f"{under}/system/function/hello", None),
        ("POST", f"{under}/system/scale-function/hello", {"serviceName": "hello", "replicas": 0}),
    ]


@pytest.mark.parametrize("name", [*HOSTILE_NAMES, "x" * 300])
def test_a_name_that_nothing_can_have_is_not_asked_for(fake: Fake, name: str) -> None:
    provider = fake.provider()
    for function in ((name, "fn"), ("hello", name)):
        if function == ("hello", ""):
            continue
        with pytest.raises(FunctionNotFound):
            provider.get_replicas(*function)
        with pytest.raises(FunctionNotFound):
            provider.set_replicas(*function, 1)
    assert fake.asked == []


def test_functions_are_listed_by_namespace(fake: Fake) -> None:
    fake.replies["GET"] = reply(
        200, [{"name": "hello", "namespace": "openfaas-fn"}, {"name": "other"}, {}, {"name": "a/b"}]
    )
    own = "openfaas-fn"
    assert fake.provider().list_functions() == [Function("hello", own), Function("other", own)]
    assert fake.provider(namespace="fn").list_functions() == [
        Function("hello", "fn"),
        Function("other", "fn"),
    ]
    assert fake.provider(namespace="").list_functions() == [Function("hello"), Function("other")]
    assert fake.provider(namespaces="a,b").list_functions() == [
        Function("hello", "a"), Function("other", "a"), Function("hello", "b"), Function("other", "b"),
    ]  # fmt: skip
    assert [each.path for each in fake.asked] == [
        "/system/functions", "/system/functions", "/system/functions",
        "/system/functions?namespace=a", "/system/functions?namespace=b",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "answer", [reply(404), reply(500), reply(200, {}), reply(200, ["hello"]), reply(200, [{"name": 7}])]
)
def test_a_list_that_is_none(fake: Fake, answer: Reply) -> None:
    fake.replies["GET"] = answer
    with pytest.raises(ProviderError):
        fake.provider().list_functions()


# -- what an answer means


@pytest.mark.parametrize(
    ("told", "status"),
    [
        ({}, ReplicaStatus(0, 0)),
        ({"replicas": 1}, ReplicaStatus(1, 0)),
        ({"replicas": 3, "availableReplicas": 2}, ReplicaStatus(3, 2)),
        ({"replicas": None, "availableReplicas": 1}, ReplicaStatus(0, 0)),
        ({"availableReplicas": 2}, ReplicaStatus(0, 0)),
        ({"replicas": 1, "labels": None, "annotations": None}, ReplicaStatus(1, 0)),
        (
            {"labels": {"a": "b", "n": 1}, "annotations": {"c": "d"}},
            ReplicaStatus(0, 0, labels={"a": "b", "n": "1"}, annotations={"c": "d"}),
        ),
    ],
)
def test_a_status_is_read(fake: Fake, told: object, status: ReplicaStatus) -> None:
    fake.replies["GET"] = reply(200, told)
    assert fake.provider().get_replicas("hello", "") == status


@pytest.mark.parametrize(
    ("labels", "least", "most"),
    [
        ({}, 1, None),
        ({"min": "3"}, 3, None),
        ({"min": " 3 "}, 3, None),
        ({"min": "0"}, 1, None),
        ({"min": "-2"}, 1, None),
        ({"min": "two"}, 1, None),
        ({"min": "1.5"}, 1, None),
        ({"min": ""}, 1, None),
        ({"min": "³"}, 1, None),
        ({"min": "1_0"}, 1, None),
        ({"min": "9" * 5000}, 1, None),
        ({"max": "5"}, 1, 5),
        ({"max": "0"}, 1, None),
        ({"max": "lots"}, 1, None),
        ({"min": "7", "max": "5"}, 5, 5),
        ({"min": "2", "max": "5", "factor": "%$!"}, 2, 5),
        ({"factor": "-1"}, 1, None),
        ({"factor": "100"}, 1, None),
        ({"zero": "true", "zero-duration": "15m"}, 1, None),
    ],
)
def test_the_labels_of_scaling(fake: Fake, labels: dict[str, str], least: int, most: int | None) -> None:
    told = {f"com.openfaas.scale.{name}": text for name, text in labels.items()}
    fake.replies["GET"] = reply(200, {"labels": told})
    status = fake.provider().get_replicas("hello", "")
    assert (status.min_replicas, status.max_replicas) == (least, most)
    assert status.labels == told


@pytest.mark.parametrize(
    "answer",
    [
        reply(500, b"Unable to fetch service"),
        reply(401),
        reply(403),
        reply(400),
        reply(502),
        reply(503),
        reply(503, X_OpenFaaS_Internal="faas-middleware"),
        reply(206, {}),
        reply(204),
        reply(302, Location="/system/function/other"),
        reply(103),
        reply(200, b"<html>"),
        reply(200, b"\xff"),
        reply(200, b"[" * 100_000),
        reply(200, []),
        reply(200, 5),
        reply(200, {"replicas": "1"}),
        reply(200, {"replicas": True}),
        reply(200, {"replicas": 1.5}),
        reply(200, {"replicas": -1}),
        reply(200, {"replicas": 1, "availableReplicas": -1}),
        reply(200, {"labels": ["a"]}),
        reply(200, {}, Transfer_Encoding="chunked"),
    ],
)
def test_an_unexpected_answer_is_an_error_and_no_more(fake: Fake, answer: Reply) -> None:
    fake.replies["/system/function/hello"] = answer
    provider = fake.provider(timeout=0.25)
    with pytest.raises(ProviderError):
        provider.get_replicas("hello", "")
    fake.replies.clear()
    assert provider.get_replicas("hello", "") == ReplicaStatus(0, 0)


def test_404_is_not_found(fake: Fake) -> None:
    fake.replies = {"GET": reply(404), "POST": reply(404)}
    with pytest.raises(FunctionNotFound) as caught:
        fake.provider().get_replicas("hello", "fn")
    assert caught.value.function == Function("hello", "fn")
    with pytest.raises(FunctionNotFound):
        fake.provider().set_replicas("hello", "fn", 1)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_scaled(fake: Fake, status: int) -> None:
    fake.replies["POST"] = reply(status)
    fake.provider().set_replicas("hello", "", 1)


@pytest.mark.parametrize("status", [203, 302, 400, 401, 409, 500, 503])
def test_not_scaled(fake: Fake, status: int) -> None:
    fake.replies["POST"] = reply(status, b"why  not\n", Location="/elsewhere")
    with pytest.raises(ProviderError, match=f"{status}: 'why not'"):
        fake.provider().set_replicas("hello", "", 1)
    assert all(each.path != "/elsewhere" for each in fake.asked)


def test_a_500_of_a_missing_deployment_is_told_from_an_outage(fake: Fake) -> None:
    fake.replies = {"POST": reply(500, b"Unable to lookup function deployment hello"), "GET": reply(404)}
    with pytest.raises(FunctionNotFound):
        fake.provider().set_replicas("hello", "", 1)
    fake.replies["GET"] = reply(500)
    with pytest.raises(ProviderError):
        fake.provider().set_replicas("hello", "", 1)
    fake.replies["GET"] = reply(200, {"replicas": 1})
    with pytest.raises(ProviderError, match="Unable to lookup"):
        fake.provider().set_replicas("hello", "", 1)


def test_no_endpoint_yet_is_a_start_under_way(fake: Fake) -> None:
    no_endpoint = reply(503, b"No endpoints available for: hello.", X_OpenFaaS_Internal="proxy")
    fake.replies = {"GET": no_endpoint, "POST": no_endpoint}
    status = fake.provider().get_replicas("hello", "")
    assert (status.replicas, status.available_replicas, status.failure) == (1, 0, None)
    with pytest.raises(ProviderError, match="No endpoints"):
        fake.provider().set_replicas("hello", "", 1)


def test_a_function_that_never_comes_up_is_scaled_once_by_all_workers(fake: Fake) -> None:
    """The API has no word for a failure: the count stays above zero, and is not set again."""

    class Replies(dict[str, Reply]):
        scaled = False

        def get(self, key: str, default: Any = None) -> Any:
            self.scaled = self.scaled or key == "POST"
            return reply(200, {"replicas": int(self.scaled), "availableReplicas": 0})

    fake.replies = Replies()
    with asked_by_workers(fake.provider(), Function("hello"), max_wait=0.6) as tries:
        until(lambda: len(fake.asked) >= 20 and NotAvailable in tries.outcomes)
    assert tries.outcomes == {NotAvailable}
    assert len(tries.sets) == 1


def test_a_gateway_that_refuses_zero_is_asked_once(
    fake: Fake, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.replies["POST"] = reply(400, b"replicas cannot be set to 0 in OpenFaaS CE")
    provider = fake.provider()
    caplog.set_level(logging.DEBUG, "scalezero_wsgi")
    for _ in range(5):
        with pytest.raises(ProviderError, match="refuse"):
            provider.set_replicas("hello", "", 0)
    assert len(fake.asked) == 1
    assert [record.getMessage() for record in caplog.records] == [
        "function hello: the gateway refuses zero: 'replicas cannot be set to 0 in OpenFaaS CE'"
    ]
    with pytest.raises(ProviderError, match="answered 400"):
        provider.set_replicas("hello", "", 1)
    assert len(fake.asked) == 2
    with pytest.raises(ProviderError):
        provider.set_replicas("other", "", 0)
    assert len(caplog.records) == 2

    monkeypatch.setattr(openfaas, "REFUSAL_REST", 0.0)
    fresh = fake.provider()
    for _ in range(3):  # it is asked again later, and still logged once
        with pytest.raises(ProviderError):
            fresh.set_replicas("hello", "", 0)
    assert len(fake.asked) == 6
    assert len(caplog.records) == 3
    fake.replies["POST"] = reply(202)
    fresh.set_replicas("hello", "", 0)
    fake.replies["POST"] = reply(400)
    with pytest.raises(ProviderError):
        fresh.set_replicas("hello", "", 0)
    assert len(caplog.records) == 4


def test_credentials_that_are_echoed_stay_out_of_errors_and_logs(
    fake: Fake, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider = fake.provider(username="admin", password="hunter-2")
    encoded = "YWRtaW46aHVudGVyLTI="
    for status in (400, 403, 500):
        fake.replies["POST"] = reply(status, f"hunter-2 and Basic {encoded}".encode())
        fake.replies["GET"] = fake.replies["POST"]
        for replicas in (0, 1):
            with pytest.raises(ProviderError) as caught:
                provider.set_replicas("hello", "", replicas)
            assert "hunter-2" not in str(caught.value)
            assert encoded not in str(caught.value)
    assert fake.asked[0].headers["Authorization"] == f"Basic {encoded}"
    assert caplog.records
    assert "hunter-2" not in caplog.text
    assert encoded not in caplog.text
    assert "hunter-2" not in repr(provider)


# -- where a function is reached


def test_the_endpoint_is_told_when_it_is_asked_for(fake: Fake) -> None:
    for endpoint, plain, named in (
        (None, None, None),
        ("gateway", f"{fake.url}/function/hello", f"{fake.url}/function/hello.fn"),
        ("http://{name}.svc:8080/", "http://hello.svc:8080", "http://hello.svc:8080"),
        ("https://x/{namespace}/{name}", "https://x//hello", "https://x/fn/hello"),
    ):
        provider = OpenFaaSProvider(
            fake.url.replace("http://", "http://admin:secret@"), endpoint=endpoint, timeout=2
        )
        assert provider.get_replicas("hello", "").endpoint == plain
        assert provider.get_replicas("hello", "fn").endpoint == named


def test_a_function_is_available_when_its_ready_path_answers(fake: Fake) -> None:
    provider = fake.provider(endpoint="gateway", ready="/_/ready", username="admin", password="pw")
    probe = "/function/hello/_/ready"

    def available() -> tuple[int, int]:
        before = len(fake.asked)
        status = provider.get_replicas("hello", "")
        probes = [each for each in fake.asked[before:] if each.path == probe]
        assert all("Authorization" not in each.headers for each in probes)
        return status.available_replicas, len(probes)

    fake.replies["/system/function/hello"] = reply(200, {"replicas": 1})
    assert available() == (0, 0)
    fake.replies["/system/function/hello"] = reply(200, {"replicas": 2, "availableReplicas": 2})
    for refusal in (reply(503, X_OpenFaaS_Internal="proxy"), reply(500), reply(404)):
        fake.replies[probe] = refusal
        assert available() == (0, 1)
    fake.replies[probe] = reply(302, Location="/elsewhere")
    assert available() == (2, 1)
    assert available() == (2, 0)
    provider.doubt("hello", "")
    fake.replies[probe] = reply(503, X_OpenFaaS_Internal="proxy")
    assert available() == (0, 1)
    fake.replies[probe] = reply(200)
    assert available() == (2, 1)
    fake.replies["/system/function/hello"] = reply(200, {})
    assert available() == (0, 0)
    fake.replies["/system/function/hello"] = reply(200, {"replicas": 2, "availableReplicas": 2})
    assert available() == (2, 1)


def test_a_function_that_hangs_is_not_ready(fake: Fake) -> None:
    fake.replies["/system/function/hello"] = reply(200, {"replicas": 1, "availableReplicas": 1})
    with raw_server(lambda connection: time.sleep(0.3)) as url:
        provider = fake.provider(endpoint=url, ready="/", timeout=0.2)
        assert provider.get_replicas("hello", "").available_replicas == 0


def test_cookies_stay_where_they_were_set(fake: Fake) -> None:
    fake.replies["/system/function/hello"] = reply(
        200, {"replicas": 1, "availableReplicas": 1}, Set_Cookie="session=secret; Path=/"
    )
    provider = fake.provider(endpoint="gateway", ready="/")
    provider.get_replicas("hello", "")
    provider.get_replicas("hello", "")
    assert len(fake.asked) == 3
    assert all("Cookie" not in each.headers for each in fake.asked)


# -- connections


def test_a_connection_is_used_again_from_thread_to_thread(fake: Fake) -> None:
    provider = fake.provider()
    for _ in range(5):
        thread = threading.Thread(target=provider.get_replicas, args=("hello", ""))
        thread.start()
        thread.join()
    provider.set_replicas("hello", "", 1)
    assert len(fake.asked) == 6
    assert len({each.connection for each in fake.asked}) == 1


def test_no_two_threads_share_a_connection_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openfaas_http, "MAX_IDLE", 2)
    inside = threading.Barrier(4)

    def turn(connection: socket.socket) -> None:
        while connection.recv(4096):
            inside.wait(5)
            connection.sendall(OK)

    statuses: list[ReplicaStatus] = []
    with raw_server(turn) as url:
        provider = OpenFaaSProvider(url)
        threads = [
            threading.Thread(target=lambda: statuses.append(provider.get_replicas("hello", "")))
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(provider._client._idle.get()) == 2
        for session in provider._client._idle.get():
            session.close()
    assert statuses == [ReplicaStatus(2, 0)] * 4


def test_a_child_has_connections_of_its_own(fake: Fake) -> None:
    provider = fake.provider()
    provider.get_replicas("hello", "")
    pid = os.fork()
    if pid == 0:
        try:
            provider.get_replicas("child", "")
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    provider.get_replicas("hello", "")
    parent, child, again = fake.asked
    assert child.path == "/system/function/child"
    assert parent.connection == again.connection != child.connection


def test_a_kept_connection_that_breaks_is_replaced_once() -> None:
    broken = say(OK, b"")  # takes the second request and closes without a word
    with raw_server(broken, say(OK)) as url:
        provider = OpenFaaSProvider(url, timeout=2)
        assert provider.get_replicas("hello", "").replicas == 2
        assert provider.get_replicas("hello", "").replicas == 2
    with raw_server(say(b"")) as url:
        begun = time.monotonic()
        with pytest.raises(ProviderError, match=r"GET http://127.0.0.1:.*ConnectionError"):
            OpenFaaSProvider(url, timeout=2).get_replicas("hello", "")
        assert time.monotonic() - begun < 1.5


@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nX-Slow: ",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 1000\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
    ],
)
def test_a_gateway_that_trickles_is_cut_off(head: bytes) -> None:
    with raw_server(trickle(head)) as url:
        provider = OpenFaaSProvider(url, timeout=0.12)
        begun = time.monotonic()
        with pytest.raises(ProviderError):
            provider.get_replicas("hello", "")
        assert time.monotonic() - begun < 1.0


def test_a_byte_does_not_begin_the_time_anew() -> None:
    def turn(connection: socket.socket) -> None:
        connection.recv(4096)
        time.sleep(0.4)
        connection.sendall(b"H")
        connection.settimeout(2)
        connection.recv(1)

    with raw_server(turn) as url:
        begun = time.monotonic()
        with pytest.raises(ProviderError, match="ReadTimeout"):
            OpenFaaSProvider(url, timeout=0.5).get_replicas("hello", "")
        assert time.monotonic() - begun < 0.4 + 0.5


def test_a_gateway_that_hangs_is_cut_off_in_all_calls() -> None:
    with raw_server(lambda connection: time.sleep(0.25)) as url:
        provider = OpenFaaSProvider(url, timeout=0.1)
        for call in (
            lambda: provider.get_replicas("hello", ""),
            lambda: provider.set_replicas("hello", "", 1),
            lambda: provider.list_functions(),
        ):
            begun = time.monotonic()
            with pytest.raises(ProviderError, match="ReadTimeout"):
                call()
            assert 0.05 < time.monotonic() - begun < 0.9


def test_the_time_is_for_all_calls_of_a_method() -> None:
    def turn(connection: socket.socket) -> None:
        while connection.recv(4096):
            time.sleep(0.1)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]")

    with raw_server(turn) as url:
        begun = time.monotonic()
        with pytest.raises(ProviderError):
            OpenFaaSProvider(url, timeout=0.25, namespaces=["a"] * 50).list_functions()
        assert time.monotonic() - begun < 0.9


def test_without_time_nothing_is_asked(fake: Fake) -> None:
    with pytest.raises(ProviderError, match="no time is left"):
        openfaas_http.Client(1.0, None).ask("GET", fake.url, time.monotonic())
    assert fake.asked == []


def test_an_answer_without_an_end_is_not_read(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_answer, "MAX_ANSWER", 1000)
    provider = fake.provider()
    fake.replies["GET"] = reply(200, {"labels": {"a": "x" * 1000}})
    with pytest.raises(ProviderError, match="longer than 1000 bytes"):
        provider.get_replicas("hello", "")
    fake.replies["GET"] = reply(200, {"labels": {"a": "x" * 900}})
    assert len(provider.get_replicas("hello", "").labels["a"]) == 900


def test_chunks_and_kept_connections_go_together() -> None:
    body = b'{"replicas": 2}'
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\n" + body + b"\r\n0\r\n\r\n"
    with raw_server(say(chunked, chunked, OK), say(b"")) as url:
        provider = OpenFaaSProvider(url, timeout=2)
        for _ in range(3):
            assert provider.get_replicas("hello", "").replicas == 2


def test_a_gateway_that_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    provider = OpenFaaSProvider(f"http://admin:secret@127.0.0.1:{port}", timeout=1)
    with pytest.raises(ProviderError, match=f"GET http://127.0.0.1:{port}/system/function/hello") as caught:
        provider.get_replicas("hello", "")
    assert "secret" not in str(caught.value)


def test_the_next_address_of_a_name_is_tried_within_the_time(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(fake.url.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", 0)) as closed:
        dead = closed.getsockname()[1]
    good, bad = ("127.0.0.1", port), ("127.0.0.1", dead)
    addresses: list[tuple[str, int]] = []

    def resolve(*_: object, **__: object) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    provider = OpenFaaSProvider("http://gateway:8080", timeout=1, connect_timeout=0.2)
    for present, works in (([bad, good], True), ([bad, bad], False), ([], False)):
        addresses = present
        provider._client._idle.get().clear()
        if works:
            assert provider.get_replicas("hello", "") == ReplicaStatus(0, 0)
        else:
            with pytest.raises(ProviderError):
                provider.get_replicas("hello", "")

    real = socket.create_connection

    def slow(address: tuple[str, int], timeout: float) -> socket.socket:
        if address == bad:
            time.sleep(timeout)
            raise TimeoutError
        return real(address, timeout)

    monkeypatch.setattr(socket, "create_connection", slow)
    for present, works in (([bad, good], True), ([bad] * 20, False)):
        addresses = present
        provider._client._idle.get().clear()
        begun = time.monotonic()
        if works:
            assert provider.get_replicas("hello", "") == ReplicaStatus(0, 0)
        else:
            with pytest.raises(ProviderError, match="ConnectTimeout"):
                provider.get_replicas("hello", "")
        assert 0.05 < time.monotonic() - begun < 0.9
