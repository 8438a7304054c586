"""The page of the audit log, and its files."""

from collections.abc import AsyncIterator, Iterator

from asgiref.sync import sync_to_async
from django.contrib.auth.decorators import login_required
from django.core.handlers.asgi import ASGIRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from portal.accounts import trail
from portal.accounts.audit_forms import SearchForm
from portal.accounts.models import User
from portal.console.clock import zone_of


@login_required
@never_cache
@require_GET
def audit(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    zone, form = zone_of(request.user), SearchForm(request.GET, user=request.user)
    found, mark = trail.page(form.wanted.among(trail.visible(request.user), zone), request.GET.get("before", ""))
    context = {
        "zone": zone,
        "form": form,
        "wanted": form.wanted,
        "events": [trail.told(event, zone) for event in found],
        "older": mark,
        "is_first": not request.GET.get("before"),
        "is_searched": form.wanted != trail.Wanted(),
    }
    return render(request, "audit/list.html", context)


@login_required
@never_cache
@require_GET
def export(request: HttpRequest) -> StreamingHttpResponse:
    """All that the page would list, as a file."""
    assert isinstance(request.user, User)
    zone, form = zone_of(request.user), SearchForm(request.GET, user=request.user)
    events = form.wanted.among(trail.visible(request.user), zone)
    name = f"audit-{timezone.localtime(timezone=zone):%Y-%m-%d}"
    if request.GET.get("format") == "json":
        return streamed(request, trail.as_json(events), f"{name}.json", "application/json")
    return streamed(request, trail.as_csv(events), f"{name}.csv", "text/csv; charset=utf-8")


def streamed(request: HttpRequest, pieces: Iterator[str], name: str, content_type: str) -> StreamingHttpResponse:
    """Under ASGI an iterator that is not async would be read to its end before the first byte is sent."""
    content = in_thread(pieces) if isinstance(request, ASGIRequest) else pieces
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingHttpResponse(content, content_type=content_type, headers=headers)


async def in_thread(pieces: Iterator[str]) -> AsyncIterator[str]:
    following = sync_to_async(lambda: next(pieces, None))
    while (piece := await following()) is not None:
        yield piece
