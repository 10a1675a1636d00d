"""What a function's labels, its annotations and the settings say of when it is idle."""

from __future__ import annotations

import logging

import pytest

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.activation.idling.idleness import Idleness
from tests.support.fakes import HELLO

DEFAULT = 900.0
ZERO, DURATION, OWN = "com.openfaas.scale.zero", "com.openfaas.scale.zero-duration", "scalezero.idle-after"


KEYS = {"own": OWN, "zero": ZERO, "duration": DURATION}


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({}, None),
        ({"zero": "true"}, DEFAULT),
        ({"zero": "1"}, DEFAULT),
        ({"zero": "false"}, None),
        ({"zero": "null"}, None),
        ({"zero": ""}, None),
        ({"duration": "15m"}, None),
        ({"zero": "true", "duration": "15m"}, 900.0),
        ({"zero": "true", "duration": "10m30s"}, 630.0),
        ({"zero": "true", "duration": "30s"}, 30.0),
        ({"own": "10m"}, 600.0),
        ({"own": "never", "zero": "true"}, None),
        ({"own": "5s", "zero": "false"}, 5.0),
    ],
)
def test_functions_opt_in(labels: dict[str, str], expected: float | None) -> None:
    status = ReplicaStatus(1, 1, labels={KEYS[key]: text for key, text in labels.items()})
    assert Idleness(DEFAULT, False)(HELLO, status) == expected
    says_it = "own" in labels or "zero" in labels
    assert Idleness(DEFAULT, True)(HELLO, status) == (expected if says_it else DEFAULT)


def test_an_annotation_says_it_as_well_and_a_label_wins() -> None:
    idleness, annotations = Idleness(DEFAULT, False), {OWN: "10m"}
    assert idleness(HELLO, ReplicaStatus(1, 1, annotations=annotations)) == 600.0
    assert idleness(HELLO, ReplicaStatus(1, 1, annotations=annotations, labels={OWN: "5m"})) == 300.0


@pytest.mark.parametrize("label", ["scalezero.min", "com.openfaas.scale.min"])
def test_a_minimum_that_was_set_on_purpose_keeps_a_function_up(label: str) -> None:
    of_all = Idleness(DEFAULT, for_all=True)
    assert of_all(HELLO, ReplicaStatus(1, 1, labels={label: "1"})) is None
    assert of_all(HELLO, ReplicaStatus(1, 1, labels={label: "0"})) == DEFAULT
    assert of_all(HELLO, ReplicaStatus(1, 1, labels={label: "2", ZERO: "true"})) == DEFAULT


@pytest.mark.parametrize(
    ("labels", "may_go"),
    [
        ({}, True),
        ({OWN: "10m"}, True),
        ({OWN: "never"}, False),
        ({ZERO: "false"}, False),
        ({"scalezero.min": "1"}, False),
        ({"scalezero.min": "1", OWN: "10m"}, True),
    ],
)
def test_for_another_it_may_go_unless_something_says_that_it_stays(
    labels: dict[str, str], may_go: bool
) -> None:
    status = ReplicaStatus(1, 1, labels=labels)
    assert [Idleness(DEFAULT, for_all).may_go(HELLO, status) for for_all in (True, False)] == [may_go] * 2
    assert not Idleness(DEFAULT, True, lambda _: False).may_go(HELLO, status)


def test_a_function_that_no_request_may_wake_is_never_idle() -> None:
    idleness = Idleness(DEFAULT, True, lambda function: function == HELLO)
    assert idleness(HELLO, ReplicaStatus(1, 1)) == DEFAULT
    assert idleness(Function("other"), ReplicaStatus(1, 1, labels={OWN: "1s"})) is None


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ({OWN: "soon"}, ["hello", OWN, "'soon'", "900 s"]),
        ({OWN: "0s"}, ["hello", OWN, "'0s'", "900 s"]),
        ({ZERO: "true", DURATION: "-1m"}, ["hello", DURATION, "'-1m'", "900 s"]),
        ({ZERO: "maybe"}, ["hello", ZERO, "'maybe'", "false"]),
    ],
)
def test_a_wrong_value_is_warned_about_once(
    labels: dict[str, str], words: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    idleness, status = Idleness(DEFAULT, False), ReplicaStatus(1, 1, labels=labels)
    with caplog.at_level(logging.WARNING):
        values = [idleness(HELLO, status) for _ in range(3)]
    assert values == [None if labels.get(ZERO) == "maybe" else DEFAULT] * 3
    [record] = caplog.records
    assert all(word in record.getMessage() for word in words)
