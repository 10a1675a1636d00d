import requests
from django.http import HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt


@csrf_exempt
def function(request, name, rest=""):
    url = f"{request.META['scalezero_wsgi.endpoint']}/{rest}"
    try:
        answer = requests.request(
            request.method,
            url,
            params=request.META["QUERY_STRING"],
            data=request.body,
            headers={"Content-Type": request.headers.get("Content-Type")},
            timeout=30,
        )
    except requests.RequestException:
        return HttpResponse("The function cannot be reached.\n", status=502, content_type="text/plain")
    content_type = answer.headers.get("Content-Type")
    return HttpResponse(answer.content, status=answer.status_code, content_type=content_type)


urlpatterns = [path("function/<name>", function), path("function/<name>/<path:rest>", function)]
