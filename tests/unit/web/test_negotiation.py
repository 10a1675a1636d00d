from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scalezero_wsgi.web.negotiation import Preferences, is_navigation, media_type, parse_prefer

HTML = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
ASYNC = Preferences(None, True)
NOTHING = Preferences()


@pytest.mark.parametrize(
    ("header", "preferences"),
    [
        ("", NOTHING),
        ("respond-async", ASYNC),
        ("Respond-Async", ASYNC),
        ('respond-async=""', ASYNC),
        ("respond-async=", ASYNC),
        ("respond-async; foo=bar", ASYNC),
        ("wait=10", Preferences(10.0)),
        ("WAIT = 10", Preferences(10.0)),
        ('wait="10"', Preferences(10.0)),
        ("wait=0", Preferences(0.0)),
        ("respond-async, wait=10", Preferences(10.0, True)),
        ("wait=10 , respond-async", Preferences(10.0, True)),
        ("wait=10;x=y;z, respond-async", Preferences(10.0, True)),
        ('wait=10 ; x="a, respond-async"', Preferences(10.0)),
        (",, ,respond-async,,", ASYNC),
        ("return=minimal, handling=lenient, wait=3", Preferences(3.0)),
        ('foo="a,wait=1,b", wait=2', Preferences(2.0)),
        ('foo="a\\",wait=1", wait=2', Preferences(2.0)),
        ("\trespond-async\t,\twait=1\t", Preferences(1.0, True)),
    ],
)
def test_preferences_are_read_as_rfc_7240_has_them(header: str, preferences: Preferences) -> None:
    assert parse_prefer(header) == preferences


@pytest.mark.parametrize(
    ("header", "preferences"),
    [
        ("wait=1, wait=2", Preferences(1.0)),
        ("wait=1, WAIT=2", Preferences(1.0)),
        ("respond-async, respond-async=no", ASYNC),
        ("respond-async=no, respond-async", NOTHING),
        ("wait=soon, wait=2", NOTHING),
    ],
)
def test_the_first_of_a_name_counts(header: str, preferences: Preferences) -> None:
    assert parse_prefer(header) == preferences


@pytest.mark.parametrize(
    "header",
    [
        "wait",
        "wait=",
        "wait=-1",
        "wait=+1",
        "wait=1.5",
        "wait=1e3",
        "wait=ten",
        "wait=\u0663",
        "wait=\xb2",
        "wait=99999999999999999999",
        "wait=1 2",
        "wait 1",
        'wait="1',
        "=1",
        "respond async",
        "respond-async=1",
        "respond-async respond-async",
        '"respond-async"',
        "(respond-async)",
        ";respond-async",
        "\xe9, \xff",
        "\x00",
        '"',
        "\\",
        'a="b, respond-async, wait=3',
    ],
)
def test_what_is_malformed_is_ignored(header: str) -> None:
    assert parse_prefer(header) == NOTHING


@pytest.mark.parametrize("broken", ["a b", "=", "=1", "wait wait", "\xe9", '"quoted"', "a=b c", "x=(y)", ";"])
def test_a_malformed_element_does_not_spoil_its_neighbours(broken: str) -> None:
    assert parse_prefer(f"wait=3, {broken}, respond-async") == Preferences(3.0, True)


@given(
    st.text()
    | st.text(st.sampled_from(' ,;="\\wait0respond-async\t\xe9'))
    | st.lists(
        st.sampled_from(["respond-async", "wait", "=", "1", ",", ";", '"', "\\", " ", "a", "\n"]), max_size=40
    ).map("".join)
)
@example("wait=" + "9" * 5000)
def test_any_text_is_read_without_an_error(header: str) -> None:
    wait, respond_async = parse_prefer(header)
    assert wait is None or (wait >= 0 and wait < 1e10)
    assert respond_async in (True, False)


@settings(max_examples=50)  # the others are long to make
@given(
    st.integers(0, 999_999_999),
    st.booleans(),
    st.lists(
        st.from_regex(r"[a-z]{1,8}(=([a-z0-9]{1,8}|\"[ -!#-\[\]-~]{0,8}\"))?", fullmatch=True).filter(
            lambda text: not text.startswith(("wait", "respond"))
        ),
        max_size=5,
    ),
    st.randoms(use_true_random=False),
)
def test_preferences_are_found_among_any_others(
    seconds: int, async_too: bool, others: list[str], random: Any
) -> None:
    elements = [*others, f"wait={seconds}", *(["respond-async"] if async_too else [])]
    random.shuffle(elements)
    assert parse_prefer(", ".join(elements)) == Preferences(float(seconds), async_too)


def seconds_for(header: str) -> float:
    begun = time.perf_counter()
    parse_prefer(header)
    return time.perf_counter() - begun


@pytest.mark.parametrize(
    ("head", "repeated", "tail"),
    [
        ("a=", " ", '"'),
        ("a;", " ", '"'),
        ("a", " ", "\xe9"),
        ("", 'a;\\",', ""),
        ('a="', "\\", ""),
        ('a="', '\\"', ""),
        ("", '"', ""),
        ("", 'a="', ""),
        ("", "a;", '"'),
        ("", " ,", ""),
        ("a=b", ' ;"x"', '"'),
        ("", "=", ""),
    ],
)
def test_the_time_it_takes_grows_with_the_length_and_not_with_its_square(
    head: str, repeated: str, tail: str
) -> None:
    header = head + repeated * (300_000 // len(repeated)) + tail
    # Linear is some 50 ms; of the square this would be minutes.
    assert min(seconds_for(header) for _ in range(3)) < 2.0


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        ("application/json; q=0.1, text/html; q=0.9", "text/html"),
        ("application/json;\tq=0.1, text/html;q=0.9", "text/html"),
        ("text/html; charset=utf-8; q=0.1, text/plain", "text/plain"),
        ("text/html; level=1; q=0.9, application/json; Q=0.1", "text/html"),
        ("application/json; q=0, text/html; q=0.1", "text/html"),
    ],
)
def test_a_weight_counts_wherever_blanks_stand(accept: str, form: str) -> None:
    assert media_type({"HTTP_ACCEPT": accept}) == form


@given(st.text() | st.text(st.sampled_from("texhml/*;, q=0.19\"'")))
def test_any_accept_header_tells_a_form_that_we_have(accept: str) -> None:
    forms = {"application/problem+json", "application/json", "text/html", "text/plain"}
    assert media_type({"HTTP_ACCEPT": accept}) in forms
    assert is_navigation({"REQUEST_METHOD": "GET", "HTTP_ACCEPT": accept}) in (True, False)


@pytest.mark.parametrize(
    ("method", "mode", "accept", "navigation"),
    [
        ("GET", "navigate", HTML, True),
        ("GET", "navigate", "*/*", True),
        ("GET", "navigate", None, True),
        ("GET", None, HTML, True),
        ("GET", None, "text/html", True),
        ("GET", "cors", HTML, False),
        ("GET", "no-cors", HTML, False),
        ("GET", "", HTML, False),
        ("GET", None, "*/*", False),
        ("GET", None, "application/json", False),
        ("GET", None, "application/json, text/html;q=0.9", False),
        ("GET", None, "image/avif,image/webp,*/*;q=0.8", False),
        ("GET", None, "", False),
        ("GET", None, None, False),
        ("HEAD", "navigate", HTML, False),
        ("POST", "navigate", HTML, False),
        ("PUT", None, HTML, False),
        ("get", "navigate", HTML, False),
        (None, "navigate", HTML, False),
    ],
)
def test_a_navigation_is_told_by_fetch_metadata_or_else_by_what_is_accepted(
    method: str | None, mode: str | None, accept: str | None, navigation: bool
) -> None:
    environ = {"REQUEST_METHOD": method, "HTTP_SEC_FETCH_MODE": mode, "HTTP_ACCEPT": accept}
    assert is_navigation({key: value for key, value in environ.items() if value is not None}) is navigation
