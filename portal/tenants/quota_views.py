"""Quotas of a tenant, its members and keys, and the defaults. `administration` decides who may set which."""

from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Q, QuerySet
from django.db.models.functions import Lower
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts import permissions
from portal.accounts.decorators import operator_required, tenant_admin_required
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import current_user
from portal.keys.models import ApiKey
from portal.quotas import administration, cautions, request_pages, status
from portal.quotas.administration import QuotaKind, QuotaTarget
from portal.quotas.models import Quota
from portal.quotas.units import UNITS
from portal.tenants.forms import QuotaForm
from portal.web import posted_forms
from portal.web.cautions import Caution
from portal.web.sorting import choose_sort, column_of, is_turned, turn_order
from portal.web.templatetags.formatting import person

PAGE = 50
# By what quotas of members and keys can be sorted: people before keys; amounts within what they count, as tokens are no
# requests.
OWNER = (
    Lower("user__last_name").asc(nulls_last=True),
    Lower("user__username").asc(nulls_last=True),
    Lower("key__name"),
    "key_id",
)
SORTS: dict[str, tuple[Any, ...]] = {
    "name": (*OWNER, "unit", "window"),
    "amount": ("unit", "window", "-amount", *OWNER),
    "model": (Lower("model__name").asc(nulls_first=True), *OWNER, "unit", "window"),
}


@tenant_admin_required
@require_safe
def quota_list(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    text, sort = request.GET.get("q", "").strip(), request.GET.get("sort", "")
    sort = choose_sort(sort, SORTS, "name")
    order = turn_order(SORTS[column_of(sort)]) if is_turned(sort) else SORTS[sort]
    rows = Quota.objects.select_related("model", "user", "key", "key__user")
    own = rows.filter(Q(tenant=tenant, default_for="", user__isnull=False) | Q(key__tenant=tenant))
    if text:
        own = own.filter(
            Q(user__username__icontains=text)
            | Q(user__last_name__icontains=text)
            | Q(user__first_name__icontains=text)
            | Q(key__name__icontains=text)
            | Q(key__prefix__startswith=text[:12])
        )
    page = Paginator(own.order_by(*order, "pk"), PAGE).get_page(request.GET.get("page"))
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "q": text,
        "sort": sort,
        "bars": request_pages.quota_bars(current_user(request), status.allowances_of_tenant(tenant, timezone.now())),
        "tenants": rows.filter(tenant=tenant, default_for="", user=None),
        "defaults": [
            (Quota.DefaultFor.MEMBER, "members", rows.filter(tenant=tenant, default_for=Quota.DefaultFor.MEMBER)),
            (Quota.DefaultFor.SERVICE, "services", rows.filter(tenant=tenant, default_for=Quota.DefaultFor.SERVICE)),
        ],
        "page": page,
        "may_give_tenant": permissions.may_operate(current_user(request)),
        "me": current_user(request),
    }
    return render(request, "tenants/quotas.html", context)


@tenant_admin_required
@require_http_methods(["GET", "HEAD", "POST"])
def set_quota(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    """Set a quota of what ?of= names; see `parse_target`."""
    to, label = parse_target(tenant, request.GET.get("of", "members"))
    return edit_quota(request, to, label, tenant)


@tenant_admin_required
@posted_forms.only_posted
def remove_quota(request: HttpRequest, tenant: Tenant, pk: int) -> HttpResponse:
    mine = (
        Q(tenant=tenant)
        | Q(key__tenant=tenant)
        | Q(tenant=None, key=None, default_for="", user__memberships__tenant=tenant)
    )
    quota = get_object_or_404(Quota.objects.filter(mine).select_related("model").distinct(), pk=pk)
    return remove_and_return(request, quota, origin_url(quota, tenant))


@operator_required
@require_safe
def default_list(request: HttpRequest) -> HttpResponse:
    context = {"rows": tenant_defaults(), "tenants": Tenant.objects.count()}
    return render(request, "tenants/defaults.html", context)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def set_default(request: HttpRequest) -> HttpResponse:
    return edit_quota(request, QuotaTarget(default_for=Quota.DefaultFor.TENANT), _("Each tenant"), None)


@operator_required
@posted_forms.only_posted
def remove_default(request: HttpRequest, pk: int) -> HttpResponse:
    return remove_and_return(request, get_object_or_404(tenant_defaults(), pk=pk), reverse("tenant-defaults"))


def tenant_defaults() -> QuerySet[Quota]:
    return (
        Quota.objects.filter(default_for=Quota.DefaultFor.TENANT)
        .select_related("model")
        .order_by("unit", "window", "pk")
    )


def parse_target(tenant: Tenant, of: str) -> tuple[QuotaTarget, str]:
    """Return the quota target that `of` names, and what to call it on a page.

    `of` is "tenant", "members", "services", "person:<id>", "everywhere:<id>" or "key:<prefix>". Raises Http404 for
    what does not belong to the tenant.
    """
    kind, _colon, which = of.partition(":")
    if kind == "tenant":
        return QuotaTarget(tenant=tenant), tenant.name
    if kind == "members":
        return QuotaTarget(tenant=tenant, default_for=Quota.DefaultFor.MEMBER), _("Each member")
    if kind == "services":
        return QuotaTarget(tenant=tenant, default_for=Quota.DefaultFor.SERVICE), _("Each service key")
    if kind == "key":
        key = get_object_or_404(ApiKey.objects.select_related("tenant", "user"), tenant=tenant, prefix=which)
        return QuotaTarget(key=key), _("Key “%(name)s”") % {"name": key.name}
    if kind in ("person", "everywhere") and which.isdecimal() and len(which) < 19:
        user = get_object_or_404(User, pk=int(which), memberships__tenant=tenant)
        if kind == "person":
            return QuotaTarget(tenant=tenant, user=user), person(user)
        return QuotaTarget(user=user), _("%(person)s, across all tenants") % {"person": person(user)}
    raise Http404


def edit_quota(request: HttpRequest, to: QuotaTarget, label: str, tenant: Tenant | None) -> HttpResponse:
    """Show the form for a quota and save it; with ?kind= (and ?model=) only the amount of that quota can change.

    What the giver may not mean is asked once: the same numbers sent again with `confirmed` are saved.
    """
    kind, model = request.GET.get("kind", ""), request.GET.get("model", "")
    fixed, initial = bool(kind), {}
    if fixed:
        unit, _slash, window = kind.partition("/")
        what = request_pages.quota_kind_of(unit, window, model)
        initial = {"kind": kind, "model": model, "amount": current_amount(to, what)}
    form = QuotaForm(posted_forms.posted_data(request), initial=initial, fixed=fixed)
    asked: list[Caution] = []
    if request.method == "POST" and form.is_valid():
        kind_of_it, amount = form.quota_kind(), form.cleaned_data["amount"]
        try:
            administration.check_quota(current_user(request), to, kind_of_it, amount)
            asked = cautions.find_cautions(to, kind_of_it, amount)
            if not asked or request.POST.get("confirmed") == form.confirmation():
                quota = administration.set_quota(current_user(request), to, kind_of_it, amount)
                saved = _("%(of)s: at most %(amount)s.") % {"of": label, "amount": describe_amount(quota)}
                messages.success(request, saved)
                return redirect(origin_url(quota, tenant))
        except administration.QuotaRefused as refusal:
            form.add_error("amount", refusal.sentence)
    allowed = administration.may_set(current_user(request), to)
    context = {
        "cautions": asked,
        "whose": label,
        "tenant": tenant,
        "allowed": allowed,
        "back": origin_url(Quota(**to.columns), tenant),
        "ceilings": describe_ceilings(request, to) if allowed else [],
    }
    return posted_forms.render_form(request, "tenants/set_quota.html", form, context)


def current_amount(to: QuotaTarget, what: QuotaKind) -> int | None:
    quota = Quota.objects.filter(**to.columns, **what.columns).first()
    return quota.amount if quota else None


def describe_ceilings(request: HttpRequest, to: QuotaTarget) -> list[str]:
    """Return the most that an admin can give, in words; nothing for operators."""
    if to.home is None or permissions.may_operate(current_user(request)):
        return []
    bounds = status.rules_for(tenants=[to.home.pk]).tenant(to.home.pk)
    return [describe_amount(bound.quota) for bound in bounds]


def describe_amount(quota: Quota) -> str:
    """Return how much of what the quota gives, and of which model if it is for one."""
    amount = UNITS[quota.unit].format_amount(quota.amount, quota.window)
    if quota.model is None:
        return amount
    return pgettext("amount of one model", "%(amount)s (%(model)s)") % {"amount": amount, "model": quota.model.name}


def remove_and_return(request: HttpRequest, quota: Quota, back: str) -> HttpResponse:
    try:
        administration.remove_quota(current_user(request), quota)
    except administration.QuotaRefused as refusal:
        messages.error(request, refusal.sentence)
    else:
        messages.success(request, _("The quota was removed."))
    return redirect(back)


def origin_url(quota: Quota, tenant: Tenant | None) -> str:
    """Return the address of the page from which one changes this quota."""
    if tenant is None:
        return reverse("tenant-defaults")
    if quota.user_id:
        return reverse("tenant-person", args=[tenant.slug, quota.user_id])
    return reverse("tenant-quotas", args=[tenant.slug])
