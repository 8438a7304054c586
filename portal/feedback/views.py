"""The report of feedback, and the address at which the playground leaves it."""

from datetime import date, datetime, time, timedelta

from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.debug import sensitive_post_parameters
from django.views.decorators.http import require_safe

from portal.accounts.permissions import current_user, may_operate
from portal.accounts.timezones import zone_of
from portal.feedback import recording, reports
from portal.feedback.forms import GivenForm
from portal.use_cases import gallery
from portal.web import posted_forms

PAGE = 30  # comments
STATUS = {"unknown": 404, "old": 400, "invalid": 400, "many": 429}
EARLIEST = date(2000, 1, 1)  # not every zone has the first days of the calendar


@login_required
@require_safe
def report(request: HttpRequest) -> HttpResponse:
    """Show how people found answers: `?of=` a tenant's short name, `?days=` one of PERIODS, or any `?from=` `?to=`."""
    user = current_user(request)
    tenants = list(reports.readable_tenants(user))
    chosen = next((tenant for tenant in tenants if tenant.slug == request.GET.get("of", "")), None)
    if not tenants and not may_operate(user):
        raise Http404
    if request.GET.get("of") and chosen is None:
        raise Http404
    days = next((days for days in reports.PERIODS if str(days) == request.GET.get("days")), reports.PERIODS[1])
    everything, now, zone = None if may_operate(user) else tenants, timezone.now(), zone_of(user)
    span = read_days(request)
    since = datetime.combine(span[0], time(), zone) if span else now - timedelta(days=days)
    until = datetime.combine(span[1] + timedelta(days=1), time(), zone) if span else None
    rows = reports.feedback_of([chosen] if chosen else everything, since, until)
    page = Paginator(reports.comments_of(rows), PAGE).get_page(request.GET.get("page"))
    comments = list(page)
    context = {
        "tenants": tenants,
        "chosen": chosen,
        "days": None if span else days,
        "first": since.astimezone(zone).date().isoformat(),
        "last": (span[1] if span else now.astimezone(zone).date()).isoformat(),
        "periods": reports.PERIODS,
        "sum": reports.sum_up(rows),
        "tables": [
            ("model", _("By model"), reports.rows_by_model(rows)),
            ("alias", _("By alias"), reports.rows_by_alias(rows)),
            ("use-case", _("By use case"), reports.rows_by_use_case(rows, gallery.readable(user))),
        ],
        "page": page,
        "comments": comments,
        "readable_cases": gallery.readable_ids(user, [row.use_case_id for row in comments]),
        "zone": zone,
    }
    return render(request, "feedback/report.html", context)


def read_days(request: HttpRequest) -> tuple[date, date] | None:
    """Return the first and the last of any days, in whichever order they are sent; None: other or no days were."""
    try:
        first, last = sorted(date.fromisoformat(request.GET.get(name, "")) for name in ("from", "to"))
    except ValueError:
        return None
    return (first, last) if first >= EARLIEST and last.year < date.max.year else None


@sensitive_post_parameters("comment")
@login_required
@never_cache
@posted_forms.posted_from("try")
def give(request: HttpRequest) -> HttpResponse:
    """Take a thumb, perhaps with a sentence, on a request that the person made, as a form. Answer in JSON.

    The usage of a request that has just ended may not be recorded yet: 202 then, as with any of the person's tenants.
    """
    user = current_user(request)
    form = GivenForm(request.POST)
    if not form.is_valid():
        return JsonResponse({"error": "invalid", "fields": form.errors.get_json_data()}, status=400)
    tenant = user.memberships.order_by("pk").values_list("tenant_id", flat=True).first()
    try:
        is_known = recording.record_feedback(form.given(), user_id=user.pk, tenant_id=tenant, now=timezone.now())
    except recording.FeedbackRefused as refusal:
        return JsonResponse({"error": refusal.code, "message": refusal.sentence}, status=STATUS[refusal.code])
    return JsonResponse({"status": "recorded" if is_known else "pending"}, status=200 if is_known else 202)
