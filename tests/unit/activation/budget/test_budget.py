"""Budgets in one process, with workers that meet in a store in memory: what starts, waits and goes."""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from scalezero_wsgi import (
    Function,
    FunctionFailed,
    NoRoom,
    ProviderError,
    ReplicaStatus,
    ScaleZeroMiddleware,
    SettingError,
)
from scalezero_wsgi.activation.budget import budget, survey
from scalezero_wsgi.activation.idling import listing
from scalezero_wsgi.coordination import CoordinationError
from scalezero_wsgi.coordination.base import DrainPhase
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import (
    BudgetOff,
    Event,
    FunctionContested,
    FunctionEvicted,
    FunctionQueued,
    FunctionStopped,
    ProviderFailed,
    StartFailed,
    StopRefused,
)
from scalezero_wsgi.model import ClientGone
from scalezero_wsgi.providers import CallbackProvider
from tests.support.fakes import FakeEngine
from tests.support.waiting import SOON, until
from tests.support.wsgi import App, Visit, ask

pytestmark = pytest.mark.usefixtures("at_once")

SOAK = int(os.environ.get("SCALEZERO_SOAK", "240"))


class Engine(FakeEngine):
    """It knows its functions by name and labels, lists them, and notes how many were up at most."""

    lists_only_functions = True

    def __init__(self, names: str = "abcd", labels: Mapping[str, Mapping[str, str]] | None = None) -> None:
        super().__init__(time.monotonic, known=set(names))
        self.names, self.labels = names, dict(labels or {})
        self.most = 0
        self.may_stop = threading.Event()
        self.may_stop.set()

    def list_functions(self) -> list[Function]:
        return [Function(name) for name in self.names]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        return replace(super().get_replicas(name, namespace), labels=self.labels.get(name, {}))

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        if replicas == 0:
            assert self.may_stop.wait(30)
        super().set_replicas(name, namespace, replicas)
        self.most = max(self.most, len(self.up()))

    def up(self) -> set[str]:
        with self._lock:
            return {function.name for function in self._ready_at}

    def starts(self) -> str:
        return "".join(function.name for function, replicas in self.sets if replicas)


class Site:
    """Workers that share a store and an engine."""

    def __init__(
        self, workers: int = 1, engine: Engine | None = None, app: Any = None, **settings: Any
    ) -> None:
        self.engine = engine or Engine()
        self.events: list[Event] = []
        self.store = settings.get("coordination") or MemoryCoordination()
        defaults: dict[str, Any] = {
            "coordination": self.store,
            "hooks": [self.events.append],
            "min_uptime": 0,
            "max_wait": 10,
        }
        self.doors = [
            ScaleZeroMiddleware(app or App(), self.engine, **(defaults | settings)) for _ in range(workers)
        ]
        self.door = self.doors[0]

    def ask(self, name: str, worker: int = 0) -> str:
        return ask(self.doors[worker], f"/function/{name}")[0]

    def told(self, kind: type[Event]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


def test_the_one_that_was_used_longest_ago_goes_for_another() -> None:
    site = Site(max_running=2)
    for name in "abac":
        assert site.ask(name) == "200 OK"
        time.sleep(0.05)
    assert site.engine.starts() == "abc"
    assert site.engine.up() == {"a", "c"}
    assert site.engine.most == 2
    assert [(str(event.function), str(event.room_for)) for event in site.told(FunctionEvicted)] == [
        ("b", "c")
    ]
    assert [str(event.function) for event in site.told(FunctionQueued)] == ["c"]
    assert [event.reason for event in site.told(FunctionStopped)] == ["evicted"]


def test_two_workers_that_start_two_functions_at_once_do_not_go_over() -> None:
    for _ in range(2):
        site = Site(workers=3, max_running=1)
        barrier = threading.Barrier(3)

        def door(number: int, site: Site = site, barrier: threading.Barrier = barrier) -> Callable[..., Any]:
            def begin(*arguments: Any) -> Any:
                barrier.wait(30)
                return site.doors[number](*arguments)

            return begin

        visits = [Visit(door(number), f"/function/{name}") for number, name in enumerate("abc")]
        assert [visit.status for visit in visits] == ["200 OK"] * 3
        assert site.engine.most == 1
        assert sorted(site.engine.starts()) == list("abc")


class Held:
    """An application whose requests for ``/function/<name>/held`` take until they are let go."""

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        if environ["PATH_INFO"].endswith("/held"):
            self.entered.set()
            assert self.let_go.wait(30)
        start_response("200 OK", [])
        return [b""]


def test_one_in_use_does_not_go_and_the_other_waits_its_turn() -> None:
    app = Held()
    site = Site(workers=2, app=app, max_running=1)
    user = Visit(site.doors[1], "/function/a/held")
    assert app.entered.wait(30)
    visit = Visit(site.door, "/function/b")
    until(lambda: site.told(FunctionQueued))
    time.sleep(0.1)
    assert visit.waits
    assert site.engine.up() == {"a"}
    app.let_go.set()
    assert user.status == visit.status == "200 OK"
    assert site.engine.starts() == "ab"
    assert site.engine.most == 1


def test_when_none_can_go_it_is_503_at_the_deadline_in_every_worker() -> None:
    app = Held()
    site = Site(app=app, max_running=1)
    user = Visit(site.door, "/function/a/held")
    assert app.entered.wait(30)
    patient = Visit(site.door, "/function/b")
    until(lambda: site.told(FunctionQueued))
    with pytest.raises(NoRoom):
        site.door.scaler.ensure_available(Function("b"), time.monotonic() + 0.1)
    other = Site(engine=site.engine, coordination=site.store, max_running=1, max_wait=0.2)
    status, headers, body = ask(other.door, "/function/b")
    assert status == "503 SERVICE UNAVAILABLE"
    assert int(headers["Retry-After"]) >= 1
    assert b"no room" in body
    app.let_go.set()
    assert user.status == patient.status == "200 OK"
    assert len(site.told(FunctionQueued)) == 1


def test_who_comes_again_has_kept_its_place() -> None:
    """The one that has come later does not get in first."""
    app = Held()
    site = Site(app=app, max_running=1)
    user = Visit(site.door, "/function/a/held")
    assert app.entered.wait(30)

    def gone(_: object) -> float:
        if site.told(FunctionQueued):
            raise ClientGone
        return time.monotonic() + 30

    with pytest.raises(ClientGone):
        site.door.scaler.ensure_available(Function("b"), time.monotonic() + 30, check=gone)
    later = Visit(site.door, "/function/c")
    until(lambda: len(site.told(FunctionQueued)) == 2)
    again = Visit(site.door, "/function/b")
    until(lambda: site.door.queue.waiting() == 2)
    app.let_go.set()
    assert again.status == later.status == user.status == "200 OK"
    assert site.engine.starts() == "abc"


MEMORY = {name: {"scalezero.memory": f"{size}GiB"} for name, size in {"a": 4, "b": 1, "c": 2, "d": 9}.items()}


def test_memory_is_what_labels_say_and_a_large_one_goes_for_many() -> None:
    site = Site(engine=Engine("abcde", MEMORY), max_memory="6GiB")
    for name in "bae":  # 5 GiB: e says nothing
        site.ask(name)
        time.sleep(0.05)
    assert site.ask("c") == "200 OK"
    assert site.engine.up() == {"b", "c", "e"}


def test_a_function_that_needs_more_than_there_is_fails_at_once_and_nothing_goes() -> None:
    site = Site(engine=Engine(labels=MEMORY), max_memory="6GiB", expose_failures=True)
    site.ask("a")
    begun = time.monotonic()
    status, _, body = ask(site.door, "/function/d")
    assert status == "503 SERVICE UNAVAILABLE"
    assert b"more than there is at all (max_memory = 6 GiB)" in body
    assert time.monotonic() < begun + SOON
    assert site.engine.up() == {"a"}
    assert len(site.told(StartFailed)) == 1


GPU = {name: {"scalezero.budget": "gpu"} for name in "ab"}


def test_a_group_has_its_own_budget_and_others_do_not_wait_for_it() -> None:
    app = Held()
    site = Site(engine=Engine(labels=GPU), app=app, max_running_of={"gpu": 1}, max_running=4)
    user = Visit(site.door, "/function/a/held")
    assert app.entered.wait(30)
    second = Visit(site.door, "/function/b")
    until(lambda: site.told(FunctionQueued))
    assert site.ask("c") == site.ask("d") == "200 OK"
    assert second.waits
    app.let_go.set()
    assert user.status == second.status == "200 OK"
    assert site.engine.up() == {"b", "c", "d"}


STAYS: dict[str, tuple[dict[str, str], dict[str, Any]]] = {
    "never": ({"scalezero.idle-after": "never"}, {}),
    "its hours": ({"scalezero.keep-warm": "00:00-24:00"}, {}),
    "busy": ({}, {"busy": lambda name, _: name == "a"}),
    "not ours": ({}, {"wake": ["b"]}),
}


@pytest.mark.parametrize(("labels", "settings"), STAYS.values(), ids=STAYS)
def test_one_that_is_to_stay_up_does(labels: dict[str, str], settings: dict[str, Any]) -> None:
    site = Site(engine=Engine("ab", {"a": labels}), max_running=1, **settings)
    site.engine.put_up("a")
    visit = Visit(site.door, "/function/b")
    if "wake" not in settings:  # one that is not ours does not count either
        until(lambda: site.told(FunctionQueued))
        time.sleep(0.1)
        assert visit.waits
        assert site.engine.up() == {"a"}
        site.engine.put_down()
    assert visit.status == "200 OK"
    assert not site.told(FunctionEvicted)


def test_what_was_up_before_counts_and_may_go() -> None:
    site = Site(max_running=2, min_uptime=60)
    for name in "abc":
        site.engine.put_up(name)
    assert site.ask("d") == "200 OK"
    assert len(site.engine.up()) == 2


def test_of_an_engine_that_lists_other_things_only_what_is_labelled_or_used_counts() -> None:
    class Everything(Engine):
        lists_only_functions = False

    site = Site(engine=Everything("abcd", {"b": {"scalezero.memory": "1GiB"}}), max_running=2)
    for name in "ab":
        site.engine.put_up(name)
    site.ask("c")
    site.ask("d")
    assert site.engine.up() == {"a", "c", "d"}


def test_an_idle_one_goes_by_itself_and_leaves_its_room() -> None:
    site = Site(max_running=1, idle_after=0.1, idle_default="all")
    site.ask("a")
    until(lambda: not site.engine.up())
    assert site.ask("b") == "200 OK"
    assert not site.told(FunctionEvicted)


def test_the_room_of_one_that_somebody_else_has_stopped_is_taken_before_another_goes() -> None:
    site = Site(max_running=2)
    for name in "ab":
        assert site.ask(name) == "200 OK"
    time.sleep(0.3)  # JUST_CLAIMED
    site.engine.set_replicas("a", "", 0)
    assert site.ask("c") == "200 OK"
    assert site.engine.up() == {"b", "c"}
    assert not site.told(FunctionEvicted)


class PausingEngine(Engine):
    def __init__(self) -> None:
        super().__init__()
        self.paused: set[str] = set()

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        status = super().get_replicas(name, namespace)
        return (
            replace(status, replicas=0, available_replicas=0, paused=True) if name in self.paused else status
        )

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        self.paused.discard(name)
        super().set_replicas(name, namespace, replicas)

    def pause(self, name: str, namespace: str) -> None:
        self.paused.add(name)


def test_a_paused_one_holds_its_room_and_is_stopped_for_another() -> None:
    engine = PausingEngine()
    site = Site(engine=engine, max_running=1, idle_after=0.1, idle_default="all", idle_action="pause")
    site.ask("a")
    until(lambda: engine.paused)
    assert site.ask("a") == "200 OK"  # goes on in the room that it has
    assert not site.told(FunctionQueued)
    until(lambda: engine.paused)
    assert site.ask("b") == "200 OK"
    assert engine.up() == {"b"}
    assert engine.most == 1
    assert len(site.told(FunctionEvicted)) == 1


def test_a_provider_that_refuses_to_stop_one_is_left_alone_and_another_goes() -> None:
    class Refusing(Engine):
        def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
            if (name, replicas) == ("a", 0):
                self.refused += 1
                raise ProviderError("not this one")
            super().set_replicas(name, namespace, replicas)

        refused = 0

    engine = Refusing()
    site = Site(engine=engine, max_running=2)
    for name in "abcd":
        assert site.ask(name) == "200 OK"
    assert engine.up() == {"a", "d"}
    assert engine.refused == 1
    assert [event.function.name for event in site.told(StopRefused)] == ["a"]


def test_one_that_was_let_go_waits_behind_the_one_that_it_went_for() -> None:
    """A request for it comes while it is being stopped."""
    site = Site(max_running=1)
    site.ask("a")
    site.engine.may_stop.clear()
    visit = Visit(site.door, "/function/b")
    until(lambda: [drain.phase for drain in site.store.drains().values()] == [DrainPhase.STOPPING])
    back = Visit(site.door, "/function/a")
    until(lambda: site.door.queue.waiting() == 2)
    site.engine.may_stop.set()
    assert visit.status == back.status == "200 OK"
    assert site.engine.starts() == "aba"
    assert site.engine.most == 1


def test_without_a_store_for_several_processes_no_budget_is_kept_and_that_is_said() -> None:
    site = Site(max_running=1)
    for name in "ab":
        assert ask(site.door, f"/function/{name}", multiprocess=True)[0] == "200 OK"
    assert [event.reason for event in site.told(BudgetOff)] == [
        "the server's processes do not meet; set coordination"
    ]


def test_with_dry_run_no_budget_is_kept_and_that_is_said() -> None:
    site = Site(max_running=1, dry_run=True)
    assert site.ask("a") == site.ask("b") == "200 OK"
    assert len(site.told(BudgetOff)) == 1


class Old:
    """A store that was written before functions could be stopped through one."""

    def __init__(self) -> None:
        for method in (
            "acquire",
            "renew",
            "release",
            "publish",
            "known",
            "changes",
            "report",
            "leave",
            "workers",
        ):
            setattr(self, method, getattr(MemoryCoordination(), method))


def test_a_store_by_which_nothing_can_be_stopped_is_refused() -> None:
    with pytest.raises(
        SettingError, match=r"coordination: .* with a budget .* drains\(\) and change_drain\(\)"
    ):
        Site(max_running=1, coordination=Old())


def test_while_the_store_is_lost_nothing_is_started_and_afterwards_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = Site(max_running=2, max_wait=0.2)
    until(lambda: site.ask("a") == "200 OK")

    def fail(*_: object) -> None:
        raise CoordinationError("down")

    with monkeypatch.context() as broken:
        broken.setattr(site.store, "known", fail)
        until(lambda: site.ask("b") == "503 SERVICE UNAVAILABLE")
        assert site.ask("a") == "200 OK"
        assert site.engine.up() == {"a"}
    until(lambda: site.ask("b") == "200 OK")


def test_a_wrong_label_is_warned_about_once(caplog: pytest.LogCaptureFixture) -> None:
    labels = {"a": {"scalezero.memory": "much", "scalezero.budget": "tpu"}}
    site = Site(engine=Engine(labels=labels), max_memory="1GiB", max_running_of={"gpu": 1}, max_running=1)
    for name in "aba":
        assert site.ask(name) == "200 OK"
    assert sorted(record.getMessage() for record in caplog.records if "label" in record.getMessage()) == [
        "a: its label scalezero.budget is 'tpu'; it must be one of gpu; it counts in no group",
        "a: its label scalezero.memory is 'much'; it must be an amount such as 512MiB or 8GiB; it counts as"
        " not said",
    ]


def test_what_another_worker_has_scaled_up_counts_though_the_provider_remembers_its_own_alone() -> None:
    up: set[str] = set()

    def provider() -> CallbackProvider:
        return CallbackProvider(
            scale_up=lambda name, _: up.add(name), scale_down=lambda name, _: up.discard(name)
        )

    store = MemoryCoordination()
    doors = [
        ScaleZeroMiddleware(App(), provider(), coordination=store, max_running=1, min_uptime=0)
        for _ in range(2)
    ]
    assert ask(doors[0], "/function/a")[0] == "200 OK"
    time.sleep(0.3)  # JUST_CLAIMED
    assert ask(doors[1], "/function/b")[0] == "200 OK"
    assert up == {"b"}


@pytest.mark.parametrize("error", [FunctionFailed(Function("a"), "no licence"), SystemExit(3)], ids=repr)
def test_one_whose_provider_raises_anything_harms_no_other(error: BaseException) -> None:
    class Raising(Engine):
        fails = False

        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if self.fails and name == "a":
                raise error
            return super().get_replicas(name, namespace)

    engine = Raising()
    site = Site(engine=engine, max_running=1, max_wait=1)
    site.ask("a")
    engine.fails = True
    time.sleep(0.3)  # JUST_CLAIMED
    failed = isinstance(error, FunctionFailed)  # the other says nothing of it
    assert site.ask("b") == ("200 OK" if failed else "503 SERVICE UNAVAILABLE")


def test_one_about_which_the_provider_hangs_keeps_no_other_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Hanging(Engine):
        hangs = False
        goes_on = threading.Event()

        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if self.hangs and name == "a":
                assert self.goes_on.wait(30)
            return super().get_replicas(name, namespace)

    monkeypatch.setattr(survey, "ANSWER_WITHIN", 0.2)
    engine = Hanging()
    site = Site(engine=engine, max_running=2)
    for name in "ab":
        assert site.ask(name) == "200 OK"
    engine.hangs = True
    for name in "cd":
        assert site.ask(name) == "200 OK"
    assert engine.up() == {"a", "d"}
    engine.goes_on.set()


def test_a_list_of_something_else_than_functions_is_the_providers_fault_and_is_told() -> None:
    class Names(Engine):
        def list_functions(self) -> Any:
            return [*self.names]

    site = Site(engine=Names(), max_running=1, max_wait=0.3)
    site.ask("a")
    assert "TypeError" in str(site.told(ProviderFailed)[0].error)


def test_that_nothing_is_started_as_the_provider_cannot_list_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Forbidden(Engine):
        may_list = False

        def list_functions(self) -> list[Function]:
            if not self.may_list:
                raise ProviderError("403 Forbidden")
            return super().list_functions()

    engine = Forbidden()
    site = Site(engine=engine, max_running=1, max_wait=0.3)
    for _ in range(2):
        site.ask("a")
    said = "nothing is started, for the provider does not say what is up: 403 Forbidden"
    assert [record.getMessage() for record in caplog.records].count(said) == 1
    engine.may_list = True
    until(lambda: site.ask("a") == "200 OK")


def test_that_a_room_stays_taken_of_which_the_provider_does_not_tell_is_said_once(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(Engine):
        fails = False

        def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
            if self.fails and name == "a":
                raise ProviderError("no\nanswer")
            return super().get_replicas(name, namespace)

    monkeypatch.setattr(survey, "SILENT", 0.1)
    engine = Failing()
    site = Site(engine=engine, max_running=1, max_wait=0.7)
    site.ask("a")
    engine.fails = True
    assert site.ask("b") == "503 SERVICE UNAVAILABLE"
    said = [record.getMessage() for record in caplog.records if "no | answer" in record.getMessage()]
    assert [line.partition(",")[0] for line in said] == ["a: its room in the budget stays taken"]
    engine.fails = False
    assert site.ask("b") == "200 OK"


def test_what_others_have_started_meanwhile_is_found_before_the_next_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(Engine):
        def list_functions(self) -> list[Function]:
            time.sleep(0.05)
            return super().list_functions()

    monkeypatch.setattr(budget, "LOOK_EVERY", 0.05)
    monkeypatch.setattr(budget, "LOOK_PAUSE", 0.0)
    site = Site(engine=Slow(), max_running=2)
    site.ask("c")
    site.engine.put_up("a")
    time.sleep(0.3)
    assert site.ask("b") == "200 OK"
    assert len(site.engine.up()) == 2


def test_with_a_budget_alone_the_provider_is_not_asked_again_and_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is up matters to a start alone, which looks for it."""
    monkeypatch.setattr(listing, "LIST_EVERY", 0.0)
    site = Site(max_running=2)
    idler = site.door._idler
    assert site.ask("a") == "200 OK"
    assert idler is not None
    until(lambda: idler._lead is not None)
    turned, queries = idler._turned_at, len(site.engine.queries)
    until(lambda: idler._turned_at > turned + 0.2)
    assert len(site.engine.queries) == queries


def test_one_that_is_not_served_any_more_does_not_count_any_more() -> None:
    site = Site(max_running=1)
    site.ask("a")
    time.sleep(0.3)  # JUST_CLAIMED
    later = Site(engine=site.engine, coordination=site.store, max_running=1, max_wait=1, wake=["b"])
    assert later.ask("b") == "200 OK"


def test_one_that_waits_for_room_is_not_taken_down_by_anybody() -> None:
    app = Held()
    site = Site(app=app, max_running=1, max_wait=1, idle_after=60, idle_default="all")
    user = Visit(site.door, "/function/a/held")
    assert app.entered.wait(30)
    assert site.ask("b") == "503 SERVICE UNAVAILABLE"
    app.let_go.set()
    assert user.status == "200 OK"
    assert not site.told(FunctionContested)


class Used:
    """An application that says which functions it uses at the moment."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.now: list[str] = []
        self.wrong: list[str] = []

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        name = environ["scalezero_wsgi.function"].name
        self.now.append(name)
        for _ in range(5):
            if name not in self._engine.up():
                self.wrong.append(name)
            time.sleep(random.random() * 0.01)
        self.now.remove(name)
        start_response("200 OK", [])
        return [b""]


@pytest.mark.soak
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_many_workers_at_once_never_go_over_and_nothing_in_use_goes(
    limit: int, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine("abcdef")
    app = Used(engine)
    site = Site(workers=4, engine=engine, app=app, max_running=limit, max_wait=30)
    answers: Counter[str] = Counter()

    def run(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(SOAK // 12):
            answers.update([site.ask(chance.choice("abcdef"), chance.randrange(4))])
            time.sleep(chance.random() * 0.2)

    threads = [threading.Thread(target=run, args=(seed,), daemon=True) for seed in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    with capsys.disabled():
        print(f"\n{limit}: {dict(answers)}, {len(engine.starts())} starts, at most {engine.most} up")
    assert answers["200 OK"] == answers.total()
    assert engine.most == limit
    assert app.wrong == []
    assert len(site.told(FunctionEvicted)) >= SOAK / 20
