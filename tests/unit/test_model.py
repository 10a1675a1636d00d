from __future__ import annotations

import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

import scalezero_wsgi
from scalezero_wsgi import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    MissingExtra,
    NotAvailable,
    ProviderError,
    ReplicaStatus,
    ScaleZeroError,
    SettingError,
    TooManyWaiting,
)
from scalezero_wsgi.model import AT_ZERO

COUNTS = st.integers(0, 1000)
NO_COUNTS = [-1, 1.0, "1", True, float("nan")]


def test_a_function_reads_as_its_name_and_namespace() -> None:
    assert str(Function("hello")) == "hello"
    assert str(Function("hello", "dev")) == "hello.dev"


def test_the_same_name_in_two_namespaces_is_two_functions() -> None:
    assert (
        len({Function("hello"), Function("hello", "a"), Function("hello", "b"), Function("hello", "a")}) == 3
    )


def test_a_status_is_frozen_and_hashable_with_labels() -> None:
    status = ReplicaStatus(1, 1, labels={"a": "b"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        status.replicas = 2  # type: ignore[misc]
    assert hash(status) == hash(ReplicaStatus(1, 1))
    assert status != ReplicaStatus(1, 1)


def test_a_status_has_the_defaults_of_the_design() -> None:
    assert dataclasses.asdict(ReplicaStatus(2, 1)) == {
        "replicas": 2,
        "available_replicas": 1,
        "min_replicas": 1,
        "max_replicas": None,
        "labels": {},
        "annotations": {},
        "endpoint": None,
        "failure": None,
        "paused": False,
    }


def test_at_zero_wants_and_has_nothing() -> None:
    assert (AT_ZERO.replicas, AT_ZERO.available_replicas) == (0, 0)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        *itertools.product(["replicas", "available_replicas", "min_replicas"], [*NO_COUNTS, None]),
        *itertools.product(["max_replicas"], NO_COUNTS),
    ],
)
def test_a_count_that_is_no_natural_number_is_refused_and_named(name: str, count: object) -> None:
    counts: dict[str, object] = {"replicas": 1, "available_replicas": 1, name: count}
    with pytest.raises(ValueError, match=f"{name} must be an integer of 0 or more, not {count!r}"):
        ReplicaStatus(**counts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("least", "most", "expected"),
    [(0, None, 1), (1, None, 1), (3, None, 3), (3, 2, 2), (0, 5, 1), (1, 0, 1), (4, 4, 4)],
)
def test_a_function_at_zero_goes_to_its_minimum_within_its_maximum(
    least: int, most: int | None, expected: int
) -> None:
    assert ReplicaStatus(0, 0, min_replicas=least, max_replicas=most).first_replicas == expected


@given(COUNTS, st.none() | COUNTS)
def test_waking_asks_for_at_least_one_and_never_for_more_than_allowed(least: int, most: int | None) -> None:
    first = ReplicaStatus(0, 0, min_replicas=least, max_replicas=most).first_replicas
    assert first >= 1
    assert first <= max(1, least)
    assert most is None or first <= max(1, most)


ERRORS = [
    SettingError("max_wait: 'x' is not a duration"),
    MissingExtra("redis", "redis"),
    InvalidFunctionName("'A' is not a function's name"),
    FunctionNotFound("hello", "dev"),
    ProviderError("http://10.0.0.1 said 500"),
    TooManyWaiting("full"),
    FunctionFailed(Function("hello"), "crash loop"),
    NotAvailable(Function("hello"), 2.0),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_every_exception_is_a_scale_zero_error_and_public(error: Exception) -> None:
    assert isinstance(error, ScaleZeroError)
    assert getattr(scalezero_wsgi, type(error).__name__) is type(error)


@pytest.mark.parametrize(
    ("error", "builtin"),
    [
        (SettingError("x"), ValueError),
        (InvalidFunctionName("x"), ValueError),
        (MissingExtra("redis", "redis"), ImportError),
        (FunctionNotFound("x"), LookupError),
    ],
)
def test_an_exception_is_also_what_the_standard_library_calls_it(
    error: Exception, builtin: type[Exception]
) -> None:
    assert isinstance(error, builtin)


def test_a_missing_extra_says_what_to_install() -> None:
    assert str(MissingExtra("docker", "docker-engine")) == (
        "docker is not installed; it comes with the extra 'docker-engine':"
        " pip install 'scalezero_wsgi[docker-engine]'"
    )


def test_exceptions_carry_what_a_response_needs() -> None:
    function = Function("hello", "dev")
    assert FunctionNotFound("hello", "dev").function == function
    assert TooManyWaiting("full", 3.0).retry_after == 3.0
    failed = FunctionFailed(function, "crash loop", 8.0)
    assert (failed.function, failed.reason, failed.retry_after) == (function, "crash loop", 8.0)
    late = NotAvailable(function, 25.0, 4.0)
    assert (late.function, late.waited, late.retry_after) == (function, 25.0, 4.0)


def test_exceptions_name_the_function() -> None:
    function = Function("hello", "dev")
    assert str(FunctionNotFound("hello", "dev")) == "function hello.dev is not known to the provider"
    assert str(FunctionFailed(function, "crash loop")) == "function hello.dev failed to start: crash loop"
    assert str(NotAvailable(function, 25.0)) == "function hello.dev was not available after 25.0 s"


def test_everything_public_is_there_and_listed_in_order() -> None:
    assert all(hasattr(scalezero_wsgi, name) for name in scalezero_wsgi.__all__)
    assert scalezero_wsgi.__all__ == sorted(scalezero_wsgi.__all__)
