"""What the frameworks have in common: settings and the provider from one mapping."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from typing import Any

import pytest
from flask import Flask

from scalezero_wsgi import MissingExtra, ProviderError, ReplicaStatus, ScaleZeroMiddleware, SettingError
from scalezero_wsgi.integrations.flask import ScaleZero
from scalezero_wsgi.integrations.paste import filter_app_factory, filter_factory
from scalezero_wsgi.model import Function, FunctionFailed
from scalezero_wsgi.operate import functions_of, going_up
from tests.support.fakes import STARTING, UP, ZERO, ScriptedProvider


def flask_app(**config: Any) -> Flask:
    app = Flask("front")
    app.config.update(config)
    return app


def made(app: Flask) -> ScaleZeroMiddleware:
    middleware = app.extensions["scalezero"]
    assert isinstance(middleware, ScaleZeroMiddleware)
    assert app.wsgi_app is middleware
    return middleware


def test_flask_takes_arguments_before_its_config_before_the_defaults() -> None:
    provider = ScriptedProvider(UP)
    app = flask_app(
        SCALEZERO_PROVIDER=ScriptedProvider(UP), SCALEZERO_MAX_WAIT="7s", SCALEZERO_LINGER=3, OTHER=1
    )
    ScaleZero(app, provider, max_wait="9s")
    middleware = made(app)
    assert middleware.provider is provider
    settings = middleware.settings
    assert (settings.max_wait, settings.linger, settings.stale_for) == (9.0, 3.0, 5.0)


def test_flask_takes_the_provider_of_its_config() -> None:
    provider = ScriptedProvider(UP)
    app = flask_app(SCALEZERO_PROVIDER=provider)
    ScaleZero(app)
    assert made(app).provider is provider


def test_one_extension_may_serve_several_applications() -> None:
    extension = ScaleZero(provider=ScriptedProvider(UP), max_wait=9)
    first, second = flask_app(), flask_app(SCALEZERO_MAX_WAIT=3)
    extension.init_app(first)
    extension.init_app(second, max_wait=4)
    assert [made(app).settings.max_wait for app in (first, second)] == [9.0, 4.0]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({}, "SCALEZERO_PROVIDER is not set; it must be a provider, or the name or URL of one"),
        ({"SCALEZERO_PROVIDER": "dockr://"}, "there is none called 'dockr'"),
        (
            {"SCALEZERO_PROVIDER": ScriptedProvider(UP), "SCALEZERO_MAX_WIAT": 1},
            "SCALEZERO_MAX_WIAT is not a setting",
        ),
        (
            {"SCALEZERO_PROVIDER": ScriptedProvider(UP), "SCALEZERO_MAX_WAIT": "20z"},
            "'20z' is not a duration",
        ),
    ],
)
def test_a_wrong_config_of_flask_stops_the_start(config: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ScaleZero(flask_app(**config))


def test_flask_is_wrapped_once() -> None:
    app = flask_app()
    ScaleZero(app, ScriptedProvider(UP))
    with pytest.raises(SettingError, match="'front' has its ScaleZero already"):
        ScaleZero(app, ScriptedProvider(UP))


def test_paste_reads_its_section() -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        return []

    middleware = filter_app_factory(
        app, {"here": "/"}, provider="openfaas+http://gateway:8080", max_wait="3s"
    )
    assert middleware.settings.max_wait == 3.0
    assert filter_factory({}, provider="openfaas+http://gateway:8080")(app).settings.max_wait == 25.0
    with pytest.raises(SettingError, match="provider is not set"):
        filter_app_factory(app, {})
    with pytest.raises(SettingError, match="max_wiat is not a setting"):
        filter_app_factory(app, {}, provider="openfaas+http://gateway:8080", max_wiat="3s")


@pytest.mark.parametrize("framework", ["flask", "django"])
def test_without_the_framework_the_extra_is_named(framework: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"scalezero_wsgi.integrations.{framework}"
    for module in list(sys.modules):
        if module == name or module.split(".")[0] == framework:
            monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(MissingExtra, match=rf"scalezero_wsgi\[{framework}\]"):
        importlib.import_module(name)


def test_by_hand_a_function_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    provider = ScriptedProvider(ZERO, STARTING, STARTING, UP)
    monkeypatch.setattr("scalezero_wsgi.operate.POLL", 0.001)
    assert list(going_up(provider, Function("hello"), 10)) == [STARTING, UP]
    assert provider.sets == [(Function("hello"), 1)]


def test_a_provider_that_cannot_list_says_so() -> None:
    with pytest.raises(SettingError, match="cannot list its functions: it has no list_functions"):
        functions_of(ScriptedProvider(UP))


def test_by_hand_a_function_that_starts_already_is_only_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have more replicas than a start from zero asks for."""
    monkeypatch.setattr("scalezero_wsgi.operate.POLL", 0.001)
    five = ReplicaStatus(replicas=5, available_replicas=0)
    provider = ScriptedProvider(five, five, replace(five, available_replicas=2))
    assert list(going_up(provider, Function("hello"), 10))[-1].available_replicas == 2
    assert provider.sets == []


def test_by_hand_a_function_that_cannot_start_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalezero_wsgi.operate.POLL", 0.001)
    failing = ScriptedProvider(ZERO, replace(ZERO, failure="its licence has expired"))
    with pytest.raises(FunctionFailed, match="its licence has expired"):
        list(going_up(failing, Function("hello"), 10))
    with pytest.raises(ProviderError, match="hello is not available after 0 s"):
        list(going_up(ScriptedProvider(ZERO, STARTING), Function("hello"), 0))
