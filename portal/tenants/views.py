"""A tenant at a glance, and its keys."""

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from portal.accounts import permissions
from portal.accounts.decorators import tenant_admin_required
from portal.accounts.models import Membership, Tenant
from portal.accounts.permissions import current_user
from portal.keys import queries
from portal.quotas import administration, alerts, request_pages, status
from portal.tenants import ranking
from portal.usage import recent_usage
from portal.usage.models import UsageTenantDay
from portal.web.sorting import choose_sort

TOP = 8  # lines of a list on the overview; all of them are a link away
PAGE = 50


@tenant_admin_required
@require_safe
def overview(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    now = timezone.now()
    month = ranking.usage_this_month(tenant, now)
    by_user, by_key = ranking.usage_by(month, "user_id"), ranking.usage_by(month, "key_id")
    near_limit = [alert for alert in alerts.alerts_of(tenant, now) if alert.bound.scope != "tenant"]
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "usage": recent_usage.read_recent_usage(UsageTenantDay.objects.filter(tenant=tenant), tenant.zone, now),
        "active": sum(user is not None for user in by_user),
        "members": Membership.objects.filter(tenant=tenant).count(),
        "bars": request_pages.quota_bars(current_user(request), status.allowances_of_tenant(tenant, now)),
        "waiting": list(administration.waiting_for(current_user(request)).filter(tenant=tenant)[:TOP]),
        "near_limit": alerts.read_allowances(near_limit[:TOP], tenant),
        "more_near_limit": max(0, len(near_limit) - TOP),
        "people": ranking.top_people(by_user, TOP),
        "keys": ranking.top_keys(by_key, TOP),
        "admins": permissions.admins_of(tenant)[:TOP],
    }
    return render(request, "tenants/overview.html", context)


@tenant_admin_required
@require_safe
def key_list(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    text, sort = request.GET.get("q", "").strip(), request.GET.get("sort", "")
    sort = choose_sort(sort, ranking.HOLDER_SORTS, "last-used")
    services_sort = choose_sort(request.GET.get("services", ""), queries.SORTS, "newest")
    services = queries.sort_keys(queries.service_keys_of(tenant), services_sort)
    page = Paginator(ranking.key_holders(tenant, text, sort), PAGE).get_page(request.GET.get("page"))
    used = ranking.usage_by(ranking.usage_this_month(tenant, timezone.now()), "user_id")
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "q": text,
        "sort": sort,
        "services_sort": services_sort,
        "services": queries.key_rows(services.filter(queries.is_usable()), timezone.now()),
        "ended": queries.key_rows(services.exclude(queries.is_usable()), timezone.now())[:PAGE],
        "page": page,
        "holders": [(row, used.get(row.user_id, ranking.Used())) for row in page],
    }
    return render(request, "tenants/keys.html", context)
