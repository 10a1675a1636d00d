"""Checks what a middleware is made of, before the first request comes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from .coordination import Coordination
from .coordination.base import DrainingCoordination
from .coordination.default import default_coordination
from .coordination.memory import MemoryCoordination
from .model import SettingError
from .providers.base import NamespacedProvider, Provider, check_callable
from .settings import SettingKeywords, Settings


def check_provider(provider: object) -> None:
    """Refuse what is no provider, or has a method that cannot be called as it will be.

    :raises SettingError: it names the thing, its value and what is allowed.
    """
    allowed = "an object with get_replicas and set_replicas, or a provider's name or URL"
    if isinstance(provider, type):
        raise SettingError(
            f"provider must be {allowed}, not the class {provider.__name__}: make one, {provider.__name__}(…)"
        )
    for method, arguments in (
        ("get_replicas", ("name", "namespace")),
        ("set_replicas", ("name", "namespace", "replicas")),
    ):
        found = getattr(provider, method, None)
        if found is None:
            raise SettingError(f"provider must be {allowed}, not {provider!r}: it has no {method}")
        check_callable(f"provider: {method}", found, *arguments)


def settings_for(provider: Provider, settings: Settings | None, keywords: SettingKeywords) -> Settings:
    """Return all settings as they hold for this provider.

    :raises SettingError: one of them is not as it must be.
    """
    if isinstance(settings, Mapping):
        raise SettingError(
            "settings: a mapping is not allowed; it must be a Settings, which is made of a mapping by"
            " Settings.from_mapping(..., prefix='')"
        )
    if not isinstance(settings, Settings | None):  # not shown: it may hold a password
        raise SettingError(f"settings: a {type(settings).__name__} is not allowed; it must be a Settings")
    chosen: dict[str, Any] = (
        {} if settings is None else {field.name: getattr(settings, field.name) for field in fields(settings)}
    )
    made = Settings.from_mapping(chosen | dict(keywords), prefix="")
    if made.keep_warm is not None and made.idle_after is None:
        raise SettingError(
            f"keep_warm: {made.keep_warm!r} is not allowed without idle_after: it is for functions that go to"
            " zero, and none does"
        )
    if made.has_budget and not isinstance(made.coordination, DrainingCoordination | None):
        raise SettingError(
            f"coordination: {made.coordination!r} is not allowed with a budget (max_running and the like); it"
            " must be a store with drains() and change_drain(), by which functions are stopped for others"
        )
    own = provider.own_namespace if isinstance(provider, NamespacedProvider) else ""
    if made.default_namespace or own == "":
        return made
    try:
        # Where the provider looks for a function without a namespace is said in words from here on: so it
        # has one identity for the cache, the rules, the deadlines and the leases.
        return replace(made, default_namespace=own)
    except SettingError as error:
        raise SettingError(f"provider: its namespace {own!r} cannot be used: {error}") from None


def store_for(settings: Settings) -> Coordination | None:
    """Return the store in which the workers meet; ``None``: each is on its own."""
    if settings.idle_after is None and not settings.has_budget:
        return settings.coordination or default_coordination()
    # gunicorn has two workers for a while when it reloads its only one.
    return settings.coordination or default_coordination(least_workers=1) or MemoryCoordination()
