"""Middleware for all requests: it refuses NUL characters, and keeps browsers from storing responses."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Refuse what PostgreSQL cannot store; keep pages out of browser caches (Back, on a PC that others use too)."""
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponse:
            refuse_nul(request)
            return forbid_caching(await get_response(request))

        return answer_async

    def answer(request: HttpRequest) -> HttpResponse:
        refuse_nul(request)
        return forbid_caching(get_response(request))

    return answer


def refuse_nul(request: HttpRequest) -> None:
    """Raise BadRequest for a NUL in the address or in a form: a query with it fails on PostgreSQL (500).

    No person types one. Bodies of the API are checked field by field.
    """
    is_form = request.method == "POST" and request.content_type in FORMS and not request.path.startswith("/api/")
    typed = [value for _, values in request.POST.lists() for value in values] if is_form else []
    if "%00" in request.META.get("QUERY_STRING", "") or any("\0" in text for text in (request.path, *typed)):
        raise BadRequest("NUL")


def forbid_caching(response: HttpResponse) -> HttpResponse:
    response.headers.setdefault("Cache-Control", "no-store, private")
    return response
