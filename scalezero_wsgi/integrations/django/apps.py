"""The Django app that brings the system check, ``manage.py check``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.apps import AppConfig
from django.conf import settings as django_settings
from django.core import checks
from django.core.handlers.wsgi import WSGIHandler
from django.utils.module_loading import import_string

from ...model import ScaleZeroError
from . import SETTING, wrapped

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class ScaleZeroConfig(AppConfig):  # type: ignore[misc]  # Django has no types
    """Found by Django for ``scalezero_wsgi.integrations.django`` in ``INSTALLED_APPS``."""

    name = "scalezero_wsgi.integrations.django"
    label = "scalezero"
    verbose_name = "Scale from zero"

    def ready(self) -> None:
        """Register the check."""
        checks.register(check_settings)
        checks.register(check_application)


def check_settings(**_: Any) -> list[checks.CheckMessage]:
    """Report what would stop the start of the application."""
    try:
        wrapped(_no_application)
    except ScaleZeroError as error:
        return [checks.Error(f"{SETTING}: {error}", id="scalezero.E001")]
    return []


def check_application(**_: Any) -> list[checks.CheckMessage]:
    """Report an application that is not wrapped: it would wake nothing, and not say why."""
    path = getattr(django_settings, "WSGI_APPLICATION", None)
    if not path:
        return []
    try:
        application = import_string(path)
    except Exception:  # noqa: BLE001  the module is the project's; Django itself says what is wrong with it
        return []
    if not isinstance(application, WSGIHandler):  # it is wrapped, be it by something around the middleware
        return []
    return [
        checks.Warning(
            f"WSGI_APPLICATION {path!r} is Django's own, which wakes no function",
            hint="import get_wsgi_application from scalezero_wsgi.integrations.django there",
            id="scalezero.W001",
        )
    ]


def _no_application(environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:  # noqa: ARG001
    raise AssertionError("never called")
