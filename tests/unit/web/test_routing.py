from __future__ import annotations

from string import ascii_letters, ascii_lowercase, digits
from typing import TYPE_CHECKING, Any, Unpack

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from werkzeug.test import create_environ, run_wsgi_app

from scalezero_wsgi import (
    Function,
    InvalidFunctionName,
    ReplicaStatus,
    ScaleZeroMiddleware,
    SettingError,
    by_header,
    by_host,
)
from scalezero_wsgi.web.routing import Names

if TYPE_CHECKING:
    from collections.abc import Iterable

    from _typeshed.wsgi import StartResponse, WSGIEnvironment

    from scalezero_wsgi.settings import SettingKeywords

LATIN_1 = st.text(st.characters(max_codepoint=255), max_size=20)
NEAR_NAMES = st.text("az09AZ_-./é\n", max_size=8) | st.text("a-", min_size=60, max_size=70)
ANY_TEXT = st.text() | LATIN_1 | NEAR_NAMES
RULES = st.sampled_from(["dns", "openfaas"])


def is_allowed(part: str, rule: str) -> bool:
    if not 1 <= len(part) <= 63:
        return False
    if rule == "openfaas":
        return set(part) <= {*ascii_letters, *digits, *"-_."} and "." not in (part[0], part[-1])
    return set(part) <= {*ascii_lowercase, *digits, "-"} and "-" not in (part[0], part[-1])


def is_allowed_namespace(part: str, rule: str) -> bool:
    return is_allowed(part, rule) and "." not in part


class Warm:
    """A provider whose functions are all available, and which counts what it is asked."""

    def __init__(self) -> None:
        self.queries = 0

    def get_replicas(self, name: str, namespace: str) -> ReplicaStatus:
        self.queries += 1
        return ReplicaStatus(1, 1)

    def set_replicas(self, name: str, namespace: str, replicas: int) -> None:
        raise NotImplementedError


class Asked:
    """One request through the middleware: its status, what the application got, and the queries made."""

    def __init__(self, environ: WSGIEnvironment, **keywords: Unpack[SettingKeywords]) -> None:
        provider = Warm()
        self.before = dict(environ)
        self.seen: WSGIEnvironment | None = None
        middleware = ScaleZeroMiddleware(self._app, provider, **keywords)
        body, self.status, _ = run_wsgi_app(middleware, environ, buffered=True)
        list(body)
        self.queries = provider.queries

    def _app(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self.seen = environ
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"app"]

    @property
    def function(self) -> object:
        assert self.seen is not None
        return self.seen.get("scalezero_wsgi.function")

    @property
    def is_untouched(self) -> bool:
        ours = {key for key in self.seen or () if key.startswith("scalezero_wsgi.")}
        return self.seen is not None and not ours and self.queries == 0


def environ_of(path: str, **more: str) -> dict[str, Any]:
    return {**create_environ(), "PATH_INFO": path, **more}


@pytest.mark.parametrize(
    ("path", "function"),
    [
        ("/function/hello", Function("hello")),
        ("/function/hello/", Function("hello")),
        ("/function/hello/a/b.c/", Function("hello")),
        ("/function/hello//", Function("hello")),
        ("/function/hello/world.dev", Function("hello")),
        ("/function/hello.dev", Function("hello", "dev")),
        ("/function/hello.dev/a", Function("hello", "dev")),
        ("/function/0", Function("0")),
        ("/function/" + "a" * 63 + "." + "b" * 63, Function("a" * 63, "b" * 63)),
    ],
)
def test_a_path_under_the_route_is_a_functions(path: str, function: Function) -> None:
    asked = Asked(environ_of(path, QUERY_STRING="x=/function/other&y"))
    assert (asked.status, asked.function) == ("200 OK", function)


@pytest.mark.parametrize(
    "path",
    [
        *["/", "", "/function", "/function/", "/function//hello", "/functions/x", "/async-function/x"],
        *["/FUNCTION/x", "/a/function/x", "function/x", "//function/x", "/functionx", "/system/functions"],
    ],
)
def test_everything_else_is_the_applications_and_nobody_is_asked(path: str) -> None:
    asked = Asked(environ_of(path))
    assert asked.status == "200 OK"
    assert asked.is_untouched


@pytest.mark.parametrize(
    "segment",
    [
        *["Hello", "-a", "a-", "a_b", "a b", "a.b.c", ".a", "a.", ".", "..", "a..b", "a.-b", "a.B"],
        *["a" * 64, "a." + "b" * 64, "a\n", "\n", "a\x00", "%61", "h\xc3\xa9llo", "h\xe9llo", "a~b", "a:b"],
    ],
)
def test_a_name_that_is_not_allowed_is_a_400_and_the_provider_is_not_asked(segment: str) -> None:
    asked = Asked(environ_of(f"/function/{segment}/path"))
    assert asked.status == "400 BAD REQUEST"
    assert asked.seen is None
    assert asked.queries == 0


@settings(deadline=None, max_examples=80)
@given(LATIN_1 | NEAR_NAMES, st.sampled_from(["", "/", "/a.b/c"]))
def test_any_path_is_a_functions_or_a_400_or_the_applications(segment: str, rest: str) -> None:
    segment = segment.replace("/", "")
    asked = Asked(environ_of(f"/function/{segment}{rest}"))
    name, dot, namespace = segment.rpartition(".") if "." in segment else (segment, "", "")
    if not segment:
        assert asked.is_untouched
    elif is_allowed(name, "dns") and (not dot or is_allowed_namespace(namespace, "dns")):
        assert (asked.status, asked.function, asked.queries) == ("200 OK", Function(name, namespace), 1)
    else:
        assert (asked.status, asked.seen, asked.queries) == ("400 BAD REQUEST", None, 0)


@settings(deadline=None, max_examples=30)
@given(LATIN_1)
def test_where_the_middleware_is_mounted_makes_no_difference_and_the_paths_are_left_as_they_are(
    mount: str,
) -> None:
    asked = Asked(environ_of("/function/hello.dev/a", SCRIPT_NAME=f"/{mount}"))
    assert asked.seen is not None
    assert asked.function == Function("hello", "dev")
    assert {key: asked.seen[key] for key in asked.before} == asked.before


def test_a_mount_that_looks_like_the_route_is_not_one() -> None:
    assert Asked(environ_of("/hello", SCRIPT_NAME="/function")).is_untouched


@pytest.mark.parametrize("route", ["/fn", "/fn/"])
def test_another_prefix_with_or_without_its_slash(route: str) -> None:
    assert Asked(environ_of("/fn/hello"), route=route).function == Function("hello")
    assert Asked(environ_of("/function/hello"), route=route).is_untouched
    assert Asked(environ_of("/fnx/hello"), route=route).is_untouched


def test_the_root_as_a_prefix() -> None:
    assert Asked(environ_of("/hello/a"), route="/").function == Function("hello")
    assert Asked(environ_of("/"), route="/").is_untouched


def test_the_default_namespace_is_that_of_a_function_named_without_one() -> None:
    assert Asked(environ_of("/function/hello"), default_namespace="fn").function == Function("hello", "fn")
    assert Asked(environ_of("/function/hello.dev"), default_namespace="fn").function == ("hello", "dev")


@settings(deadline=None, max_examples=60)
@given(st.none() | st.tuples(ANY_TEXT, ANY_TEXT))
def test_a_route_of_ones_own_names_a_function_or_none_and_its_names_are_checked_too(
    found: tuple[str, str] | None,
) -> None:
    asked = Asked(environ_of("/any"), route=lambda _: found)
    if found is None:
        assert asked.is_untouched
    elif is_allowed(found[0], "dns") and (not found[1] or is_allowed_namespace(found[1], "dns")):
        assert asked.function == found
    else:
        assert (asked.status, asked.seen, asked.queries) == ("400 BAD REQUEST", None, 0)


@given(ANY_TEXT, RULES)
@example("a.b.c", "openfaas")
@example("a..b", "openfaas")
@example("...a", "openfaas")
@example("a\n", "dns")
@example("\ud800", "dns")
def test_any_text_is_a_function_split_at_the_last_dot_or_an_invalid_name(text: str, rule: str) -> None:
    name, dot, namespace = text.rpartition(".") if "." in text else (text, "", "")
    try:
        function = Names(rule).split(text)
    except InvalidFunctionName:
        assert not is_allowed(name, rule) or (dot and not is_allowed_namespace(namespace, rule))
    else:
        assert function == (name, namespace)
        assert is_allowed(name, rule)
        assert not dot or is_allowed_namespace(namespace, rule)


@given(ANY_TEXT, ANY_TEXT, RULES)
@example("a.b", "c.d", "openfaas")
@example("a.b", "c_d", "openfaas")
def test_any_two_texts_are_a_function_or_an_invalid_name(name: str, namespace: str, rule: str) -> None:
    allowed = is_allowed(name, rule) and (not namespace or is_allowed_namespace(namespace, rule))
    try:
        function = Names(rule, "fallback").check(name, namespace)
    except InvalidFunctionName:
        assert not allowed
    else:
        assert allowed
        assert function == (name, namespace or "fallback")


@pytest.mark.parametrize("text", ["Hello_World", "a.b.dev", "A-", "-", "a..b.dev"])
def test_the_wider_rule_takes_what_openfaas_takes(text: str) -> None:
    name, dot, namespace = text.rpartition(".")
    assert Names("openfaas").split(text) == ((name, namespace) if dot else (text, ""))
    with pytest.raises(InvalidFunctionName):
        Names().split(text)


@pytest.mark.parametrize("name", [".", ".."])
def test_no_rule_takes_a_name_that_would_climb_in_a_path(name: str) -> None:
    with pytest.raises(InvalidFunctionName):
        Names("openfaas").check(name, "")


def test_an_invalid_name_is_shown_as_the_client_meant_it_and_cut_short() -> None:
    with pytest.raises(InvalidFunctionName, match=r"^'héllo' is not a function's name$"):
        Names().split("h\xc3\xa9llo")
    with pytest.raises(InvalidFunctionName, match=r"^'dév' is not a namespace$"):
        Names().split("hello.d\xc3\xa9v")
    with pytest.raises(InvalidFunctionName) as caught:
        Names().split("x" * 100_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("template", "host", "expected"),
    [
        ("{name}.fn.example.com", "hello.fn.example.com", ("hello", "")),
        ("{name}.fn.example.com", "hello.fn.example.com:8080", ("hello", "")),
        ("{name}.fn.example.com", "HELLO.FN.example.COM", ("hello", "")),
        ("{Name}.FN.example.com", "hello.fn.example.com", ("hello", "")),
        ("{name}.{namespace}.example.com", "hello.dev.example.com", ("hello", "dev")),
        ("{namespace}--{name}.example.com", "dev--hello.example.com", ("hello", "dev")),
        ("{name}", "hello", ("hello", "")),
        ("{name}.fn.example.com", "fn.example.com", None),
        ("{name}.fn.example.com", ".fn.example.com", None),
        ("{name}.fn.example.com", "a.b.fn.example.com", None),
        ("{name}.fn.example.com", "hello.fn-example.com", None),
        ("{name}.fn.example.com", "hello.fn.example.com.evil.org", None),
        ("{name}.fn.example.com", "hello.fn.example.com\n", None),
        ("{name}.fn.example.com", "[::1]:80", None),
        ("{name}.fn.example.com", "", None),
    ],
)
def test_by_host_takes_the_name_from_its_place_in_the_template(
    template: str, host: str, expected: tuple[str, str] | None
) -> None:
    assert by_host(template)({"HTTP_HOST": host, "SCRIPT_NAME": "/a", "PATH_INFO": "/b"}) == expected


def test_by_host_takes_the_servers_name_when_the_request_names_no_host() -> None:
    assert by_host("{name}.local")({"SERVER_NAME": "hello.local"}) == ("hello", "")
    assert by_host("{name}.local")({}) is None


@pytest.mark.parametrize(
    "template",
    [
        *["", "fn.example.com", "{}.example.com", "{namespace}.example.com", "{name}.{name}.example.com"],
        *["{name}.{tenant}.example.com", "{name }.example.com", "{name}.{namespace}.{namespace}.example.com"],
    ],
)
def test_by_host_refuses_a_template_that_is_not_allowed_and_names_it(template: str) -> None:
    with pytest.raises(SettingError, match=r"it must hold {name} once, and may hold {namespace}") as caught:
        by_host(template)
    assert repr(template) in str(caught.value)


@pytest.mark.parametrize(
    ("header", "key"),
    [("X-Function", "HTTP_X_FUNCTION"), ("x-function", "HTTP_X_FUNCTION"), ("Function", "HTTP_FUNCTION")],
)
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hello", ("hello", "")),
        (" hello.dev ", ("hello", "dev")),
        ("a.b.dev", ("a.b", "dev")),
        ("", None),
        ("  ", None),
    ],
)
def test_by_header_takes_the_name_from_the_header(
    header: str, key: str, value: str, expected: tuple[str, str] | None
) -> None:
    assert by_header(header)({key: value, "SCRIPT_NAME": "/a"}) == expected


def test_by_header_passes_a_request_without_the_header() -> None:
    assert by_header("X-Function")({"HTTP_X_FUNCTIONS": "hello"}) is None


@given(ANY_TEXT)
def test_any_header_and_any_host_is_a_function_or_an_invalid_name_or_none(text: str) -> None:
    names = Names()
    for route in (by_header("X-Function"), by_host("{name}.{namespace}.com"), by_host("{name}.com")):
        found = route({"HTTP_X_FUNCTION": text, "HTTP_HOST": f"{text}.com"})
        if found is not None:
            try:
                function = names.check(*found)
            except InvalidFunctionName:
                continue
            assert is_allowed(function.name, "dns")
            assert not function.namespace or is_allowed_namespace(function.namespace, "dns")


@given(NEAR_NAMES.map(str.strip).filter(bool), RULES)
@example("hello.", "openfaas")
@example(".dev", "openfaas")
def test_a_header_is_read_by_the_same_rules_as_a_path(text: str, rule: str) -> None:
    names = Names(rule)
    found = by_header("X-Function")({"HTTP_X_FUNCTION": text})
    assert found is not None
    try:
        expected = names.split(text)
    except InvalidFunctionName:
        with pytest.raises(InvalidFunctionName):
            names.check(*found)
    else:
        assert names.check(*found) == expected


def test_by_host_and_by_header_route_in_the_middleware_whatever_the_path() -> None:
    host = environ_of("/a", HTTP_HOST="hello.fn.example.com", SCRIPT_NAME="/mounted")
    assert Asked(host, route=by_host("{name}.fn.example.com")).function == Function("hello")
    assert Asked(environ_of("/function/x"), route=by_host("{name}.fn.example.com")).is_untouched
    header = environ_of("", HTTP_X_FUNCTION="hello.dev")
    assert Asked(header, route=by_header("X-Function")).function == Function("hello", "dev")
    bad = Asked(environ_of("/", HTTP_X_FUNCTION="Hello"), route=by_header("X-Function"))
    assert (bad.status, bad.queries) == ("400 BAD REQUEST", 0)
