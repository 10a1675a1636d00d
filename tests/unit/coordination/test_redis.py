"""Against real servers of its own: plain, with a password, with TLS, a cluster, a sentinel."""

from __future__ import annotations

import contextlib
import functools
import gc
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from redis.backoff import NoBackoff
from redis.retry import Retry

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination import CoordinationError, make_coordination
from scalezero_wsgi.coordination.base import Lease, SharedStatus, WorkerReport
from scalezero_wsgi.coordination.redis import RedisCoordination
from scalezero_wsgi.testing import CoordinationBench, CoordinationContract
from tests.engines.engine import engine
from tests.servers.harness import ROOT
from tests.support import waiting
from tests.unit.coordination.stores import HELLO, UP, held, tell
from tests.unit.coordination.test_following import check_following

pytestmark = pytest.mark.engine

until = functools.partial(waiting.until, ignoring=(redis.RedisError, OSError, CoordinationError))


class Server:
    """A redis-server of our own; ``SCALEZERO_TEST_REDIS`` is the path of the program."""

    def __init__(self, directory: Path, *options: str, port: int = 0) -> None:
        self.program = str(engine("SCALEZERO_TEST_REDIS"))
        self.directory = directory
        self.socket = str(directory / "s")
        self.url = f"unix://{self.socket}"
        self.options = ["--port", str(port), "--save", "", "--appendonly", "no", *options]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *arguments: str) -> None:
        self.directory.mkdir(exist_ok=True)
        here = ["--unixsocket", self.socket, "--dir", str(self.directory), "--bind", "127.0.0.1"]
        log = ["--logfile", str(self.directory / "log")]
        self.process = subprocess.Popen([self.program, *arguments, *here, *log, *self.options])
        until(self._answers)

    def _answers(self) -> bool:
        with contextlib.suppress(redis.AuthenticationError):
            self.admin().ping()
        return True

    def admin(self) -> Any:
        once = Retry(NoBackoff(), 0)
        return redis.Redis(unix_socket_path=self.socket, decode_responses=True, retry=once)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    @contextlib.contextmanager
    def running(self, *arguments: str) -> Iterator[Server]:
        self.start(*arguments)
        try:
            yield self
        finally:
            self.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(autouse=True)
def no_connection_is_left() -> Iterator[None]:
    """redis-py's clients end in cycles, and it is chance whether a connection or its socket is finalized
    first: the latter warns, at worst in another test or at the very end."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("r")  # the path of a socket may not be long


@pytest.fixture(scope="module")
def running(directory: Path) -> Iterator[Server]:
    with Server(directory / "plain").running() as server:
        yield server


@pytest.fixture
def server(running: Server) -> Server:
    running.admin().flushall()
    return running


@pytest.fixture
def own(directory: Path) -> Iterator[Server]:
    """A server that the test may stop."""
    with Server(directory / "own").running() as server:
        yield server


@contextlib.contextmanager
def lost(within: float) -> Iterator[list[str]]:
    """The block must raise a CoordinationError, and in time; its text."""
    begun = time.monotonic()
    texts: list[str] = []
    with pytest.raises(CoordinationError) as caught:
        yield texts
    assert time.monotonic() - begun <= within
    texts.append(str(caught.value))


class TestContract(CoordinationContract):
    @pytest.fixture
    def bench(self, server: Server, directory: Path) -> CoordinationBench:
        return CoordinationBench(
            open=lambda: RedisCoordination(server.url),
            down=RedisCoordination(f"unix://{directory}/nobody"),
            patience=1.0,
            notice=0.010,
            size=lambda: server.admin().dbsize(),
        )


def test_a_follower_is_woken(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    check_following(RedisCoordination(server.url), RedisCoordination(server.url), monkeypatch)


class TestKeys:
    def test_each_has_a_time_to_live(self, server: Server) -> None:
        """While everything there is is in use."""
        store = RedisCoordination(server.url)
        missing = held(store, Function("missing"))
        assert store.publish(missing, SharedStatus(None))
        assert store.publish(held(store), UP)
        store.report(WorkerReport("a", {HELLO: 1}), 3.5)
        admin = server.admin()
        lives = {key: admin.pttl(key) / 1000 for key in admin.scan_iter()}
        assert {key: 0 < life <= 3600 for key, life in lives.items()} == dict.fromkeys(
            (
                "scalezero:{hello/}:lease",
                "scalezero:{hello/}:known",
                "scalezero:{missing/}:lease",
                "scalezero:{missing/}:known",
                "scalezero:workers",
            ),
            True,
        )
        assert lives["scalezero:{missing/}:known"] <= 10.0
        assert lives["scalezero:{hello/}:lease"] <= 30.0
        assert lives["scalezero:workers"] <= 3.5

    def test_the_longest_report_keeps_the_rows(self, server: Server) -> None:
        store = RedisCoordination(server.url)
        store.report(WorkerReport("a"), 60.0)
        store.report(WorkerReport("b"), 0.1)
        time.sleep(0.2)
        store.report(WorkerReport("c"), 0.1)
        assert sorted(server.admin().hkeys("scalezero:workers")) == ["a", "c"]
        time.sleep(0.2)
        assert [row.worker for row in store.workers()] == ["a"]

    @pytest.mark.parametrize("how", ["keyword", "url"])
    def test_prefixes_keep_installations_apart(self, server: Server, how: str) -> None:
        if how == "url":
            store = make_coordination(f"{server.url}?prefix=x%3Ay")
        else:
            store = RedisCoordination(server.url, prefix="x:y")
        tell(store)
        store.report(WorkerReport("a"), 30.0)
        assert all(key.startswith("x:y:") for key in server.admin().scan_iter())
        other = RedisCoordination(server.url)
        assert other.known(HELLO) is None
        assert list(other.workers()) == []
        with other.changes(HELLO) as changes:
            while changes.wait(0.1):
                pass
            tell(store)
            assert not changes.wait(0.1)

    def test_the_database_of_the_url_is_used(self, server: Server) -> None:
        tell(RedisCoordination(f"{server.url}?db=3"))
        assert RedisCoordination(server.url).known(HELLO) is None
        assert RedisCoordination(f"{server.url}?db=3").known(HELLO) is not None

    def test_what_others_put_there_is_nothing_or_an_error(self, server: Server) -> None:
        store = RedisCoordination(server.url)
        server.admin().set("scalezero:{hello/}:known", "rubbish")
        assert store.known(HELLO) is None
        server.admin().hset("scalezero:{hello/}:lease", "a", "b")
        with lost(1.0) as texts:
            store.renew(Lease(HELLO, "a", 1), 1.0)
        assert "WRONGTYPE" in texts[0]
        server.admin().hset("scalezero:workers", "a", "rubbish")
        with lost(1.0):
            store.workers()
        store.report(WorkerReport("b"), 30.0)  # which clears up
        assert list(store.workers()) == [WorkerReport("b")]


class TestTime:
    def test_the_clients_clock_is_not_asked(self, server: Server) -> None:
        """Hosts whose clocks are a day apart agree."""
        code = (
            "import sys, time\n"
            "real = time.time\n"
            "shift = float(sys.argv[2])\n"
            "time.time = lambda: real() + shift\n"
            "monotonic = time.monotonic\n"
            "time.monotonic = lambda: monotonic() + shift\n"
            "from scalezero_wsgi import Function, ReplicaStatus\n"
            "from scalezero_wsgi.coordination.base import SharedStatus, WorkerReport\n"
            "from scalezero_wsgi.coordination.redis import RedisCoordination\n"
            "store, name = RedisCoordination(sys.argv[1]), sys.argv[3]\n"
            "lease = store.acquire(Function(name), name, 30.0)\n"
            "assert store.publish(lease, SharedStatus(ReplicaStatus(1, 1), age=5.0))\n"
            "store.report(WorkerReport(name), 30.0)\n"
            "print(lease.token, store.known(Function(name)).age)\n"
        )
        tokens = []
        for name, shift in (("ahead", 86_400.0), ("behind", -86_400.0)):
            done = subprocess.run(
                [sys.executable, "-c", code, server.url, str(shift), name],
                cwd=ROOT,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            token, age = done.stdout.split()
            tokens.append(int(token))
            assert 5.0 <= float(age) < 10.0
            known = RedisCoordination(server.url).known(Function(name))
            assert known is not None
            assert 5.0 <= known.age < 15.0
        assert tokens == sorted(tokens)
        store = RedisCoordination(server.url)
        assert sorted(row.worker for row in store.workers()) == ["ahead", "behind"]
        assert store.acquire(Function("ahead"), "b", 30.0) is None


class TestFaults:
    def test_a_restart(self, own: Server) -> None:
        """Nothing is known any more, late leaders are refused, and the clients are back by themselves."""
        store = RedisCoordination(own.url)
        tell(store)
        late = held(store, Function("led"))
        with store.changes(HELLO) as changes:
            while changes.wait(0.1):
                pass
            own.stop()
            with lost(1.0):
                store.known(HELLO)
            with lost(1.0):
                changes.wait(0.1)
            own.start()
            assert store.known(HELLO) is None
            tell(store)
            assert not store.publish(late, UP)
            assert not store.renew(late, 30.0)
            assert held(store, Function("led")).token > late.token
            # The subscription too; and whoever waits is told to look, for something may have been missed.
            assert changes.wait(5.0)
            while changes.wait(0.1):
                pass
            tell(store)
            assert changes.wait(5.0)

    def test_a_restart_that_nobody_noticed(self, own: Server) -> None:
        """Connections that are dead and scripts that are gone are no error."""
        store = RedisCoordination(own.url)
        tell(store)
        own.stop()
        own.start()
        tell(store)

    def test_a_flush(self, server: Server) -> None:
        """Also of the scripts. The leases are void: no token comes again."""
        store, other = RedisCoordination(server.url), RedisCoordination(server.url)
        late = held(store)
        server.admin().flushall()
        server.admin().script_flush()
        lease = held(other)
        assert lease.token > late.token
        assert not store.publish(late, UP)
        store.release(late)
        assert other.publish(lease, UP)

    @pytest.mark.parametrize("fresh", [False, True], ids=["connected", "not yet connected"])
    def test_a_server_that_is_slow(self, own: Server, fresh: bool) -> None:
        """Every call ends in time, and those after it get no answer to an earlier one."""
        store = RedisCoordination(own.url, timeout=0.3)
        if not fresh:
            tell(store)
        own.admin().client_pause(1500, all=True)
        for use in (
            lambda: store.acquire(HELLO, "a", 1.0),
            lambda: store.known(HELLO),
            lambda: store.report(WorkerReport("a"), 1.0),
        ):
            with lost(1.0):
                use()
        until(lambda: store.known(Function("other")) is None)
        tell(store, SharedStatus(ReplicaStatus(7, 7)), Function("new"))
        known = store.known(Function("new"))
        assert known is not None
        assert known.status == ReplicaStatus(7, 7)
        assert list(store.workers()) in ([], [WorkerReport("a")])

    def test_a_server_that_is_stopped(self, own: Server) -> None:
        store = RedisCoordination(own.url, timeout=0.3)
        tell(store)
        assert own.process is not None
        own.process.send_signal(signal.SIGSTOP)
        try:
            for each in (store, RedisCoordination(own.url, timeout=0.3)):
                with lost(1.0):
                    each.known(HELLO)
        finally:
            own.process.send_signal(signal.SIGCONT)
        until(lambda: store.known(HELLO) is not None)

    def test_a_host_that_takes_no_connection(self) -> None:
        with lost(1.0) as texts:
            make_coordination(f"redis://user:s3cret@127.0.0.1:{free_port()}/0").known(HELLO)
        assert "s3cret" not in texts[0]

    def test_a_wrong_password(self, directory: Path) -> None:
        with Server(directory / "password", "--requirepass", "r1ght").running() as server:
            tell(make_coordination(f"unix://:r1ght@{server.socket}"))
            for url in (f"unix://:wr0ng@{server.socket}", server.url):
                with lost(1.0) as texts:
                    make_coordination(url).known(HELLO)
                assert "r1ght" not in texts[0]
                assert "wr0ng" not in texts[0]

    def test_a_server_that_is_full(self, own: Server) -> None:
        store = RedisCoordination(own.url)
        tell(store)
        own.admin().config_set("maxmemory", "1")
        with lost(1.0) as texts:
            tell(store)
        assert "OutOfMemory" in texts[0]
        assert store.known(HELLO) is not None
        own.admin().config_set("maxmemory", "0")
        tell(store)


class TestConnections:
    def test_they_do_not_grow(self, server: Server) -> None:
        store = RedisCoordination(server.url)
        tell(store)
        before = len(server.admin().client_list())
        for _ in range(100):
            tell(store)
            with store.changes(HELLO) as changes:
                changes.wait(0.05)
        assert len(server.admin().client_list()) <= before + 1

    def test_who_leads_needs_one_only(self, server: Server) -> None:
        store = RedisCoordination(server.url)
        with store.changes(HELLO):
            tell(store)
            assert server.admin().pubsub_numsub("scalezero:{hello/}:changes")[0][1] == 0

    def test_greenlets_go_on_while_one_waits(self, own: Server) -> None:
        code = (
            "from gevent import monkey; monkey.patch_all()\n"
            "import gevent, sys, time\n"
            "from scalezero_wsgi import Function\n"
            "from scalezero_wsgi.coordination import CoordinationError\n"
            "from scalezero_wsgi.coordination.redis import RedisCoordination\n"
            "store, gaps, errors = RedisCoordination(sys.argv[1], timeout=0.5), [], []\n"
            "store.workers()\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "def tick():\n"
            "    last = time.monotonic()\n"
            "    while True:\n"
            "        gevent.sleep(0.001)\n"
            "        now = time.monotonic(); gaps.append(now - last); last = now\n"
            "def use():\n"
            "    try: store.known(Function('hello'))\n"
            "    except CoordinationError as error: errors.append(error)\n"
            "ticker = gevent.spawn(tick)\n"
            "gevent.joinall([gevent.spawn(use) for _ in range(20)])\n"
            "ticker.kill()\n"
            "assert len(errors) == 20, errors\n"
            "print(max(gaps))\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code, own.url],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        own.admin().client_pause(3000, all=True)
        output, _ = process.communicate("go\n", timeout=20)
        assert process.returncode == 0
        assert float(output) < 0.2


class TestKinds:
    """Of servers: the same short course with each."""

    def test_tcp(self, directory: Path) -> None:
        port = free_port()
        with Server(directory / "tcp", port=port).running():
            self.course(f"redis://127.0.0.1:{port}/2")

    def test_tls(self, directory: Path) -> None:
        """With a certificate that is checked."""
        here, port = directory / "tls", free_port()
        here.mkdir()
        authority = trustme.CA()
        authority.cert_pem.write_to_path(here / "ca.pem")
        authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(here / "own.pem")
        options = ["--tls-port", str(port), "--tls-cert-file", "own.pem", "--tls-key-file", "own.pem"]
        with Server(here, *options, "--tls-auth-clients", "no").running():
            self.course(f"rediss://127.0.0.1:{port}?ssl_ca_certs={here}/ca.pem")
            with lost(2.0):
                make_coordination(f"rediss://127.0.0.1:{port}").known(HELLO)

    def test_cluster(self, directory: Path) -> None:
        """Of one node that has all slots; the first of the URL's hosts is down."""
        port = free_port()
        with Server(
            directory / "cluster", "--cluster-enabled", "yes", "--cluster-port", str(free_port()), port=port
        ).running() as server:
            server.admin().execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            until(lambda: server.admin().execute_command("CLUSTER INFO")["cluster_state"] == "ok")
            self.course(f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{port}?prefix=x")
            assert {key.partition(":")[0] for key in server.admin().scan_iter()} == {"x"}
            store = make_coordination(f"redis+cluster://127.0.0.1:{port}")
            tell(store)
            server.stop()
            with lost(5.0):
                store.known(HELLO)
            with lost(5.0):
                make_coordination(f"redis+cluster://:s3cret@127.0.0.1:{port}").known(HELLO)

    def test_sentinel(self, directory: Path) -> None:
        """The first of the URL's hosts is down; the master has a password, the sentinel another one."""
        port, sentinel_port = free_port(), free_port()
        master = Server(directory / "master", "--requirepass", "r1ght", port=port)
        watch = directory / "watch"
        watch.mkdir()
        (watch / "sentinel.conf").write_text(
            f"sentinel monitor mymaster 127.0.0.1 {port} 1\nsentinel auth-pass mymaster r1ght\n"
        )
        sentinel = Server(watch, "--requirepass", "0ther", port=sentinel_port)
        with master.running(), sentinel.running(str(watch / "sentinel.conf"), "--sentinel"):
            hosts = f"127.0.0.1:{free_port()},127.0.0.1:{sentinel_port}"
            url = f"redis+sentinel://:r1ght@{hosts}/mymaster/1?sentinel_password=0ther"
            until(lambda: make_coordination(url).known(HELLO) is None)
            self.course(url)
            with lost(2.0) as texts:
                make_coordination(url.replace("/mymaster", "/nobody")).known(HELLO)
            assert "nobody" in texts[0]

    @staticmethod
    def course(url: str) -> None:
        store, other = make_coordination(url), make_coordination(url)
        lease = held(store)
        assert other.acquire(HELLO, "b", 30.0) is None
        with other.changes(HELLO) as changes:
            while changes.wait(0.2):
                pass
            assert store.publish(lease, UP)
            assert changes.wait(5.0)
        known = other.known(HELLO)
        assert known is not None
        assert known.status == UP.status
        assert store.renew(lease, 30.0)
        store.release(lease)
        other.release(held(other))
        row = WorkerReport("a", {HELLO: 1})
        store.report(row, 30.0)
        assert list(other.workers()) == [row]
        other.leave("a")
        assert list(store.workers()) == []
