from pathlib import Path

from scalezero_wsgi.providers import ProcessProvider

SECRET_KEY = "change me"
ALLOWED_HOSTS = ["*"]
ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "wsgi.application"
INSTALLED_APPS = ["scalezero_wsgi.integrations.django"]
SCALEZERO = {
    "provider": ProcessProvider.from_toml(Path(__file__).parents[1] / "functions.toml"),  # or "docker://"
    "max_wait": "20s",
}
