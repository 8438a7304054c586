"""What the home page shows: what needs an operator, what needs a tenant admin, then what an employee asks first."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.db.models import Count, Value

from modelregistry.models import ServedModel
from portal.accounts.models import Tenant, User
from portal.accounts.permissions import may_operate
from portal.keys import lineage
from portal.keys.expiry_notifications import without_successor
from portal.keys.models import ApiKey
from portal.operations.attention import OperationsAttention, read_attention
from portal.operations.overview import view_overview
from portal.quotas import administration, alerts, policy, quota_usage, status
from portal.quotas.request_pages import QuotaBar
from portal.quotas.status import Allowance
from portal.quotas.units import REQUESTS, TOKENS
from portal.tenants import ranking
from portal.tenants.ranking import Used

EXPIRING = timedelta(days=14)
# Tenants of one admin with figures, each of which takes some queries. The others are in the bar on top.
MOST_TENANTS = 3
MOST_TENANTS_WAITING = 5  # with requests that wait


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSection:
    """Hosts and models as an operator looks at them first."""

    attention: OperationsAttention
    answering: int  # models
    wanted: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeTasks:
    """What waits for the person. `requests`: (short name and name of a tenant, how many), the most first.

    `expiring`: service keys that stop within EXPIRING and have no successor, for operators.
    """

    requests: list[tuple[str, str, int]]
    expiring: int


def read_tasks(user: User, now: datetime) -> HomeTasks:
    """Read it, of MOST_TENANTS_WAITING tenants. One query."""
    found = administration.count_waiting(user)
    if may_operate(user):
        services = without_successor(ApiKey.objects.usable().filter(user=None, expires_at__lt=now + EXPIRING))
        expiring = services.order_by().annotate(slug=Value(""), of=Value("")).values_list("slug", "of")
        found = found.union(expiring.annotate(number=Count("pk")), all=True)
    counted = sorted(found, key=lambda row: (-row[2], row[0]))
    return HomeTasks(
        requests=[row for row in counted if row[0]][:MOST_TENANTS_WAITING],
        expiring=sum(number for slug, _, number in counted if not slug),
    )


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


def read_operator_section(served: Sequence[ServedModel], now: datetime) -> OperatorSection:
    """Read it, of all models as `prefetch_models` gives them. Three queries, and those for what needs attention."""
    overview = view_overview(served, now, {})
    return OperatorSection(
        attention=read_attention(overview, now),
        answering=overview.answering,
        wanted=len(overview.wanted),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeQuotas:
    """`own`: every quota that bounds the person. `administered`: their tenants at a glance."""

    own: list[Allowance]
    administered: list[TenantSection]


def read_quotas(
    user: User,
    zone: ZoneInfo,
    now: datetime,
    tenants: Iterable[Tenant],
    keys: Iterable[ApiKey],
    administered: Sequence[Tenant],
) -> HomeQuotas:
    """Read the quotas and use of a person and of the tenants that they administer together. Five queries at most."""
    names = status.Names(
        zone=zone,
        tenants={tenant.pk: tenant for tenant in tenants},
        users={user.pk: user},
        keys={key.pk: key for key in keys},
    )
    field = None
    if administered:
        also = policy.applying_to(tenants=list(names.tenants), users=[user.pk], keys=list(names.keys))
        # Not what members have everywhere, as on the tenant's page.
        field = replace(alerts.read_field(administered, also), zones={})
    rules = field.rules if field else status.rules_for(tenants=names.tenants, users=[user.pk], keys=names.keys)
    bounds = status.bounds_of_person(user, names, rules)
    watched = [one for one in alerts.list_counted(field, now) if one[0].scope != "tenant"] if field else []
    used = quota_usage.read_usage(
        [*status.list_counted(bounds, names, now), *watched],
        [quota_usage.TenantMonth(tenant=tenant.pk, first=ranking.this_month(tenant, now)) for tenant in administered],
        chained=lineage.find_chained([*names.keys.values(), *(field.keys.values() if field else ())]),
    )
    near = alerts.choose_alerts(watched, field, now, used.by_bound) if field else []
    count = Counter(field.home_of(alert.bound) for alert in near) if field else Counter[int]()
    return HomeQuotas(
        own=status.show_allowances(bounds, names, now, used.by_bound),
        administered=[
            TenantSection(
                tenant=tenant,
                used=Used(
                    tokens=sum(sums[TOKENS.name] for sums in used.by_person.get(tenant.pk, {}).values()),
                    requests=sum(sums[REQUESTS.name] for sums in used.by_person.get(tenant.pk, {}).values()),
                ),
                active=sum(user is not None for user in used.by_person.get(tenant.pk, {})),
                near_limit=count[tenant.pk],
            )
            for tenant in administered
        ],
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
