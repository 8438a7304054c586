"""Pages of all tenants, for operators: list what they use; create, change and switch off tenants."""

from datetime import datetime, timedelta

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
from portal.web.editions import locked_if_posted
from portal.web.row_locks import lock_row
from portal.web.sorting import choose_sort

PAGE = 50


@operator_required
@require_safe
def tenant_list(request: HttpRequest) -> HttpResponse:
    text, sort, now = request.GET.get("q", "").strip(), request.GET.get("sort", ""), timezone.now()
    sort = choose_sort(sort, ranking.TENANT_SORTS, ranking.TENANT_SORTS[0])
    found = Tenant.objects.annotate(members=Count("memberships"))
    for word in text.split()[:5]:
        found = found.filter(Q(name__icontains=word) | Q(slug__icontains=word))
    zone = zone_of(current_user(request))
    used = ranking.usage_by_tenant(zone, now)
    ids = ranking.rank_tenants(found, used, sort)
    page = Paginator(ids, PAGE).get_page(request.GET.get("page"))
    rows = {row.pk: row for row in found.filter(pk__in=list(page))}
    tightest = ranking.tightest_by_tenant(rows, zone, now)
    waiting = administration.waiting_for(current_user(request))
    context = {
        "zone": zone,
        "q": text,
        "sort": sort,
        "page": page,
        "rows": [(rows[pk], used.get(pk, ranking.Used()), tightest.get(pk)) for pk in page if pk in rows],
        "waiting": list(waiting[:PAGE]),
    }
    return render(request, "tenants/list.html", context)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def new_tenant(request: HttpRequest) -> HttpResponse:
    form = TenantForm(posted_forms.posted_data(request))
    return save_tenant(request, form, _("%(tenant)s was created. Next, add its people."))


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def edit_tenant(request: HttpRequest, slug: str) -> HttpResponse:
    known = get_object_or_404(Tenant, slug=slug)
    with locked_if_posted(request, lambda: lock_row(Tenant, known.pk)):
        tenant = get_object_or_404(Tenant, pk=known.pk)
        form = TenantForm(posted_forms.posted_data(request), instance=tenant)
        return save_tenant(request, form, _("%(tenant)s was changed."))


def save_tenant(request: HttpRequest, form: TenantForm, message: str) -> HttpResponse:
    """Save a tenant that is posted as it should be and show `message`; else show the form."""
    is_known = form.instance.pk is not None
    if request.method == "POST" and form.is_valid():
        tenant = form.save()
        messages.success(request, message % {"tenant": tenant})
        return redirect("tenant" if is_known else "tenant-people", tenant.slug)
    name = form.initial.get("name", "")
    context = {"name": name, "slug": form.initial.get("slug", "")}
    return posted_forms.render_form(request, "tenants/edit.html", form, context)


@operator_required
@require_http_methods(["GET", "HEAD", "POST"])
def switch_tenant(request: HttpRequest, slug: str) -> HttpResponse:
    """Switch a tenant on, or off after a page that asks: that stops all of its keys."""
    tenant = get_object_or_404(Tenant, slug=slug)
    if request.method == "POST":
        tenant.is_active = posted_forms.posted_choice(request, "to", "on", "off") == "on"
        tenant.save(update_fields=["is_active"])
        on, off = _("%(tenant)s is switched on."), _("%(tenant)s is switched off. Its keys no longer work.")
        messages.success(request, (on if tenant.is_active else off) % {"tenant": tenant})
        return redirect("tenant", slug)
    if not tenant.is_active:  # another tab was faster
        return redirect("tenant", slug)
    return render(request, "tenants/switch.html", {"tenant": tenant, **count_affected(tenant, timezone.now())})


def count_affected(tenant: Tenant, now: datetime) -> dict[str, int]:
    """Count the keys, people and services that would stop with the tenant, and the keys used within a day."""
    keys = ApiKey.objects.usable().filter(tenant=tenant)
    counts = keys.aggregate(
        keys=Count("pk", distinct=True),
        people=Count("user", distinct=True),
        services=Count("pk", distinct=True, filter=Q(user=None)),
    )
    return {**counts, "used_lately": keys.filter(last_used_at__gte=now - timedelta(days=1)).count()}
