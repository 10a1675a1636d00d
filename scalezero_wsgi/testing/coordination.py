"""Tests that every coordination store must pass."""

from __future__ import annotations

import os
import signal
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from ..coordination.base import (
    Coordination,
    CoordinationError,
    Drain,
    DrainingCoordination,
    DrainPhase,
    Failure,
    Lease,
    ProviderFault,
    SharedStatus,
    Start,
    WorkerReport,
)
from ..model import Function, ReplicaStatus


@dataclass(frozen=True, slots=True)
class CoordinationBench:
    """A store to test. It must be empty when a test begins.

    :param open: opens the store as one more worker would.
    :param shared: whether several processes can use it; ``False`` for a store in memory.
    :param pass_time: advances the store's clock by that many seconds; by default it sleeps, for a quarter
        of a minute in all tests together.
    :param down: a store that cannot be used.
    :param patience: seconds within which ``down`` must raise its error, by its own time-outs.
    :param notice: seconds within which half of all changes must be noticed.
    :param size: returns how many leases and shared statuses the store holds.
    """

    open: Callable[[], Coordination]
    shared: bool = True
    pass_time: Callable[[float], None] = time.sleep
    down: Coordination | None = None
    patience: float = 5.0
    notice: float = 0.02
    size: Callable[[], int] | None = None


HELLO = Function("hello")

TTL = 30.0
"""Seconds for which leases and reports last: longer than any test takes."""

EPOCH = 1_764_357_000_123_456
"""A drain's epoch, as large as tokens become."""

UP = SharedStatus(ReplicaStatus(1, 1))

COORDINATION_NAMES = tuple(
    Function(*parts)
    for parts in (
        ("a",),
        ("a", "b"),
        ("a.b",),
        ("a", "b.c"),
        ("a.b", "c"),
        ("a.b.c",),
        ("a-b",),
        ("a_b",),
        ("A",),
        ("0",),
        ("x" * 63, "y" * 63),
        ("lease",),
        ("workers",),
    )
)
"""Names that functions can have, with every character that is allowed; all of different functions."""


def _acquire(store: Coordination, function: Function = HELLO, ttl: float = TTL) -> Lease:
    lease = store.acquire(function, "worker", ttl)
    assert lease is not None, "the lease is not free"
    return lease


def _publish(store: Coordination, shared: SharedStatus, function: Function = HELLO) -> None:
    lease = _acquire(store, function)
    assert store.publish(lease, shared)
    store.release(lease)


def _shared_status(store: Coordination, function: Function = HELLO) -> SharedStatus:
    shared = store.known(function)
    assert shared is not None, "there is no shared status"
    return shared


def _in_child(work: Callable[[], object]) -> int:
    """Run ``work`` in a forked process and return its id.

    It exits with 0 unless ``work`` raises or returns ``False``. SIGALRM ends it after a
    minute: a lock that was held at the fork would block it for ever.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork with threads
        pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        status = 1
        try:
            status = 1 if work() is False else 0
        finally:
            os._exit(status)
    return pid


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _in_threads(count: int, work: Callable[[], object]) -> None:
    """Run ``work`` in ``count`` threads at once, and fail if it raises in any of them."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def _use_all(store: Coordination) -> None:
    """Call every method once."""
    lease = _acquire(store, Function(f"used-{os.getpid()}-{threading.get_ident()}"))
    with store.changes(lease.function) as changes:
        assert store.renew(lease, TTL)
        assert store.publish(lease, UP)
        assert store.known(lease.function) is not None
        changes.wait(0.01)
    store.release(lease)
    store.report(WorkerReport("used"), TTL)
    store.workers()
    store.leave("used")


def _open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


class CoordinationContract:
    """The tests. A subclass defines the fixture ``bench``, with a store that is empty when a test begins."""

    # Leases

    def test_a_lease_is_held_by_one_only(self, bench: CoordinationBench) -> None:
        """All others that ask are refused, also its own holder."""
        store, other = bench.open(), bench.open()
        assert store.acquire(HELLO, "a", TTL) is not None
        assert other.acquire(HELLO, "b", TTL) is None
        assert other.acquire(HELLO, "a", TTL) is None
        assert store.acquire(HELLO, "a", TTL) is None

    def test_of_many_that_ask_at_once_one_gets_it(self, bench: CoordinationBench) -> None:
        """From threads of one process."""
        store, leases = bench.open(), []
        _in_threads(16, lambda: leases.append(store.acquire(HELLO, "a", TTL)))
        assert len([lease for lease in leases if lease is not None]) == 1

    def test_of_many_processes_that_ask_at_once_one_gets_it(self, bench: CoordinationBench) -> None:
        """From processes, for twenty functions in turn."""
        if not bench.shared:
            return
        store, count = bench.open(), 20
        functions = [Function(f"f{number}") for number in range(count)]
        start_at = time.monotonic() + 0.2
        read, write = os.pipe()

        def ask() -> None:
            time.sleep(max(0.0, start_at - time.monotonic()))
            for function in functions:
                if store.acquire(function, "a", TTL) is not None:
                    os.write(write, b"x")

        children = [_in_child(ask) for _ in range(4)]
        assert [_exit_code(child) for child in children] == [0] * 4
        os.close(write)
        with os.fdopen(read, "rb") as taken:
            assert len(taken.read()) == count

    def test_a_lease_tells_whose_it_is(self, bench: CoordinationBench) -> None:
        """It names the function and the worker, and has a token that grows with every lease."""
        store, other = bench.open(), bench.open()
        tokens = []
        for each in (store, other, store, other):
            lease = each.acquire(HELLO, "a", TTL)
            assert lease is not None
            assert (lease.function, lease.worker) == (HELLO, "a")
            tokens.append(lease.token)
            each.release(lease)
        assert tokens == sorted(set(tokens))

    def test_a_released_lease_is_free_at_once(self, bench: CoordinationBench) -> None:
        """What its former holder does late changes nothing."""
        store, other = bench.open(), bench.open()
        late = _acquire(store)
        store.release(late)
        held = _acquire(other)
        self._must_be_powerless(store, late, held)

    def test_a_lease_lapses(self, bench: CoordinationBench) -> None:
        """Then another worker gets it, so that a leader that died is replaced."""
        store, other = bench.open(), bench.open()
        late = _acquire(store, ttl=0.2)
        bench.pass_time(0.3)
        held = _acquire(other)
        assert held.token > late.token
        self._must_be_powerless(store, late, held)

    def test_a_lapsed_lease_is_over_though_nobody_else_took_it(self, bench: CoordinationBench) -> None:
        """It can neither be renewed nor used to publish."""
        store = bench.open()
        late = _acquire(store, ttl=0.2)
        bench.pass_time(0.3)
        assert not store.renew(late, TTL)
        assert not store.publish(late, UP)
        store.release(late)
        assert store.known(HELLO) is None
        assert store.acquire(HELLO, "b", TTL) is not None

    def test_a_renewed_lease_stays(self, bench: CoordinationBench) -> None:
        """The new time counts from the renewal."""
        store, other = bench.open(), bench.open()
        lease = _acquire(store, ttl=0.5)
        assert store.renew(lease, TTL)
        bench.pass_time(0.7)
        assert other.acquire(HELLO, "b", TTL) is None
        assert store.renew(lease, 0.2)
        bench.pass_time(0.3)
        assert other.acquire(HELLO, "b", TTL) is not None

    @staticmethod
    def _must_be_powerless(store: Coordination, late: Lease, held: Lease) -> None:
        assert not store.renew(late, TTL)
        assert not store.publish(late, UP)
        store.release(late)
        assert store.known(held.function) is None
        assert store.renew(held, TTL), "the lease of another holder was taken away"

    def test_functions_do_not_touch_each_other(self, bench: CoordinationBench) -> None:
        """Whatever characters their names have."""
        store = bench.open()
        leases = [_acquire(store, function) for function in COORDINATION_NAMES]
        for number, lease in enumerate(leases):
            assert store.publish(lease, SharedStatus(ReplicaStatus(number, 0)))
        for number, function in enumerate(COORDINATION_NAMES):
            assert _shared_status(store, function).status == ReplicaStatus(number, 0)
        store.release(leases[0])
        assert all(store.renew(lease, TTL) for lease in leases[1:])

    def test_a_killed_leader_is_replaced(self, bench: CoordinationBench) -> None:
        """When its lease expires, and not before."""
        if not bench.shared:
            return
        store = bench.open()
        read, write = os.pipe()

        def lead() -> None:
            _acquire(store, ttl=1.0)
            os.write(write, b"x")
            time.sleep(60.0)

        child = _in_child(lead)
        os.close(write)
        with os.fdopen(read, "rb") as ready:
            assert ready.read(1) == b"x"
        os.kill(child, signal.SIGKILL)
        assert _exit_code(child) == -signal.SIGKILL
        assert store.acquire(HELLO, "b", TTL) is None
        bench.pass_time(1.1)
        assert store.acquire(HELLO, "b", TTL) is not None

    # The shared status

    def test_at_first_nothing_is_known(self, bench: CoordinationBench) -> None:
        """A lease alone is no shared status."""
        store = bench.open()
        assert store.known(HELLO) is None
        _acquire(store)
        assert store.known(HELLO) is None

    def test_all_of_a_status_is_kept(self, bench: CoordinationBench) -> None:
        """Every field is kept after the lease has ended, also from mappings other than ``dict``."""
        status = ReplicaStatus(
            replicas=3,
            available_replicas=2,
            min_replicas=2,
            max_replicas=7,
            labels=MappingProxyType({"com.example/ä": "ö \n \x00 ' %", "": ""}),
            annotations={"a": "\N{SNOWMAN} \U0001f600"},
            endpoint="http://[::1]:8080/x?y",
            failure="it's broken",
        )
        _publish(bench.open(), SharedStatus(status))
        assert _shared_status(bench.open()).status == status

    def test_what_belongs_to_no_function_is_kept_apart(self, bench: CoordinationBench) -> None:
        """The middleware keeps a ledger of its own under a name that no function can have."""
        ledger, text = Function(".budget"), '{"held": [["a", "", 1e999]], "age": 0.1}' * 500
        _publish(bench.open(), SharedStatus(ReplicaStatus(1, 1)))
        _publish(bench.open(), SharedStatus(ReplicaStatus(0, 0, annotations={"a.b": text})), ledger)
        assert _shared_status(bench.open(), ledger).status == ReplicaStatus(0, 0, annotations={"a.b": text})
        assert _shared_status(bench.open()).status == ReplicaStatus(1, 1)

    def test_defaults_are_kept(self, bench: CoordinationBench) -> None:
        """Without a limit, an endpoint or a failure."""
        _publish(bench.open(), SharedStatus(ReplicaStatus(0, 0)))
        shared = _shared_status(bench.open())
        assert replace(shared, age=0.0) == SharedStatus(ReplicaStatus(0, 0))

    def test_that_a_function_is_unknown_is_kept(self, bench: CoordinationBench) -> None:
        """It differs from no shared status at all."""
        _publish(bench.open(), SharedStatus(None))
        assert _shared_status(bench.open()).status is None

    def test_what_is_told_last_counts(self, bench: CoordinationBench) -> None:
        """It replaces every field."""
        store = bench.open()
        _publish(
            store,
            SharedStatus(ReplicaStatus(1, 0), 5.0, Failure(1, "1.5", "broken", 60.0), Start("s"), name="1"),
        )
        _publish(bench.open(), SharedStatus(ReplicaStatus(2, 1), name="2"))
        shared = _shared_status(store)
        assert shared.age < 5.0
        assert replace(shared, age=0.0) == SharedStatus(ReplicaStatus(2, 1), name="2")

    def test_what_time_changes_goes_on(self, bench: CoordinationBench) -> None:
        """For whoever asks, ages grow, and the time until a back-off ends shrinks and becomes negative."""
        failure = Failure(3, "17.25", "it's broken", 1.0)
        start, trouble = Start("host:1/2", 20.0), ProviderFault(30.0, final=True)
        published = SharedStatus(ReplicaStatus(0, 0), 10.0, failure, start, trouble, "host:1/2.3")
        _publish(bench.open(), published)
        self._must_be_older(published, _shared_status(bench.open()), 0.0)
        bench.pass_time(1.5)
        self._must_be_older(published, _shared_status(bench.open()), 1.5)

    @staticmethod
    def _must_be_older(published: SharedStatus, known: SharedStatus, seconds: float) -> None:
        """All of it must be older by as many seconds, or by up to one more that has passed meanwhile."""
        passed = known.age - published.age
        assert seconds - 0.01 <= passed < seconds + 1.0
        expected = published.after(passed)
        for part, field in (("failure", "left"), ("start", "age"), ("trouble", "age")):
            times = [getattr(getattr(each, part), field) for each in (known, expected)]
            assert abs(times[0] - times[1]) < 0.01
            same = replace(getattr(expected, part), **{field: times[0]})
            expected = replace(expected, **{part: same})
        assert known == expected

    # Workers

    def test_at_first_there_are_no_workers(self, bench: CoordinationBench) -> None:
        """A worker that has not reported may leave."""
        store = bench.open()
        assert list(store.workers()) == []
        store.leave("nobody")
        assert list(store.workers()) == []

    def test_workers_report(self, bench: CoordinationBench) -> None:
        """The last report of each counts, until it leaves."""
        in_flight, waiting = {HELLO: 2, Function("a", "b"): 0}, {Function("a.b"): 1}
        epochs, kept_for = {HELLO: 1_764_357_000_123_456}, {HELLO: -0.5, Function("a", "b"): 1800.0}
        a = WorkerReport("host:1:x", in_flight, waiting, {HELLO: 0.25}, epochs, kept_for)
        b = WorkerReport("host:2:ä")
        store, other = bench.open(), bench.open()
        store.report(WorkerReport("host:1:x", {HELLO: 1}), TTL)
        store.report(a, TTL)
        other.report(b, TTL)
        assert sorted(bench.open().workers(), key=lambda row: row.worker) == [a, b]
        other.leave(a.worker)
        assert list(store.workers()) == [b]

    def test_a_worker_that_says_no_more_is_gone(self, bench: CoordinationBench) -> None:
        """Its last report expires, and that of no other worker."""
        store = bench.open()
        store.report(WorkerReport("a"), 0.2)
        store.report(WorkerReport("b"), TTL)
        bench.pass_time(0.3)
        assert list(bench.open().workers()) == [WorkerReport("b")]
        store.report(WorkerReport("a"), TTL)
        assert len(store.workers()) == 2

    # Drains: only of a store that can be used to scale functions back to zero

    def test_a_drain_is_changed_only_from_what_it_is(self, bench: CoordinationBench) -> None:
        """Each step is one compare-and-set: of phase and epoch."""
        store, other = _draining(bench.open()), _draining(bench.open())
        if store is None or other is None:
            return
        draining, epoch = Drain(DrainPhase.DRAINING, EPOCH), EPOCH
        stopping = Drain(DrainPhase.STOPPING, epoch)
        assert store.drains() == {}
        assert not store.change_drain(HELLO, draining, stopping, TTL)
        assert store.change_drain(HELLO, None, draining, TTL)
        assert other.drains() == {HELLO: draining}
        assert not other.change_drain(HELLO, None, Drain(DrainPhase.DRAINING, epoch + 1), TTL)
        assert not other.change_drain(HELLO, Drain(DrainPhase.DRAINING, epoch + 1), stopping, TTL)
        assert not other.change_drain(HELLO, stopping, draining, TTL)
        assert not other.change_drain(Function("other"), draining, stopping, TTL)
        for phase in (DrainPhase.STOPPING, DrainPhase.ZERO, DrainPhase.READY):
            before, after = store.drains()[HELLO], Drain(phase, epoch)
            assert other.change_drain(HELLO, before, after, TTL)
            assert not store.change_drain(HELLO, before, after, TTL)
            assert store.drains() == {HELLO: after}
        assert store.change_drain(HELLO, Drain(DrainPhase.READY, epoch), None, TTL)
        assert other.drains() == {}

    def test_of_many_that_change_a_drain_one_wins(self, bench: CoordinationBench) -> None:
        """From threads: half of them stop the function, half of them keep it."""
        store = _draining(bench.open())
        if store is None:
            return
        won: list[Drain] = []
        draining = Drain(DrainPhase.DRAINING, EPOCH)
        store.change_drain(HELLO, None, draining, TTL)
        phases = [DrainPhase.STOPPING, DrainPhase.READY] * 8

        def change() -> None:
            after = Drain(phases.pop(), EPOCH)
            if store.change_drain(HELLO, draining, after, TTL):
                won.append(after)

        _in_threads(16, change)
        assert [store.drains()[HELLO]] == won

    def test_a_drain_is_forgotten(self, bench: CoordinationBench) -> None:
        """After the time for which it is to be kept, and no other one with it."""
        store = _draining(bench.open())
        if store is None:
            return
        short, long = Drain(DrainPhase.ZERO, EPOCH), Drain(DrainPhase.DRAINING, EPOCH + 1)
        other = Function("other", "there")
        store.change_drain(HELLO, None, short, 0.2)
        store.change_drain(other, None, long, TTL)
        bench.pass_time(0.3)
        assert store.drains() == {other: long}
        assert not store.change_drain(HELLO, short, long, TTL)
        assert store.change_drain(HELLO, None, long, TTL)

    def test_drains_of_functions_do_not_touch_each_other(self, bench: CoordinationBench) -> None:
        """Whatever characters their names have."""
        store = _draining(bench.open())
        if store is None:
            return
        drains = {
            function: Drain(DrainPhase.DRAINING, number) for number, function in enumerate(COORDINATION_NAMES)
        }
        for function, drain in drains.items():
            assert store.change_drain(function, None, drain, TTL)
        assert store.drains() == drains

    # Changes

    def test_a_change_between_subscription_and_wait_is_not_missed(self, bench: CoordinationBench) -> None:
        """Neither a publication nor the release of the lease is, again and again."""
        store, other = bench.open(), bench.open()
        lease = _acquire(other)
        with store.changes(HELLO) as changes:
            other.publish(lease, UP)
            assert changes.wait(TTL)
            self._calm(changes.wait)
            other.publish(lease, SharedStatus(ReplicaStatus(2, 2)))
            assert changes.wait(TTL)
            self._calm(changes.wait)
            other.release(lease)
            assert changes.wait(TTL)

    def test_a_wait_without_a_change_ends_on_time(self, bench: CoordinationBench) -> None:
        """Neither much earlier nor much later; changes of other functions do not end it."""
        store = bench.open()
        with store.changes(HELLO) as changes:
            self._calm(changes.wait)
            _publish(bench.open(), UP, Function("other"))
            started_at = time.monotonic()
            assert not changes.wait(0.3)
            assert 0.25 <= time.monotonic() - started_at <= 0.3 + bench.patience

    def test_a_change_is_noticed_soon(self, bench: CoordinationBench) -> None:
        """From another thread, or from another process if processes share the store."""
        store, other = bench.open(), bench.open()
        delays: list[float] = []
        read, write = os.pipe()
        rounds = 21

        def publish() -> None:
            lease = _acquire(other)
            for number in range(rounds):
                time.sleep(0.03)
                os.write(write, f"{time.monotonic()}\n".encode())
                other.publish(lease, SharedStatus(ReplicaStatus(number, 0)))

        with store.changes(HELLO) as changes:
            self._calm(changes.wait)
            child = _in_child(publish) if bench.shared else 0
            if not bench.shared:
                threading.Thread(target=publish).start()
            with os.fdopen(read, "rb") as published:
                while len(delays) < rounds:
                    changes.wait(TTL)
                    known, noticed = store.known(HELLO), time.monotonic()
                    # On a busy machine the next change may come before one is noticed.
                    while known is not None and known.status and len(delays) <= known.status.replicas:
                        delays.append(noticed - float(published.readline()))
        os.close(write)
        if child:
            assert _exit_code(child) == 0
        assert sorted(delays)[len(delays) // 2] <= bench.notice, delays

    @staticmethod
    def _calm(wait: Callable[[float], bool]) -> None:
        """Wait until the subscription reports no more changes: it may do so without one."""
        while wait(0.1):
            pass

    # Use

    def test_it_leaves_no_files_and_threads(self, bench: CoordinationBench) -> None:
        """Its use leaves no more of them, however often it is used."""
        store = bench.open()
        _use_all(store)
        growths = []
        for _ in range(3):  # threads of other tests may begin meanwhile: what leaks grows each time
            files, threads = _open_files(), threading.active_count()
            for _ in range(100):
                _use_all(store)
            growths.append((_open_files() - files, threading.active_count() - threads))
            if max(growths[-1]) <= 0:
                return
        raise AssertionError(f"files and threads more after 100 uses: {growths}")

    def test_it_is_safe_for_threads(self, bench: CoordinationBench) -> None:
        """A counter that only leaders read and write misses no increment."""
        store, rounds = bench.open(), 10
        _publish(store, SharedStatus(ReplicaStatus(0, 0)))

        def count() -> None:
            done = 0
            with store.changes(HELLO) as changes:
                while done < rounds:
                    lease = store.acquire(HELLO, "a", TTL)
                    if lease is None:
                        changes.wait(0.05)
                        continue
                    status = _shared_status(store).status
                    assert status is not None
                    assert store.publish(lease, SharedStatus(ReplicaStatus(status.replicas + 1, 0)))
                    store.release(lease)
                    done += 1

        _in_threads(8, count)
        assert _shared_status(store).status == ReplicaStatus(8 * rounds, 0)

    def test_it_is_safe_after_a_fork(self, bench: CoordinationBench) -> None:
        """While other threads of the parent use it; neither process loses what the other writes."""
        store, stop = bench.open(), threading.Event()
        _use_all(store)

        def disturb() -> None:
            while not stop.is_set():
                store.known(HELLO)
                store.report(WorkerReport("busy"), TTL)

        def use() -> None:
            _use_all(store)
            _publish(store, UP)

        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            assert [_exit_code(_in_child(use)) for _ in range(5)] == [0] * 5
        finally:
            stop.set()
            thread.join()
        if bench.shared:
            assert _shared_status(store).status == UP.status
        _use_all(store)

    def test_a_child_outlives_its_parent(self, bench: CoordinationBench) -> None:
        """It still shares the store with others: a server that goes into the background is such a child."""
        if not bench.shared:
            return
        store = bench.open()
        read, write = os.pipe()

        def daemon() -> None:
            _use_all(store)
            os.write(write, b"x")
            deadline = time.monotonic() + 30.0
            while store.known(Function("go")) is None and time.monotonic() < deadline:
                time.sleep(0.01)
            _publish(store, UP)
            os._exit(0)

        def parent() -> None:
            _use_all(store)
            _in_child(daemon)
            _use_all(store)

        assert _exit_code(_in_child(parent)) == 0
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            assert pipe.read(1) == b"x"
            assert _exit_code(_in_child(lambda: _use_all(bench.open()))) == 0
            _publish(store, UP, Function("go"))
            assert pipe.read() == b""  # the child has ended
        assert _shared_status(store).status == UP.status

    def test_invented_names_do_not_fill_it(self, bench: CoordinationBench) -> None:
        """The status of a missing function is forgotten soon, and a released lease at once."""
        if bench.size is None:
            return
        store = bench.open()
        for number in range(300):
            function = Function(f"invented-{number}")
            lease = _acquire(store, function)
            store.publish(lease, SharedStatus(None))
            store.release(lease)
        assert bench.size() <= 300
        failed = Function("failed")  # a status with a failure is kept
        _publish(store, SharedStatus(None, failure=Failure(6, "a", "exited", 60.0)), failed)
        bench.pass_time(12.0)
        _publish(store, UP)
        assert bench.size() <= 3
        assert store.known(Function("invented-0")) is None
        assert _shared_status(store, failed).failure is not None

    def test_a_store_that_cannot_be_used_says_so(self, bench: CoordinationBench) -> None:
        """Every call raises ``CoordinationError`` in time."""
        if bench.down is None:
            return
        store = bench.down
        lease, draining = Lease(HELLO, "a", 1), _draining(store)
        uses: list[Callable[[], object]] = [
            lambda: store.acquire(HELLO, "a", TTL),
            lambda: store.renew(lease, TTL),
            lambda: store.release(lease),
            lambda: store.publish(lease, UP),
            lambda: store.known(HELLO),
            lambda: _wait_for_a_change(store),
            lambda: store.report(WorkerReport("a"), TTL),
            lambda: store.leave("a"),
            lambda: store.workers(),
        ]
        if draining is not None:
            uses += [draining.drains, lambda: _begin_drain(draining)]
        for use in uses:
            started_at = time.monotonic()
            try:
                use()
            except CoordinationError:
                assert time.monotonic() - started_at <= bench.patience, "the error took too long"
            else:
                raise AssertionError("no CoordinationError was raised")


def _draining(store: Coordination) -> DrainingCoordination | None:
    """Return the store if it has drains."""
    return store if isinstance(store, DrainingCoordination) else None


def _begin_drain(store: DrainingCoordination) -> bool:
    return store.change_drain(HELLO, None, Drain(DrainPhase.DRAINING, EPOCH), TTL)


def _wait_for_a_change(store: Coordination) -> None:
    with store.changes(HELLO) as changes:
        changes.wait(0.1)
