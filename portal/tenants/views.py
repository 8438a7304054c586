"""A tenant at a glance, and its keys."""

from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_safe

from portal.accounts import tenancy
from portal.accounts.models import Membership, Tenant
from portal.accounts.tenancy import me
from portal.console import today
from portal.keys import keyring
from portal.metering import allowance, giving, nearness, wishes
from portal.metering.models import UsageTenantDay
from portal.tenants import ranking
from portal.tenants.gates import for_admins

TOP = 8  # lines of a list on the overview; all of them are a link away
PAGE = 50


@for_admins
@require_safe
def overview(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    now = timezone.now()
    days = ranking.month_of(tenant, now)
    by_user, by_key = ranking.used_by(days, "user_id"), ranking.used_by(days, "key_id")
    walls = nearness.walls_of(tenant, now)
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "usage": today.recent(UsageTenantDay.objects.filter(tenant=tenant), tenant.zone, now),
        "active": sum(user is not None for user in by_user),
        "members": Membership.objects.filter(tenant=tenant).count(),
        "bars": wishes.bars(me(request), allowance.of_tenant(tenant, now)),
        "waiting": list(giving.waiting_for(me(request)).filter(tenant=tenant)[:TOP]),
        "walls": nearness.told([wall for wall in walls if wall.bound.scope != "tenant"][:TOP], tenant),
        "more_walls": max(0, sum(wall.bound.scope != "tenant" for wall in walls) - TOP),
        "people": ranking.top_people(by_user, TOP),
        "keys": ranking.top_keys(by_key, TOP),
        "admins": tenancy.admins_of(tenant)[:TOP],
    }
    return render(request, "tenants/overview.html", context)


@for_admins
@require_safe
def keys(request: HttpRequest, tenant: Tenant) -> HttpResponse:
    text = request.GET.get("q", "").strip()
    services = keyring.service_keys_of(tenant)
    page = Paginator(ranking.holders(tenant, text), PAGE).get_page(request.GET.get("page"))
    used = ranking.used_by(ranking.month_of(tenant, timezone.now()), "user_id")
    context = {
        "tenant": tenant,
        "zone": tenant.zone,
        "q": text,
        "services": keyring.held(services.filter(keyring.is_usable()), timezone.now()),
        "ended": keyring.held(services.exclude(keyring.is_usable()), timezone.now())[:PAGE],
        "page": page,
        "holders": [(row, used.get(row.user_id, ranking.Used())) for row in page],
    }
    return render(request, "tenants/keys.html", context)
