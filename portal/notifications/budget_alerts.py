"""Notify the admins of tenants whose usage of the month costs four fifths of their budget, or all of it."""

from datetime import date, datetime
from decimal import Decimal

from django.db import transaction
from django.urls import reverse

from portal.accounts import permissions
from portal.accounts.models import Tenant
from portal.notifications.models import Notice
from portal.prices.models import TenantBudget
from portal.prices.price_list import round_yen
from portal.usage.costs import read_spending
from portal.web.notify import notify

NEAR, REACHED = "budget-near", "budget-reached"
NEAR_PERCENT = 80


def notify_near_budgets(now: datetime) -> int:
    """Notify each tenant's admins, or operators where it has none, once a month of each. Returns the number of notices.

    To be repeated every few minutes. A changed budget counts as a new one.
    """
    budgets = list(TenantBudget.objects.filter(tenant__is_active=True).select_related("tenant"))
    months = {one.tenant_id: now.astimezone(one.tenant.zone).date().replace(day=1) for one in budgets}
    spent = read_spending([one.tenant for one in budgets], months)
    sent = 0
    for one in budgets:
        used = spent.get(one.tenant_id, Decimal(0))
        if 100 * used >= NEAR_PERCENT * one.yen:
            sent += _notify(one, used, months[one.tenant_id])
    return sent


def _notify(budget: TenantBudget, used: Decimal, month: date) -> int:
    tenant: Tenant = budget.tenant
    kind = REACHED if used >= budget.yen else NEAR
    ref = f"{tenant.pk} {month:%Y-%m} {budget.yen}"
    if Notice.objects.filter(kind=kind, ref=ref).exists():
        return 0
    people = list(permissions.admins_of(tenant)) or list(permissions.operators())
    facts = {
        "tenant": tenant.name,
        "yen": budget.yen,
        "spent": round_yen(used),
        "percent": int(100 * used / budget.yen),
    }
    with transaction.atomic():
        notify(people, kind, ref, path=f"{reverse('usage')}?of=tenant:{tenant.slug}", **facts)
    return 1
