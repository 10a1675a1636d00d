"""A Django project that proxies to functions with requests."""

from __future__ import annotations

import requests
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path

from tests.servers.site import provider as make_provider

provider = make_provider()


def counts(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"queries": provider.queries, "starts": provider.starts})


def proxy(request: HttpRequest, name: str, rest: str = "") -> HttpResponse:
    answer = requests.request(
        str(request.method),
        f"{request.META['scalezero_wsgi.endpoint']}/{rest}",
        params=request.GET.dict(),
        data=request.body,
        headers={"X-From": name},
        timeout=10,
    )
    return HttpResponse(
        answer.content, status=answer.status_code, content_type=answer.headers["Content-Type"]
    )


urlpatterns = [
    path("counts", counts),
    path("function/<name>", proxy),
    path("function/<name>/<path:rest>", proxy),
]
