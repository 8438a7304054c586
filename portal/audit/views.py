"""The page of the audit log, and its files."""

from django.contrib.auth.decorators import login_required
from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.audit import audit_log
from portal.audit.forms import SearchForm
from portal.web.table_export import export_response


@login_required
@never_cache
@require_safe
def audit(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    zone, form = zone_of(request.user), SearchForm(request.GET, user=request.user)
    found, cursor = audit_log.read_page(
        form.wanted.apply(audit_log.visible_events(request.user), zone), request.GET.get("before", "")
    )
    context = {
        "zone": zone,
        "form": form,
        "wanted": form.wanted,
        "events": [audit_log.describe_event(event, zone) for event in found],
        "older": cursor,
        "is_first": not request.GET.get("before"),
        "is_searched": form.wanted != audit_log.AuditQuery(),
    }
    return render(request, "audit/list.html", context)


@login_required
@never_cache
@require_safe
def export(request: HttpRequest) -> StreamingHttpResponse:
    """Return all that the page would list, as a file."""
    assert isinstance(request.user, User)
    zone, form = zone_of(request.user), SearchForm(request.GET, user=request.user)
    if not form.is_valid():  # the page shows what is wrong; a file would just contain more than was asked for
        raise BadRequest(" ".join(form.errors))
    events = form.wanted.apply(audit_log.visible_events(request.user), zone)
    name = f"audit-{timezone.localtime(timezone=zone):%Y-%m-%d}"
    return export_response(request, name, audit_log.export_rows(events), audit_log.COLUMNS)
