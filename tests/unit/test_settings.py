from __future__ import annotations

import dataclasses
import math
import os
import pathlib
from http import HTTPStatus

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scalezero_wsgi import ScaleZeroMiddleware, SettingError, Settings, by_header
from scalezero_wsgi._lib.idle_action import IdleAction
from scalezero_wsgi.coordination.memory import MemoryCoordination
from scalezero_wsgi.events import Event
from scalezero_wsgi.providers import CallbackProvider

NAMES = [field.name for field in dataclasses.fields(Settings)]
DURATIONS = ["cache_expiry", "stale_for", "stale_if_error", "missing_expiry", "max_wait", "linger"]
OPTIONAL = [
    "max_waiting",
    "max_waiting_per_function",
    "release_rate",
    "page_after",
    "page_template",
    "allow",
    "wake",
]


def hook(_: Event) -> None:
    raise NotImplementedError


ROUTE = by_header("X-Function")


def rule(_: object) -> bool:
    raise NotImplementedError


FILE = __file__
STORE = MemoryCoordination()


def settings_or_error(name: str, value: object) -> Settings | SettingError:
    try:
        return Settings.from_mapping({name: value}, prefix="")
    except SettingError as error:
        return error


READINGS: list[tuple[str, object, object]] = [
    ("route", "/fn/", "/fn/"),
    ("route", "/fn", "/fn/"),
    ("route", "/", "/"),
    ("route", "/a/b-c_d.e~f", "/a/b-c_d.e~f/"),
    ("route", "/.well-known/@fn:1", "/.well-known/@fn:1/"),
    ("route", "/caf\xc3\xa9", "/caf\xc3\xa9/"),
    ("route", ROUTE, ROUTE),
    ("default_namespace", "", ""),
    ("default_namespace", "openfaas-fn", "openfaas-fn"),
    ("names", "dns", "dns"),
    ("names", "openfaas", "openfaas"),
    *[(name, "250ms", 0.25) for name in DURATIONS],
    *[(name, "1.5", 1.5) for name in DURATIONS],
    *[(name, 2, 2.0) for name in DURATIONS],
    *[(name, 0, 0.0) for name in DURATIONS if name != "max_wait"],
    ("cache_size", 1, 1),
    ("cache_size", "500", 500),
    ("cache_size", " 7 ", 7),
    *[("idle_after", value, 900.0) for value in (900.0, "15m")],
    ("idle_after", None, None),
    ("idle_after", "", None),
    ("stream_idle_after", "90s", 90.0),
    ("keep_alive_max", "1h", 3600.0),
    ("keep_alive_max", 0, 0.0),
    ("stream_idle_after", None, None),
    *[("idle_default", value, value) for value in ("labelled", "all")],
    *[("keep_warm", value, value) for value in ("08:00-18:00", "Mon 08:00-10:00; Tue 09:00-10:00 UTC")],
    ("keep_warm", "", None),
    ("idle_action", "pause", IdleAction(pause=True)),
    ("idle_action", IdleAction(pause=True), IdleAction(pause=True)),
    ("dry_run", "yes", True),
    *[("max_running", value, 3) for value in (3, "3")],
    *[("max_memory", value, 8 * 2**30) for value in ("8GiB", "8 gib", "8Gi", 8 * 2**30, str(8 * 2**30))],
    *[("max_memory", value, 1_500_000) for value in ("1.5MB", "1500kB", "1500000b")],
    *[(name, value, None) for name in ("max_running", "max_memory") for value in (None, "")],
    *[("max_running_of", value, {"gpu": 1, "cpu": 4}) for value in ({"gpu": 1, "cpu": "4"}, "gpu=1, cpu=4")],
    *[("max_memory_of", value, {"gpu": 2**30}) for value in ({"gpu": "1GiB"}, "gpu=1GiB", {"gpu": 2**30})],
    *[(name, "", {}) for name in ("max_running_of", "max_memory_of")],
    ("min_uptime", "1m", 60.0),
    ("min_uptime", 0, 0.0),
    ("busy", hook, hook),
    ("busy", None, None),
    ("busy_cap", "1h", 3600.0),
    *[("replay", yes, True) for yes in (True, "true", "True", "1", "yes", "on", " ON ")],
    *[("replay", no, False) for no in (False, "false", "False", "0", "no", "off")],
    *[("expose_failures", value, str(value).lower() == "true") for value in (True, "true", False, "false")],
    ("max_wait_of", {}, {}),
    ("max_wait_of", {"slow": "1m", "slow.dev": 2}, {"slow": 60.0, "slow.dev": 2.0}),
    ("max_wait_of", "slow=1m, slow.dev=2", {"slow": 60.0, "slow.dev": 2.0}),
    ("max_wait_of", "", {}),
    *[(name, 3, 3) for name in ("max_waiting", "max_waiting_per_function")],
    *[(name, "40", 40) for name in ("max_waiting", "max_waiting_per_function")],
    *[(name, None, None) for name in OPTIONAL],
    *[(name, "", None) for name in OPTIONAL if name not in ("allow", "wake")],
    ("release_rate", 5, 5.0),
    ("release_rate", "0.5", 0.5),
    ("page_after", "1500ms", 1.5),
    ("page_after", 0, 0.0),
    ("page_template", FILE, FILE),
    ("page_template", pathlib.Path(FILE), FILE),
    ("no_wake", rule, (rule,)),
    ("no_wake", [rule, rule], (rule, rule)),
    ("no_wake", "", ()),
    *[("no_wake_status", status, 200) for status in (200, "200", " 200 ", HTTPStatus.OK)],
    *[("no_wake_status", status, status) for status in (204, 418, 503)],
    ("allow", [], ()),
    *[(name, ["hello", "job-*"], ("hello", "job-*")) for name in ("allow", "deny", "wake")],
    *[(name, " hello , job-*,", ("hello", "job-*")) for name in ("allow", "deny", "wake")],
    *[(name, (), ()) for name in ("deny", "wake")],
    ("coordination", None, None),
    ("coordination", "", None),
    ("coordination", STORE, STORE),
    ("hooks", (), ()),
    ("hooks", [hook], (hook,)),
    ("hooks", (hook, print), (hook, print)),
]

WRONG: dict[str, list[object]] = {
    "route": [
        *("", "fn/", None, 1, b"/fn/", ["/fn/"]),
        *("/fn/<name>", "/fn/<path:name>/", "/fn/{name}", "/fn/:name", "/fn/*", "/fn?x=1", "/fn#a", "/f n/"),
        *(
            "/fn/%3A",
            "/fn//",
            "//fn/",
            "/fn/../",
            "/./fn",
            "/fn/\n",
            "/fn\\",
            "/\u0107/",
            "/caf\xe9/",
            "http://host/fn/",
        ),
        *(" /fn/", r"/fn/(?P<name>\w+)", "/fn/[a-z]", "/fn/$name|x"),
    ],
    "default_namespace": [None, 1, "a b", "é", "a/b", "a" * 64, ["a"]],
    "names": ["", "DNS", "any", None, 1, ["dns"], {"dns": 1}],
    **{name: [-1, "", "fast", None, True, math.nan, math.inf, []] for name in DURATIONS},
    "cache_size": [0, -1, 1.0, "0", "-1", "1.5", "", "ten", None, True, []],
    "idle_after": [0, "0s", -1, "soon", True, []],
    "stream_idle_after": [0, "soon", True],
    "keep_alive_max": [-1, "long", None],
    "idle_default": ["", None, "ALL", "none", 1, ["all"]],
    "keep_warm": ["Mon-Fri", "never", "08:00-18:00 Berlin", "cron * * * for 1h", 8, True, ["08:00-18:00"]],
    "idle_action": ["", None, "PAUSE", "freeze", 1, ["stop"], "pause, stop", "pause after soon"],
    "dry_run": [None, "maybe"],
    "max_running": [0, -1, 1.5, "one", True],
    "max_running_of": [None, 1, "gpu", "gpu=0", "=1", {"gpu": 0}, {"": 1}, {1: 1}, [("gpu", 1)]],
    "max_memory": [0, -1, 1.5, "8 apples", "GiB", "0GiB", "-1GiB", True, []],
    "max_memory_of": [None, "gpu", "gpu=much", {"gpu": None}, {"": "1GiB"}],
    "min_uptime": [-1, "long", None],
    "busy": ["/busy", 1, [hook]],
    "busy_cap": [-1, "soon", None],
    "replay": [None, 0, 1, "", "maybe", [], "2"],
    "expose_failures": [None, 0, 1, "", "maybe", [], "2"],
    "max_wait_of": [
        *(None, 3, "slow", "slow=", "=3", "slow=0", "a=1,b=fast", "Slow!=3", {"slow": None}),
        *({"slow": 0}, {1: 2}, {"": 2}, {"slow": [1]}, [("slow", 1)], {"good": 1, "Slow": 2}),
    ],
    **{
        name: [0, -1, "0", 1.5, "1.5", True, "ten", []]
        for name in ("max_waiting", "max_waiting_per_function")
    },
    "release_rate": [0, -1, "0", "fast", True, math.inf, math.nan, "nan", "inf", [], 10**400],
    "page_after": [-1, "soon", True, math.nan, math.inf, []],
    "page_template": ["/no/such/file", ".", 1, b"x", "\0", []],
    "no_wake": [
        *(None, 1, "healthz", "path", "path=", "=x", "host=x", "path=/a,b", [1], ["path=/a", "pth=/b"]),
        *({"path": "/a"}, [None], ["path=  "], b"path=/a"),
    ],
    "no_wake_status": [None, 0, 100, 101, 199, 299, 600, 999, "ok", "", 200.0, True, [], 520],
    **{
        name: [1, [1], ["a", None], [""], ["  "], {"a"}, {"a": 1}, b"a"] for name in ("allow", "deny", "wake")
    },
    # Empty, as of a variable that was not filled in: it would mean all functions.
    **{name: [1, [1], ["a", None], [""], ["  "], {"a"}, {"a": 1}, b"a", ""] for name in ("allow", "wake")},
    "coordination": [1, True, [], "memory", "mysql://host", "sqlite://"],
    "hooks": [None, hook, "hook", [None], (hook, "x"), {hook}, 1],
}
WRONG["max_wait"] += [0, 0.0, "0s"]
WRONG["deny"] += [None]


@pytest.mark.parametrize(("name", "value", "expected"), READINGS)
def test_a_value_is_read_from_a_keyword_and_from_a_mapping(
    name: str, value: object, expected: object
) -> None:
    read = getattr(Settings(**{name: value}), name)  # type: ignore[arg-type]
    assert (read, type(read)) == (expected, type(expected))
    assert Settings.from_mapping({f"SCALEZERO_{name.upper()}": value}) == Settings(
        **{name: expected}  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in WRONG.items() for value in values],
    ids=lambda value: repr(value)[:20],
)
def test_a_wrong_value_names_the_setting_the_value_and_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(SettingError) as caught:
        Settings(**{name: value})  # type: ignore[arg-type]
    message = str(caught.value)
    assert message.startswith((f"{name}: {value!r} ", f"{name}: {value} "))
    assert "allowed" in message


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("max_wait_of", "good=1,bad=fast", "'fast' is not a duration; allowed are"),
        ("max_wait_of", {"good": 1, "bad": -1}, "-1 is not a duration; allowed are"),
        ("max_wait_of", {"good": 1, "Bad": 2}, "'Bad' is not a function's name"),
        ("no_wake", ["path=/a", "pth=/b"], "'pth=/b' is not a rule; allowed are 'path=…', 'method=…',"),
        ("no_wake", "path=/a, b", "'b' is not a rule; allowed are"),
        ("allow", ["a", 7], "7 is not a function's name"),
        ("deny", ["a", ""], "'' is not a function's name"),
        ("keep_warm", "Mon 8:00-9:00; Sun", "'Sun' cannot be read; it must be hours such as 'Mon-Fri 08:00"),
        ("hooks", [hook, 7], "7 is not a callable that takes an event"),
    ],
)
def test_a_wrong_part_of_a_value_is_named_beside_the_whole(name: str, value: object, part: str) -> None:
    with pytest.raises(SettingError) as caught:
        Settings(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(f"{name}: {value!r} is not allowed: {part}")


def test_rules_are_read_from_a_list_and_from_one_string() -> None:
    given = ["path=/function/*/healthz", "method=OPTIONS", "user-agent=*bot*"]
    for value in (given, tuple(given), ", ".join(given)):
        rules = Settings(no_wake=value).no_wake  # type: ignore[arg-type]
        environ = {"PATH_INFO": "/function/a/healthz", "REQUEST_METHOD": "OPTIONS"}
        assert [bool(rule({**environ, "HTTP_USER_AGENT": "Bot"})) for rule in rules] == [True] * 3
        assert [bool(rule({})) for rule in rules] == [False] * 3
        assert Settings.from_mapping({"no_wake": rules}, prefix="").no_wake == rules


def test_max_wait_of_names_functions_as_requests_do() -> None:
    given = Settings(max_wait_of={"slow": 40, "slow.dev": 50}, default_namespace="fn")
    assert given.max_wait_of == {"slow.fn": 40.0, "slow.dev": 50.0}
    assert Settings(max_wait_of={"My_fn.v2.dev": 1}, names="openfaas").max_wait_of == {"My_fn.v2.dev": 1.0}


@example("coordination", "?")
@example("coordination", "@")
@given(
    st.sampled_from(NAMES),
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.integers(), max_size=2)
    | st.dictionaries(st.text(), st.integers(), max_size=2),
)
def test_any_value_of_any_setting_is_read_or_named(name: str, value: object) -> None:
    made = settings_or_error(name, value)
    if isinstance(made, SettingError):
        hidden = name == "coordination" and isinstance(value, str) and {"@", "?"} & set(value)
        shown = ("the URL, which may hold a password,",) if hidden else (repr(value), str(value))
        assert str(made).startswith(tuple(f"{name}: {each} " for each in shown))
    else:
        read = getattr(made, name)
        assert Settings.from_mapping({name: read}, prefix="") == made


@pytest.mark.parametrize(
    ("names", "namespace"), [("dns", "Dev"), ("dns", "a_b"), ("dns", "-a"), ("openfaas", "a.b")]
)
def test_a_default_namespace_that_the_names_rule_forbids_is_refused(names: str, namespace: str) -> None:
    with pytest.raises(SettingError, match="default_namespace"):
        Settings(names=names, default_namespace=namespace)


def test_the_defaults_are_those_of_the_design() -> None:
    assert dataclasses.asdict(Settings()) == {
        "route": "/function/",
        "default_namespace": "",
        "names": "dns",
        "cache_expiry": 0.25,
        "stale_for": 5.0,
        "stale_if_error": 600.0,
        "missing_expiry": 1.0,
        "cache_size": 10_000,
        "max_wait": 25.0,
        "max_wait_of": {},
        "linger": 60.0,
        "max_waiting": None,
        "max_waiting_per_function": None,
        "release_rate": None,
        "page_after": 2.0,
        "page_template": None,
        "no_wake": (),
        "no_wake_status": 503,
        "allow": None,
        "deny": (),
        "wake": None,
        "replay": True,
        "idle_after": None,
        "idle_default": "labelled",
        "keep_warm": None,
        "stream_idle_after": None,
        "keep_alive_max": 0.0,
        "idle_action": dataclasses.asdict(IdleAction()),
        "busy": None,
        "busy_cap": 3600.0,
        "dry_run": False,
        "max_running": None,
        "max_running_of": {},
        "max_memory": None,
        "max_memory_of": {},
        "min_uptime": 30.0,
        "expose_failures": False,
        "coordination": None,
        "hooks": (),
    }


def test_a_time_in_the_first_step_of_idle_action_is_idle_after() -> None:
    settings = Settings.from_mapping({"idle_after": 900, "idle_action": "pause after 5m, stop after 1h"}, "")
    assert settings.idle_after == 300.0
    assert Settings.from_mapping({"idle_action": "pause"}, "").idle_after is None


def test_no_two_entries_of_max_wait_of_are_for_one_function() -> None:
    with pytest.raises(SettingError, match=r"max_wait_of: \{'slow'.* names a function twice.* in 'fn'"):
        Settings(max_wait_of={"slow": 40, "slow.fn": 50}, default_namespace="fn")


def door(given: object) -> ScaleZeroMiddleware:
    return ScaleZeroMiddleware(
        lambda *_: [],
        CallbackProvider(scale_up=print),
        settings=given,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("given", [{}, {"max_wait": 3}, {"coordination": "redis://:secret@host"}])
def test_a_mapping_given_as_settings_is_refused_with_the_way_to_make_them(given: object) -> None:
    with pytest.raises(SettingError) as caught:
        door(given)
    assert "Settings.from_mapping(..., prefix='')" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("given", ["max_wait=3", 7, [("max_wait", 3)], Settings])
def test_what_else_is_given_as_settings_is_refused(given: object) -> None:
    with pytest.raises(SettingError, match=r"^settings: .* is not allowed; it must be a Settings$"):
        door(given)


def test_settings_are_frozen_and_take_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().max_wait = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings("/fn/")  # type: ignore[call-arg]


@given(st.sampled_from(NAMES), st.sampled_from(["", "SCALEZERO_", "X_", "my."]), st.data())
def test_a_name_is_known_in_any_case_and_under_any_prefix(
    name: str, prefix: str, data: st.DataObject
) -> None:
    key = "".join(data.draw(st.sampled_from([letter, letter.upper()])) for letter in name)
    value = next(value for known, value, _ in READINGS if known == name)
    made = Settings.from_mapping({prefix + key: value}, prefix=prefix)
    assert made == Settings(**{name: value})  # type: ignore[arg-type]


def test_keys_without_the_prefix_are_not_the_middlewares() -> None:
    config = {"DEBUG": True, "MAX_WAIT": "nonsense", "SCALEZEROMAX_WAIT": 1, "SCALEZERO_MAX_WAIT": "2s"}
    assert Settings.from_mapping(config) == Settings(max_wait=2.0)


@pytest.mark.parametrize(
    ("key", "prefix", "hint"),
    [
        (
            "SCALEZERO_MAXWAIT",
            "SCALEZERO_",
            "did you mean SCALEZERO_MAX_WAIT or SCALEZERO_MAX_WAITING or SCALEZERO_MAX_WAIT_OF?",
        ),
        ("CACHE_SIZ", "", "did you mean cache_size or cache_expiry?"),
        ("SCALEZERO_DENNY", "SCALEZERO_", "did you mean SCALEZERO_DENY?"),
        ("SCALEZERO_QQQ", "SCALEZERO_", f"there are: {', '.join(NAMES)}"),
    ],
)
def test_an_unknown_name_is_refused_with_the_names_like_it_or_with_all_if_there_is_none(
    key: str, prefix: str, hint: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_mapping({key: 1}, prefix=prefix)
    assert str(caught.value) == f"{key} is not a setting; {hint}"


def test_every_setting_that_a_string_can_say_comes_from_the_environment() -> None:
    strings = {
        "SCALEZERO_ROUTE": "/fn",
        "SCALEZERO_DEFAULT_NAMESPACE": "dev",
        "SCALEZERO_NAMES": "openfaas",
        "SCALEZERO_CACHE_EXPIRY": "500ms",
        "SCALEZERO_STALE_FOR": "1m",
        "SCALEZERO_STALE_IF_ERROR": "1h",
        "SCALEZERO_MISSING_EXPIRY": "3",
        "SCALEZERO_CACHE_SIZE": "500",
        "SCALEZERO_MAX_WAIT": "1m30s",
        "SCALEZERO_MAX_WAIT_OF": "slow=40s,job.batch=5m",
        "SCALEZERO_LINGER": "2m",
        "SCALEZERO_MAX_WAITING": "6",
        "SCALEZERO_MAX_WAITING_PER_FUNCTION": "3",
        "SCALEZERO_RELEASE_RATE": "20",
        "SCALEZERO_PAGE_AFTER": "",
        "SCALEZERO_PAGE_TEMPLATE": FILE,
        "SCALEZERO_NO_WAKE": "method=OPTIONS,user-agent=kube-probe/*",
        "SCALEZERO_NO_WAKE_STATUS": "204",
        "SCALEZERO_ALLOW": "hello,job-*",
        "SCALEZERO_DENY": "job-secret",
        "SCALEZERO_WAKE": "job-*",
        "SCALEZERO_REPLAY": "off",
        "SCALEZERO_IDLE_AFTER": "15m",
        "SCALEZERO_IDLE_DEFAULT": "all",
        "SCALEZERO_KEEP_WARM": "cron 0 8 * * 1-5 for 10h; Sat 10:00-12:00 Europe/Berlin",
        "SCALEZERO_STREAM_IDLE_AFTER": "90s",
        "SCALEZERO_KEEP_ALIVE_MAX": "1h",
        "SCALEZERO_IDLE_ACTION": "pause, stop after 1h",
        "SCALEZERO_DRY_RUN": "on",
        "SCALEZERO_BUSY_CAP": "10m",
        "SCALEZERO_MAX_RUNNING": "3",
        "SCALEZERO_MAX_RUNNING_OF": "gpu=1",
        "SCALEZERO_MAX_MEMORY": "8GiB",
        "SCALEZERO_MAX_MEMORY_OF": "gpu=24GiB,cpu=4GiB",
        "SCALEZERO_MIN_UPTIME": "1m",
        "SCALEZERO_EXPOSE_FAILURES": "on",
        "SCALEZERO_COORDINATION": "memory://",
    }
    assert {key.removeprefix("SCALEZERO_").lower() for key in strings} == set(NAMES) - {"hooks", "busy"}
    made = Settings.from_environ({**strings, "PATH": "/bin"})
    assert [bool(rule({"HTTP_USER_AGENT": "kube-probe/1.20"})) for rule in made.no_wake] == [False, True]
    assert isinstance(made.coordination, MemoryCoordination)
    assert dataclasses.replace(made, no_wake=(), coordination=None) == Settings(
        route="/fn/",
        default_namespace="dev",
        names="openfaas",
        cache_expiry=0.5,
        stale_for=60.0,
        stale_if_error=3600.0,
        missing_expiry=3.0,
        cache_size=500,
        max_wait=90.0,
        max_wait_of={"slow.dev": 40.0, "job.batch": 300.0},
        linger=120.0,
        max_waiting=6,
        max_waiting_per_function=3,
        release_rate=20.0,
        page_after=None,
        page_template=FILE,
        no_wake_status=204,
        allow=("hello", "job-*"),
        deny=("job-secret",),
        wake=("job-*",),
        replay=False,
        idle_after=900.0,
        idle_default="all",
        keep_warm="cron 0 8 * * 1-5 for 10h; Sat 10:00-12:00 Europe/Berlin",
        stream_idle_after=90.0,
        keep_alive_max=3600.0,
        idle_action=IdleAction(pause=True, stop_after=3600.0),
        dry_run=True,
        busy_cap=600.0,
        max_running=3,
        max_running_of={"gpu": 1},
        max_memory=8 * 2**30,
        max_memory_of={"gpu": 24 * 2**30, "cpu": 4 * 2**30},
        min_uptime=60.0,
        expose_failures=True,
    )


def test_hooks_cannot_be_said_by_a_string() -> None:
    with pytest.raises(SettingError, match="hooks: 'print' is not allowed"):
        Settings.from_environ({"SCALEZERO_HOOKS": "print"})


def test_the_process_environment_is_read_unless_another_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(os.environ):
        if key.startswith("SCALEZERO_"):
            monkeypatch.delenv(key)
    assert Settings.from_environ() == Settings()
    monkeypatch.setenv("SCALEZERO_MAX_WAIT", "7s")
    assert Settings.from_environ() == Settings(max_wait=7.0)
    assert Settings.from_environ({}) == Settings()


def test_a_misspelt_name_in_the_environment_is_an_error_but_a_foreign_one_is_not() -> None:
    foreign = {
        "SCALEZERO_PORT": "tcp://10.0.0.1:80",
        "SCALEZERO_SERVICE_HOST": "10.0.0.1",
        "SCALEZERO_SOAK": "20",
    }
    assert Settings.from_environ(foreign) == Settings()
    with pytest.raises(SettingError, match=r"SCALEZERO_MAX_WIAT .* did you mean SCALEZERO_MAX_WAIT"):
        Settings.from_environ({"SCALEZERO_MAX_WIAT": "3s"})


def test_a_store_that_lacks_a_method_is_refused_with_its_name() -> None:
    class Half:
        acquire = publish = changes = known = report = leave = workers = release = print

    with pytest.raises(SettingError, match=r"coordination.*it has no renew\(\)"):
        Settings.from_mapping({"coordination": Half()}, prefix="")
