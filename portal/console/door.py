"""What holds for every answer of the portal, and what no request may hold."""

from collections.abc import Callable
from typing import Any

from asgiref.sync import iscoroutinefunction
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.utils.decorators import sync_and_async_middleware


@sync_and_async_middleware
def middleware(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Refuse what PostgreSQL cannot hold; let no browser keep what somebody saw (Back, on a PC that others use too)."""
    if iscoroutinefunction(get_response):

        async def answer_async(request: HttpRequest) -> HttpResponse:
            check(request)
            return unkept(await get_response(request))

        return answer_async

    def answer(request: HttpRequest) -> HttpResponse:
        check(request)
        return unkept(get_response(request))

    return answer


def check(request: HttpRequest) -> None:
    """Raise BadRequest for a NUL in the address or in a form: a query with it fails on PostgreSQL (500), and nobody
    types one. Bodies of the API are checked field by field."""
    is_form = request.method == "POST" and request.content_type == "application/x-www-form-urlencoded"
    if "\0" in request.path or "%00" in request.META.get("QUERY_STRING", "") or (is_form and b"%00" in request.body):
        raise BadRequest("NUL")


def unkept(response: HttpResponse) -> HttpResponse:
    response.headers.setdefault("Cache-Control", "no-store, private")
    return response
