"""What the workers of a host write down, and what the report makes of it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from scalezero_wsgi import Function, ReplicaStatus, ScaleZeroMiddleware, SettingError
from scalezero_wsgi.cli import main
from scalezero_wsgi.commands.report import report
from scalezero_wsgi.events import (
    FunctionPaused,
    FunctionReady,
    FunctionStopped,
    ScaleRequested,
    StartFailed,
    WaitGivenUp,
)
from scalezero_wsgi.integrations.prometheus import PrometheusMetrics
from scalezero_wsgi.integrations.savings import Savings
from scalezero_wsgi.providers import CallbackProvider
from scalezero_wsgi.savings.book import DAY, HOUR, KEEP_DAYS, KEEP_HOURS, Book, BookError
from tests.support.clock import Clock
from tests.support.wsgi import App, ask

HELLO, OTHER = Function("hello"), Function("other", "dev")
BEGIN = 1795910400.0


class Engine:
    """What is up, as the provider tells it."""

    def __init__(self) -> None:
        self.up: dict[Function, int] = {}
        self.fails = False

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        if self.fails:
            raise OSError
        replicas = self.up.get(Function(name, namespace), 0)
        return ReplicaStatus(replicas, replicas)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        raise NotImplementedError


class Bench:
    """A host, whose clock is put forward by hand."""

    def __init__(self, path: Path) -> None:
        self.url, self.engine, self.now = f"sqlite://{path / 'savings.db'}", Engine(), BEGIN
        self.savings = self.worker()

    def worker(self) -> Savings:
        made = Savings(self.url, self.engine, clock=lambda: self.now)
        made._threads[os.getpid()] = None  # type: ignore[assignment]  # turns are taken by hand
        return made

    def start(self, function: Function = HELLO, took: float = 0.0) -> None:
        self.engine.up[function] = 1
        self.savings(ScaleRequested(function, 0, 1, took))

    def stop(self, function: Function = HELLO) -> None:
        self.engine.up[function] = 0
        self.savings(FunctionStopped(function, 0.1))

    def pass_by(self, seconds: float, every: float = 60.0) -> None:
        """Let time pass, with a look now and then."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + every)
            self.savings.turn()

    def told(self, since: float = 0.0) -> dict[str, Any]:
        return {str(each.function): each for each in self.savings.book.entries(self.now, since)}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "book")


def test_a_day_with_a_crash_is_exact_to_the_second(bench: Bench) -> None:
    up = 0.0
    for hour in range(24):
        bench.start(took=2.0 if hour == 3 else 0.0)
        bench.savings.book.close()  # as if all workers were new
        bench.pass_by(600.0 + hour)
        if hour == 7:  # it crashes, and a request finds it
            bench.pass_by(60.0, every=1.0)
            bench.engine.up[HELLO] = 0
            bench.pass_by(60.0, every=1.0)
            up += 60.0
            bench.start()
            bench.pass_by(100.0)
            up += 100.0
        up += 600.0 + hour
        bench.stop()
        bench.pass_by(BEGIN + (hour + 1) * HOUR - bench.now)
    told = bench.told()["hello"]
    assert told.up == pytest.approx(up + 2.0, abs=1.0)
    assert told.up <= up + 2.0 <= told.up + told.unknown <= up + 4.0
    assert (told.starts, told.always_on) == (25, 24 * HOUR)


def test_without_looks_a_crash_is_said_not_to_be_known(bench: Bench) -> None:
    bench.start()
    bench.now += 100
    bench.savings(FunctionReady(HELLO, 100.0))
    bench.now += 1000  # somewhere in it, it crashes
    bench.start()
    bench.now += 50
    bench.stop()
    told = bench.told()["hello"]
    assert (told.up, told.unknown, told.starts) == (150, 1000, 2)


def test_what_runs_still_is_known_as_far_as_it_was_seen(bench: Bench) -> None:
    bench.start()
    bench.pass_by(120.0)
    bench.now += 30
    told = bench.told()["hello"]
    assert (told.up, told.unknown, told.state.value) == (120, 30, "up")


def test_somebody_else_scales_it(bench: Bench) -> None:
    bench.start()
    bench.stop()
    bench.pass_by(100.0, every=1.0)
    bench.engine.up[HELLO] = 3
    bench.pass_by(100.0, every=1.0)
    bench.engine.up[HELLO] = 0
    bench.pass_by(100.0, every=1.0)
    told = bench.told()["hello"]
    assert told.up == pytest.approx(3 * 99, abs=3)
    assert told.unknown <= 2 * 3  # a second at each end, three times


def test_an_event_that_is_late_is_not_taken_for_somebody_else(bench: Bench) -> None:
    bench.start()
    bench.stop()
    bench.pass_by(10.0)
    bench.engine.up[HELLO] = 1
    bench.savings.turn()
    bench.now += 0.5
    bench.start(took=0.7)
    bench.pass_by(60.0)
    bench.engine.up[HELLO] = 0
    bench.savings.turn()
    bench.now += 0.5
    bench.stop()
    bench.pass_by(60.0)
    told = bench.told()["hello"]
    assert (told.up, told.unknown, told.starts) == (pytest.approx(61.2), 0, 2)


def test_a_provider_that_fails_says_nothing(bench: Bench) -> None:
    bench.start()
    bench.engine.fails = True
    bench.pass_by(100.0)
    assert bench.told()["hello"].unknown == 100
    bench.engine.fails = False
    bench.pass_by(1.0)
    assert bench.told()["hello"].unknown == 0


def test_pauses_failures_and_waits(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.start()
    bench.now += 60
    bench.savings(FunctionPaused(HELLO, 0.1))
    bench.now += 600
    bench.stop()
    bench.savings(StartFailed(HELLO, "no", 1.0))
    bench.savings(WaitGivenUp(HELLO, 25.0))
    bench.start(OTHER)
    bench.now += 40
    bench.stop(OTHER)
    report(bench.url, None, ["2", "other.dev=3"], False, lambda: bench.now)
    assert [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()] == [
        "NAME UP ALWAYS ON SAVED PAUSED STARTS FAILED WAITED P50 P99 COSTS SAVED",
        "hello 0.02 h 0.19 h 91% 0.17 h 1 1 1 25.00 s 25.00 s 0.03 0.36",
        "other.dev 0.01 h 0.01 h 0% 1 0 0.03 0.00",
        "all 0.03 h 0.21 h 86% 0.17 h 2 1 1 25.00 s 25.00 s 0.07 0.36",
    ]


def test_json_and_since(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        bench.start()
        bench.now += 600
        bench.stop()
        bench.now += 2 * DAY - 600
    report(bench.url, "3d", ["3.6"], True, lambda: bench.now)
    told = json.loads(capsys.readouterr().out)
    (hello,) = told["functions"]
    assert (hello["seconds_up"], hello["starts"], hello["seconds_always_on"]) == (600, 1, 3 * DAY)
    assert (hello["cost"], told["total"]["cost_saved"]) == (0.6, pytest.approx(3.6 * (72 - 1 / 6)))
    report(bench.url, None, [], True, lambda: bench.now)
    assert json.loads(capsys.readouterr().out)["total"]["seconds_up"] == 1200


def test_old_hours_become_days_and_are_forgotten_in_the_end(bench: Bench) -> None:
    for _ in range(100):
        bench.start()
        bench.savings(WaitGivenUp(HELLO, 1.0))
        bench.now += 300
        bench.stop()
        bench.now += HOUR - 300
    before = bench.told()["hello"]
    bench.now += KEEP_HOURS + DAY
    bench.savings.turn()
    after = bench.told()["hello"]
    assert (after.up, after.starts, after.waits.count) == (before.up, before.starts, before.waits.count)
    with sqlite3.connect(bench.savings.book.path) as file:
        assert file.execute("SELECT count(*) FROM spent").fetchone()[0] <= 6
    file.close()
    bench.now += KEEP_DAYS
    bench.savings.turn()
    assert bench.told()["hello"].up == 0


def test_one_worker_looks(bench: Bench) -> None:
    other = bench.worker()
    bench.start()
    bench.savings.turn()
    bench.now += 1
    bench.engine.fails = True  # or the second one would see it as well
    other.turn()
    assert not other.book.watches("other", bench.now, 5.0)
    bench.now += 10  # the first one is gone
    assert other.book.watches("other", bench.now, 5.0)


def test_a_file_that_cannot_be_written_is_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scalezero_wsgi.savings.book.BUSY", 0.01)
    bench.start()
    bench.savings.book.close()
    blocker = sqlite3.connect(bench.savings.book.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    bench.now += 60
    bench.stop()
    bench.now += 60
    with pytest.raises(BookError):
        bench.savings.turn()
    assert [record.message.partition(": ")[0] for record in caplog.records] == [
        "savings cannot be written, and are tried again"
    ]
    blocker.execute("COMMIT")
    blocker.close()
    bench.savings.turn()
    assert bench.told()["hello"].up == 60


def test_a_killed_process_loses_nothing(bench: Bench) -> None:
    bench.start()
    bench.now += 60
    pid = os.fork()
    if pid == 0:
        try:
            bench.stop()
            bench.savings(WaitGivenUp(HELLO, 1.0))
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    told = bench.told()["hello"]
    assert (told.up, told.waits.count) == (60, 1)


def test_requests_that_waited_are_counted(bench: Bench) -> None:
    clock = Clock()

    def scale_up(name: str, namespace: str) -> None:
        clock.now += 3.0

    middleware = ScaleZeroMiddleware(
        App(), CallbackProvider(scale_up=scale_up), hooks=[bench.savings], clock=clock
    )
    application = bench.savings.wrap(middleware)
    for _ in range(3):
        assert ask(application)[0] == "200 OK"
    told = bench.told()["hello"]
    assert (told.waits.count, told.starts) == (1, 1)
    assert told.waits.quantile(0.5) >= 3.0


def test_prometheus_is_told(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.start()
    bench.now += 600
    bench.stop()
    monkeypatch.setattr("time.time", lambda: bench.now + 1800)
    exposed = PrometheusMetrics().exposition(savings=bench.savings)
    status, _, body = ask(exposed, "/metrics")
    assert status == "200 OK"
    assert b'scalezero_up_seconds{function="hello"} 600.0\n' in body
    assert b'scalezero_always_on_seconds{function="hello"} 2400.0\n' in body


@pytest.mark.parametrize("url", ["savings.db", "redis://x/y", "sqlite://savings.db", "sqlite:///savings.db"])
def test_a_wrong_url_is_refused(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SettingError, match="it must be sqlite:///path/of/file, and absolute"):
        Savings(url)
    assert main(["report", url]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_price_for_nobody_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite://{tmp_path}/own/savings.db"
    Savings(url).book.waited(HELLO, 1.0, 1.0)
    assert main(["report", url, "--cost-per-hour", "mdoel=2"]) == 0
    assert capsys.readouterr().err == "scalezero-wsgi: --cost-per-hour: nothing is known of mdoel\n"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--since", "long"], "--since: 'long' is not a duration"),
        (["--cost-per-hour", "-1"], "--cost-per-hour: '-1' is not allowed"),
        (["--cost-per-hour", "hello=much"], "--cost-per-hour: 'much' is not allowed"),
        (["--cost-per-hour", "/=1"], "--cost-per-hour: '/' is not a function's name"),
        ([], "No such file or directory"),
    ],
)
def test_a_wrong_option_is_one_line(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", f"sqlite://{tmp_path}/no/savings.db", *options]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1
    assert not (tmp_path / "no").exists()


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as file:
        file.execute("CREATE TABLE things (a)")
    file.close()
    path.chmod(0o600)
    with pytest.raises(BookError, match="of another program"):
        Book(path).lives()
