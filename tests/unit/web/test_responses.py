from __future__ import annotations

import json
import math
import re
import uuid
from typing import Any, NamedTuple
from wsgiref.validate import validator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from werkzeug.datastructures import Headers
from werkzeug.test import create_environ, run_wsgi_app

from scalezero_wsgi import (
    Function,
    FunctionFailed,
    FunctionNotFound,
    InvalidFunctionName,
    NoRoom,
    NotAvailable,
    ProviderError,
    ScaleZeroError,
    SettingError,
    TooManyWaiting,
)
from scalezero_wsgi.model import StillStarting, WorkerStopping
from scalezero_wsgi.pages import Pages
from scalezero_wsgi.web.responses import Answers, problem_of
from scalezero_wsgi.web.routing import Names

HELLO = Function("hello", "dev")
PROBLEM = "application/problem+json"
PAGES = Pages("/function/.scalezero/")
respond = Answers(PAGES, jitter=lambda: 0.5).respond  # which varies nothing
HTML = "text/html; charset=utf-8"
TEXT = "text/plain; charset=utf-8"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8"
SECRET = "http://admin:hunter2@10.0.0.1:8080 said 500"

TABLE: list[tuple[ScaleZeroError, str, str | None]] = [
    (InvalidFunctionName("'A' is not a function's name"), "400 BAD REQUEST", None),
    (FunctionNotFound("hello", "dev"), "404 NOT FOUND", None),
    (ProviderError(SECRET), "502 BAD GATEWAY", "1"),
    (TooManyWaiting("500 wait", 2.5), "503 SERVICE UNAVAILABLE", "3"),
    (FunctionFailed(HELLO, "crash loop", 8.0), "503 SERVICE UNAVAILABLE", "8"),
    (NotAvailable(HELLO, 25.0, 4.2), "504 GATEWAY TIMEOUT", "5"),
    (NoRoom(HELLO, 25.0, 4.2), "503 SERVICE UNAVAILABLE", "5"),
]
ERRORS = [error for error, _, _ in TABLE]


class Answer(NamedTuple):
    body: str
    status: str
    headers: Headers

    @property
    def members(self) -> dict[str, Any]:
        members: dict[str, Any] = json.loads(self.body)
        return members


def answer(
    error: ScaleZeroError,
    accept: str | None = None,
    call_id: str | None = None,
    *,
    function: Function | None = HELLO,
    method: str = "GET",
) -> Answer:
    request = create_environ(method=method)
    given = {"HTTP_ACCEPT": accept, "HTTP_X_CALL_ID": call_id}
    request.update({key: value for key, value in given.items() if value is not None})
    body, status, headers = run_wsgi_app(validator(respond(error, request, function)), request, buffered=True)
    return Answer(b"".join(body).decode(), status, headers)


def kind(error: ScaleZeroError) -> str:
    return type(error).__name__


@pytest.mark.parametrize(("error", "status", "retry_after"), TABLE, ids=[kind(error) for error in ERRORS])
@pytest.mark.parametrize("accept", [None, "application/json", BROWSER, "text/plain", "image/png"])
def test_the_table_of_answers(
    error: ScaleZeroError, status: str, retry_after: str | None, accept: str | None
) -> None:
    given = answer(error, accept)
    assert given.status == status
    assert given.headers.get("Retry-After") == retry_after


@pytest.mark.parametrize("error", [SettingError("max_wait"), ScaleZeroError(SECRET)], ids=kind)
def test_whatever_else_goes_wrong_is_a_502(error: ScaleZeroError) -> None:
    assert answer(error).status == "502 BAD GATEWAY"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", PROBLEM),
        ("*/*", PROBLEM),
        ("application/json", PROBLEM),
        ("application/problem+json", PROBLEM),
        ("application/*", PROBLEM),
        ("application/json, text/html;q=0.9", PROBLEM),
        ("text/html;q=0.4, application/json;q=0.5", PROBLEM),
        (BROWSER, HTML),
        ("text/html", HTML),
        ("TEXT/HTML", HTML),
        ("text/html, */*;q=0.1", HTML),
        ("text/html, application/json;q=0.9", HTML),
        ("text/plain", TEXT),
        ("text/plain, text/html;q=0.9", TEXT),
        ("image/png", TEXT),
        ("application/xml, audio/*", TEXT),
        ("text/html;q=0", TEXT),
        ("application/json;q=0", TEXT),
        (";;,,q=", TEXT),
        ("text/html;q=lots", TEXT),
        ("html", TEXT),
    ],
)
def test_the_media_type_is_the_one_the_client_prefers_and_text_else(accept: str, media_type: str) -> None:
    given = answer(ERRORS[1], accept=accept)
    assert given.headers["Content-Type"] == media_type


@given(
    st.text(st.characters(max_codepoint=255), max_size=40)
    | st.text("*/,;=.q01 texhmlpainjsoc\"'+", max_size=40)
    | st.lists(
        st.sampled_from(["text/html", "*/*", "application/json", ";q=0.5", ",", ";", '"', "=", "q"])
    ).map("".join)
)
@example('text/html;a="')
@example("text/html;q=" + "9" * 400)
def test_any_accept_header_gets_one_of_the_three_kinds_with_the_right_status(accept: str) -> None:
    given = answer(ERRORS[1], accept=accept)
    assert given.status == "404 NOT FOUND"
    assert given.headers["Content-Type"] in {PROBLEM, HTML, TEXT}
    assert "There is no function hello.dev." in given.body


@pytest.mark.parametrize("error", ERRORS, ids=kind)
@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/plain"])
def test_head_has_the_headers_of_get_and_no_body(error: ScaleZeroError, accept: str) -> None:
    head = answer(error, accept, "abc", method="HEAD")
    get = answer(error, accept, "abc")
    assert head.body == ""
    assert get.body != ""
    assert (head.status, head.headers) == (get.status, get.headers)


@pytest.mark.parametrize(("error", "status", "retry_after"), TABLE, ids=[kind(error) for error in ERRORS])
def test_problem_details_have_the_members_of_the_rfc_and_our_own(
    error: ScaleZeroError, status: str, retry_after: str | None
) -> None:
    given = answer(error, accept="application/json", call_id="abc")
    members = given.members
    assert members.pop("detail") == problem_of(error).detail
    assert members.pop("title").upper() == status[4:]
    assert members == {
        "type": "about:blank",
        "status": int(status[:3]),
        "call_id": "abc",
        "function": "hello",
        "namespace": "dev",
        **({} if retry_after is None else {"retry_after": int(retry_after)}),
    }


def test_a_request_without_a_function_has_no_function_member() -> None:
    members = answer(ERRORS[0], function=None).members
    assert not {"function", "namespace"} & set(members)


@pytest.mark.parametrize(
    ("error", "detail"),
    [
        (ERRORS[0], "'A' is not a function's name"),
        (ERRORS[1], "There is no function hello.dev."),
        (ERRORS[2], "The function's state cannot be told at the moment."),
        (ERRORS[3], "Too many requests are waiting already."),
        (ERRORS[4], "The function hello.dev could not be started."),
        (ERRORS[5], "The function hello.dev is still starting."),
    ],
    ids=lambda value: kind(value) if isinstance(value, ScaleZeroError) else "",
)
def test_text_is_the_detail_alone(error: ScaleZeroError, detail: str) -> None:
    assert answer(error, accept="text/plain").body == f"{detail}\n"


@given(st.floats(-10, 1e9))
@example(0.0)
@example(1.0)
@example(1.0000001)
def test_retry_after_is_a_whole_number_of_seconds_of_1_or_more_and_never_too_early(left: float) -> None:
    for error in (
        TooManyWaiting("full", left),
        FunctionFailed(HELLO, "", left),
        NotAvailable(HELLO, 1.0, left),
    ):
        given = answer(error)
        header = given.headers["Retry-After"]
        assert re.fullmatch("[1-9][0-9]*", header)
        assert int(header) == max(1, math.ceil(left)) == given.members["retry_after"]


@given(st.floats(-10, 1e6), st.floats(0, 1))
@example(5.0, 0.0)
@example(5.0, 1.0)
@example(1.0, 0.0)
def test_retry_after_is_varied_by_a_fifth_but_for_a_rest_only_upwards(left: float, jitter: float) -> None:
    varying = Answers(PAGES, jitter=lambda: jitter)
    told = max(1, math.ceil(left))
    for error in (
        TooManyWaiting("full", left),
        NotAvailable(HELLO, 1.0, left),
        FunctionFailed(HELLO, "", left),
    ):
        response = varying.respond(error, create_environ(), HELLO)
        header = int(response.headers["Retry-After"])
        lowest = told if isinstance(error, FunctionFailed) else max(1, round(told * 0.8))
        assert lowest <= header <= round(told * 1.2)
        assert header == json.loads(response.get_data())["retry_after"]


def test_by_default_those_who_are_refused_together_are_told_different_times() -> None:
    answers = Answers(PAGES)
    told = {
        int(answers.respond(TooManyWaiting("full", 100.0), create_environ()).headers["Retry-After"])
        for _ in range(200)
    }
    assert min(told) in range(80, 90)
    assert max(told) in range(111, 121)


ASYNC = "respond-async"


@pytest.mark.parametrize(
    ("error", "prefer", "applied"),
    [
        (NotAvailable(HELLO, 5.0, shortened=True), "wait=5", "wait=5"),
        (NoRoom(HELLO, 5.0, shortened=True), "wait=5", "wait=5"),
        (NotAvailable(HELLO, 5.0, shortened=False), "wait=60", None),
        (
            StillStarting(HELLO, 5.0, 1.0, ASYNC, shortened=True),
            "wait=5, respond-async",
            "respond-async, wait=5",
        ),
        (StillStarting(HELLO, 0.1, 1.0, ASYNC, shortened=True), "respond-async", "respond-async"),
        (StillStarting(HELLO, 25.0, 1.0, ASYNC), "respond-async, wait=60", "respond-async"),
        (StillStarting(HELLO, 2.0, 1.0, "page"), "wait=60", None),
        (TooManyWaiting("full"), "wait=5", None),
        (FunctionNotFound("hello"), "respond-async, wait=5", None),
    ],
)
def test_a_preference_that_made_the_answer_is_told(
    error: ScaleZeroError, prefer: str, applied: str | None
) -> None:
    response = respond(error, {**create_environ(), "HTTP_PREFER": prefer}, HELLO)
    assert response.headers.get("Preference-Applied") == applied


FAILED = FunctionFailed(HELLO, "exited with 1: password hunter2\nat 10.0.0.1", 8.0)


@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/plain"])
def test_why_a_start_failed_is_told_only_if_that_is_wanted(accept: str) -> None:
    environ = {**create_environ(), "HTTP_ACCEPT": accept}
    told = respond(FAILED, environ, HELLO).get_data(as_text=True)
    assert "hunter2" not in told
    assert "10.0.0.1" not in told
    assert "hunter2" in Answers(PAGES, expose=True).respond(FAILED, environ, HELLO).get_data(as_text=True)


@pytest.mark.parametrize("error", [FAILED, ProviderError("hunter2\nat 10.0.0.1")], ids=kind)
@pytest.mark.parametrize("asked", ["respond", "failed"])
def test_the_log_has_the_reason_in_a_line_with_the_id_of_the_call(
    error: ScaleZeroError, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    answers = Answers(PAGES)
    environ = {**create_environ(), "HTTP_X_CALL_ID": "abc-123"}
    response = (
        answers.respond(error, environ, HELLO) if asked == "respond" else answers.failed(error, environ)
    )
    assert response.headers["X-Call-Id"] == json.loads(response.get_data())["call_id"] == "abc-123"
    (line,) = caplog.messages
    assert line.startswith("call abc-123: ")
    assert "hunter2 | at 10.0.0.1" in line


def test_an_answer_that_says_all_there_is_has_no_line(caplog: pytest.LogCaptureFixture) -> None:
    for error in (ERRORS[0], ERRORS[1], ERRORS[3], ERRORS[5], WorkerStopping()):
        respond(error, create_environ(), HELLO)
    assert caplog.messages == []


def test_a_page_shows_the_id_of_the_call() -> None:
    assert "Call abc-123" in answer(FAILED, accept="text/html", call_id="abc-123").body


@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/plain"])
def test_the_requests_call_id_is_kept(accept: str) -> None:
    given = answer(ERRORS[1], accept=accept, call_id="abc-123")
    assert given.headers["X-Call-Id"] == "abc-123"


@pytest.mark.parametrize("call_id", ["!", "~" * 128, "<b>&'\"/\\", "0"])
def test_a_call_id_of_visible_ascii_characters_is_taken(call_id: str) -> None:
    assert answer(FunctionNotFound("hello"), call_id=call_id).headers["X-Call-Id"] == call_id


@pytest.mark.parametrize(
    "call_id", ["", "x" * 129, "a b", "a\n", "a\r\nSet-Cookie: x=y", "\x7f", "\x00", "\xe9", "a\tb", " a"]
)
def test_any_other_call_id_is_replaced(call_id: str) -> None:
    given = answer(FunctionNotFound("hello"), accept="application/json", call_id=call_id)
    uuid.UUID(given.headers["X-Call-Id"])
    assert json.loads(given.body)["call_id"] == given.headers["X-Call-Id"]


@pytest.mark.parametrize("call_id", [None, ""])
def test_a_request_without_a_call_id_gets_a_new_one(call_id: str | None) -> None:
    answers = [answer(ERRORS[1], call_id=call_id) for _ in range(2)]
    first, second = (uuid.UUID(given.headers["X-Call-Id"]) for given in answers)
    assert first != second
    assert answers[0].members["call_id"] == str(first)


@pytest.mark.parametrize("error", ERRORS, ids=kind)
@pytest.mark.parametrize("accept", ["application/json", "text/html", "text/plain"])
def test_no_answer_is_stored_and_its_kind_depends_on_accept(error: ScaleZeroError, accept: str) -> None:
    headers = answer(error, accept=accept).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Vary"] == "Accept, Sec-Fetch-Mode"


@pytest.mark.parametrize("accept", ["application/json", BROWSER, "text/plain", "image/png", ";;"])
@pytest.mark.parametrize(
    "error", [ProviderError(SECRET), ScaleZeroError(SECRET), TooManyWaiting(SECRET)], ids=kind
)
def test_nothing_of_the_providers_text_reaches_the_client(error: ScaleZeroError, accept: str) -> None:
    try:
        raise error from OSError(SECRET)
    except ScaleZeroError as raised:
        given = answer(raised, accept=accept)
    for part in (given.body, given.status, str(given.headers)):
        assert not re.search("hunter2|10\\.0\\.0\\.1|:8080|said|Traceback|OSError", part)


def test_an_invalid_name_of_any_bytes_can_be_answered() -> None:
    for segment in ("h\xc3\xa9", "\xff\xfe", "\x00\n\r", "\udcff", "🦆"):
        with pytest.raises(InvalidFunctionName) as caught:
            Names().split(segment)
        for accept in ("application/json", "text/html", "text/plain"):
            assert answer(caught.value, function=None, accept=accept).status == "400 BAD REQUEST"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("application/json; charset=utf-8", "application/problem+json"),
        ("text/html;charset=utf-8;q=0.9, application/json;q=0.1", "text/html"),
    ],
)
def test_parameters_of_a_media_type_do_not_count(accept: str, media_type: str) -> None:
    response = respond(FunctionNotFound("hello"), {"HTTP_ACCEPT": accept, "REQUEST_METHOD": "GET"}, None)
    assert response.mimetype == media_type
