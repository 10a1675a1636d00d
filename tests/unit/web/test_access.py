from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalezero_wsgi import Function
from scalezero_wsgi.web.access import Rules, function_rule, request_rule

HELLO = Function("hello")


@pytest.mark.parametrize(
    ("rule", "environ", "matches"),
    [
        ("path=/function/*/healthz", {"PATH_INFO": "/function/hello/healthz"}, True),
        ("path=/function/*/healthz", {"PATH_INFO": "/function/a/b/healthz"}, True),
        ("path=/function/*/healthz", {"PATH_INFO": "/function/hello/healthz/x"}, False),
        ("path=/function/*/healthz", {"PATH_INFO": "/function/hello/HEALTHZ"}, False),
        ("path=/function/*/healthz", {}, False),
        ("path=*", {}, True),
        ("path=/a.b", {"PATH_INFO": "/axb"}, False),
        ("path=/a*", {"PATH_INFO": "/a\nb"}, True),
        ("path=/a", {"PATH_INFO": "/a\n"}, False),
        ("path=/q=1", {"PATH_INFO": "/q=1"}, True),
        (" PATH = /a ", {"PATH_INFO": "/a"}, True),
        ("method=OPTIONS", {"REQUEST_METHOD": "OPTIONS"}, True),
        ("method=options", {"REQUEST_METHOD": "OPTIONS"}, True),
        ("method=OPTIONS", {"REQUEST_METHOD": "GET"}, False),
        ("method=GET", {}, False),
        ("user-agent=*bot*", {"HTTP_USER_AGENT": "Mozilla/5.0 (compatible; Googlebot/2.1)"}, True),
        ("user-agent=*BOT*", {"HTTP_USER_AGENT": "a bot"}, True),
        ("User-Agent=kube-probe/*", {"HTTP_USER_AGENT": "kube-probe/1.20"}, True),
        ("user-agent=kube-probe/*", {"HTTP_USER_AGENT": "not kube-probe/1.20"}, False),
        ("user-agent=kube-probe/*", {}, False),
    ],
)
def test_a_rule_matches_the_whole_of_what_it_is_about(rule: str, environ: Any, matches: bool) -> None:
    assert bool(request_rule(rule)(environ)) is matches


def test_a_callable_is_a_rule_as_it_is() -> None:
    def rule(environ: Any) -> str:
        raise NotImplementedError

    assert request_rule(rule) is rule


@pytest.mark.parametrize(
    "rule", ["", "=", "path", "path=", "path= ", "host=x", "=x", "pathx=1", None, 1, b"path=x"]
)
def test_what_is_no_rule_is_named_with_what_is_allowed(rule: object) -> None:
    with pytest.raises(ValueError) as caught:
        request_rule(rule)
    assert str(caught.value).startswith(f"{rule!r} is not a rule; allowed are 'path=…', 'method=…'")


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_any_pattern_makes_a_rule_that_takes_any_request(pattern: str, text: str) -> None:
    environ = {"PATH_INFO": text, "REQUEST_METHOD": text, "HTTP_USER_AGENT": text}
    for kind in ("path", "method", "user-agent"):
        assert bool(request_rule(f"{kind}={pattern}")(environ)) in (True, False)


def test_many_stars_do_not_make_a_rule_slow() -> None:
    rule = request_rule("user-agent=" + "*a" * 30 + "*b")
    begun = time.perf_counter()
    assert not rule({"HTTP_USER_AGENT": "a" * 5_000})
    # Some milliseconds; a naive matcher would not come back at all.
    assert time.perf_counter() - begun < 2.0


@pytest.mark.parametrize(
    ("patterns", "function", "matches"),
    [
        (["hello"], HELLO, True),
        (["hello"], Function("hello", "dev"), False),
        (["hello"], Function("hello2"), False),
        (["hello.dev"], Function("hello", "dev"), True),
        (["hello.*"], HELLO, False),
        (["*.prod"], Function("a", "prod"), True),
        (["*.prod"], Function("prod"), False),
        (["job-*", "cron-*"], Function("cron-1"), True),
        (["job-*", "cron-*"], Function("cron"), False),
        (["Hello"], HELLO, False),
        (["*"], Function("a", "b"), True),
        ([], HELLO, False),
        (["a*b*c", "d*e*f"], Function("dxexf"), True),
    ],
)
def test_functions_are_matched_by_name_and_namespace(
    patterns: list[str], function: Function, matches: bool
) -> None:
    assert function_rule(patterns)(function) is matches


@pytest.mark.parametrize(
    ("pattern", "function", "matches"),
    [
        ("hello", Function("hello", "fn"), True),
        ("hello.fn", Function("hello", "fn"), True),
        ("hello", Function("hello", "dev"), False),
        ("*.fn", Function("hello", "fn"), True),
        ("hello", Function("hello2", "fn"), False),
    ],
)
def test_the_default_namespace_may_be_left_out_as_in_requests(
    pattern: str, function: Function, matches: bool
) -> None:
    assert function_rule([pattern], "fn")(function) is matches


@pytest.mark.parametrize("pattern", ["secret", "secret.fn", "sec*", "*.fn", "secret.*"])
def test_a_function_of_the_default_namespace_is_meant_by_all_its_names(pattern: str) -> None:
    secret = Function("secret", "fn")
    assert not Rules(deny=[pattern], default_namespace="fn").is_served(secret)
    assert Rules(allow=[pattern], default_namespace="fn").is_served(secret)


@pytest.mark.parametrize(
    ("allow", "deny", "allowed"),
    [
        (None, (), True),
        (("hello",), (), True),
        (("other",), (), False),
        ((), (), False),
        (None, ("hello",), False),
        (("*",), ("hel*",), False),
        (("hello",), ("other",), True),
    ],
)
def test_a_function_is_served_if_it_is_allowed_and_not_denied(
    allow: tuple[str, ...] | None, deny: tuple[str, ...], allowed: bool
) -> None:
    assert Rules((), allow, deny).is_served(HELLO) is allowed


@pytest.mark.parametrize(
    ("wake", "may"), [(None, True), ((), False), (("hello",), True), (("hel*",), True), (("other",), False)]
)
def test_a_function_may_be_woken_if_it_is_on_the_list(wake: tuple[str, ...] | None, may: bool) -> None:
    rules = Rules(wake=wake)
    assert rules.is_served(HELLO)
    assert rules.may_be_woken(HELLO) is may
    assert rules.may_wake(HELLO, {}) is may


def test_a_request_that_matches_one_of_the_rules_does_not_wake() -> None:
    rules = Rules(
        [request_rule("method=OPTIONS"), request_rule("path=*/healthz"), lambda environ: environ.get("x")]
    )
    assert rules.may_wake(HELLO, {"REQUEST_METHOD": "GET", "PATH_INFO": "/function/hello"})
    assert not rules.may_wake(HELLO, {"REQUEST_METHOD": "OPTIONS"})
    assert not rules.may_wake(HELLO, {"PATH_INFO": "/function/hello/healthz"})
    assert not rules.may_wake(HELLO, {"x": "yes"})
    assert rules.may_be_woken(HELLO)


def test_rules_about_requests_are_not_asked_for_a_function_that_nobody_may_wake() -> None:
    def rule(environ: Any) -> bool:
        raise NotImplementedError

    assert not Rules([rule], wake=["other"]).may_wake(HELLO, {})
