"""A Django project's wsgi.py."""

import os

from django.conf import settings
from django.core.wsgi import get_wsgi_application

from scalezero_wsgi import ScaleZeroMiddleware, Settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.servers.django_site.settings")

application = get_wsgi_application()

from tests.servers.django_site.urls import provider  # noqa: E402  Django must be set up first

application = ScaleZeroMiddleware(
    application, provider, settings=Settings.from_mapping(settings.SCALEZERO, prefix="")
)
