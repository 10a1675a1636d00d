"""The Docker provider without an engine: its settings, and answers that a real engine seldom gives."""

from __future__ import annotations

import builtins
import contextlib
import http.server
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from scalezero_wsgi import (
    Function,
    FunctionNotFound,
    MissingExtra,
    ProviderError,
    ReplicaStatus,
    SettingError,
)
from scalezero_wsgi.providers import DockerProvider, make_provider
from scalezero_wsgi.providers.base import (
    DoubtingProvider,
    ListingProvider,
    PausingProvider,
    WatchingProvider,
)
from scalezero_wsgi.providers.docker import probe as docker_probe
from scalezero_wsgi.providers.docker.client import DockerClients, engine_errors, engine_url
from scalezero_wsgi.providers.docker.container import Container, Reach, function_of
from scalezero_wsgi.providers.docker.probe import Address, OwnAddress

Answer = tuple[int, object]


class Fake:
    """A fake of the engine's API: it answers as it is told, and writes down what it was asked."""

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.answers: dict[str, Callable[[], Answer | None]] = {}
        self.url = ""

    def add(self, **changes: Any) -> dict[str, Any]:
        made = inspected(**changes)
        self.containers[made["Id"]] = made
        return made

    def answer(self, method: str, path: str) -> Answer:
        path = re.sub(r"^/v[0-9.]+", "", urlsplit(path).path)
        self.asked.append(f"{method} {path}")
        told = self.answers.get(f"{method} {path}", lambda: None)()
        if told is not None:
            return told
        if path == "/version":
            return 200, {"ApiVersion": "1.41"}
        if path == "/events":
            return 200, None
        if path == "/containers/json":
            return 200, [
                {"Id": key, "Names": [each["Name"]], "Labels": each["Config"]["Labels"]}
                for key, each in self.containers.items()
                if each["Config"]["Labels"]
            ]
        key, _, action = path.removeprefix("/containers/").partition("/")
        for each in self.containers.values():
            if key in (each["Id"], each["Name"][1:]):
                return (200, each) if action == "json" else (204, None)
        return 404, {"message": f"No such container: {key}"}


def inspected(
    name: str = "a",
    labels: dict[str, str] | None = None,
    state: dict[str, Any] | None = None,
    host: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    **config: Any,
) -> dict[str, Any]:
    return {
        "Id": f"id-of-{name}",
        "Name": f"/{name}",
        "RestartCount": config.pop("RestartCount", 0),
        "State": {
            "Status": "created",
            "ExitCode": 0,
            "OOMKilled": False,
            "Error": "",
            "StartedAt": "2026-01-01T00:00:00Z",
            **(state or {}),
        },
        "Config": {"Labels": labels, **config},
        "HostConfig": {"NetworkMode": "default", "PortBindings": None, **(host or {})},
        "NetworkSettings": {"Ports": None, "Networks": None, **(network or {})},
    }


RUNNING = {"Status": "running"}


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            status, content = made.answer(self.command, self.path)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "0" if status == 204 else str(len(body)))
            self.end_headers()
            if status != 204:
                self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        made.url = f"tcp://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield made
        server.shutdown()
        thread.join()


@pytest.fixture
def provider(fake: Fake) -> Iterator[DockerProvider]:
    made = DockerProvider(fake.url, timeout=10)
    yield made
    made.close()


# -- settings


def test_it_can_all_that_a_provider_can() -> None:
    for protocol in (WatchingProvider, ListingProvider, DoubtingProvider, PausingProvider):
        assert isinstance(DockerProvider("tcp://127.0.0.1:1"), protocol)


@pytest.mark.parametrize(
    ("keyword", "value", "allowed"),
    [
        ("url", "ssh://host:22", "unix:///path"),
        ("url", "tcp://host", "tcp://host:port"),
        ("url", "tcp://host:x", "tcp://host:port"),
        ("url", "unix://relative/path", "unix:///path"),
        ("url", "unix://", "unix:///path"),
        ("url", "", "unix:///path"),
        ("url", 5, "unix:///path"),
        ("timeout", 0, "more than 0"),
        ("timeout", "soon", "a duration"),
        ("after_timeout", -1, "a duration"),
        ("host", "a b", "a host's name or address"),
        ("host", 5, "a host's name or address"),
        ("network", "../x", "a Docker network's name"),
        ("cert_path", "/nowhere", "the directory of ca.pem"),
    ],
)
def test_a_wrong_setting_names_keyword_value_and_what_is_allowed(
    keyword: str, value: object, allowed: str
) -> None:
    with pytest.raises(SettingError) as caught:
        DockerProvider(**{keyword: value})  # type: ignore[arg-type]
    for text in (keyword, repr(value), allowed):
        assert text in str(caught.value)


def test_a_login_in_the_url_is_refused_and_not_shown() -> None:
    for make in (DockerProvider, DockerProvider.from_url):
        with pytest.raises(SettingError) as caught:
            make("tcp://user:secret@host:1")
        assert "secret" not in str(caught.value)
    with pytest.raises(SettingError) as caught:
        DockerProvider.from_url("docker+tcp://user:secret@host:1")
    assert "secret" not in str(caught.value)


def test_urls() -> None:
    allowed = ("timeout", "host")
    assert engine_url("docker://", "docker", allowed) == (None, {})
    assert engine_url("docker://?timeout=2s&host=h", "docker", allowed) == (
        None,
        {"timeout": "2s", "host": "h"},
    )
    assert engine_url("docker+unix:///a/b.sock", "docker", allowed) == ("unix:///a/b.sock", {})
    assert engine_url("swarm+tcp://h:1?host=x", "swarm", allowed) == ("tcp://h:1", {"host": "x"})
    for url in (
        "docker:///a",
        "docker://host:1",
        "docker+ssh://h:1",
        "docker+tcp://h",
        "swarm://",
        "docker://#x",
    ):
        with pytest.raises(SettingError):
            engine_url(url, "docker", allowed)
    for query, named in (("tiemout=2", "tiemout"), ("timeout=1&timeout=2", "timeout"), ("host", "host")):
        with pytest.raises(SettingError, match=named):
            engine_url(f"docker://?{query}&host=", "docker", allowed)


def test_it_is_made_by_name_and_by_url(fake: Fake) -> None:
    fake.add()
    for made in (
        make_provider("docker", url=fake.url),
        make_provider(f"docker+{fake.url}?timeout=2s&after_timeout=1m&host=localhost&network=bridge"),
    ):
        assert isinstance(made, DockerProvider)
        assert made.get_replicas("a", "").replicas == 0
        made.close()


def test_the_engine_may_be_named_by_the_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DOCKER_HOST", fake.url)
    made = DockerProvider.from_url("docker://")
    assert made.list_functions() == []
    made.close()
    monkeypatch.setenv("DOCKER_HOST", "tcp://user@host:1")
    with pytest.raises(SettingError):
        DockerProvider()
    monkeypatch.delenv("DOCKER_HOST")
    assert DockerClients().url == "unix:///var/run/docker.sock"
    assert DockerClients().host is None
    monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
    monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(SettingError, match="cert_path"):
        DockerProvider()


def test_certificates_make_it_speak_tls(fake: Fake, tmp_path: Path) -> None:
    made = DockerProvider(fake.url, cert_path=str(tmp_path))
    with pytest.raises(ProviderError, match="certificate"):
        made.list_functions()
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text("")
    with pytest.raises(ProviderError):
        made.list_functions()
    assert fake.asked == []


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name == "docker":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(MissingExtra, match=r"scalezero_wsgi\[docker\]"):
        DockerProvider("tcp://127.0.0.1:1")
    with pytest.raises(MissingExtra, match=r"scalezero_wsgi\[swarm\]"):
        DockerClients(extra="swarm")


def test_the_library_is_imported_only_when_a_provider_is_made() -> None:
    script = "import sys, scalezero_wsgi.providers.docker.provider; sys.exit('docker' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)


# -- clients


def test_clients_are_lent_to_one_at_a_time_and_few_are_kept(fake: Fake) -> None:
    clients = DockerClients(fake.url)
    with contextlib.ExitStack() as stack:
        lent = [stack.enter_context(clients.use()) for _ in range(10)]
        assert len(set(map(id, lent))) == 10
    with clients.use() as again:
        assert again in lent
    assert fake.asked.count("GET /version") == 10
    clients.close()
    with clients.use() as new:
        assert new not in lent
    clients.close()


def test_no_request_is_made_when_no_time_is_left(fake: Fake) -> None:
    clients = DockerClients(fake.url)
    with pytest.raises(ProviderError, match="in time"), clients.use(0.0):
        pass
    with clients.use(0.5) as client:
        assert client.api.timeout == 0.5
    with clients.use(9.0) as client:
        assert client.api.timeout == 5.0
    clients.close()


def test_a_parent_and_its_child_have_clients_of_their_own(fake: Fake, provider: DockerProvider) -> None:
    fake.add()
    provider.get_replicas("a", "")
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            provider.get_replicas("a", "")
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    provider.get_replicas("a", "")
    assert fake.asked.count("GET /version") == 2


def test_what_goes_wrong_is_a_provider_error() -> None:
    for error in (OSError("x"), KeyError("x"), TypeError("x"), ValueError("x")):
        with pytest.raises(ProviderError, match="x"), engine_errors():
            raise error
    with pytest.raises(FunctionNotFound), engine_errors():
        raise FunctionNotFound("a")
    with pytest.raises(KeyboardInterrupt), engine_errors():
        raise KeyboardInterrupt


# -- odd answers


@pytest.mark.parametrize(
    "answer", [(200, b"no json"), (200, None), (200, [1]), (200, {"Id": "x"}), (500, "x")]
)
@pytest.mark.parametrize("path", ["/containers/json", "/containers/a/json"])
def test_nonsense_is_a_provider_error(
    path: str, answer: Answer, fake: Fake, provider: DockerProvider
) -> None:
    fake.answers[f"GET {path}"] = lambda: answer
    for call in (
        lambda: provider.get_replicas("a", ""),
        lambda: provider.set_replicas("a", "", 1),
        lambda: provider.wait_for_change("a", "", ReplicaStatus(0, 0), 1),
    ):
        with pytest.raises(ProviderError):
            call()


def test_a_slow_engine_has_the_time_out_once(fake: Fake) -> None:
    provider = DockerProvider(fake.url, timeout=0.6)
    fake.add()

    fake.answers = {
        "GET /containers/json": lambda: time.sleep(0.4),
        "GET /containers/a/json": lambda: time.sleep(1.0),
    }
    begun = time.monotonic()
    with pytest.raises(ProviderError):
        provider.get_replicas("a", "")
    assert time.monotonic() - begun < 0.4 + 0.6
    provider.close()


@pytest.mark.parametrize("state", ["removing", "dead"])
def test_a_container_that_goes_away_is_not_there(state: str, fake: Fake, provider: DockerProvider) -> None:
    fake.add(state={"Status": state})
    with pytest.raises(FunctionNotFound):
        provider.get_replicas("a", "")


@pytest.mark.parametrize(
    ("label", "value", "allowed"),
    [
        ("scalezero.port", "http", "a port"),
        ("scalezero.port", "0", "a port"),
        ("scalezero.port", "²", "a port"),
        ("scalezero.ready", "udp", "tcp, or a path"),
        ("scalezero.mode", "freeze", "stop or pause"),
    ],
)
def test_a_wrong_label_is_named(
    label: str, value: str, allowed: str, fake: Fake, provider: DockerProvider
) -> None:
    ports = {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "1"}]}
    labels = {"scalezero.function": "hello", "scalezero.port": "8080", label: value}
    fake.add(labels=labels, state=RUNNING, network={"Ports": ports})
    down = label == "scalezero.mode"
    with pytest.raises(ProviderError) as caught:
        provider.set_replicas("hello", "", 0) if down else provider.get_replicas("hello", "")
    for text in (label, value, allowed):
        assert text in str(caught.value)


def test_a_missing_image_is_a_failure(fake: Fake, provider: DockerProvider) -> None:
    made = fake.add()
    fake.answers["POST /containers/id-of-a/start"] = lambda: (404, {"message": "No such image: x:1"})
    provider.set_replicas("a", "", 1)
    assert provider.get_replicas("a", "") == ReplicaStatus(
        0, 0, 1, 1, endpoint=None, failure="its image is missing"
    )
    made["State"]["Error"] = "No such image: x:1"
    assert provider.get_replicas("a", "").failure == "its image is missing"
    del fake.answers["POST /containers/id-of-a/start"]
    made["State"]["Error"] = ""
    provider.set_replicas("a", "", 1)
    assert provider.get_replicas("a", "").failure is None


def test_a_refused_start_is_judged_by_what_the_container_then_is(
    fake: Fake, provider: DockerProvider
) -> None:
    made = fake.add()
    path = "POST /containers/id-of-a/start"

    def changed(**state: Any) -> Callable[[], Answer]:
        def answer() -> Answer:
            made["State"].update(state)
            return 409, {"message": "a conflict"}

        return answer

    fake.answers[path] = changed()
    with pytest.raises(ProviderError, match="409: a conflict"):
        provider.set_replicas("a", "", 1)
    fake.answers[path] = changed(Status="exited", ExitCode=1)
    provider.set_replicas("a", "", 1)
    assert provider.get_replicas("a", "").failure == "exited with status 1"
    fake.answers[path] = changed(Status="running")
    provider.set_replicas("a", "", 1)
    made["State"]["Status"] = "exited"
    fake.answers[path] = changed(Status="removing")
    provider.set_replicas("a", "", 1)


def test_a_refused_stop_is_an_error_while_it_runs(fake: Fake, provider: DockerProvider) -> None:
    made = fake.add(state=RUNNING)
    path = "POST /containers/id-of-a/stop"
    fake.answers[path] = lambda: (500, {"message": "a fault"})
    with pytest.raises(ProviderError, match="500: a fault"):
        provider.set_replicas("a", "", 0)

    def ended() -> Answer:
        made["State"]["Status"] = "exited"
        return 500, {"message": "a fault"}

    fake.answers[path] = ended
    provider.set_replicas("a", "", 0)
    assert provider.get_replicas("a", "").replicas == 0


def test_one_that_fails_does_not_keep_the_others_from_starting(fake: Fake, provider: DockerProvider) -> None:
    for number in "123":
        labels = {"com.docker.compose.service": "web", "com.docker.compose.project": "shop"}
        fake.add(name=f"web-{number}", labels=labels)
    fake.answers["POST /containers/id-of-web-2/start"] = lambda: (500, {"message": "a fault"})
    with pytest.raises(ProviderError, match="a fault"):
        provider.set_replicas("web", "shop", 3)
    assert {f"POST /containers/id-of-web-{number}/start" for number in "123"} <= set(fake.asked)


def test_an_engine_that_ends_the_stream_of_events(fake: Fake, provider: DockerProvider) -> None:
    fake.add()
    fake.answers["GET /events"] = lambda: (200, b"{}")
    seen = provider.get_replicas("a", "")
    begun = time.monotonic()
    assert provider.wait_for_change("a", "", seen, 0.2) == seen
    assert time.monotonic() - begun < 1
    fake.answers["GET /events"] = lambda: (503, {"message": "not now"})
    with pytest.raises(ProviderError, match="503"):
        provider.wait_for_change("a", "", seen, 0.2)
    assert provider.wait_for_change("a", "", seen, 0) == seen


def test_events_of_a_socket() -> None:
    from scalezero_wsgi.providers.docker.client import EngineEvents

    here, there = socket.socketpair()
    with here, there:
        here.setblocking(False)
        events = EngineEvents(here.fileno())
        assert not events.wait(0.01)
        there.sendall(b"x")
        assert events.wait(5)
        there.shutdown(socket.SHUT_WR)
        with pytest.raises(ProviderError, match="ended the stream"):
            events.wait(5)


# -- what a container is


def test_function_of() -> None:
    compose = {"com.docker.compose.service": "web", "com.docker.compose.project": "shop"}
    assert function_of("a", {}) == ("a", "")
    assert function_of("a", compose) == ("web", "shop")
    assert function_of("a", {**compose, "com.docker.compose.oneoff": "True"}) is None
    assert function_of("a", {**compose, "scalezero.function": "f"}) == ("f", "")
    assert function_of("a", {"scalezero.namespace": "n"}) == ("a", "n")


def test_names_with_a_link_in_them_are_not_the_containers(fake: Fake, provider: DockerProvider) -> None:
    names = [["/other/alias", "/a"], ["/other/alias"], None]
    entries = [{"Id": str(number), "Names": each, "Labels": None} for number, each in enumerate(names)]
    fake.answers["GET /containers/json"] = lambda: (200, entries)
    assert provider.list_functions() == [Function("a")]


@pytest.mark.parametrize(
    ("changes", "failure"),
    [
        ({"state": {"Status": "exited", "ExitCode": 3}}, "exited with status 3"),
        ({"state": {"Status": "exited", "ExitCode": 137, "OOMKilled": True}}, "ran out of memory"),
        ({"state": {"Status": "exited", "ExitCode": 130}, "StopSignal": "2"}, None),
        ({"state": {"Status": "exited", "ExitCode": 130}, "StopSignal": "INT"}, None),
        ({"state": {"Status": "exited", "ExitCode": 130}, "StopSignal": "SIGNONE"}, "exited with status 130"),
        ({"state": {"Status": "restarting", "ExitCode": 1}, "RestartCount": 2}, None),
        (
            {"state": {"Status": "restarting", "ExitCode": 137, "OOMKilled": True}, "RestartCount": 3},
            "ran out of memory again and again",
        ),
        ({"state": {"Error": "port is already allocated"}}, "the engine could not start it"),
        ({"state": {"Error": "permission denied", "ExitCode": 126}}, "its command cannot be executed"),
    ],
)
def test_failures(changes: dict[str, Any], failure: str | None) -> None:
    assert Container.of(inspected(**changes), Reach()).failure == failure


def address(reach: Reach, host: dict[str, Any] | None = None, **network: Any) -> str | None:
    found = Container.of(
        inspected(state=RUNNING, host=host, network=network, labels={"scalezero.port": "80"}), reach
    ).address
    return None if found is None else found.url


def test_addresses() -> None:
    own = {"Networks": {"one": {"IPAddress": ""}, "two": {"IPAddress": "172.18.0.2"}, "three": None}}

    def published(*hosts: str) -> dict[str, Any]:
        return {"Ports": {"80/tcp": [{"HostIp": host, "HostPort": "5"} for host in hosts]}}

    here, there = Reach(), Reach(engine_host="far")
    assert address(here, **published("0.0.0.0", "::")) == "http://127.0.0.1:5"
    assert address(here, **published("127.0.0.1")) == "http://127.0.0.1:5"
    assert address(here, **published("::1")) == "http://[::1]:5"
    assert address(there, **published("0.0.0.0")) == "http://far:5"
    assert address(there, **published("10.0.0.1")) == "http://10.0.0.1:5"
    assert address(there, **published("127.0.0.1")) is None
    assert address(Reach(host="proxy"), **published("127.0.0.1")) == "http://proxy:5"
    assert address(Reach(engine_host="localhost"), **published("127.0.0.1")) == "http://127.0.0.1:5"
    assert address(here, **own) == "http://172.18.0.2:80"
    assert address(there, **own) is None
    assert address(Reach(engine_host="far", network="two"), **own, **published("")) == "http://172.18.0.2:80"
    assert address(Reach(network="one"), **own) is None
    assert address(here, host={"NetworkMode": "host"}) == "http://127.0.0.1:80"
    assert address(there, host={"NetworkMode": "host"}) == "http://far:80"
    assert address(here) is None


@pytest.mark.parametrize(
    ("bindings", "exposed", "port"),
    [
        ({"80/tcp": []}, {"80/tcp": {}, "90/tcp": {}}, 80),
        ({"80/udp": []}, {"90/tcp": {}}, 90),
        ({"80/tcp": [], "90/tcp": []}, {}, None),
        ({}, {"80/tcp": {}, "90/tcp": {}}, None),
        (None, None, None),
    ],
)
def test_the_port_is_the_only_one(bindings: object, exposed: object, port: int | None) -> None:
    network = {"Networks": {"one": {"IPAddress": "10.0.0.2"}}}
    made = inspected(host={"PortBindings": bindings}, network=network, ExposedPorts=exposed)
    found = Container.of(made, Reach()).address
    assert (found and found.port) == port


# -- probing through a proxy


@contextlib.contextmanager
def serving(handle: Callable[[socket.socket], object]) -> Iterator[int]:
    """Give each connection to ``handle``."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    handle(server.accept()[0])

        thread = threading.Thread(target=accept)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def greet(connection: socket.socket) -> None:
    connection.sendall(b"220")
    connection.close()


def test_a_proxy_that_ends_the_connection_has_nobody_behind_it() -> None:
    held: list[socket.socket] = []
    with serving(lambda connection: connection.close()) as port:
        assert not Address("127.0.0.1", port, proxied=True).answers(None, 1)
        assert Address("127.0.0.1", port).answers(None, 1)
    with serving(held.append) as port:
        assert Address("127.0.0.1", port, proxied=True).answers(None, 1)
    with serving(greet) as port:
        assert Address("127.0.0.1", port, proxied=True).answers(None, 1)
    assert not Address("127.0.0.1", port, proxied=True).answers(None, 1)
    held[0].close()


def test_the_own_address_is_asked_when_this_host_is_its_gateway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docker_probe, "_STAYS_OPEN_FOR", 0.01)
    held: list[socket.socket] = []
    with serving(held.append) as port:
        with socket.create_server(("127.0.0.1", 0)) as free:
            nobody = free.getsockname()[1]
        behind = OwnAddress("127.0.0.1", nobody, gateway="127.0.0.1")
        assert behind.is_here
        assert not Address("127.0.0.1", port, proxied=True, own=behind).answers(None, 1)
        elsewhere = OwnAddress("127.0.0.1", nobody, gateway="172.18.0.1")
        assert not elsewhere.is_here
        assert Address("127.0.0.1", port, proxied=True, own=elsewhere).answers(None, 1)
    held[0].close()
    # An address to which no packet may be sent.
    assert not OwnAddress("255.255.255.255", 80, gateway="").is_here
