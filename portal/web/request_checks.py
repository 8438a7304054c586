"""Middleware for all requests: NUL is refused, forms have LF as line breaks, and browsers store no responses."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware

from portal.web.line_breaks import unify_line_breaks

FORMS = frozenset({"application/x-www-form-urlencoded", "multipart/form-data"})


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Refuse what PostgreSQL cannot store, let a line break be one character, and keep pages out of browser caches.

    Of these Back takes pages, on a PC that others use too.
    """
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponse:
            check_form(request)
            return forbid_caching(await get_response(request))

        return answer_async

    def answer(request: HttpRequest) -> HttpResponse:
        check_form(request)
        return forbid_caching(get_response(request))

    return answer


def check_form(request: HttpRequest) -> None:
    """Raise BadRequest for a NUL in the address or in a form: a query with it fails on PostgreSQL (500).

    No person types one. In the form each line break becomes one character. Bodies of the API are checked by field.
    """
    is_form = request.method == "POST" and request.content_type in FORMS and not request.path.startswith("/api/")
    typed = [value for _, values in request.POST.lists() for value in values] if is_form else []
    if "%00" in request.META.get("QUERY_STRING", "") or any("\0" in text for text in (request.path, *typed)):
        raise BadRequest("NUL")
    if any("\r" in text for text in typed):
        form = request.POST.copy()
        for name, values in request.POST.lists():
            form.setlist(name, [unify_line_breaks(value) for value in values])
        request.POST = form  # type: ignore[assignment]  # its stubs know only the first one, which cannot be changed


def is_prefetched(request: HttpRequest) -> bool:
    """Return whether a browser asks for the page ahead, which its person may never open."""
    purpose = request.headers.get("Sec-Purpose", "") or request.headers.get("Purpose", "")
    return purpose.strip().lower().startswith("prefetch")


def forbid_caching(response: HttpResponse) -> HttpResponse:
    response.headers.setdefault("Cache-Control", "no-store, private")
    return response
