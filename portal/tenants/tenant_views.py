"""All tenants, for operators: which there are, what they use, new ones, changes, switching off."""

from datetime import datetime, timedelta
from typing import Any

from django.contrib import messages
from django.core.paginator import Paginator
from django.db.models import Count, Q
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from portal.accounts.decorators import operator_required
from portal.accounts.models import Tenant
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys.models import ApiKey
from portal.quotas import administration
from portal.tenants import ranking
from portal.tenants.forms import TenantForm
from portal.web import posted_forms

PAGE = 50


@operator_required
@require_safe
def tenants(request: HttpRequest) -> HttpResponse:
    text, now = request.GET.get("q", "").strip(), timezone.now()
    found = Tenant.objects.annotate(members=Count("memberships"))
    for word in text.split()[:5]:
        found = found.filter(Q(name__icontains=word) | Q(slug__icontains=word))
    zone = zone_of(current_user(request))
    used = ranking.used_by_tenants(zone, now)
    ids = ranking.tenants_by_use(found, used)
    page = Paginator(ids, PAGE).get_page(request.GET.get("page"))
    rows = {row.pk: row for row in found.filter(pk__in=list(page))}
    tightest = ranking.tightest_of(rows, zone, now)
    waiting = administration.waiting_for(current_user(request))
    context = {
        "zone": zone,
        "q": text,
        "page": page,
        "rows": [(rows[pk], used.get(pk, ranking.Used()), tightest.get(pk)) for pk in page if pk in rows],
        "waiting": list(waiting[:PAGE]),
    }
    return render(request, "tenants/list.html", context)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def new(request: HttpRequest) -> HttpResponse:
    return filled_in(request, TenantForm(request.POST or None), _("%(tenant)s is created. Add its people next."))


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit(request: HttpRequest, slug: str) -> HttpResponse:
    tenant = get_object_or_404(Tenant, slug=slug)
    return filled_in(request, TenantForm(request.POST or None, instance=tenant), _("%(tenant)s is changed."))


def filled_in(request: HttpRequest, form: TenantForm, said: str) -> HttpResponse:
    known = form.instance.pk is not None
    if request.method == "POST" and form.is_valid():
        tenant = form.save()
        messages.success(request, said % {"tenant": tenant})
        return redirect("tenant" if known else "tenant-people", tenant.slug)
    name = form.initial.get("name", "")
    return render(request, "tenants/edit.html", {"form": form, "name": name, "slug": form.initial.get("slug", "")})


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def switch(request: HttpRequest, slug: str) -> HttpResponse:
    """Off asks first, for it stops every key; on does not."""
    tenant = get_object_or_404(Tenant, slug=slug)
    if request.method == "POST":
        tenant.is_active = posted_forms.posted_choice(request, "to", "on", "off") == "on"
        tenant.save(update_fields=["is_active"])
        said = _("%(tenant)s is switched on.") if tenant.is_active else _("%(tenant)s is switched off; its keys stop.")
        messages.success(request, said % {"tenant": tenant})
        return redirect("tenant", slug)
    return render(request, "tenants/switch.html", {"tenant": tenant, **consequences(tenant, timezone.now())})


def consequences(tenant: Tenant, now: datetime) -> dict[str, Any]:
    """Whom it would hit."""
    keys = ApiKey.objects.usable().filter(tenant=tenant)
    counted = keys.aggregate(
        keys=Count("pk", distinct=True),
        people=Count("user", distinct=True),
        services=Count("pk", distinct=True, filter=Q(user=None)),
    )
    lately = keys.filter(last_used_at__gte=now - timedelta(days=1)).count()
    return {**counted, "lately": lately}
