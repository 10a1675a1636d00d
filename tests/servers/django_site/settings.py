"""A Django project's settings."""

SECRET_KEY = "for tests"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "tests.servers.django_site.urls"
SCALEZERO = {"cache_expiry": "30s"}
