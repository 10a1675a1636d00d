from __future__ import annotations

import dataclasses
import math
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalezero_wsgi import SettingError, Settings, by_header
from scalezero_wsgi.events import Event

NAMES = [field.name for field in dataclasses.fields(Settings)]
DURATIONS = ["cache_expiry", "stale_for", "missing_expiry", "max_wait"]


def hook(_: Event) -> None:
    raise NotImplementedError


ROUTE = by_header("X-Function")


def settings_or_error(name: str, value: object) -> Settings | SettingError:
    try:
        return Settings.from_mapping({name: value}, prefix="")
    except SettingError as error:
        return error


READINGS: list[tuple[str, object, object]] = [
    ("route", "/fn/", "/fn/"),
    ("route", "/fn", "/fn/"),
    ("route", "/", "/"),
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
    *[("replay", yes, True) for yes in (True, "true", "True", "1", "yes", "on", " ON ")],
    *[("replay", no, False) for no in (False, "false", "False", "0", "no", "off")],
    ("hooks", (), ()),
    ("hooks", [hook], (hook,)),
    ("hooks", (hook, print), (hook, print)),
]

WRONG: dict[str, list[object]] = {
    "route": ["", "fn/", None, 1, b"/fn/", ["/fn/"]],
    "default_namespace": [None, 1, "a b", "é", "a/b", "a" * 64, ["a"]],
    "names": ["", "DNS", "any", None, 1, ["dns"], {"dns": 1}],
    **{name: [-1, "", "fast", None, True, math.nan, math.inf, []] for name in DURATIONS},
    "cache_size": [0, -1, 1.0, "0", "-1", "1.5", "", "ten", None, True, []],
    "replay": [None, 0, 1, "", "maybe", [], "2"],
    "hooks": [None, hook, "hook", [None], (hook, "x"), {hook}, 1],
}
WRONG["max_wait"] += [0, 0.0, "0s"]


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


@settings(deadline=None)
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
        assert str(made).startswith((f"{name}: {value!r} ", f"{name}: {value} "))
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
        "missing_expiry": 1.0,
        "cache_size": 10_000,
        "max_wait": 25.0,
        "replay": True,
        "hooks": (),
    }


def test_settings_are_frozen_and_take_keywords_only() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().max_wait = 1.0  # type: ignore[misc]
    with pytest.raises(TypeError):
        Settings("/fn/")  # type: ignore[call-arg]


@settings(deadline=None)
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
        ("SCALEZERO_MAXWAIT", "SCALEZERO_", "; did you mean SCALEZERO_MAX_WAIT?"),
        ("MAX_WAITT", "", "; did you mean max_wait?"),
        ("SCALEZERO_QQQ", "SCALEZERO_", " (there are: "),
    ],
)
def test_an_unknown_name_is_refused_with_a_hint_and_the_names_there_are(
    key: str, prefix: str, hint: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_mapping({key: 1}, prefix=prefix)
    message = str(caught.value)
    assert message.startswith(f"{key} is not a setting{hint}")
    assert message.endswith(f"(there are: {', '.join(NAMES)})")


def test_every_setting_that_a_string_can_say_comes_from_the_environment() -> None:
    strings = {
        "SCALEZERO_ROUTE": "/fn",
        "SCALEZERO_DEFAULT_NAMESPACE": "dev",
        "SCALEZERO_NAMES": "openfaas",
        "SCALEZERO_CACHE_EXPIRY": "500ms",
        "SCALEZERO_STALE_FOR": "1m",
        "SCALEZERO_MISSING_EXPIRY": "3",
        "SCALEZERO_CACHE_SIZE": "500",
        "SCALEZERO_MAX_WAIT": "1m30s",
        "SCALEZERO_REPLAY": "off",
    }
    assert {key.removeprefix("SCALEZERO_").lower() for key in strings} == set(NAMES) - {"hooks"}
    assert Settings.from_environ({**strings, "PATH": "/bin"}) == Settings(
        route="/fn/",
        default_namespace="dev",
        names="openfaas",
        cache_expiry=0.5,
        stale_for=60.0,
        missing_expiry=3.0,
        cache_size=500,
        max_wait=90.0,
        replay=False,
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
    foreign = {"SCALEZERO_PORT": "tcp://10.0.0.1:80", "SCALEZERO_SERVICE_HOST": "10.0.0.1"}
    assert Settings.from_environ(foreign) == Settings()
    with pytest.raises(SettingError, match=r"SCALEZERO_MAX_WIAT .* did you mean SCALEZERO_MAX_WAIT"):
        Settings.from_environ({"SCALEZERO_MAX_WIAT": "3s"})
