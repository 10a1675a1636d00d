from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from scalezero_wsgi import Function, NotAvailable, ReplicaStatus
from scalezero_wsgi.coordination.base import (
    Changes,
    Coordination,
    CoordinationError,
    SharedStatus,
    WorkerReport,
)
from scalezero_wsgi.coordination.heartbeat import HEARTBEAT, REPORT_TTL
from scalezero_wsgi.coordination.leadership import (
    ACTION_TIMEOUT,
    LEASE,
    REPUBLISH,
    Leadership,
    LeadershipLost,
)
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.coordination.peers import FOLLOWER_POLL, Peers
from scalezero_wsgi.coordination.sqlite import SQLiteCoordination
from scalezero_wsgi.events import CoordinationLost, CoordinationRestored, Event, Reporter
from tests.support.clock import Clock
from tests.support.waiting import until

HELLO = Function("hello")
ROOT = Path(__file__).parents[3]
DOWN = CoordinationError("down")
READY = SharedStatus(ReplicaStatus(1, 1))


def never() -> float:
    return 1_000_000.0


def nothing(known: SharedStatus, is_update: bool) -> None:
    """No outcome for a follower."""


class Store:
    """A store that fails, and runs what a test wants run, at chosen calls."""

    def __init__(self, memory: MemoryCoordination, clock: Clock) -> None:
        self._memory = memory
        self._clock = clock
        self.error: Exception | None = None
        self.failing: set[str] = set()  # all, if it is empty
        self.calls: list[str] = []
        self.before: dict[str, Callable[[], object]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._memory, name)

        def call(*arguments: object) -> Any:
            self.note(name)
            return method(*arguments)

        return call

    @contextmanager
    def changes(self, function: Function) -> Iterator[Changes]:
        self.note("changes")
        with self._memory.changes(function):
            yield cast("Changes", self)

    def wait(self, timeout: float) -> bool:
        self.note("wait")
        self._clock.advance(timeout)
        return False

    def note(self, name: str) -> None:
        self.calls.append(name)
        self.before.pop(name, lambda: None)()
        if self.error is not None and (not self.failing or name in self.failing):
            raise self.error


class Quiet(Peers):
    """Its heartbeat runs only when the test calls it, and it pauses in no time."""

    pauses = 0

    def _start_heartbeat(self) -> None:
        pass

    def pause(self, seconds: float) -> None:  # type: ignore[override]
        self.pauses += 1
        assert isinstance(self.clock, Clock)
        self.clock.advance(seconds)


class Bench:
    def __init__(self) -> None:
        self.clock = Clock()
        self.memory = MemoryCoordination(self.clock)
        self.events: list[Event] = []
        self.store = Store(self.memory, self.clock)
        self.peers = Quiet(cast("Coordination", self.store), Reporter([self.events.append]), self.clock)
        self.other = Quiet(self.memory, Reporter(), self.clock)

    def kinds(self) -> list[type[Event]]:
        return [type(event) for event in self.events]

    @contextmanager
    def led_by_another(self) -> Iterator[Leadership]:
        found = self.other._join(HELLO, never, nothing)
        assert isinstance(found, Leadership)
        with found:
            yield found

    def lead(self, until: float = 1_000_000.0) -> Leadership:
        found: Leadership | None = self.peers._join(HELLO, lambda: until, nothing)
        assert isinstance(found, Leadership)
        return found

    def run_once(
        self, follow: Callable[[SharedStatus, bool], str | None] = nothing, until: float = 1_000_000.0
    ) -> str:
        return self.peers.run_once(HELLO, lambda: until, follow, lambda lead: "led")

    def is_led(self) -> bool:
        lease = self.memory.acquire(HELLO, "x", 1.0)
        if lease is not None:
            self.memory.release(lease)
        return lease is None


@pytest.fixture
def bench() -> Bench:
    return Bench()


def taken(known: SharedStatus, is_update: bool) -> str | None:
    return f"{'new' if is_update else 'old'} {known.age:.1f}"


def if_new(known: SharedStatus, is_update: bool) -> str | None:
    return "followed" if is_update else None


class TestLeading:
    def test_it_is_kept_while_a_call_that_changes_something_is_under_way(self, bench: Bench) -> None:
        """However short a time the outcome is wanted: another worker would make the same call beside it."""
        lead = bench.lead(until=1.0)
        bench.clock.advance(1.5)
        with lead.acting():
            bench.clock.advance(1.5)
            lead.keep()
        bench.clock.advance(LEASE - 0.1)
        assert bench.is_led()
        lead.keep()
        bench.clock.advance(0.2)
        assert not bench.is_led()

    def test_but_not_for_one_that_hangs(self, bench: Bench) -> None:
        lead = bench.lead(until=1.0)
        with lead.acting():
            ends_at = bench.clock() + ACTION_TIMEOUT
            while bench.clock() < ends_at:
                assert bench.is_led()
                bench.clock.advance(HEARTBEAT)
                lead.keep()
            while bench.clock() < ends_at + LEASE + HEARTBEAT:
                bench.clock.advance(HEARTBEAT)
                lead.keep()
            assert not bench.is_led()

    def test_the_first_leads_and_gives_the_lease_back(self, bench: Bench) -> None:
        def lead(lead: Leadership) -> str:
            assert bench.is_led()
            assert bench.peers.leaderships == {lead}
            return "led"

        assert bench.peers.run_once(HELLO, never, nothing, lead) == "led"
        assert not bench.is_led()
        assert not bench.peers.leaderships

    @pytest.mark.parametrize("error", [ValueError, SystemExit, KeyboardInterrupt])
    def test_it_is_given_back_however_the_flight_ends(self, bench: Bench, error: type[BaseException]) -> None:
        def lead(lead: Leadership) -> str:
            raise error

        with pytest.raises(error):
            bench.peers.run_once(HELLO, never, nothing, lead)
        assert not bench.is_led()
        assert not bench.peers.leaderships

    def test_without_a_store_everyone_leads(self) -> None:
        peers = Peers(None, Reporter(), row=WorkerReport)
        threads = threading.active_count()

        def lead(lead: Leadership) -> str:
            lead.publish(READY)
            lead.confirm()
            lead.keep()
            assert not peers.leaderships
            return peers.run_once(HELLO, never, nothing, lambda inner: "twice")

        assert peers.run_once(HELLO, never, nothing, lead) == "twice"
        assert not peers.joined
        peers.heartbeat()
        assert threading.active_count() == threads

    def test_a_second_flight_of_the_process_does_not_take_the_lease(self, bench: Bench) -> None:
        with bench.lead(), pytest.raises(NotAvailable):
            bench.run_once(until=bench.clock() + 1.0)

    def test_every_publication_has_a_name_of_its_own(self, bench: Bench) -> None:
        names = set()
        for _ in range(2):
            with bench.lead() as lead:
                for _ in range(2):
                    lead.publish(READY)
                    known = bench.memory.known(HELLO)
                    assert known is not None
                    names.add(known.name)
        assert len(names) == 4

    def test_what_is_no_news_is_told_now_and_then(self, bench: Bench) -> None:
        with bench.lead() as lead:
            lead.publish(READY, is_update=False)
            for _ in range(10):
                bench.clock.advance(REPUBLISH / 4)
                lead.publish(READY, is_update=False)
            lead.publish(READY)
        assert bench.store.calls.count("publish") == 1 + 2 + 1

    def test_a_replaced_leader_is_told_when_it_publishes(self, bench: Bench) -> None:
        with bench.lead() as lead:
            lead.check()
            bench.clock.advance(LEASE)
            with bench.led_by_another():
                lead.publish(READY)
                assert bench.memory.known(HELLO) is None
                with pytest.raises(LeadershipLost):
                    lead.check()

    def test_a_replaced_leader_is_told_when_it_asks(self, bench: Bench) -> None:
        with bench.lead() as lead:
            bench.clock.advance(LEASE * 0.9)
            lead.confirm()
            bench.clock.advance(LEASE * 0.9)
            lead.confirm()
            bench.clock.advance(LEASE)
            with pytest.raises(LeadershipLost):
                lead.confirm()

    def test_beats_keep_the_lease(self, bench: Bench) -> None:
        with bench.lead() as lead:
            for _ in range(10):
                bench.clock.advance(HEARTBEAT)
                bench.peers.heartbeat()
            assert bench.is_led()
            lead.check()

    def test_but_not_for_a_leader_that_hangs(self, bench: Bench) -> None:
        with bench.lead(until=5.0) as lead:
            while bench.clock() < 5.0 + LEASE + HEARTBEAT:
                bench.clock.advance(HEARTBEAT)
                bench.peers.heartbeat()
            assert not bench.is_led()
            with bench.led_by_another(), pytest.raises(LeadershipLost):
                lead.confirm()

    def test_a_lead_that_is_lost_is_looked_for_again(self, bench: Bench) -> None:
        leads: list[Leadership] = []

        def lead(lead: Leadership) -> str:
            leads.append(lead)
            if len(leads) < 3:
                raise LeadershipLost
            return "led"

        assert bench.peers.run_once(HELLO, never, nothing, lead) == "led"
        assert len(set(leads)) == 3
        assert not bench.peers.leaderships

    def test_who_lost_the_lead_takes_what_the_next_leader_tells(self, bench: Bench) -> None:
        def lead(lead: Leadership) -> str:
            bench.clock.advance(LEASE)
            with bench.led_by_another() as other:
                other.publish(READY)
                lead.confirm()
            return "led"

        assert bench.peers.run_once(HELLO, never, lambda known, is_update: "followed", lead) == "followed"


class TestFollowing:
    def test_what_was_known_before_is_shown_and_is_no_news(self, bench: Bench) -> None:
        with bench.led_by_another() as other:
            other.publish(READY)
        bench.clock.advance(1.5)
        assert bench.run_once(taken) == "old 1.5"
        assert "acquire" not in bench.store.calls

    def test_what_is_told_meanwhile_is_news(self, bench: Bench) -> None:
        with bench.led_by_another() as other:
            other.publish(READY)
            bench.store.before["wait"] = lambda: other.publish(READY)
            assert bench.run_once(if_new) == "followed"

    def test_also_if_nothing_was_known_before(self, bench: Bench) -> None:
        with bench.led_by_another() as other:
            bench.store.before["wait"] = lambda: other.publish(READY)
            assert bench.run_once(if_new) == "followed"

    def test_what_was_told_between_the_look_and_the_subscription_is_seen(self, bench: Bench) -> None:
        with bench.led_by_another() as other:
            bench.store.before["changes"] = lambda: other.publish(READY)
            assert bench.run_once(if_new) == "followed"
        assert "wait" not in bench.store.calls

    def test_for_nobodys_sake_the_store_is_asked_now_and_then_and_no_changes_are_watched(
        self, bench: Bench
    ) -> None:
        def is_urgent() -> bool:
            if bench.peers.pauses == 3:
                other.publish(READY)
            return False

        with bench.led_by_another() as other:
            found = bench.peers.run_once(HELLO, never, if_new, lambda lead: "led", is_urgent)
        assert found == "followed"
        assert bench.clock() == pytest.approx(4 * FOLLOWER_POLL)
        assert "changes" not in bench.store.calls

    def test_they_are_watched_as_soon_as_somebody_waits(self, bench: Bench) -> None:
        with bench.led_by_another() as other:
            bench.store.before["wait"] = lambda: other.publish(READY)
            found = bench.peers.run_once(
                HELLO, never, if_new, lambda lead: "led", lambda: bench.peers.pauses == 3
            )
        assert found == "followed"
        assert bench.clock() == pytest.approx(4 * FOLLOWER_POLL)  # one of them in the store

    def test_for_nobodys_sake_it_ends_at_the_deadline_too(self, bench: Bench) -> None:
        with bench.led_by_another(), pytest.raises(NotAvailable):
            bench.peers.run_once(HELLO, lambda: 1.0, nothing, lambda lead: "led", lambda: False)
        assert bench.clock() == pytest.approx(1.0, abs=2 * FOLLOWER_POLL)

    def test_an_outcome_that_came_right_before_the_lease_is_taken(self, bench: Bench) -> None:
        def another_ends() -> None:
            with bench.led_by_another() as other:
                other.publish(READY)

        bench.store.before["acquire"] = another_ends
        assert bench.run_once(if_new) == "followed"
        assert not bench.is_led()

    def test_if_it_is_an_error_the_lease_is_given_back_too(self, bench: Bench) -> None:
        def another_ends() -> None:
            with bench.led_by_another() as other:
                other.publish(READY)

        def fail(known: SharedStatus, is_update: bool) -> None:
            raise SystemExit

        bench.store.before["acquire"] = another_ends
        with pytest.raises(SystemExit):
            bench.run_once(fail)
        assert not bench.is_led()
        assert not bench.peers.leaderships

    def test_a_lease_that_lapses_without_a_word_is_taken_within_a_look(self, bench: Bench) -> None:
        assert bench.memory.acquire(HELLO, "dead", LEASE) is not None
        assert bench.run_once() == "led"
        assert LEASE <= bench.clock() <= LEASE + 2 * FOLLOWER_POLL

    def test_nobody_follows_for_ever(self, bench: Bench) -> None:
        with bench.led_by_another():
            for _ in range(4):
                bench.store.before["wait"] = lambda: bench.other.heartbeat()
            with pytest.raises(NotAvailable) as caught:
                bench.run_once(until=1.0)
        assert caught.value.waited == pytest.approx(1.0, abs=2 * FOLLOWER_POLL)
        assert not bench.memory._memory.get().subscriptions

    def test_the_subscription_is_ended_however_the_wait_ends(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Subscription(ExitStack):
            def wait(self, timeout: float) -> bool:
                raise SystemExit

        ended: list[bool] = []
        subscription = Subscription()  # no generator: nothing ends it when it is dropped
        subscription.callback(ended.append, True)
        monkeypatch.setattr(bench.store, "changes", lambda function: subscription)
        with bench.led_by_another(), pytest.raises(SystemExit):
            bench.run_once()
        assert ended == [True]

    def test_the_time_that_the_look_takes_counts(self, bench: Bench) -> None:
        with bench.led_by_another() as other:
            other.publish(READY)
        bench.store.before["known"] = lambda: bench.clock.advance(0.5)
        assert bench.run_once(taken) == "old 1.0"  # 0.5 in the store, and 0.5 that the answer may have taken


class TestAlone:
    def test_a_store_that_fails_is_done_without(self, bench: Bench) -> None:
        bench.store.error = DOWN
        assert bench.run_once() == "led"
        assert bench.events == [CoordinationLost(DOWN)]
        assert not bench.peers.joined

    @pytest.mark.parametrize("call", ["known", "acquire", "changes", "wait"])
    def test_whichever_call_it_fails_at(self, bench: Bench, call: str) -> None:
        bench.store.error, bench.store.failing = DOWN, {call}
        with bench.led_by_another():
            assert bench.run_once() == "led"
        assert bench.kinds() == [CoordinationLost]

    def test_whatever_it_raises(self, bench: Bench) -> None:
        """A store of somebody else's, or a record that nobody thought of."""
        bench.store.error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
        assert bench.run_once() == "led"
        bench.peers.heartbeat()
        assert bench.kinds() == [CoordinationLost]

    def test_a_follower_leads_as_soon_as_the_store_has_gone(self, bench: Bench) -> None:
        def lose() -> None:
            bench.store.error = DOWN

        with bench.led_by_another():
            bench.store.before["wait"] = lose
            assert bench.run_once() == "led"
        assert bench.clock() <= FOLLOWER_POLL

    def test_a_lost_store_is_tried_by_the_heart_alone(self, bench: Bench) -> None:
        bench.store.error = DOWN
        bench.run_once()
        bench.store.calls.clear()
        for _ in range(3):
            bench.run_once()
        assert bench.store.calls == []
        bench.peers.heartbeat()
        assert bench.store.calls == ["report"]
        assert bench.kinds() == [CoordinationLost]

    def test_nor_is_it_tried_by_who_led_when_it_was_lost(self, bench: Bench) -> None:
        with bench.lead() as lead:
            bench.store.error = DOWN
            lead.publish(READY)
            bench.store.calls.clear()
            lead.publish(READY)
            lead.confirm()
        assert bench.peers.shared_status(HELLO) is None
        assert bench.store.calls == []

    def test_it_joins_again_by_itself(self, bench: Bench) -> None:
        bench.store.error = DOWN
        bench.run_once()
        bench.store.error = None
        bench.run_once()
        assert bench.kinds() == [CoordinationLost]
        bench.peers.heartbeat()
        assert bench.peers.joined
        assert bench.kinds() == [CoordinationLost, CoordinationRestored]
        assert [row.worker for row in bench.memory.workers()] == [bench.peers.worker]

    @pytest.mark.parametrize("ask", [Leadership.check, Leadership.confirm, Leadership.acting])
    def test_who_leads_alone_looks_again_when_the_store_is_back(
        self, bench: Bench, ask: Callable[[Leadership], object]
    ) -> None:
        bench.store.error = DOWN
        lead = bench.lead()
        lead.confirm()
        bench.store.error = None
        bench.peers.heartbeat()
        with lead, pytest.raises(LeadershipLost):
            ask(lead)

    def test_who_leads_goes_on_while_the_store_is_gone(self, bench: Bench) -> None:
        with bench.lead() as lead:
            bench.store.error = DOWN
            lead.publish(READY)
            bench.clock.advance(2 * LEASE)
            lead.confirm()
            bench.store.error = None
            bench.peers.heartbeat()
            with bench.led_by_another(), pytest.raises(LeadershipLost):
                lead.confirm()
        assert bench.kinds() == [CoordinationLost, CoordinationRestored]

    def test_what_began_before_a_change_says_nothing_after_it(self, bench: Bench) -> None:
        def lost_and_found() -> None:
            bench.store.error = DOWN
            bench.peers.heartbeat()
            bench.store.error = None
            bench.peers.heartbeat()
            bench.store.error = DOWN

        bench.store.before["known"] = lost_and_found
        lead = bench.lead()
        assert bench.kinds() == [CoordinationLost, CoordinationRestored]
        with pytest.raises(LeadershipLost):
            lead.check()


class TestHeart:
    def test_a_beat_reports_what_the_worker_does(self, bench: Bench) -> None:
        bench.peers._row = lambda worker: WorkerReport(worker, in_flight={HELLO: 3})
        bench.peers.heartbeat()
        assert bench.memory.workers() == [WorkerReport(bench.peers.worker, in_flight={HELLO: 3})]
        bench.clock.advance(REPORT_TTL)
        assert bench.memory.workers() == []

    def test_it_beats_from_the_first_flight_on_and_only_once(self, clockwork: Clockwork) -> None:
        peers = clockwork.peers()
        before = [thread.name for thread in threading.enumerate()].count("scalezero-heartbeat")
        assert clockwork.heartbeats() == 0
        for _ in range(3):
            peers.run_once(HELLO, never, nothing, lambda lead: "led")
        until(lambda: len(clockwork.store.workers()) == 1)
        assert [thread.name for thread in threading.enumerate()].count("scalezero-heartbeat") == before + 1
        assert clockwork.heartbeats() == 1

    def test_it_beats_as_well_from_the_first_status_on_that_another_worker_has_published(
        self, clockwork: Clockwork
    ) -> None:
        """Its leader must learn that somebody asks here."""
        peers = clockwork.peers()
        assert peers.shared_status(HELLO) is None
        assert clockwork.heartbeats() == 0
        lease = clockwork.store.acquire(HELLO, "leads", 60.0)
        assert lease is not None
        assert clockwork.store.publish(lease, READY)
        assert peers.shared_status(HELLO) is not None
        until(lambda: [row.worker for row in clockwork.store.workers()] == [peers.worker])

    def test_a_beat_that_fails_is_logged_and_is_not_the_last(
        self, clockwork: Clockwork, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = iter([ValueError("no row")])

        def row(worker: str) -> WorkerReport:
            for error in rows:
                raise error
            return WorkerReport(worker)

        monkeypatch.setattr("scalezero_wsgi.coordination.heartbeat.HEARTBEAT", 0.01)
        with caplog.at_level(logging.ERROR, "scalezero_wsgi"):
            clockwork.peers(row).run_once(HELLO, never, nothing, lambda lead: "led")
            until(lambda: len(clockwork.store.workers()) == 1)
        assert "a heartbeat failed" in caplog.text

    def test_where_no_thread_can_be_started_the_next_flight_tries_again(
        self, clockwork: Clockwork, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        peers = clockwork.peers()

        def no_thread(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            assert peers.run_once(HELLO, never, nothing, lambda lead: "led") == "led"
        peers.run_once(HELLO, never, nothing, lambda lead: "led")
        until(lambda: len(clockwork.store.workers()) == 1)

    def test_at_the_end_it_stops_gives_back_its_leases_and_leaves(self, clockwork: Clockwork) -> None:
        peers = clockwork.peers()
        lead = peers._join(HELLO, never, nothing)
        until(lambda: len(clockwork.store.workers()) == 1)
        peers.close()
        assert clockwork.heartbeats() == 0
        assert clockwork.store.workers() == []
        assert clockwork.store.acquire(HELLO, "next", LEASE) is not None
        assert isinstance(lead, Leadership)

    def test_the_end_waits_for_no_acquisition_that_is_over(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(duration: float) -> None:
            raise AssertionError("it waits")

        bench.run_once()
        fake = SimpleNamespace(monotonic=time.monotonic, sleep=fail)
        monkeypatch.setattr("scalezero_wsgi.coordination.heartbeat.time", fake)
        bench.peers.close()

    def test_after_the_end_it_acquires_no_lease_that_nobody_would_release(self, bench: Bench) -> None:
        bench.peers.close()
        with pytest.raises(NotAvailable):
            bench.run_once(until=1.0)
        assert "acquire" not in bench.store.calls

    def test_a_child_is_a_worker_of_its_own_and_does_not_take_its_parents_row_away(
        self, clockwork: Clockwork, tmp_path: Path
    ) -> None:
        store = SQLiteCoordination(tmp_path / "shared" / "fleet.db")
        peers = Peers(store, Reporter(), row=WorkerReport)
        clockwork.all_peers.append(peers)
        with peers._join(HELLO, never, nothing) as lead:
            until(lambda: len(store.workers()) == 1)
            parent = peers._worker.get()
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    peers.run_once(Function("other"), never, nothing, lambda lead: "led")
                    until(lambda: len(store.workers()) == 2)
                    assert not peers.leaderships
                    parent.stop()
                    peers.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert [row.worker for row in store.workers()] == [peers.worker]
            lead.confirm()

    @pytest.mark.server
    def test_a_process_leaves_when_it_ends(self, tmp_path: Path) -> None:
        path = tmp_path / "shared" / "fleet.db"
        store = SQLiteCoordination(path)
        program = (
            "import sys, threading, time\n"
            "from scalezero_wsgi import Function\n"
            "from scalezero_wsgi.coordination.base import WorkerReport\n"
            "from scalezero_wsgi.coordination.peers import Peers\n"
            "from scalezero_wsgi.coordination.sqlite import SQLiteCoordination\n"
            "from scalezero_wsgi.events import Reporter\n"
            "peers = Peers(SQLiteCoordination(sys.argv[1]), Reporter(), row=WorkerReport)\n"
            "def lead(lead):\n"
            "    print('leads', flush=True)\n"
            "    time.sleep(60)\n"
            "far = lambda: 1e12\n"
            "call = lambda: peers.run_once(Function('hello'), far, lambda known, is_update: None, lead)\n"
            "threading.Thread(target=call, daemon=True).start()\n"
            "sys.stdin.readline()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with process:
            assert process.stdout is not None
            assert process.stdout.readline() == "leads\n"
            until(lambda: len(store.workers()) == 1)
            assert f":{process.pid}:" in store.workers()[0].worker
            assert store.acquire(HELLO, "too early", LEASE) is None
            process.communicate("\n", timeout=10)
        assert process.returncode == 0
        assert store.workers() == []
        assert store.acquire(HELLO, "next", LEASE) is not None


class Clockwork:
    """Peers in real time, whose heartbeats are stopped after the test."""

    def __init__(self) -> None:
        self.store = MemoryCoordination()
        self.all_peers: list[Peers] = []

    def peers(self, row: Callable[[str], WorkerReport] = WorkerReport) -> Peers:
        self.all_peers.append(Peers(self.store, Reporter(), row=row))
        return self.all_peers[-1]

    def heartbeats(self) -> int:
        threads = [peers._worker.get()._thread for peers in self.all_peers]
        return sum(thread is not None and thread.is_alive() for thread in threads)


@pytest.fixture
def clockwork() -> Iterator[Clockwork]:
    clockwork = Clockwork()
    yield clockwork
    for peers in clockwork.all_peers:
        peers.close()
    assert clockwork.heartbeats() == 0
