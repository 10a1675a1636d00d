"""The views that a Django project has: one that proxies to functions."""

from __future__ import annotations

import requests
from django.http import HttpRequest, HttpResponse
from django.urls import path


def proxy(request: HttpRequest, name: str, rest: str = "") -> HttpResponse:
    answer = requests.get(f"{request.META['scalezero_wsgi.endpoint']}/{rest}", timeout=10)
    return HttpResponse(answer.content, status=answer.status_code)


urlpatterns = [path("function/<name>", proxy), path("function/<name>/<path:rest>", proxy)]
