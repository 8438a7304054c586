"""Handlers of errors: they answer with a page, or with problem details under /api/."""

import sys

from django.core.exceptions import RequestDataTooBig
from django.db import InterfaceError, OperationalError
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string

from portal.web.rest import problems

RETRY_AFTER = "10"  # seconds


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    return _answer(request, 413 if isinstance(exception, RequestDataTooBig) else 400)


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 503 if the database is down, too slow or out of connections, else 500. Called while handling the error."""
    if not isinstance(sys.exception(), OperationalError | InterfaceError):
        return _answer(request, 500)
    answer = _answer(request, 503)
    answer["Retry-After"] = RETRY_AFTER
    return answer


def _answer(request: HttpRequest, status: int) -> HttpResponse:
    """Answer without using the person or the session, since reading them may be what failed."""
    if request.path.startswith("/api/"):
        body = {"type": "about:blank", "title": str(problems.title(status)), "status": status}
        return JsonResponse(body, status=status, content_type=problems.MEDIA_TYPE)
    page = "400.html" if status == 413 else f"{status}.html"
    return HttpResponse(render_to_string(page), status=status)
