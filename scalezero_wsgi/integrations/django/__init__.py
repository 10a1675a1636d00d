"""Django: the application that wakes functions, as ``settings.SCALEZERO`` says, and a system check.

In ``wsgi.py``, in the place of Django's own::

    from scalezero_wsgi.integrations.django import get_wsgi_application

    application = get_wsgi_application()

and in ``settings.py``::

    INSTALLED_APPS = [..., "scalezero_wsgi.integrations.django"]  # for the check
    SCALEZERO = {"provider": "docker://", "max_wait": "20s"}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...model import MissingExtra, SettingError
from ..configured import configured

try:
    from django.conf import settings as django_settings
    from django.core import wsgi
except ImportError:
    raise MissingExtra("django", "django") from None

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

    from ...middleware import ScaleZeroMiddleware

SETTING = "SCALEZERO"


def get_wsgi_application() -> ScaleZeroMiddleware:
    """Return Django's application within the middleware.

    :raises SettingError: ``settings.SCALEZERO`` has no provider, an unknown setting or a wrong value.
    """
    application: WSGIApplication = wsgi.get_wsgi_application()
    return wrapped(application)


def wrapped(application: WSGIApplication) -> ScaleZeroMiddleware:
    """Wrap an application as ``settings.SCALEZERO`` says.

    :raises SettingError: it has no provider, an unknown setting or a wrong value.
    """
    config = getattr(django_settings, SETTING, None)
    if not isinstance(config, Mapping):
        raise SettingError(
            f"{SETTING} in the project's settings is {config!r}; it must be a dictionary such as"
            " {'provider': 'docker://', 'max_wait': '20s'}"
        )
    return configured(application, config, "")
