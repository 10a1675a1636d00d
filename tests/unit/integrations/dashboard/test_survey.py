"""The provider is asked one question at a time, and rests in between, however many look."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest

from scalezero_wsgi import Function, FunctionNotFound, ProviderError, ReplicaStatus
from scalezero_wsgi.integrations.dashboard import survey as module
from scalezero_wsgi.integrations.dashboard.survey import LEAST_REST, REST, SILENT, Survey
from tests.support.clock import Clock
from tests.support.fakes import HELLO, UP, ZERO, ScriptedProvider
from tests.support.waiting import PATIENCE, until

OTHER = Function("other", "dev")


class Listing:
    """It hangs while ``goes_on`` is not set, and takes ``takes`` seconds for an answer by a clock."""

    def __init__(self, clock: Clock, **known: ReplicaStatus | Exception) -> None:
        self.known = known
        self.clock = clock
        self.takes = 0.0
        self.error: Exception | None = None
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.lists = self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def _answer(self) -> None:
        with self._lock:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.goes_on.wait(PATIENCE)
        self.clock.advance(self.takes)
        with self._lock:
            self.at_once -= 1

    def list_functions(self) -> Iterable[Function]:
        self.lists += 1
        self._answer()
        if self.error is not None:
            raise self.error
        return [Function(name) for name in self.known]

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        self._answer()
        found = self.known[name]
        if isinstance(found, Exception):
            raise found
        return found

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        raise AssertionError("looking changes nothing")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def told(survey: Survey) -> dict[str, str]:
    return {
        str(function): answer.seen.trouble or answer.seen.state for function, answer in survey.answers.items()
    }


def test_the_first_look_waits_and_has_all_there_is(clock: Clock) -> None:
    provider = Listing(
        clock,
        up=UP,
        zero=ZERO,
        gone=FunctionNotFound("gone"),
        odd="up",  # type: ignore[arg-type]
        ill=OSError("no route"),
        theirs=UP,
    )
    survey = Survey(provider, lambda function: function.name != "theirs", clock)
    survey.look()
    assert told(survey) == {
        "up": "ready",
        "zero": "at zero",
        "gone": "function gone is not known to the provider",
        "odd": "the provider returned 'up'",
        "ill": "OSError: no route",
    }
    assert survey.trouble == ""


def test_it_rests_longer_the_longer_a_round_has_taken(clock: Clock) -> None:
    provider = Listing(clock, up=UP)
    survey = Survey(provider, lambda _: True, clock)

    def looks() -> int:
        survey.look()
        until(lambda: not survey._rounds.running())
        return provider.lists

    assert [looks(), looks()] == [1, 1]
    clock.advance(LEAST_REST)
    provider.takes = 5.0
    assert looks() == 2
    clock.advance(2 * 5.0 * REST - 1)
    assert looks() == 2
    clock.advance(1)
    assert looks() == 3


def test_what_is_listed_no_more_is_shown_no_more(clock: Clock) -> None:
    provider = Listing(clock, up=UP, zero=ZERO)
    survey = Survey(provider, lambda _: True, clock)
    survey.look()
    del provider.known["zero"]
    clock.advance(LEAST_REST)
    survey.look()
    until(lambda: told(survey) == {"up": "ready"})


def test_many_that_look_at_one_that_hangs_wait_for_no_more_than_its_patience(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    provider = Listing(clock, up=UP)
    provider.goes_on.clear()
    survey = Survey(provider, lambda _: True, clock)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: survey.look(), range(32)))
    assert survey.trouble == ""
    clock.advance(SILENT + 2)
    assert survey.trouble == "The provider has not answered for 7 s."
    clock.advance(1000)
    survey.look()  # it hangs for good: nobody asks beside it
    assert (provider.lists, provider.most_at_once) == (1, 1)
    provider.goes_on.set()
    until(lambda: told(survey) == {"up": "ready"})
    assert survey.trouble == ""


def test_one_that_cannot_list_leaves_what_is_known_and_says_so(clock: Clock) -> None:
    provider = Listing(clock, up=UP)
    survey = Survey(provider, lambda _: True, clock)
    survey.look()
    provider.error = ProviderError("it is ill")
    clock.advance(LEAST_REST)
    survey.look()
    until(lambda: survey.trouble)
    assert survey.trouble == "The provider cannot list its functions: it is ill"
    assert told(survey) == {"up": "ready"}


def test_one_that_has_no_list_is_not_asked(clock: Clock) -> None:
    provider = ScriptedProvider(UP)
    survey = Survey(provider, lambda _: True, clock)
    survey.look()
    assert (survey.answers, provider.queries, survey.trouble) == ({}, [], "")
    assert HELLO not in survey.answers
