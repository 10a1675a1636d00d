"""A middleware as a framework's configuration says: its settings, and the provider beside them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..middleware import ScaleZeroMiddleware
from ..model import SettingError
from ..settings import Settings

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ..providers.base import Provider

PROVIDER = "provider"


def configured(
    app: WSGIApplication,
    config: Mapping[str, Any],
    prefix: str,
    provider: Provider | str | None = None,
    keywords: Mapping[str, Any] | None = None,
) -> ScaleZeroMiddleware:
    """Wrap an application as the configuration says.

    :param config: the settings by ``prefix`` and name, in upper or lower case, and the provider among them:
        an object, or the name or URL of one.
    :param provider: goes before the configuration's.
    :param keywords: settings that go before the configuration's.
    :raises SettingError: there is no provider, a setting is unknown, or a value is not allowed.
    """
    ours = {key: value for key, value in config.items() if key.startswith(prefix)}
    named = [key for key in ours if key[len(prefix) :].lower() == PROVIDER]
    if provider is None and named:
        provider = ours[named[0]]
    if provider is None:
        key = f"{prefix}{PROVIDER.upper()}" if prefix.isupper() else PROVIDER
        raise SettingError(f"{key} is not set; it must be a provider, or the name or URL of one")
    settings = Settings.from_mapping({key: ours[key] for key in ours if key not in named}, prefix)
    return ScaleZeroMiddleware(app, provider, settings=settings, **(keywords or {}))
