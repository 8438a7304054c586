"""What the home page shows: what needs an operator, what needs a tenant admin, then what an employee asks first."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from portal.accounts.models import Membership, Tenant, User
from portal.keys.expiry_notifications import without_successor
from portal.keys.models import ApiKey
from portal.operations.attention import OperationsAttention, read_attention
from portal.operations.overview import read_overview
from portal.quotas import alerts
from portal.quotas.request_pages import QuotaBar
from portal.tenants import ranking
from portal.tenants.ranking import Used

EXPIRING = timedelta(days=14)
# Tenants of one admin with figures, each of which takes some queries. The others are in the bar on top.
MOST_TENANTS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSection:
    """What needs an operator. `expiring`: service keys that stop within EXPIRING and have no successor."""

    attention: OperationsAttention
    expiring: int
    answering: int  # models
    wanted: int

    @property
    def is_calm(self) -> bool:
        return not (self.attention.is_needed or self.expiring)


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantSection:
    """A tenant at a glance, for its admin: this month, and how many people and keys are near a limit."""

    tenant: Tenant
    used: Used
    active: int  # people with any use this month
    near_limit: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TightestLimit:
    """A person's quotas: the one that will stop them first, and the rest."""

    tightest: QuotaBar | None
    others: tuple[QuotaBar, ...]


def read_operator_section(now: datetime) -> OperatorSection:
    """Read it. Ten queries at most, however many hosts and models there are."""
    overview = read_overview(now, {})
    services = without_successor(ApiKey.objects.usable().filter(user=None))
    return OperatorSection(
        attention=read_attention(overview, now),
        expiring=services.filter(expires_at__lt=now + EXPIRING).count(),
        answering=overview.answering,
        wanted=len(overview.wanted),
    )


def read_tenant_sections(user: User, now: datetime) -> list[TenantSection]:
    """Read the tenants that this person is an admin of, the first MOST_TENANTS by name. Twelve queries at most."""
    mine = Tenant.objects.filter(
        memberships__user=user, memberships__role=Membership.Role.ADMIN, is_active=True
    ).order_by("name", "pk")
    tenants = list(mine[:MOST_TENANTS])
    near = _count_near_limits(tenants, now) if tenants else {}
    return [_tenant_section(tenant, near.get(tenant.pk, 0), now) for tenant in tenants]


def _count_near_limits(tenants: list[Tenant], now: datetime) -> Counter[int]:
    """Count the members' and keys' quotas of which four fifths are used, by tenant. Eight queries at most."""
    field = replace(alerts.read_field(tenants), zones={})  # not what members have everywhere, as on the tenant's page
    bounds = [alert.bound for alert in alerts.find_alerts(field, now) if alert.bound.scope != "tenant"]
    return Counter(field.keys[bound.key].tenant_id if bound.key is not None else bound.tenant or 0 for bound in bounds)


def _tenant_section(tenant: Tenant, near_limit: int, now: datetime) -> TenantSection:
    by_user = ranking.usage_by(ranking.usage_this_month(tenant, now), "user_id")
    return TenantSection(
        tenant=tenant,
        used=Used(
            tokens=sum(one.tokens for one in by_user.values()), requests=sum(one.requests for one in by_user.values())
        ),
        active=sum(user is not None for user in by_user),
        near_limit=near_limit,
    )


def find_tightest(bars: Sequence[QuotaBar]) -> TightestLimit:
    """Return the quota that stops the person first: one that blocks, else the one of which most is used.

    Rates and calls at the same time use nothing up, so they are first only where there is nothing else.
    """
    if not bars:
        return TightestLimit(tightest=None, others=())

    def tightness(bar: QuotaBar) -> tuple[bool, bool, int]:
        one = bar.allowance
        return one.amount == 0, one.spent is not None, one.percent if one.spent is not None else 0

    tightest = max(bars, key=tightness)
    return TightestLimit(tightest=tightest, others=tuple(bar for bar in bars if bar is not tightest))
