from __future__ import annotations

import json
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalezero_wsgi import Function, ReplicaStatus
from scalezero_wsgi.coordination.base import (
    CoordinationError,
    Failure,
    ProviderFault,
    SharedStatus,
    Start,
    WorkerReport,
)
from scalezero_wsgi.coordination.codec import pack, pack_row, unpack, unpack_row

# Lone surrogates too: a label may hold what a provider could not decode.
texts = st.text(st.characters(exclude_categories=()))
counts = st.integers(0, 2**40)
seconds = st.floats(0, 1e9)
labels = st.dictionaries(texts, texts)
statuses = st.builds(
    ReplicaStatus,
    counts,
    counts,
    counts,
    st.none() | counts,
    labels,
    labels.map(MappingProxyType),
    st.none() | texts,
    st.none() | texts,
    st.booleans(),
)
knowns = st.builds(
    SharedStatus,
    st.none() | statuses,
    seconds,
    st.none() | st.builds(Failure, counts, texts, texts, seconds),
    st.none() | st.builds(Start, texts, seconds),
    st.none() | st.builds(ProviderFault, seconds, st.booleans()),
    texts,
    st.lists(seconds, max_size=5).map(tuple),
    st.none() | seconds,
)
functions = st.builds(Function, texts, texts)
rows = st.builds(
    WorkerReport,
    texts,
    st.dictionaries(functions, counts, max_size=3),
    st.dictionaries(functions, counts, max_size=3),
    st.dictionaries(functions, seconds, max_size=3),
    st.dictionaries(functions, counts, max_size=3),
    st.dictionaries(functions, st.floats(-1e9, 1e9), max_size=3),
)


@given(knowns, seconds)
def test_all_that_is_known_comes_back_older(known: SharedStatus, passed: float) -> None:
    text = pack(known)
    assert text.isascii()
    assert unpack(text, passed) == known.after(passed)


@given(rows)
def test_a_row_comes_back(row: WorkerReport) -> None:
    text = pack_row(row)
    assert text.isascii()
    assert unpack_row(row.worker, text) == row


def test_a_clock_that_was_set_back_makes_nothing_younger() -> None:
    known = SharedStatus(None, age=2.0, failure=Failure(1, "", "broken", 3.0))
    assert unpack(pack(known), -0.5) == known
    assert unpack(pack(known), -60.0) is None  # or it would be fresh for a minute


def test_labels_that_are_no_text_become_text() -> None:
    known = unpack(pack(SharedStatus(ReplicaStatus(1, 1, labels={"a": b"x"}))), 0.0)  # type: ignore[dict-item]
    assert known is not None
    assert known.status is not None
    assert known.status.labels == {"a": "b'x'"}


def test_a_label_whose_name_is_no_text_is_left_out() -> None:
    known = unpack(pack(SharedStatus(ReplicaStatus(1, 1, labels={b"a": "x", "b": "y"}))), 0.0)  # type: ignore[dict-item]
    assert known is not None
    assert known.status is not None
    assert known.status.labels == {"b": "y"}


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(pack(SharedStatus(ReplicaStatus(1, 1)))), **changes})


def test_what_another_version_adds_is_passed_over() -> None:
    status = {"replicas": 1, "available_replicas": 1, "new": 1}
    assert unpack(changed(new=1, status=status), 0.0) == SharedStatus(ReplicaStatus(1, 1))


def test_what_another_version_does_not_tell_is_left_out() -> None:
    record = json.loads(pack(SharedStatus(ReplicaStatus(1, 1))))
    del record["trouble"], record["status"]["labels"], record["durations"]
    assert unpack(json.dumps(record), 0.0) == SharedStatus(ReplicaStatus(1, 1))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "null",
        "[]",
        "{}",
        changed(age=None),
        changed(status={}),
        changed(status=[1]),
        changed(status={"replicas": -1, "available_replicas": 0}),
        changed(failure={"count": 1}),
        changed(durations=1),
        changed(durations=["x"]),
        changed(durations=[-1]),
        changed(durations=[float("nan")]),
    ],
)
def test_what_cannot_be_read_is_nothing(text: str) -> None:
    assert unpack(text, 0.0) is None


def test_a_row_may_have_more_in_a_later_release() -> None:
    hello = Function("hello")
    row = WorkerReport("a", {hello: 1}, {}, {hello: 2.0})
    assert unpack_row("a", json.dumps({**json.loads(pack_row(row)), "more": 1})) == row


def test_a_row_may_have_less_in_an_earlier_release() -> None:
    hello = Function("hello")
    row = WorkerReport("a", {hello: 1}, {}, {hello: 2.0}, {hello: 3}, {hello: 1800.0})
    values = json.loads(pack_row(row))
    del values["kept_for"]
    assert unpack_row("a", json.dumps(values)) == WorkerReport("a", {hello: 1}, {}, {hello: 2.0}, {hello: 3})
    del values["acknowledged"]
    assert unpack_row("a", json.dumps(values)) == WorkerReport("a", {hello: 1}, {}, {hello: 2.0})


@pytest.mark.parametrize("text", ["", "x", "null", "{}", "[]", '{"in_flight": [[1]]}', '{"in_flight": 1}'])
def test_a_row_that_cannot_be_read_is_an_error(text: str) -> None:
    """Not nothing: a worker that cannot be understood may have requests in flight."""
    with pytest.raises(CoordinationError, match="row cannot be read"):
        unpack_row("a", text)
