"""What is answered where something went wrong: a page in words, or problem details under /api/."""

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
    """503 where the database is away, too slow or has no connection to spare; called while the error is handled."""
    if not isinstance(sys.exception(), OperationalError | InterfaceError):
        return _answer(request, 500)
    answer = _answer(request, 503)
    answer["Retry-After"] = RETRY_AFTER
    return answer


def _answer(request: HttpRequest, status: int) -> HttpResponse:
    """Without the person and the session: they may be what could not be read."""
    if request.path.startswith("/api/"):
        body = {"type": "about:blank", "title": str(problems.title(status)), "status": status}
        return JsonResponse(body, status=status, content_type=problems.MEDIA_TYPE)
    page = "400.html" if status == 413 else f"{status}.html"
    return HttpResponse(render_to_string(page), status=status)
