from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from concurrent.futures import TimeoutError as FutureTimeout

import pytest

from scalezero_wsgi.servers.slots import slots_of, without_slot
from scalezero_wsgi.servers.thread_pool import STACK_SIZE, PoolThread, ThreadPool
from tests.support.waiting import PATIENCE, until


@pytest.fixture(params=[pytest.param(1, marks=pytest.mark.soak), 4])
def pool(request: pytest.FixtureRequest) -> Iterator[ThreadPool]:
    pool = ThreadPool(request.param, 1000)
    yield pool
    pool.shutdown()
    assert not threads_of(pool)


@pytest.fixture
def single() -> Iterator[ThreadPool]:
    pool = ThreadPool(1, 1000)
    yield pool
    pool.shutdown()


def threads_of(pool: ThreadPool) -> list[PoolThread]:
    return [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, PoolThread) and thread.pool is pool and thread.is_alive()
    ]


class App:
    """Counts how many are in it at once, and how long each that returned waited for its slot."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.inside = self.most = self.served = 0
        self.longest = 0.0

    def __call__(self, seconds: float = 0.0) -> None:
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        time.sleep(seconds)
        with self._lock:
            self.inside -= 1
            self.served += 1


def held(pool: ThreadPool, hold: Callable[[], object], then: Callable[[], object]) -> Future[None]:
    """Submit a request that is held, and then passed down."""

    def request() -> None:
        slots = slots_of({})
        assert slots is pool
        with without_slot(slots):
            hold()
        then()

    return pool.submit(request)


def test_a_thousand_that_are_released_at_once_are_in_the_application_as_many_as_there_are_slots(
    pool: ThreadPool,
) -> None:
    app, released = App(), threading.Event()
    futures = [held(pool, lambda: released.wait(PATIENCE), app) for _ in range(1000)]
    until(lambda: pool.waiting == 1000)
    assert pool.submit(lambda: "warm").result(PATIENCE) == "warm"
    released.set()
    assert not wait(futures, PATIENCE).not_done
    assert all(future.result() is None for future in futures)
    assert (app.served, pool.waiting) == (1000, 0)
    assert app.most <= pool.slots
    until(lambda: len(threads_of(pool)) <= pool.slots)


def test_never_more_than_the_slots_are_in_the_application_whatever_the_requests_do(pool: ThreadPool) -> None:
    app, rng = App(), random.Random(11)

    def request(holds: list[float], fails: bool, works: float) -> None:
        for seconds in holds:
            app(works)
            try:
                with without_slot(pool):
                    time.sleep(seconds)
                    if fails:
                        raise ValueError
            except ValueError:
                return  # an answer of ours
        app(works)

    futures = []
    for _ in range(1500):
        holds = [rng.choice([0.0, 0.001, 0.02]) for _ in range(rng.choice([0, 1, 1, 2]))]
        works = rng.choice([0.0, 0.0, 0.0005])
        futures.append(pool.submit(request, holds, rng.random() < 0.2, works))
        if rng.random() < 0.01:
            time.sleep(0.01)
    assert not wait(futures, PATIENCE).not_done
    assert all(future.result() is None for future in futures)
    assert app.most <= pool.slots
    assert pool.waiting == 0
    until(lambda: len(threads_of(pool)) <= pool.slots)


def test_who_returns_and_who_is_new_take_turns(single: ThreadPool) -> None:
    order: list[str] = []
    released = [threading.Event() for _ in range(3)]
    busy, go_on = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        go_on.wait(PATIENCE)

    futures = [
        held(single, lambda event=event: event.wait(PATIENCE), lambda n=n: order.append(f"returns {n}"))  # type: ignore[misc]
        for n, event in enumerate(released)
    ]
    until(lambda: single.waiting == 3)
    futures.append(single.submit(block))
    assert busy.wait(PATIENCE)
    futures += [single.submit(order.append, f"new {n}") for n in range(4)]
    for n, event in enumerate(released):  # each stands in line before the next comes
        event.set()
        until(lambda n=n: single.waiting == 2 - n)  # type: ignore[misc]
    go_on.set()
    assert not wait(futures, PATIENCE).not_done
    assert order == ["returns 0", "new 0", "returns 1", "new 1", "returns 2", "new 2", "new 3"]


def test_a_wake_shuts_out_no_new_requests_nor_they_the_wake(pool: ThreadPool) -> None:
    """While three hundred return and new ones keep coming, about as many of those are served."""
    released, app, served = threading.Event(), App(), 0
    futures = [held(pool, lambda: released.wait(PATIENCE), lambda: app(0.001)) for _ in range(300)]
    until(lambda: pool.waiting == 300)

    def ask() -> None:
        nonlocal served
        while not all(future.done() for future in futures):
            pool.submit(time.sleep, 0.001).result(PATIENCE)
            if released.is_set():
                served += 1  # a few are lost among threads, which does not matter

    clients = [threading.Thread(target=ask) for _ in range(4 * pool.slots)]
    for client in clients:
        client.start()
    released.set()
    for client in clients:
        client.join(PATIENCE)
    assert app.served == 300
    assert 100 <= served <= 900


def test_an_answer_of_ours_does_not_wait_for_those_in_the_application(single: ThreadPool) -> None:
    gone, go_on, app = threading.Event(), threading.Event(), App()

    def hold() -> None:
        gone.wait(PATIENCE)
        raise ValueError("its client has gone")

    refused = held(single, hold, app)
    until(lambda: single.waiting == 1)
    working = single.submit(go_on.wait, PATIENCE)
    others = [single.submit(app, 0.001) for _ in range(20)]
    gone.set()
    with pytest.raises(ValueError, match="its client has gone"):
        refused.result(PATIENCE)
    assert not working.done()
    go_on.set()
    assert not wait(others, PATIENCE).not_done
    assert app.most == 1
    until(lambda: len(threads_of(single)) <= 1)


def test_in_order_it_waits_also_when_the_hold_fails(single: ThreadPool) -> None:
    """For the application goes on after that."""
    gone, go_on = threading.Event(), threading.Event()

    def request() -> None:
        with without_slot(single, in_order=True):
            gone.wait(PATIENCE)
            raise ValueError

    refused = single.submit(request)
    until(lambda: single.waiting == 1)
    working = single.submit(go_on.wait, PATIENCE)
    until(working.running)
    gone.set()
    until(lambda: single.waiting == 0)
    with pytest.raises(FutureTimeout):
        refused.result(0.05)
    go_on.set()
    with pytest.raises(ValueError):
        refused.result(PATIENCE)


@pytest.mark.parametrize("error", [ValueError("x"), SystemExit(1)])
def test_what_a_call_raises_is_its_futures(error: BaseException, pool: ThreadPool) -> None:
    def fail() -> None:
        raise error

    futures = [pool.submit(fail) for _ in range(20)]
    assert [future.exception(PATIENCE) for future in futures] == [error] * 20
    assert pool.submit(lambda: 7).result(PATIENCE) == 7


def test_a_callback_that_fails_ends_no_thread(single: ThreadPool) -> None:
    def interrupt(_: Future[bool]) -> None:
        raise SystemExit

    go_on = threading.Event()
    first = single.submit(go_on.wait, PATIENCE)
    first.add_done_callback(interrupt)  # in this thread, if the call had ended before
    go_on.set()
    assert single.submit(lambda: 7).result(PATIENCE) == 7


def test_an_idle_thread_keeps_nothing_of_its_last_call(single: ThreadPool) -> None:
    def call(_: object) -> None: ...

    argument = App()
    kept = weakref.ref(argument)
    single.submit(call, argument)
    single.submit(call, argument).result(PATIENCE)
    del argument
    until(lambda: kept() is None)


def test_what_was_cancelled_is_not_called(single: ThreadPool) -> None:
    go_on = threading.Event()
    called: list[int] = []
    single.submit(go_on.wait, PATIENCE)
    second, third = single.submit(called.append, 2), single.submit(called.append, 3)
    assert second.cancel()
    go_on.set()
    third.result(PATIENCE)
    assert called == [3]


def test_a_shutdown_lets_those_end_that_wait_and_takes_no_more() -> None:
    pool, app, released = ThreadPool(2, 1000), App(), threading.Event()
    futures = [held(pool, lambda: released.wait(PATIENCE), app) for _ in range(20)]
    until(lambda: pool.waiting == 20)
    futures.append(pool.submit(app))
    pool.shutdown(wait=False)
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(app)
    released.set()
    pool.shutdown()
    assert app.served == 21
    assert app.most <= 2
    assert all(future.done() for future in futures)
    until(lambda: not threads_of(pool))


def test_a_shutdown_may_cancel_what_has_not_begun() -> None:
    pool, go_on = ThreadPool(1, 1000), threading.Event()
    first, second = pool.submit(go_on.wait, PATIENCE), pool.submit(go_on.wait, PATIENCE)
    pool.shutdown(wait=False, cancel_futures=True)
    assert second.cancelled()
    go_on.set()
    assert first.result(PATIENCE)


def test_threads_have_a_stated_stack_and_others_the_usual_one(
    single: ThreadPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, start, usual = [], PoolThread.start, threading.stack_size()

    def noting(self: PoolThread) -> None:
        sizes.append(threading.stack_size())
        start(self)

    monkeypatch.setattr(PoolThread, "start", noting)
    single.submit(int).result(PATIENCE)
    assert sizes == [STACK_SIZE]
    assert threading.stack_size() == usual


class TestWithoutThreads:
    """The system lets no more be started."""

    @pytest.fixture
    def none_left(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
        def fail(self: PoolThread) -> None:
            raise RuntimeError("can't start new thread")

        return lambda: monkeypatch.setattr(PoolThread, "start", fail)

    def test_a_first_call_is_refused(self, single: ThreadPool, none_left: Callable[[], None]) -> None:
        none_left()
        with pytest.raises(RuntimeError, match="can't start new thread"):
            single.submit(int)

    def test_who_comes_free_serves_those_who_wait_for_a_thread(
        self, single: ThreadPool, none_left: Callable[[], None]
    ) -> None:
        released, app = threading.Event(), App()
        futures = [held(single, lambda: released.wait(PATIENCE), app) for _ in range(3)]
        until(lambda: single.waiting == 3)
        none_left()
        futures += [single.submit(app) for _ in range(3)]
        released.set()
        assert not wait(futures, PATIENCE).not_done
        assert (app.served, app.most) == (6, 1)


@pytest.mark.soak
@pytest.mark.server
@pytest.mark.parametrize("fork", [False, True])
def test_a_process_ends_with_its_pool_once_those_who_wait_have_ended(fork: bool) -> None:
    code = f"""if True:
        import os, sys, threading, time
        from scalezero_wsgi.servers.slots import without_slot
        from scalezero_wsgi.servers.thread_pool import ThreadPool

        def request():
            with without_slot(pool):
                time.sleep(0.3)
            os.write(1, b"answered\\n")

        pool = ThreadPool(2, 1000)
        pool.submit(int).result()
        for _ in range(5):
            pool.submit(request)
        if {fork}:
            child = os.fork()
            if not child:
                sys.exit(7)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert sorted(done.stdout.split()) == ["7"] * fork + ["answered"] * 5
    assert not done.stderr
