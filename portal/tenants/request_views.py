"""Pages to request more than a quota allows, and to decide on such requests."""

from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.decorators import tenant_admin_required
from portal.accounts.models import Tenant
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.quotas import administration, amounts, cautions, request_pages
from portal.quotas.models import QuotaRequest
from portal.quotas.units import UNITS
from portal.tenants.forms import QuotaRequestForm
from portal.web import posted_forms

PAGE = 30
ROWS = ("tenant", "user", "key", "key__user", "key__tenant", "model", "asked_by", "decided_by")


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def new_request(request: HttpRequest) -> HttpResponse:
    """Show and take the form to request more of a quota. It proposes twice as much as now."""
    sent = request.POST if request.method == "POST" else request.GET
    if "to" not in sent:
        return redirect("home")  # where the bars are
    to = request_pages.find_request_target(current_user(request), sent["to"])
    what = request_pages.quota_kind_of(sent.get("unit", ""), sent.get("window", ""), sent.get("model", ""))
    now = administration.effective_amount(to, what)
    proposed = request_pages.proposed_amount(now)
    form = QuotaRequestForm(request.POST if "amount" in request.POST else None, initial={"amount": proposed})
    if form.is_bound and form.is_valid():
        amount, reason = form.cleaned_data["amount"], form.cleaned_data["reason"]
        try:
            row = administration.create_request(current_user(request), to, what, amount, reason)
        except administration.QuotaRefused as refusal:
            form.add_error("amount", refusal.sentence)
        else:
            return redirect("quota-request", row.pk)
    so_far = "" if now is None else UNITS[what.unit].format_amount(now, what.window)
    context = {"sent": sent, "now": now, "so_far": so_far}
    return posted_forms.render_form(request, "tenants/new_request.html", form, context)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def edit_request(request: HttpRequest, pk: int) -> HttpResponse:
    """Show the state of one's own request; change its amount and reason for as long as it has no answer."""
    row = get_object_or_404(QuotaRequest.objects.select_related(*ROWS), pk=pk, asked_by=current_user(request))
    form = QuotaRequestForm(posted_forms.posted_data(request), initial={"amount": row.amount, "reason": row.reason})
    if request.method == "POST" and form.is_valid():
        try:
            administration.change_request(
                current_user(request), row, form.cleaned_data["amount"], form.cleaned_data["reason"]
            )
        except administration.QuotaRefused as refusal:
            form.add_error("amount", refusal.sentence)
        else:
            messages.success(request, _("Your request was changed."))
            return redirect("quota-request", pk)
    context = {
        "quota_request": row,
        "zone": zone_of(current_user(request)),
        "current": administration.current_amounts([row])[row.pk],
        "deciders": administration.deciders(row)[:3],
    }
    return posted_forms.render_form(request, "tenants/request.html", form, context)


@login_required
@posted_forms.only_posted
def withdraw_request(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(QuotaRequest, pk=pk, asked_by=current_user(request))
    try:
        administration.withdraw_request(current_user(request), row)
    except administration.QuotaRefused as refusal:
        messages.error(request, refusal.sentence)
    else:
        messages.success(request, _("Your request was withdrawn."))
    return redirect("home")


@tenant_admin_required
@require_safe
def request_list(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    rows = QuotaRequest.objects.filter(tenant=tenant).select_related(*ROWS)
    waiting = [*rows.filter(state=QuotaRequest.State.OPEN).order_by("asked_at")]
    decidable = administration.requests_to_decide(current_user(request), waiting[:PAGE])
    current = administration.current_amounts(waiting[:PAGE])
    answered = rows.exclude(state=QuotaRequest.State.OPEN).order_by("-decided_at", "-pk")
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "waiting": [(row, row.pk in decidable, current[row.pk], answer_values(request, row)) for row in waiting[:PAGE]],
        "left_out": max(0, len(waiting) - PAGE),
        "page": Paginator(answered, PAGE).get_page(request.GET.get("page")),
    }
    return render(request, "tenants/requests.html", context)


def answer_values(request: HttpRequest, row: QuotaRequest) -> dict[str, object]:
    """Return what the answer form contains: what was typed before it was refused, else the amount requested.

    With ?ask there are the cautions about the amount that was typed, and what confirms it.
    """
    if request.GET.get("at") != str(row.pk):
        return {"amount": f"{row.amount:,}", "note": ""}
    typed = request.GET.get("amount", "")
    values: dict[str, object] = {"amount": typed, "note": request.GET.get("note", "")}
    if "ask" not in request.GET:
        return values
    try:
        amount = parse_amount(typed)
    except administration.QuotaRefused:
        return values
    found = cautions.find_grant_cautions(row, amount)
    return {**values, "cautions": found, "confirmed": confirmation(row, amount)} if found else values


def confirmation(row: QuotaRequest, amount: int) -> str:
    """Return what the page sends back when the cautions about exactly this amount were read."""
    return f"{row.pk} {amount}"


@tenant_admin_required
@posted_forms.only_posted
def decide_request(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    """Grant or refuse a request. What the person who grants may not mean is asked once, as `edit_quota` does."""
    row = get_object_or_404(QuotaRequest.objects.filter(tenant=tenant).select_related(*ROWS), pk=pk)
    verdict = posted_forms.posted_choice(request, "verdict", "grant", "refuse")
    amount, note = request.POST.get("amount", ""), request.POST.get("note", "")
    try:
        if verdict == "refuse":
            administration.refuse_request(current_user(request), row, note)
            message = _("The request is refused. Its author is notified.")
        else:
            given = parse_amount(amount)
            if request.POST.get("confirmed") != confirmation(row, given):
                administration.check_grant(current_user(request), row, given)
                if cautions.find_grant_cautions(row, given):
                    return back_to_request(row, amount, note, ask=True)
            administration.grant_request(current_user(request), row, given, note)
            message = _("The request is granted. Its author is notified.")
    except administration.QuotaRefused as refusal:
        messages.error(request, refusal.sentence)
        return back_to_request(row, amount, note, ask=False)
    messages.success(request, message)
    return redirect("tenant-requests", tenant.slug)


def back_to_request(row: QuotaRequest, amount: str, note: str, *, ask: bool) -> HttpResponse:
    """Redirect to the request with what was typed; `ask`: to the cautions about it."""
    typed = {"at": row.pk, "amount": amount[:30], "note": note[:500], **({"ask": 1} if ask else {})}
    response = redirect("tenant-requests", row.tenant.slug)
    response["Location"] += f"?{urlencode(typed)}#request-{row.pk}"
    return response


def parse_amount(text: str) -> int:
    """Return the amount in `text`. Raises QuotaRefused for what is no amount."""
    try:
        return amounts.parse_amount(text)
    except ValueError as error:
        raise administration.QuotaRefused(_("Enter a number, for example 500,000, 50万 or 2M.")) from error
