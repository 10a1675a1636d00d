"""The Docker provider against a real engine."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from scalezero_wsgi import Function, FunctionNotFound, ReplicaStatus
from scalezero_wsgi.providers import DockerProvider
from scalezero_wsgi.providers.base import PausingProvider
from scalezero_wsgi.testing import ProviderBench, ProviderContract
from tests.engines.docker_box import PREFIX, Box, after, shell
from tests.engines.docker_fakes import refusing_engine, silent_engine
from tests.engines.engine import build_image, engine, stopped
from tests.servers.harness import Server, free_port, gunicorn, serving
from tests.support.latency import BOUND, is_enough
from tests.support.waiting import until

pytestmark = [
    pytest.mark.engine,
    # The library leaves it to the garbage collector to close a Unix socket that could not be connected.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
]


@pytest.fixture(scope="session")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = engine("SCALEZERO_TEST_DOCKER")
    build_image(f"unix://{found}/docker.sock", tmp_path_factory.mktemp("docker"))
    return found


@pytest.fixture
def box(directory: Path) -> Iterator[Box]:
    made = Box(f"unix://{directory}/docker.sock")
    yield made
    made.close()


@pytest.fixture
def provider(box: Box) -> Iterator[DockerProvider]:
    made = DockerProvider(box.url)
    yield made
    made.close()


class Named:
    """The provider's calls for the containers of the box, which have a prefix."""

    def __init__(self, provider: DockerProvider) -> None:
        self.provider = provider

    def status(self, name: str) -> ReplicaStatus:
        return self.provider.get_replicas(PREFIX + name, "")

    def scale(self, name: str, replicas: int) -> None:
        self.provider.set_replicas(PREFIX + name, "", replicas)

    def watch(self, name: str, seen: ReplicaStatus, timeout: float = 5.0) -> ReplicaStatus:
        return self.provider.wait_for_change(PREFIX + name, "", seen, timeout)

    def counts(self, name: str) -> tuple[int, int]:
        status = self.status(name)
        return status.replicas, status.available_replicas

    def failure(self, name: str) -> str | None:
        return self.status(name).failure

    def until(
        self, name: str, condition: Callable[[ReplicaStatus], bool], timeout: float = 15.0
    ) -> ReplicaStatus:
        """Watch until ``condition`` holds."""
        deadline = time.monotonic() + timeout
        status = self.status(name)
        while not condition(status):
            assert time.monotonic() < deadline, f"it stays {status}"
            status = self.watch(name, status, 1.0)
        return status

    def until_available(self, name: str) -> ReplicaStatus:
        return self.until(name, lambda status: status.available_replicas > 0)


@pytest.fixture
def named(provider: DockerProvider) -> Named:
    return Named(provider)


@contextlib.contextmanager
def docker_bench(
    box: Box, provider: DockerProvider, ready: Function, bounds: tuple[int, int] = (1, 1)
) -> Iterator[ProviderBench]:
    box.add("broken", shell("exit 3"))
    with silent_engine() as silent, refusing_engine() as refusing:
        others = [DockerProvider(url, timeout=1.0) for url in ("unix:///nowhere.sock", silent, refusing)]
        yield ProviderBench(
            provider=provider,
            ready=ready,
            unknown=Function(f"{PREFIX}unknown"),
            bounds=bounds,
            broken=Function(f"{PREFIX}broken"),
            down=others[0],
            hanging=others[1],
            refusing=others[2],
            patience=3.0,
        )
        for each in others:
            each.close()


class TestContainer(ProviderContract):
    @pytest.fixture
    def bench(self, box: Box, provider: DockerProvider) -> Iterator[ProviderBench]:
        box.add("ready", labels={"scalezero.ready": "/"})
        with docker_bench(box, provider, Function(f"{PREFIX}ready")) as bench:
            yield bench


class TestPausedContainer(ProviderContract):
    @pytest.fixture
    def bench(self, box: Box, provider: DockerProvider) -> Iterator[ProviderBench]:
        labels = {"scalezero.function": "nap", "scalezero.namespace": "dev", "scalezero.mode": "pause"}
        box.add("ready", labels=labels)
        box.start("ready")
        with docker_bench(box, provider, Function("nap", "dev")) as bench:
            yield bench

    def test_a_paused_function_is_at_zero_until_it_is_scaled_up(self, bench: ProviderBench) -> None:
        """It is not said to be paused: by its label this is as far as it goes."""
        bench.scale(1)
        bench.until(lambda status: status.available_replicas > 0)
        assert isinstance(bench.provider, PausingProvider)
        bench.provider.pause(*bench.ready)
        assert (bench.status().replicas, bench.status().paused) == (0, False)
        bench.scale(1)
        bench.until(lambda status: status.available_replicas > 0)


def compose(service: str, number: int = 1, **labels: str) -> dict[str, str]:
    """The labels that Compose gives."""
    return {
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": service,
        "com.docker.compose.container-number": str(number),
        "com.docker.compose.oneoff": "False",
        **labels,
    }


class TestComposeService(ProviderContract):
    @pytest.fixture
    def bench(self, box: Box, provider: DockerProvider) -> Iterator[ProviderBench]:
        for number in (2, 1):
            box.add(f"web-{number}", labels=compose("web", number))
        with docker_bench(box, provider, Function("web", "shop"), (2, 2)) as bench:
            yield bench


# -- which container is a function


def test_all_containers_of_a_compose_service_are_its_replicas(box: Box, provider: DockerProvider) -> None:
    for number in (1, 2, 10):
        box.add(f"web-{number}", labels=compose("web", number))
    box.add("run", labels={**compose("web", 1), "com.docker.compose.oneoff": "True"})
    provider.set_replicas("web", "shop", provider.get_replicas("web", "shop").first_replicas)
    assert [box.state(name) for name in ("web-1", "web-2", "web-10", "run")] == ["running"] * 3 + ["created"]
    until(lambda: provider.get_replicas("web", "shop").available_replicas == 3)
    provider.set_replicas("web", "shop", 2)
    assert [box.state(name) for name in ("web-1", "web-2", "web-10")] == ["running", "running", "exited"]
    until(lambda: provider.get_replicas("web", "shop").available_replicas == 2)
    provider.set_replicas("web", "shop", 9)
    assert provider.get_replicas("web", "shop").replicas == 3
    provider.set_replicas("web", "shop", 0)
    assert provider.get_replicas("web", "shop").replicas == 0
    assert box.state("web-1") == "exited"


def test_one_container_of_a_service_that_runs_is_no_failure_of_it(box: Box, provider: DockerProvider) -> None:
    box.add("web-1", shell("exit 3"), labels=compose("web", 1))
    box.add("web-2", labels=compose("web", 2))
    provider.set_replicas("web", "shop", 2)
    box.wait("web-1")
    until(lambda: provider.get_replicas("web", "shop").available_replicas == 1)
    assert provider.get_replicas("web", "shop").failure is None
    box.stop("web-2")
    assert provider.get_replicas("web", "shop").failure == "exited with status 3"


def test_the_same_name_in_two_namespaces_is_two_functions(box: Box, provider: DockerProvider) -> None:
    for namespace in ("a", "b"):
        box.add(namespace, labels={"scalezero.function": "api", "scalezero.namespace": namespace})
    provider.set_replicas("api", "b", 1)
    assert (box.state("a"), box.state("b")) == ("created", "running")
    with pytest.raises(FunctionNotFound):
        provider.get_replicas("api", "")


def test_an_id_or_its_beginning_is_no_name(box: Box, provider: DockerProvider) -> None:
    key = box.add("a")
    for name in (key, key[:12], key[:4]):
        with pytest.raises(FunctionNotFound):
            provider.get_replicas(name, "")
        with pytest.raises(FunctionNotFound):
            provider.set_replicas(name, "", 1)
    assert box.state("a") == "created"


def test_each_container_has_one_name_as_a_function(box: Box, provider: DockerProvider) -> None:
    box.add("plain")
    box.add("labelled", labels={"scalezero.function": "hello"})
    box.add("composed", labels=compose("web"))
    box.add("other", labels={"scalezero.namespace": "dev"})
    box.add("task", labels={"com.docker.swarm.task.id": "x"})
    assert [each for each in provider.list_functions() if each.name.startswith(PREFIX)] == [
        (f"{PREFIX}other", "dev"),
        (f"{PREFIX}plain", ""),
    ]
    assert {("hello", ""), ("web", "shop")} <= set(provider.list_functions())
    for function in provider.list_functions():
        assert provider.get_replicas(*function).max_replicas == 1
    for name in ("labelled", "composed", "task", "other"):
        with pytest.raises(FunctionNotFound):
            provider.get_replicas(PREFIX + name, "")


# -- up and down


def test_a_container_sleeps_in_the_way_it_was_told(box: Box, named: Named) -> None:
    box.add("nap", labels={"scalezero.mode": "pause", "scalezero.ready": "/"})
    named.scale("nap", 1)
    first = named.until_available("nap")
    named.scale("nap", 0)
    assert box.state("nap") == "paused"
    assert named.counts("nap") == (0, 0)
    begun = time.monotonic()
    named.scale("nap", 1)
    assert named.until_available("nap") == first
    assert time.monotonic() - begun < 0.1
    box.stop("nap")
    named.scale("nap", 1)
    named.until_available("nap")


def test_what_was_paused_by_hand_is_woken(box: Box, named: Named) -> None:
    box.add("a")
    named.scale("a", 1)
    named.until_available("a")
    box.api.pause(f"{PREFIX}a")
    assert named.counts("a") == (0, 0)
    named.scale("a", 1)
    assert named.counts("a") == (1, 1)


def test_a_paused_container_that_is_stopped_ends_in_order(box: Box, provider: DockerProvider) -> None:
    """By its own signal, long before it would be killed."""
    box.add("a", shell("trap 'exit 5' TERM; while :; do $b sleep 0.1; done"), stop_timeout=60)
    a = f"{PREFIX}a", ""
    provider.set_replicas(*a, 1)
    provider.pause(*a)
    assert box.state("a") == "paused"
    assert provider.get_replicas(*a).paused
    provider.set_replicas(*a, 0)
    assert (box.state("a"), box.wait("a")) == ("exited", 5)
    assert not provider.get_replicas(*a).paused
    provider.pause(*a)
    assert box.state("a") == "exited"


def test_all_containers_of_a_service_are_paused(box: Box, provider: DockerProvider) -> None:
    for number in (1, 2):
        box.add(f"web-{number}", labels=compose("web", number))
    web = "web", "shop"
    provider.set_replicas(*web, 1)
    provider.pause(*web)
    assert [box.state(name) for name in ("web-1", "web-2")] == ["paused", "created"]
    assert provider.get_replicas(*web).paused
    provider.set_replicas(*web, 2)
    until(lambda: provider.get_replicas(*web).available_replicas == 2)
    provider.pause(*web)
    assert [box.state(name) for name in ("web-1", "web-2")] == ["paused", "paused"]
    provider.set_replicas(*web, 0)
    assert [box.state(name) for name in ("web-1", "web-2")] == ["exited", "exited"]


def test_while_it_is_being_stopped_it_is_at_zero_and_can_be_woken(box: Box, named: Named) -> None:
    box.add("slow", stop_timeout=1)
    named.scale("slow", 1)
    named.until_available("slow")
    since = time.time()
    stopping = threading.Thread(target=named.scale, args=("slow", 0))
    stopping.start()
    until(lambda: named.counts("slow") == (0, 0))
    assert box.state("slow") == "running"
    named.scale("slow", 1)
    stopping.join()
    named.until_available("slow")
    assert box.events(since, "start") == ["slow"]


def test_the_grace_is_the_containers_own(box: Box) -> None:
    impatient = DockerProvider(box.url, timeout=0.5)
    box.add("slow", stop_timeout=2)
    Named(impatient).scale("slow", 1)
    begun = time.monotonic()
    Named(impatient).scale("slow", 0)
    assert 1.5 < time.monotonic() - begun < 6
    assert box.state("slow") == "exited"
    impatient.close()


# -- available


def test_a_path_must_answer(box: Box, named: Named) -> None:
    script = "$b httpd -p 8080 -h /www; $b sleep 1; echo > /www/up; $b sleep 60"
    box.add("a", shell(script), labels={"scalezero.ready": "/up"})
    named.scale("a", 1)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.5:
        assert named.counts("a") == (1, 0)
    named.until_available("a")
    assert time.monotonic() - begun > 0.7


@pytest.mark.parametrize("labels", [{}, {"scalezero.ready": "tcp"}])
@pytest.mark.parametrize("publish", [True, False])
def test_a_port_must_take_connections(labels: dict[str, str], publish: bool, box: Box, named: Named) -> None:
    box.add("a", after(0.7), labels={**labels, "scalezero.port": "8080"}, publish=publish)
    named.scale("a", 1)
    begun = time.monotonic()
    while time.monotonic() < begun + 0.4:
        assert named.counts("a") == (1, 0)
    status = named.until_available("a")
    assert fetch(status.endpoint) == 200


def fetch(endpoint: str | None, timeout: float = 5.0) -> int:
    assert endpoint is not None
    address = urlsplit(endpoint)
    with contextlib.closing(
        http.client.HTTPConnection(str(address.hostname), address.port, timeout=timeout)
    ) as connection:
        connection.request("GET", "/")
        return connection.getresponse().status


def health(script: str) -> dict[str, object]:
    second = 1_000_000_000
    return {"test": ["CMD", *shell(script)], "interval": second, "timeout": second, "retries": 2}


def test_a_healthcheck_must_have_passed(box: Box, named: Named) -> None:
    box.add("a", healthcheck=health("$b test -e /www/index.html"))
    named.scale("a", 1)
    assert named.counts("a") == (1, 0)
    begun = time.monotonic()
    status = named.watch("a", named.status("a"), 10)
    assert status.available_replicas == 1
    assert time.monotonic() - begun < 5
    assert fetch(status.endpoint) == 200


def test_an_unhealthy_container_may_recover(box: Box, named: Named) -> None:
    script = "$b httpd -p 8080 -h /www; $b sleep 4; echo > /www/well; $b sleep 60"
    box.add("a", shell(script), healthcheck=health("$b test -e /www/well"))
    named.scale("a", 1)
    until(lambda: box.api.inspect_container(f"{PREFIX}a")["State"]["Health"]["Status"] == "unhealthy")
    status = named.status("a")
    assert (status.replicas, status.available_replicas, status.failure) == (1, 0, None)
    named.until_available("a")


def test_without_a_port_it_is_available_when_it_runs(box: Box, named: Named) -> None:
    box.add("a", shell("$b sleep 60"), publish=False)
    named.scale("a", 1)
    status = named.status("a")
    assert (status.available_replicas, status.endpoint) == (1, None)


def test_a_doubt_makes_it_answer_again(box: Box, named: Named) -> None:
    box.add("a", shell("$b httpd -f -p 8080 -h /www & $b sleep 1; $b kill $!; $b sleep 60"))
    named.scale("a", 1)
    endpoint = named.until_available("a").endpoint
    assert endpoint is not None

    def refused() -> bool:
        try:
            fetch(endpoint)
        except (OSError, http.client.HTTPException):
            return True
        return False

    until(refused)
    assert named.counts("a") == (1, 1)
    named.provider.doubt(f"{PREFIX}a", "")
    assert named.counts("a") == (1, 0)


# -- endpoints


def test_the_endpoint_is_the_published_port(box: Box, named: Named) -> None:
    box.add("a")
    named.scale("a", 1)
    status = named.until_available("a")
    ports = box.api.inspect_container(f"{PREFIX}a")["NetworkSettings"]["Ports"]
    assert status.endpoint == f"http://127.0.0.1:{ports['8080/tcp'][0]['HostPort']}"
    assert fetch(status.endpoint) == 200


@pytest.mark.parametrize("network", ["bridge", None])
def test_the_endpoint_may_be_the_containers_own_address(network: str | None, box: Box) -> None:
    provider = DockerProvider(box.url, network=network)
    box.add("a", publish=network is not None, labels={"scalezero.port": "8080"})
    Named(provider).scale("a", 1)
    status = Named(provider).until_available("a")
    address = box.api.inspect_container(f"{PREFIX}a")["NetworkSettings"]["Networks"]["bridge"]["IPAddress"]
    assert status.endpoint == f"http://{address}:8080"
    assert fetch(status.endpoint) == 200
    provider.close()


def test_a_container_on_the_hosts_network(box: Box, named: Named) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    command = ["/bin/busybox", "httpd", "-f", "-p", str(port), "-h", "/www"]
    box.add("a", command, labels={"scalezero.port": str(port)}, publish=False, network_mode="host")
    named.scale("a", 1)
    status = named.until_available("a")
    assert status.endpoint == f"http://127.0.0.1:{port}"
    assert fetch(status.endpoint) == 200


# -- failures


@pytest.mark.parametrize(
    ("command", "options", "failure"),
    [
        (shell("exit 3"), {}, "exited with status 3"),
        (["/nowhere"], {}, "its command is not there"),
        (["/www"], {}, "its command cannot be executed"),
        (
            shell("x=x; while :; do x=$x$x; done"),
            {"mem_limit": "8m", "memswap_limit": "8m"},
            "ran out of memory",
        ),
        (shell("exit 0"), {"binds": ["/:/proc"]}, "the engine could not start it"),
    ],
)
def test_a_start_that_fails_says_why(
    command: list[str], options: dict[str, object], failure: str, box: Box, named: Named
) -> None:
    box.add("a", command, **options)  # type: ignore[arg-type]
    assert named.failure("a") is None
    named.scale("a", 1)
    status = named.until("a", lambda status: status.failure is not None)
    assert (status.replicas, status.available_replicas, status.failure) == (0, 0, failure)


def test_a_container_that_ends_while_it_starts_is_told_at_once(box: Box, named: Named) -> None:
    box.add("a", shell("$b sleep 0.5; exit 7"))
    named.scale("a", 1)
    begun = time.monotonic()
    status = named.watch("a", named.status("a"), 10)
    assert (status.replicas, status.failure) == (0, "exited with status 7")
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize(
    ("script", "signal", "code"),
    [
        ("exec $b httpd -f -p 8080", None, 137),
        ("trap 'exit 0' TERM; while :; do $b sleep 0.05; done", None, 0),
        ("trap 'exit 143' TERM; while :; do $b sleep 0.05; done", None, 143),
        ("trap 'exit 131' QUIT; while :; do $b sleep 0.05; done", "SIGQUIT", 131),
    ],
)
def test_docker_stop_leaves_no_failure(
    script: str, signal: str | None, code: int, box: Box, named: Named
) -> None:
    box.add("a", shell(script), stop_signal=signal)
    named.scale("a", 1)
    time.sleep(0.2)
    box.stop("a", timeout=2)
    assert box.wait("a") == code
    assert named.failure("a") is None


def test_a_crash_loop_is_a_failure_but_one_restart_is_not(box: Box, named: Named) -> None:
    box.add("loop", shell("exit 5"), restart_policy={"Name": "always"})
    named.scale("loop", 1)
    status = named.until("loop", lambda status: status.failure is not None)
    assert (status.replicas, status.failure) == (1, "keeps exiting with status 5")
    named.scale("loop", 0)
    assert named.counts("loop") == (0, 0)
    script = "$b test -e /www/second && exec $b httpd -f -p 8080 -h /www; echo > /www/second; exit 1"
    box.add("once", shell(script), restart_policy={"Name": "always"})
    named.scale("once", 1)
    named.until("once", lambda status: status.failure is not None or status.available_replicas > 0)
    assert named.failure("once") is None
    assert box.api.inspect_container(f"{PREFIX}once")["RestartCount"] == 1


def test_a_crash_loop_that_is_to_be_paused_is_stopped(box: Box, named: Named) -> None:
    box.add("loop", shell("exit 5"), labels={"scalezero.mode": "pause"}, restart_policy={"Name": "always"})
    named.scale("loop", 1)
    named.until("loop", lambda status: status.failure is not None)
    named.scale("loop", 0)
    assert (box.state("loop"), named.counts("loop")) == ("exited", (0, 0))


# -- after and group


def labels(name: str, **more: str) -> dict[str, str]:
    return {
        "scalezero.function": name,
        "scalezero.namespace": "app",
        **{f"scalezero.{key}": value for key, value in more.items()},
    }


def test_what_must_be_ready_first_is(box: Box, provider: DockerProvider) -> None:
    box.add("db", after(0.5), labels=labels("db"))
    box.add("cache", labels=labels("cache", after="db.app"))
    box.add("web", labels=labels("web", after="db, cache"))
    since = time.time()
    provider.set_replicas("web", "app", 1)
    assert provider.get_replicas("db", "app").available_replicas == 1
    assert provider.get_replicas("cache", "app").available_replicas == 1
    assert box.events(since, "start") == ["db", "cache", "web"]
    until(lambda: provider.get_replicas("web", "app").available_replicas == 1)


def test_a_group_wakes_together_and_sleeps_apart(box: Box, provider: DockerProvider) -> None:
    box.add("db", labels=labels("db"))
    box.add("a", labels=labels("a", group="one"))
    box.add("b", labels=labels("b", group="one", after="db"))
    box.add("c", labels=labels("c", group="two"))
    box.add("d", labels={"scalezero.function": "d", "scalezero.group": "one"})
    provider.set_replicas("a", "app", 1)
    assert [box.state(each) for each in ("db", "a", "b")] == ["running"] * 3
    assert [box.state(each) for each in ("c", "d")] == ["created"] * 2
    provider.set_replicas("a", "app", 0)
    assert [box.state(each) for each in ("a", "b")] == ["exited", "running"]


@pytest.mark.parametrize(
    ("makes", "failure"),
    [
        ({"db": "web"}, "it would start after itself: "),
        ({"db": "nothing"}, "nothing.app, which must be ready first, is not there"),
        ({}, "db.app, which must be ready first, is not there"),
    ],
)
def test_what_cannot_be_ready_first_is_a_failure_and_nothing_starts(
    makes: dict[str, str], failure: str, box: Box, provider: DockerProvider
) -> None:
    box.add("web", labels=labels("web", after="db"))
    for name, first in makes.items():
        box.add(name, labels=labels(name, after=first))
    provider.set_replicas("web", "app", 1)
    status = provider.get_replicas("web", "app")
    assert status.replicas == 0
    assert str(status.failure).startswith(failure)
    assert [box.state(each) for each in ("web", *makes)] == ["created"] * (1 + len(makes))


def test_what_fails_to_be_ready_first_is_a_failure(box: Box) -> None:
    impatient = DockerProvider(box.url, after_timeout="700ms")
    box.add("web", labels=labels("web", after="db"))
    db = box.add("db", shell("exit 4"), labels=labels("db"))
    impatient.set_replicas("web", "app", 1)
    assert (
        impatient.get_replicas("web", "app").failure
        == "db.app, which must be ready first, failed: exited with status 4"
    )
    box.api.remove_container(db)
    db = box.add("db", after(30), labels=labels("db"))
    impatient.set_replicas("web", "app", 1)
    assert (
        impatient.get_replicas("web", "app").failure
        == "db.app, which must be ready first, was not within 0.7 s"
    )
    box.api.remove_container(db, force=True)
    box.add("db", labels=labels("db"))
    impatient.set_replicas("web", "app", 1)
    assert impatient.get_replicas("web", "app").failure is None
    assert box.state("web") == "running"
    impatient.close()


# -- watching


def test_what_happens_behind_our_back_is_told_at_once(box: Box, named: Named) -> None:
    box.add("a", labels={"scalezero.ready": "/"})
    seen = named.status("a")
    for act, counts in ((box.start, (1, 1)), (box.stop, (0, 0))):
        done: list[float] = []

        def later(act: Callable[[str], None] = act, done: list[float] = done) -> None:
            act("a")
            done.append(time.monotonic())

        timer = threading.Timer(0.3, later)
        timer.start()
        while (seen.replicas, seen.available_replicas) != counts:
            seen = named.watch("a", seen, 10)
        told = time.monotonic()
        timer.join()
        assert told - done[0] < 0.5


def test_a_container_that_is_removed_ends_the_watch(box: Box, named: Named) -> None:
    box.add("a")
    timer = threading.Timer(0.3, box.clear)
    timer.start()
    with pytest.raises(FunctionNotFound):
        named.watch("a", named.status("a"), 10)
    timer.join()


def test_no_thread_stays_behind(box: Box, named: Named) -> None:
    box.add("a")
    before = threading.active_count()
    named.scale("a", 1)
    named.watch("a", named.until_available("a"), 0.2)
    assert threading.active_count() == before


# -- from the client to the container


@contextlib.contextmanager
def site(box: Box, log: Path, *options: str, worker: str = "gthread", **env: str) -> Iterator[Server]:
    environment = {"PROVIDER": f"docker+{box.url}?timeout=1s", **env}
    with gunicorn("tests.engines.docker_site:app", log, *options, worker=worker, env=environment) as server:
        yield server


def together(count: int, server: Server, path: str) -> list[int]:
    outcomes: list[int] = []

    def run() -> None:
        outcomes.append(server.get(path).status_code)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return outcomes


def test_fifty_first_requests_are_one_start(box: Box, tmp_path: Path) -> None:
    box.add("a", after(0.3), labels={"scalezero.ready": "/"})
    with site(box, tmp_path / "log", "-w", "2", "--threads", "32") as server:
        for _ in range(3):
            since = time.time()
            assert together(50, server, f"/function/{PREFIX}a/") == [200] * 50, server.log
            assert box.events(since, "start") == ["a"]
            box.stop("a")


def test_serve_needs_no_application(box: Box, tmp_path: Path) -> None:
    box.add("a", labels={"scalezero.ready": "/"})
    box.add("b", labels={"scalezero.ready": "/"})
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "scalezero_wsgi",
        "serve",
        f"docker+{box.url}",
        "--bind",
        f"127.0.0.1:{port}",
    ]
    with serving(command, port, tmp_path / "log", {"SCALEZERO_ALLOW": f"{PREFIX}a"}) as server:
        assert [each["state"] for each in server.get("/").json()["functions"]] == ["at zero"]
        # More than its two workers have threads: they are held, and none is refused.
        assert together(100, server, f"/function/{PREFIX}a/") == [200] * 100, server.log
        until(lambda: [each["state"] for each in server.get("/").json()["functions"]] == ["ready"])
        assert server.get(f"/function/{PREFIX}b/").status_code == 404
        assert server.get("/readyz").status_code == 200
    assert "Traceback" not in server.log


def test_an_idle_container_is_stopped_and_woken_again(box: Box, tmp_path: Path) -> None:
    box.add("a", labels={"scalezero.ready": "/", "scalezero.idle-after": "2s"})
    box.add("b", labels={"scalezero.ready": "/"})
    with site(box, tmp_path / "log", "-w", "2", "--threads", "8", SCALEZERO_IDLE_AFTER="1h") as server:
        server.get(f"/function/{PREFIX}b/")
        time.sleep(4.0)  # a fleet that has just begun waits for a while
        for _ in range(2):
            since = time.time()
            assert server.get(f"/function/{PREFIX}a/").status_code == 200, server.log
            used_at = time.time()
            until(lambda since=since: box.events(since, "die") == ["a"])  # type: ignore[misc]
            assert time.time() - used_at >= 2.0
        print(f"\ndocker: gone {time.time() - used_at:.2f} s after the end of its last use, of 2 s")


@pytest.mark.parametrize("action", ["stop", "pause"])
def test_no_request_is_lost_when_a_container_becomes_idle(action: str, box: Box, tmp_path: Path) -> None:
    labels = {"scalezero.idle-after": "300ms", "scalezero.idle-action": action}
    box.add("a", labels={"scalezero.ready": "/", **labels})
    cycles, waited = int(os.environ.get("SCALEZERO_SOAK", "40")), 0
    options = {"SCALEZERO_IDLE_AFTER": "300ms", "SCALEZERO_REPLAY": "false"}
    with site(box, tmp_path / "log", "-w", "4", "--threads", "8", **options) as server:
        server.get(f"/function/{PREFIX}a/")
        time.sleep(4.0)
        pause = 0.3
        for _ in range(cycles):
            time.sleep(pause)
            answer = server.get(f"/function/{PREFIX}a/")
            assert answer.status_code == 200, (answer.text, server.log)
            restarted = "cold-start" in answer.headers.get("Server-Timing", "")
            waited += restarted
            pause *= 0.9 if restarted else 1.1
    print(f"\ndocker, {action}: of {cycles} requests at the boundary {waited} waited until it was up again")
    assert waited


def test_an_idle_container_is_paused_woken_and_stopped_in_the_end(box: Box, tmp_path: Path) -> None:
    labels = {"scalezero.ready": "/", "scalezero.idle-action": "pause after 500ms, stop after 4s"}
    box.add("a", labels=labels)
    took = []
    with site(box, tmp_path / "log", "-w", "2", "--threads", "8", SCALEZERO_IDLE_AFTER="1h") as server:
        for _ in range(6):
            since, begun = time.time(), time.monotonic()
            assert server.get(f"/function/{PREFIX}a/").status_code == 200, server.log
            took.append(time.monotonic() - begun)
            until(lambda since=since: box.events(since, "pause") == ["a"])  # type: ignore[misc]
            assert box.state("a") == "paused"
        paused_at = time.time()
        until(lambda: box.state("a") == "exited")
        figures = ", ".join(f"{1000 * each:.0f}" for each in took)
        later = time.time() - paused_at
        print(f"\ndocker, paused: ms to the first answer {figures}; stopped {later:.1f} s later, of 3.5 s")
        assert later >= 2.0
        assert server.get(f"/function/{PREFIX}a/").status_code == 200, server.log


@pytest.mark.parametrize("ready", ["/", "tcp"])
def test_the_added_latency_is_small(ready: str, box: Box, tmp_path: Path) -> None:
    box.add("a", labels={"scalezero.ready": ready})
    added: list[float] = []
    with site(box, tmp_path / "log", "--threads", "4") as server:
        assert server.get("/other").status_code == 200
        while not is_enough(added):
            box.stop("a")
            time.sleep(0.5)
            added.append(_added_latency(box, server))
    figures = ", ".join(f"{1000 * each:.1f}" for each in added)
    print(f"\nadded latency in ms ({ready}): {figures}; median {1000 * statistics.median(added):.1f}")
    assert statistics.median(added) <= BOUND


def _added_latency(box: Box, server: Server) -> float:
    """From the first answer to a direct question to the first one through the middleware, in seconds."""
    events = box.api.events(filters={"container": [f"{PREFIX}a"], "event": ["start"]}, decode=True)
    served: list[float] = []

    def ask_directly() -> None:
        # Not before the start: a packet to an address that nobody has yet costs the host a second.
        next(events)
        ports = box.api.inspect_container(f"{PREFIX}a")["NetworkSettings"]["Ports"]
        endpoint = f"http://127.0.0.1:{ports['8080/tcp'][0]['HostPort']}"
        while not served:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if fetch(endpoint, 0.1) == 200:
                    served.append(time.monotonic())

    thread = threading.Thread(target=ask_directly)
    thread.start()
    response = server.get(f"/function/{PREFIX}a/")
    answered = time.monotonic()
    thread.join()
    events.close()  # type: ignore[no-untyped-call, unused-ignore]
    assert response.status_code == 200, server.log
    return answered - served[0]


def test_an_engine_that_hangs_is_survived(directory: Path, box: Box, tmp_path: Path) -> None:
    box.add("warm", labels={"scalezero.ready": "/"})
    box.add("cold", labels={"scalezero.ready": "/"})
    daemon = int((directory / "dockerd.pid").read_text(encoding="ascii"))
    warm, cold = f"/function/{PREFIX}warm/", f"/function/{PREFIX}cold/"
    with site(box, tmp_path / "log", "--threads", "8", STALE_FOR="3") as server:
        assert server.get(warm).status_code == 200
        with stopped(daemon):
            begun = time.monotonic()
            while time.monotonic() < begun + 2:
                assert server.get(warm).status_code == 200, server.log
                time.sleep(0.1)
            begun = time.monotonic()
            assert server.get(cold).status_code == 502, server.log
            assert time.monotonic() - begun < 10
            until(lambda: time.monotonic() > begun + 3.5)  # by now the warm one's entry has lapsed, too
            assert server.get(warm).status_code == 200, server.log
        until(lambda: server.get(warm).status_code == 200)
        assert server.get(cold).status_code == 200, server.log


def test_a_gevent_worker_answers_others_meanwhile(box: Box, tmp_path: Path) -> None:
    box.add("a", after(1.5), labels={"scalezero.ready": "/"})
    with site(box, tmp_path / "log", worker="gevent") as server:
        assert server.get("/other").status_code == 200
        since = time.time()
        outcomes: list[int] = []
        waiting = threading.Thread(
            target=lambda: outcomes.extend(together(30, server, f"/function/{PREFIX}a/"))
        )
        waiting.start()
        until(lambda: box.state("a") == "running")
        begun = time.monotonic()
        assert server.get("/other").status_code == 200
        assert time.monotonic() - begun < 0.5
        assert outcomes == []
        waiting.join(60)
        assert outcomes == [200] * 30, server.log
        assert box.events(since, "start") == ["a"]
