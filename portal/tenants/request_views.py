"""Asking for more, and answering those who ask."""

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
from portal.quotas import administration, amounts, request_pages
from portal.quotas.models import QuotaRequest
from portal.tenants.forms import MoreForm
from portal.web import posted_forms

PAGE = 30
ROWS = ("tenant", "user", "key", "key__user", "key__tenant", "model", "asked_by", "decided_by")


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def more(request: HttpRequest) -> HttpResponse:
    """Return one click at a bar: posts what the bar is of, and asks for double.

    Without an amount to double: the form.
    """
    asked = request.POST if request.method == "POST" else request.GET
    if "to" not in asked:
        return redirect("home")  # where the bars are
    to = request_pages.find_request_target(current_user(request), asked["to"])
    what = request_pages.quota_kind_of(asked.get("unit", ""), asked.get("window", ""), asked.get("model", ""))
    now = administration.effective_amount(to, what)
    form = MoreForm(
        request.POST if "amount" in request.POST else None, initial={"amount": request_pages.proposed_amount(now)}
    )
    amount = (
        form.cleaned_data["amount"]
        if form.is_valid()
        else None
        if form.is_bound
        else request_pages.proposed_amount(now)
    )
    if request.method == "POST" and amount is not None:
        try:
            wish = administration.create_request(
                current_user(request), to, what, amount, form.cleaned_data["reason"] if form.is_bound else ""
            )
        except administration.QuotaRefused as refusal:
            messages.error(request, refusal.sentence)
        else:
            return redirect("wish", wish.pk)
    so_far = "" if now is None else amounts.format_per(now, what.unit, what.window)
    context = {"form": form, "asked": asked, "now": now, "so_far": so_far}
    return render(request, "tenants/more.html", context)


@login_required
@never_cache
@require_http_methods(["GET", "HEAD", "POST"])
def wish(request: HttpRequest, pk: int) -> HttpResponse:
    """One's own request: how it stands; more words or another amount for as long as nobody answered."""
    row = get_object_or_404(QuotaRequest.objects.select_related(*ROWS), pk=pk, asked_by=current_user(request))
    form = MoreForm(request.POST or None, initial={"amount": row.amount, "reason": row.reason})
    if request.method == "POST" and form.is_valid():
        try:
            administration.change_request(
                current_user(request), row, form.cleaned_data["amount"], form.cleaned_data["reason"]
            )
        except administration.QuotaRefused as refusal:
            form.add_error("amount", refusal.sentence)
        else:
            messages.success(request, _("Your request is changed."))
            return redirect("wish", pk)
    context = {
        "wish": row,
        "form": form,
        "zone": zone_of(current_user(request)),
        "deciders": administration.deciders(row)[:3],
    }
    return render(request, "tenants/wish.html", context)


@login_required
@posted_forms.only_posted
def withdraw(request: HttpRequest, pk: int) -> HttpResponse:
    row = get_object_or_404(QuotaRequest, pk=pk, asked_by=current_user(request))
    try:
        administration.withdraw_request(current_user(request), row)
    except administration.QuotaRefused as refusal:
        messages.error(request, refusal.sentence)
    else:
        messages.success(request, _("Your request is withdrawn."))
    return redirect("home")


@tenant_admin_required
@require_safe
def requests(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    rows = QuotaRequest.objects.filter(tenant=tenant).select_related(*ROWS)
    waiting = [*rows.filter(state=QuotaRequest.State.OPEN).order_by("asked_at")]
    mine = administration.requests_to_decide(current_user(request), waiting[:PAGE])
    answered = rows.exclude(state=QuotaRequest.State.OPEN).order_by("-decided_at", "-pk")
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "waiting": [(row, row.pk in mine, typed(request, row)) for row in waiting[:PAGE]],
        "left_out": max(0, len(waiting) - PAGE),
        "page": Paginator(answered, PAGE).get_page(request.GET.get("page")),
    }
    return render(request, "tenants/requests.html", context)


def typed(request: HttpRequest, row: QuotaRequest) -> dict[str, str]:
    """What stands in the form of a request: what was typed before it was refused, else what is wished."""
    if request.GET.get("at") == str(row.pk):
        return {"amount": request.GET.get("amount", ""), "note": request.GET.get("note", "")}
    return {"amount": f"{row.amount:,}", "note": ""}


@tenant_admin_required
@posted_forms.only_posted
def decide(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    row = get_object_or_404(QuotaRequest.objects.filter(tenant=tenant), pk=pk)
    verdict, note = posted_forms.posted_choice(request, "verdict", "grant", "refuse"), request.POST.get("note", "")
    try:
        if verdict == "refuse":
            administration.refuse_request(current_user(request), row, note)
            said = _("The request is refused; who asked is told.")
        else:
            administration.grant_request(current_user(request), row, wished(request.POST.get("amount", "")), note)
            said = _("The request is granted; who asked is told.")
    except administration.QuotaRefused as refusal:
        messages.error(request, refusal.sentence)
        typed = urlencode({"at": pk, "amount": request.POST.get("amount", "")[:30], "note": note[:500]})
        response = redirect("tenant-requests", tenant.slug)
        response["Location"] += f"?{typed}#request-{pk}"
        return response
    messages.success(request, said)
    return redirect("tenant-requests", tenant.slug)


def wished(text: str) -> int:
    """Raise giving.Refused for what is no amount."""
    try:
        return amounts.parse_amount(text)
    except ValueError as error:
        raise administration.QuotaRefused(_("Give a number, for example 500,000, 50万 or 2M.")) from error
