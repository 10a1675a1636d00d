"""The Swarm provider without a swarm: its settings, and what one node cannot show."""

from __future__ import annotations

import builtins
import http.server
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest

from scalezero_wsgi.model import (
    AT_ZERO,
    Function,
    FunctionNotFound,
    MissingExtra,
    ProviderError,
    SettingError,
)
from scalezero_wsgi.providers import SwarmProvider, make_provider
from scalezero_wsgi.providers.base import DoubtingProvider, ListingProvider, WatchingProvider
from scalezero_wsgi.providers.swarm import provider as swarm
from scalezero_wsgi.providers.swarm.service import Service, Task, culprit

Json = dict[str, Any]

START = datetime(2026, 1, 2, 3, 4, 5, 678901, UTC)


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "999Z")  # nanoseconds


def service(**changes: Any) -> Json:
    spec = {
        "Name": "hello",
        "Labels": {},
        "TaskTemplate": {"ContainerSpec": {"Image": "hello:1"}},
        "Mode": {"Replicated": {"Replicas": 1}},
    }
    labels = changes.pop("labels", {})
    ports = changes.pop("ports", [])
    return {
        "ID": "svc1",
        "Version": {"Index": 7},
        "UpdatedAt": at(0),
        "Spec": {**spec, "Labels": labels, **changes},
        "Endpoint": {"Ports": ports},
    }


def task(state: str = "running", desired: str = "running", **changes: Any) -> Json:
    created = changes.pop("created", 1)
    status = {
        "State": state,
        "Timestamp": at(created + changes.pop("lived", 1)),
        "Err": changes.pop("err", ""),
    }
    status["ContainerStatus"] = {"ExitCode": changes.pop("code", 0)}
    status["PortStatus"] = {"Ports": changes.pop("ports", [])}
    return {
        "ID": f"task{created}",
        "Slot": 1,
        "NodeID": "node1",
        "CreatedAt": at(created),
        "Spec": {"ContainerSpec": {}},
        "Status": status,
        "DesiredState": desired,
        **changes,
    }


def port(published: int, mode: str = "host", target: int = 8080, protocol: str = "tcp") -> Json:
    return {"Protocol": protocol, "TargetPort": target, "PublishedPort": published, "PublishMode": mode}


class FakeManager:
    """A fake of a manager's API: it knows one service and answers as it was told."""

    def __init__(self) -> None:
        self.service: Json | None = service()
        self.tasks: list[Json] = []
        self.containers: list[Json] = []
        self.updates: list[tuple[int, Json | None]] = []  # answers to updates, in turn
        self.posted: list[Json] = []
        self.answers: dict[str, tuple[int, Any]] = {}
        self.asked: list[str] = []

    def get(self, path: str) -> tuple[int, Any]:
        known = [] if self.service is None else [self.service]
        answers: dict[str, Any] = {
            "/version": {"ApiVersion": "1.41"},
            "/services": known,
            "/tasks": self.tasks,
            "/containers/json": self.containers,
            "/nodes/node1": {"Status": {"Addr": "10.9.8.7"}},
        }
        answers.update({f"/services/{each['ID']}": each for each in known})
        if path in self.answers:
            return self.answers[path]
        return (200, answers[path]) if path in answers else (404, {"message": "not found"})


@pytest.fixture
def fake() -> FakeManager:
    return FakeManager()


@pytest.fixture
def url(fake: FakeManager) -> Iterator[str]:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 65536  # headers and body in one packet

        def do_GET(self) -> None:
            path = urlsplit(self.path).path.removeprefix("/v1.41")
            fake.asked.append(path)
            if path == "/events":
                self.send_response(200)
                self.send_header("Transfer-Encoding", "chunked")
                self.end_headers()
                self.wfile.flush()
                self.rfile.read(1)  # up to the end of the connection
                self.close_connection = True
            else:
                self.answer(*fake.get(path))

        def do_POST(self) -> None:
            fake.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(*(fake.updates.pop(0) if fake.updates else (200, {})))

        def answer(self, status: int, content: Any) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"tcp://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def provider(url: str) -> Iterator[SwarmProvider]:
    provider = SwarmProvider(url, timeout=10)
    yield provider
    provider._clients.close()


# -- settings


@pytest.mark.parametrize(
    ("keywords", "named"),
    [
        ({"timeout": 0}, "timeout = 0"),
        ({"pending_timeout": "soon"}, "pending_timeout: 'soon'"),
        ({"pending_timeout": 0}, "pending_timeout = 0"),
        ({"network": ""}, "network = ''"),
        ({"host": 5}, "host = 5"),
        ({"url": "ftp://there:1"}, "url = 'ftp://there:1'"),
        ({"cert_path": "/there/is/none"}, "cert_path = '/there/is/none'"),
    ],
)
def test_a_wrong_keyword_is_named(keywords: dict[str, Any], named: str) -> None:
    with pytest.raises(SettingError) as error:
        SwarmProvider(**keywords)
    assert named in str(error.value)


def test_from_a_url() -> None:
    made = make_provider("swarm+tcp://there:2375?timeout=2s&pending_timeout=250ms&network=back&host=front")
    assert isinstance(made, SwarmProvider)
    assert (made._clients.url, made._clients.timeout) == ("tcp://there:2375", 2)
    assert (made._pending_timeout, made._network, made._own_host) == (0.25, "back", "front")
    assert isinstance(make_provider("swarm://"), SwarmProvider)
    assert isinstance(make_provider("swarm", timeout=1), SwarmProvider)


@pytest.mark.parametrize("url", ["swarm://?patience=1", "swarm://there", "swarm+tcp://there:1?timeout=x"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(SettingError):
        SwarmProvider.from_url(url)


def test_a_missing_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    imported = builtins.__import__

    def without_docker(name: str, *arguments: Any) -> Any:
        if name == "docker":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_docker)
    with pytest.raises(MissingExtra, match=r"scalezero_wsgi\[swarm\]"):
        SwarmProvider()


def test_it_can_all_that_a_provider_may() -> None:
    for kind in (WatchingProvider, ListingProvider, DoubtingProvider):
        assert isinstance(SwarmProvider(), kind)


# -- what the labels say


@pytest.mark.parametrize(
    ("minimum", "maximum", "bounds"),
    [
        (None, None, (1, None)),
        ("2", "5", (2, 5)),
        ("7", "5", (5, 5)),
        ("0", "0", (1, None)),
        ("-1", "-5", (1, None)),
        ("many", "1.5", (1, None)),
        ("", "٣", (1, None)),
        ("9" * 5000, "3", (1, 3)),
    ],
)
def test_bounds(minimum: str | None, maximum: str | None, bounds: tuple[int, int | None]) -> None:
    labels = {"scalezero.min": minimum, "scalezero.max": maximum}
    read = Service.of(service(labels={name: text for name, text in labels.items() if text is not None}))
    assert read.bounds == bounds


@pytest.mark.parametrize(
    ("name", "labels", "function"),
    [
        ("hello", {}, Function("hello")),
        ("shop_hello", {"com.docker.stack.namespace": "shop"}, Function("hello", "shop")),
        ("x", {"scalezero.function": "hello", "scalezero.namespace": "a"}, Function("hello", "a")),
        (
            "shop_hello",
            {"com.docker.stack.namespace": "shop", "scalezero.namespace": ""},
            Function("hello"),
        ),
        ("hello", {"scalezero.function": ""}, Function("hello")),
    ],
)
def test_identity(name: str, labels: dict[str, str], function: Function) -> None:
    assert Service.of(service(Name=name, labels=labels)).function == function


def test_a_wrong_probe_is_an_error(fake: FakeManager, provider: SwarmProvider) -> None:
    fake.service = service(labels={"scalezero.ready": "ready"})
    with pytest.raises(ProviderError, match=r"scalezero\.ready = 'ready' is not allowed"):
        provider.get_replicas("hello", "")


# -- where it is reached


def test_a_task_of_another_node_is_reached_there(fake: FakeManager, provider: SwarmProvider) -> None:
    fake.tasks = [task(ports=[port(0), port(53, protocol="udp"), port(30001), port(30002, target=9090)])]
    status = provider.get_replicas("hello", "")
    assert (status.available_replicas, status.endpoint) == (1, "http://10.9.8.7:30001")
    fake.service = service(labels={"scalezero.port": "9090"})
    assert provider.get_replicas("hello", "").endpoint == "http://10.9.8.7:30002"
    fake.service = service(labels={"scalezero.port": "1"})
    assert provider.get_replicas("hello", "").endpoint is None


def test_an_ipv6_address_stands_in_brackets(fake: FakeManager, provider: SwarmProvider) -> None:
    fake.tasks = [task(ports=[port(30001)])]
    fake.answers["/nodes/node1"] = (200, {"Status": {"Addr": "fd00::7"}})
    assert provider.get_replicas("hello", "").endpoint == "http://[fd00::7]:30001"


def test_a_host_of_ones_own(fake: FakeManager, url: str) -> None:
    fake.tasks = [task(ports=[port(30001)])]
    provider = SwarmProvider(url, host="front")
    assert provider.get_replicas("hello", "").endpoint == "http://front:30001"
    assert "/nodes/node1" not in fake.asked
    provider._clients.close()


@pytest.mark.parametrize(
    ("bound", "host"), [("0.0.0.0", "127.0.0.1"), ("::", "127.0.0.1"), ("10.1.1.1", "127.0.0.1")]
)
def test_a_container_of_the_asked_node_is_reached_at_the_engines_host(
    fake: FakeManager, provider: SwarmProvider, bound: str, host: str
) -> None:
    fake.tasks = [task("starting")]
    ports = [
        {"PrivatePort": 7, "Type": "tcp"},
        {"PrivatePort": 8, "PublicPort": 9, "Type": "udp"},
        {"IP": bound, "PrivatePort": 8080, "PublicPort": 30001, "Type": "tcp"},
    ]
    fake.containers = [{"Labels": {"com.docker.swarm.task.id": "task1"}, "Ports": ports}]
    assert provider.get_replicas("hello", "").endpoint == f"http://{host}:30001"


def test_an_ingress_port_is_reached_on_the_engines_host(fake: FakeManager, provider: SwarmProvider) -> None:
    fake.service = service(ports=[port(30001, "ingress")])
    fake.tasks = [task()]
    assert provider.get_replicas("hello", "").endpoint == "http://127.0.0.1:30001"


def test_tcp_is_tried(fake: FakeManager, url: str) -> None:
    labels = {"scalezero.ready": "tcp"}
    answering = urlsplit(url).port or 0
    fake.service = service(labels=labels, ports=[port(1, "ingress")])
    fake.tasks = [task(), task(created=2, Slot=2)]
    provider = SwarmProvider(url)
    assert provider.get_replicas("hello", "").available_replicas == 0
    fake.service = service(labels=labels, ports=[port(answering, "ingress")])
    assert provider.get_replicas("hello", "").available_replicas == 2
    provider._clients.close()


# -- odd answers


@pytest.mark.parametrize(
    "answer",
    [
        (500, {"message": "trouble"}),
        (200, {"nonsense": 1}),
        (200, [{}]),
        (200, [{**service(), "UpdatedAt": "yesterday"}]),
        (200, None),
        (503, {"message": "This node is not a swarm manager."}),
        (401, {"message": "unauthorized"}),
    ],
)
def test_nonsense_is_a_provider_error(fake: FakeManager, provider: SwarmProvider, answer: Any) -> None:
    fake.answers["/services"] = answer
    for call in (
        lambda: provider.get_replicas("hello", ""),
        lambda: provider.set_replicas("hello", "", 1),
        lambda: provider.wait_for_change("hello", "", AT_ZERO, 0.1),
        provider.list_functions,
    ):
        with pytest.raises(ProviderError):
            call()


def test_a_service_that_vanishes_is_not_found(fake: FakeManager, provider: SwarmProvider) -> None:
    provider.get_replicas("hello", "")
    fake.service = None
    with pytest.raises(FunctionNotFound):
        provider.get_replicas("hello", "")


def test_an_update_is_tried_again_a_few_times(
    fake: FakeManager, provider: SwarmProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm, "_UPDATES", 3)
    lost = (500, {"message": "rpc error: code = Unknown desc = update out of sequence"})
    fake.updates = [lost, (404, {"message": "service svc1 not found"})]
    provider.set_replicas("hello", "", 3)
    assert [posted["Mode"] for posted in fake.posted] == [{"Replicated": {"Replicas": 3}}] * 3
    fake.updates = [lost] * 3
    with pytest.raises(ProviderError, match="updated by others 3 times"):
        provider.set_replicas("hello", "", 3)
    fake.updates = [(400, {"message": "no such thing"})]
    with pytest.raises(ProviderError, match=r"400: .*no such thing"):
        provider.set_replicas("hello", "", 3)


def test_the_rest_of_the_service_is_sent_back_as_it_came(fake: FakeManager, provider: SwarmProvider) -> None:
    fake.service = service(Something={"new": [1, None]})
    provider.set_replicas("hello", "", 0)
    assert fake.posted == [{**fake.service["Spec"], "Mode": {"Replicated": {"Replicas": 0}}}]
    provider.set_replicas("hello", "", 1)
    assert len(fake.posted) == 1  # it is at 1 already


def test_an_engine_that_ends_the_events_is_a_provider_error(
    fake: FakeManager, provider: SwarmProvider
) -> None:
    fake.answers["/events"] = (200, {})
    fake.service = service(Mode={"Replicated": {"Replicas": 0}})
    assert provider.wait_for_change("hello", "", AT_ZERO, 0.05) == AT_ZERO


# -- hope


def blamed(*tasks: Json, hope: bool = True) -> str | None:
    found = culprit(map(Task.of, tasks), START, lambda task, stopping: hope)
    return found.failure if found else None


def crash(created: float, desired: str = "shutdown", **changes: Any) -> Json:
    return task("failed", desired, created=created, code=3, err="task: non-zero exit (3)", **changes)


STARTING = task("starting", created=9)
WAITING = task("pending", "running", created=9)


@pytest.mark.parametrize(
    "tasks",
    [
        [],
        [STARTING],
        [crash(1), STARTING],
        [crash(-5), crash(-4), STARTING],  # from before the service was updated
        [crash(1, "remove"), crash(2, "remove"), STARTING],
        [crash(1), crash(2, lived=61), STARTING],  # it had started well
        [crash(1), task("shutdown", "shutdown", created=2), STARTING],
        [crash(1, Slot=1), crash(2, Slot=2), STARTING, task("starting", created=10, Slot=2)],
        [crash(1), crash(2), STARTING, task("starting", created=10, Slot=2)],  # one slot has hope
        [crash(1, "running")],  # not replaced yet
        [crash(-1)],
        [crash(1, "remove")],
        [WAITING],
    ],
)
def test_there_is_hope(tasks: list[Json]) -> None:
    assert blamed(*tasks) is None


@pytest.mark.parametrize(
    ("tasks", "failure"),
    [
        ([crash(1), crash(2)], "it exited with status 3"),
        ([crash(1), crash(2), STARTING], "it exited with status 3"),
        ([crash(2), crash(1), STARTING], "it exited with status 3"),
        ([crash(-3), crash(1), crash(2), STARTING], "it exited with status 3"),
        ([crash(1)], "it exited with status 3"),
        ([task("complete", "shutdown", lived=9000)], "it exited with status 0"),
        ([task("rejected", "shutdown", err="No such image: 10.0.0.1/x:1")], "its image is missing"),
        ([task("rejected", "shutdown", err="invalid mount /secret")], "its node rejected it"),
        (
            [task("failed", "shutdown", err="starting container failed: /x")],
            "its container cannot be started",
        ),
        (
            [task("failed", "shutdown", err="task: non-zero exit (137): dockerexec: unhealthy container")],
            "its health check failed",
        ),
        ([task("orphaned", "shutdown", code=None)], "it ended"),
    ],
)
def test_there_is_none(tasks: list[Json], failure: str) -> None:
    assert blamed(*tasks) == failure


@pytest.mark.parametrize(
    ("tasks", "failure"),
    [
        ([WAITING], "no node has taken it in time"),
        ([task("pending", err="no suitable node")], "no suitable node"),
        ([task("pending", err="no suitable node at 10.0.0.1")], "no node has taken it in time"),
        (
            [
                task(
                    "pending",
                    err="no suitable node (insufficient resources on 1 node; missing plugin on 2 nodes)",
                )
            ],
            "no suitable node (insufficient resources on 1 node; missing plugin on 2 nodes)",
        ),
        ([crash(1), task("ready", "ready", created=2)], "it exited with status 3"),
        ([STARTING], None),
        ([task("preparing")], None),  # it may be pulling an image
    ],
)
def test_hope_ends(tasks: list[Json], failure: str | None) -> None:
    assert blamed(*tasks, hope=False) == failure


def test_hope_lasts_while_a_former_task_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    provider = SwarmProvider(pending_timeout=10)
    leaving = task("running", "remove", created=1, Spec={"ContainerSpec": {"StopGracePeriod": 30 * 10**9}})

    def failed(*tasks: Json) -> bool:
        return culprit(map(Task.of, tasks), START, provider._may_still_start) is not None

    assert not failed(leaving, WAITING)
    now[0] += 30
    assert not failed(leaving, WAITING)
    now[0] += 9
    assert not failed(WAITING)
    now[0] += 2
    assert failed(WAITING)
    now[0] += 3
    assert failed(leaving, WAITING)  # it has had its grace
    assert not failed(task("new", created=20))


def test_a_failure_is_logged_once(
    fake: FakeManager, provider: SwarmProvider, caplog: pytest.LogCaptureFixture
) -> None:
    fake.tasks = [crash(1)]
    for _ in range(3):
        status = provider.get_replicas("hello", "")
        assert (status.replicas, status.available_replicas) == (1, 0)
        assert status.failure == "it exited with status 3"
    [record] = [record for record in caplog.records if record.name == "scalezero_wsgi"]
    assert record.getMessage() == "function hello: task task1 is failed: task: non-zero exit (3)"
