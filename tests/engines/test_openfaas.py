"""OpenFaaSProvider against the test gateway and its real containers, alone and behind gunicorn.

``SCALEZERO_TEST_ROUNDS`` sets how many cold starts the latency is measured in.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests

from scalezero_wsgi import Function, FunctionNotFound, ProviderError
from scalezero_wsgi.providers import OpenFaaSProvider
from scalezero_wsgi.testing import ProviderBench, ProviderContract
from tests.engines.engine import build_image, engine, stopped
from tests.engines.openfaas_server import DEFAULT_NAMESPACE, PASSWORD, USER, Config, remove_containers
from tests.servers.harness import Server, free_port, gunicorn, is_up, serving
from tests.support.waiting import until

pytestmark = [
    pytest.mark.engine,
    # One that test_docker has left: the library leaves it to the garbage collector to close its Unix sockets.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]

ROUNDS = int(os.environ.get("SCALEZERO_TEST_ROUNDS", "5"))
ALONE = ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
SCALE = "com.openfaas.scale."
FUNCTIONS: list[dict[str, Any]] = [
    {
        "name": "hello",
        "labels": {
            f"{SCALE}min": "1",
            f"{SCALE}max": "3",
            f"{SCALE}zero": "true",
            f"{SCALE}zero-duration": "15m",
        },
        "annotations": {"topic": "greetings"},
    },
    {"name": "hello", "namespace": "elsewhere", "labels": {f"{SCALE}min": "2"}, "annotations": None},
    {"name": "slow", "command": ["/bin/sh", "-c", "/bin/busybox sleep 1; exec " + " ".join(ALONE)]},
    {"name": "late", "lag": 0.7},
    {"name": "ends", "command": ["/bin/busybox", "false"]},
]
HERE = Function("hello", DEFAULT_NAMESPACE)


@dataclass
class Gateway:
    """The test gateway, and what a person at it can see and do."""

    server: Server

    @property
    def url(self) -> str:
        return self.server.url

    def provider(self, **keywords: Any) -> OpenFaaSProvider:
        given = {"username": USER, "password": PASSWORD, "timeout": 10, "endpoint": "gateway", **keywords}
        return OpenFaaSProvider(self.url, **given)

    def provider_url(self, options: str = "endpoint=gateway&timeout=1s") -> str:
        host = self.url.removeprefix("http://")
        return f"openfaas+http://{USER}:{quote(PASSWORD, safe='')}@{host}?{options}"

    def report(self) -> dict[str, Any]:
        found: dict[str, Any] = self.server.get("/test/report").json()
        return found

    def scale(self, replicas: int, name: str = "hello") -> None:
        """As somebody else does, behind the middleware's back."""
        answer = requests.post(
            f"{self.url}/system/scale-function/{name}",
            params={"namespace": DEFAULT_NAMESPACE},
            json={"serviceName": name, "replicas": replicas, "namespace": DEFAULT_NAMESPACE},
            auth=(USER, PASSWORD),
            timeout=30,
        )
        assert answer.status_code in (200, 202), answer.text

    def ups(self, name: str = "hello") -> int:
        """How often it was scaled from zero."""
        return sum(before == 0 for before, _ in self.report()["changes"][f"{name}.{DEFAULT_NAMESPACE}"])

    def started(self, name: str = "hello") -> int:
        """How many containers were started for it."""
        count: int = self.report()["started"][f"{name}.{DEFAULT_NAMESPACE}"]
        return count


@pytest.fixture(scope="module")
def docker_socket(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    path = str(engine("SCALEZERO_TEST_DOCKER") / "docker.sock")
    return path, build_image(f"unix://{path}", tmp_path_factory.mktemp("image"))


Open = Callable[..., contextlib.AbstractContextManager[Gateway]]


@pytest.fixture(scope="module")
def open_gateway(docker_socket: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Open:
    @contextlib.contextmanager
    def opened(**options: Any) -> Iterator[Gateway]:
        path, image = docker_socket
        scratch = tmp_path_factory.mktemp("gateway")
        run = uuid.uuid4().hex[:12]
        config = Config(free_port(), path, image, run, functions=FUNCTIONS, **options)
        (scratch / "config").write_text(json.dumps(asdict(config)), encoding="utf-8")
        command = [sys.executable, "-m", "tests.engines.openfaas_server", str(scratch / "config")]
        try:
            with serving(command, config.port, scratch / "log") as server:
                yield Gateway(server)
        finally:
            remove_containers(path, run)

    return opened


@pytest.fixture(scope="module", params=["faas-netes", "faasd"])
def either(request: pytest.FixtureRequest, open_gateway: Open) -> Iterator[Gateway]:
    with open_gateway(manner=request.param) as gateway:
        yield gateway


@pytest.fixture
def gateway(open_gateway: Open) -> Iterator[Gateway]:
    with open_gateway() as opened:
        yield opened


@pytest.fixture(scope="module")
def hanging_gateway(open_gateway: Open) -> Iterator[Gateway]:
    with open_gateway() as opened, stopped(opened.server.process.pid):
        yield opened


class TestContract(ProviderContract):
    """All of it but ``broken``: the API has no word for a function that will not come up."""

    @pytest.fixture
    def bench(self, either: Gateway, hanging_gateway: Gateway) -> ProviderBench:
        return ProviderBench(
            provider=either.provider(namespaces=[DEFAULT_NAMESPACE, "elsewhere"]),
            ready=HERE,
            unknown=Function("nobody", DEFAULT_NAMESPACE),
            bounds=(1, 3),
            down=OpenFaaSProvider(f"http://127.0.0.1:{free_port()}", timeout=1),
            hanging=hanging_gateway.provider(timeout=1),
            refusing=either.provider(password="wrong", timeout=1),
        )


# -- what the API tells and takes


def test_what_is_told(either: Gateway) -> None:
    provider = either.provider()
    status = provider.get_replicas(*HERE)
    assert status.labels == FUNCTIONS[0]["labels"]
    assert status.annotations == {"topic": "greetings"}
    assert status.endpoint == f"{either.url}/function/hello.{DEFAULT_NAMESPACE}"
    elsewhere = provider.get_replicas("hello", "elsewhere")
    assert (elsewhere.min_replicas, elsewhere.max_replicas) == (2, None)
    assert dict(elsewhere.annotations) == {}
    bare = provider.get_replicas("slow", "")
    assert (dict(bare.labels), bare.min_replicas, bare.replicas, bare.available_replicas) == ({}, 1, 0, 0)


def test_namespaces_are_kept_apart(either: Gateway) -> None:
    provider = either.provider(namespaces="elsewhere")
    assert provider.list_functions() == [Function("hello", "elsewhere")]
    assert Function("late", DEFAULT_NAMESPACE) in either.provider().list_functions()
    before = provider.get_replicas(*HERE).replicas
    provider.set_replicas("hello", "elsewhere", 2)
    until(lambda: provider.get_replicas("hello", "elsewhere").available_replicas == 2)
    assert provider.get_replicas(*HERE).replicas == before
    provider.set_replicas("hello", "elsewhere", 0)
    until(lambda: provider.get_replicas("hello", "elsewhere").available_replicas == 0)
    with pytest.raises(FunctionNotFound):
        provider.set_replicas("late", "elsewhere", 1)


def test_a_token(open_gateway: Open) -> None:
    with open_gateway(token="abc.def") as gateway:
        assert OpenFaaSProvider(gateway.url, token="abc.def").get_replicas("hello", "").replicas == 0
        for wrong in (gateway.provider(), OpenFaaSProvider(gateway.url, token="other")):
            with pytest.raises(ProviderError, match="401"):
                wrong.get_replicas("hello", "")


def test_mounted_credentials(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / "basic-auth-user").write_text(f"{USER}\n")
    (tmp_path / "basic-auth-password").write_text(f"{PASSWORD}\n")
    provider = OpenFaaSProvider(gateway.url + "/", secret_mount_path=tmp_path)
    assert provider.get_replicas("hello", "").replicas == 0


def test_an_edition_that_refuses_zero(open_gateway: Open, caplog: pytest.LogCaptureFixture) -> None:
    with open_gateway(zero=False) as gateway:
        provider = gateway.provider()
        provider.set_replicas("hello", "", 1)
        until(lambda: provider.get_replicas("hello", "").available_replicas == 1)
        caplog.set_level(logging.INFO, "scalezero_wsgi")
        before = gateway.report()["counts"]["POST system"]
        for _ in range(5):
            with pytest.raises(ProviderError):
                provider.set_replicas("hello", "", 0)
        assert gateway.report()["counts"]["POST system"] == before + 1
        assert len(caplog.records) == 1
        assert provider.get_replicas("hello", "").available_replicas == 1


def test_connections_are_kept(gateway: Gateway) -> None:
    provider = gateway.provider()
    for _ in range(20):
        thread = threading.Thread(target=provider.get_replicas, args=("hello", ""))
        thread.start()
        thread.join()
    counts = gateway.report()["counts"]
    assert (counts["GET system"], counts["system connections"]) == (20, 1)


def test_a_function_that_ends_is_not_available(gateway: Gateway) -> None:
    provider = gateway.provider()
    provider.set_replicas("ends", "", 1)
    until(lambda: gateway.started("ends") == 1)
    time.sleep(0.5)
    status = provider.get_replicas("ends", "")
    assert (status.replicas, status.available_replicas, status.failure) == (1, 0, None)


def test_available_only_when_the_gateway_has_its_endpoint(gateway: Gateway) -> None:
    early, right = gateway.provider(), gateway.provider(ready="/")
    right.set_replicas("late", "", 1)
    until(lambda: early.get_replicas("late", "").available_replicas == 1)
    assert requests.get(f"{gateway.url}/function/late", timeout=5).status_code == 503
    assert right.get_replicas("late", "").available_replicas == 0
    until(lambda: right.get_replicas("late", "").available_replicas == 1)
    assert requests.get(f"{gateway.url}/function/late", timeout=5).status_code == 200
    assert gateway.report()["functions_saw"] == []


def test_https_with_an_authority_of_ones_own(tmp_path: Path) -> None:
    """A small fake: what is tested is the client's side of TLS."""
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    port = free_port()
    served = ["-accept", f"127.0.0.1:{port}", "-key", str(key), "-cert", str(certificate), "-HTTP", "-quiet"]
    path = tmp_path / "system" / "function" / "hello"
    path.parent.mkdir(parents=True)
    path.write_text('HTTP/1.0 200 OK\r\n\r\n{"replicas": 3, "availableReplicas": 2}', encoding="ascii")
    server = subprocess.Popen(["openssl", "s_server", *served], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        until(lambda: is_up(port))
        trusting = OpenFaaSProvider(f"https://localhost:{port}", ca_file=certificate, timeout=5)
        assert trusting.get_replicas("hello", "").replicas == 3
        with pytest.raises(ProviderError, match="CERTIFICATE_VERIFY_FAILED"):
            OpenFaaSProvider(f"https://localhost:{port}", timeout=5).get_replicas("hello", "")
    finally:
        server.kill()
        server.wait()


# -- end to end


@contextlib.contextmanager
def site(gateway: Gateway, log: Path, *options: str, worker: str = "gthread", **env: str) -> Iterator[Server]:
    given = {"PROVIDER_URL": gateway.provider_url(), **env}
    with gunicorn("tests.engines.openfaas_site:app", log, *options, worker=worker, env=given) as server:
        yield server


def together(count: int, server: Server, path: str) -> list[int | str]:
    outcomes: list[int | str] = []

    def run() -> None:
        try:
            outcomes.append(server.get(path).status_code)
        except requests.RequestException as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


TWO_WORKERS = ("-w", "2", "--threads", "32")


def test_50_first_requests_and_again_after_zero_behind_our_back(gateway: Gateway, tmp_path: Path) -> None:
    with site(gateway, tmp_path / "log", *TWO_WORKERS) as server:
        for ups in (1, 2, 3):
            assert together(50, server, "/function/hello") == [200] * 50, server.log
            assert (gateway.ups(), gateway.started()) == (ups, ups)
            gateway.scale(0)
        report = gateway.report()
        assert report["functions_saw"] == []
        assert report["counts"]["system connections"] <= 20
        assert PASSWORD not in server.log


def test_50_first_requests_of_a_function_whose_endpoint_comes_late(gateway: Gateway, tmp_path: Path) -> None:
    url = gateway.provider_url("endpoint=gateway&ready=/")
    with site(gateway, tmp_path / "log", *TWO_WORKERS, PROVIDER_URL=url) as server:
        assert together(50, server, "/function/late") == [200] * 50, server.log
        assert gateway.ups("late") == 1


def test_the_latency_that_is_added(gateway: Gateway, tmp_path: Path) -> None:
    added: list[float] = []
    with site(gateway, tmp_path / "log", "--threads", "8") as server:
        for _ in range(ROUNDS):
            gateway.scale(0)
            until(lambda: server.get("/other").status_code == 200)
            time.sleep(0.6)  # the cached status lapses, so that the request finds zero
            direct: list[float] = []
            probing = threading.Thread(target=_await_answer, args=(gateway, direct))
            probing.start()
            answer = server.get("/function/hello")
            arrived = time.monotonic()
            probing.join()
            assert answer.status_code == 200
            added.append((arrived - direct[0]) * 1000)
    median = statistics.median(added)
    print(f"\nadded latency, ms: median {median:.1f} of", ", ".join(f"{each:.1f}" for each in sorted(added)))
    # No bound is promised: the API cannot push, so this is the scaler's poll, at most 0.3125 s apart.
    assert median <= 400


def _await_answer(gateway: Gateway, answered_at: list[float]) -> None:
    with requests.Session() as session:
        while session.get(f"{gateway.url}/function/hello", timeout=5).status_code != 200:
            time.sleep(0.001)
    answered_at.append(time.monotonic())


def test_while_the_gateway_hangs(gateway: Gateway, tmp_path: Path) -> None:
    """The functions are reached past the gateway here, or nothing could be served."""
    with contextlib.ExitStack() as stack:
        function = stack.enter_context(_function_of_its_own(tmp_path))
        url = gateway.provider_url(f"timeout=300ms&endpoint={function.url}")
        env = {"MAX_WAIT": "8", "STALE_FOR": "3", "PROVIDER_URL": url}
        server = stack.enter_context(site(gateway, tmp_path / "log", "--threads", "8", **env))
        assert server.get("/function/hello").status_code == 200
        with stopped(gateway.server.process.pid):
            begun = time.monotonic()
            while time.monotonic() < begun + 2.5:  # cache_expiry + stale_for is 3.25 s
                warm = server.get("/function/hello")
                assert warm.status_code == 200, server.log
                assert warm.elapsed.total_seconds() < 0.5
                time.sleep(0.05)
            cold = server.get("/function/slow")
            assert cold.status_code == 502
            assert cold.elapsed.total_seconds() < 8
            assert "127.0.0.1" not in cold.text
            lapsed = server.get("/function/hello")
            assert lapsed.status_code == 200, server.log  # an outage switches nothing off
        assert server.get("/function/hello").status_code == 200
        assert server.get("/function/slow").status_code == 200


def test_while_the_gateway_is_gone(open_gateway: Open, tmp_path: Path) -> None:
    with open_gateway() as gateway, site(gateway, tmp_path / "log", "--threads", "8", MAX_WAIT="8") as server:
        assert server.get("/function/hello").status_code == 200
        gateway.server.process.terminate()
        gateway.server.process.wait(20)
        cold = server.get("/function/slow")
        assert cold.status_code == 502
        assert cold.elapsed.total_seconds() < 8
        again = gateway.server.process.args
        with serving(again, int(gateway.url.rpartition(":")[2]), tmp_path / "again"):  # type: ignore[arg-type]
            assert server.get("/function/slow").status_code == 200
            assert server.get("/function/hello").status_code == 200


@contextlib.contextmanager
def _function_of_its_own(tmp_path: Path) -> Iterator[Server]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "http.server",
        str(port),
        "--bind",
        "127.0.0.1",
        "--directory",
        str(tmp_path),
    ]
    with serving(command, port, tmp_path / "function.log") as server:
        yield server


def test_a_gevent_worker(gateway: Gateway, tmp_path: Path) -> None:
    with site(gateway, tmp_path / "log", worker="gevent") as server:
        outcomes: list[int | str] = []
        waiting = threading.Thread(target=lambda: outcomes.extend(together(30, server, "/function/slow")))
        waiting.start()
        until(lambda: gateway.ups("slow") == 1)
        other = server.get("/other")
        assert other.text == "at once"
        assert other.elapsed.total_seconds() < 0.5
        assert outcomes == []
        waiting.join()
        assert outcomes == [200] * 30, server.log
        assert gateway.ups("slow") == 1
