"""What quotas leave to a person: their tenants', their own, their keys'. Read from what was recorded, for pages.

Gateways decide by counters of their own, which also hold what is reserved for requests in flight, so a page may
show a little more left than the next request would find.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, Q, Sum

from portal.accounts.models import Tenant, User
from portal.metering.models import Quota, UsageDay
from portal.metering.windows import bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """One quota as it stands. `model` "" = all together. `spent`, `renews_at`: None where nothing adds up over time."""

    of: str  # "tenant", "user" or "key"
    owner: str
    model: str
    unit: str
    window: str
    amount: int
    spent: int | None = None
    renews_at: datetime | None = None

    @property
    def left(self) -> int:
        return max(0, self.amount - (self.spent or 0))

    @property
    def percent(self) -> int:
        """How much is used up, 0 to 100; rounded down, so 100 means that nothing is left."""
        return min(100, 100 * (self.spent or 0) // self.amount) if self.amount else 100

    @property
    def level(self) -> str:
        """ "fine", "watch" from four fifths, "broken" when nothing is left."""
        if self.percent >= 100:
            return "broken"
        return "watch" if self.percent >= 80 else "fine"


def allowances(user: User, zone: ZoneInfo, now: datetime) -> list[Allowance]:
    """Every quota that bounds this person, with what was spent of it in its window; rates last. Two queries."""
    quotas = list(
        Quota.objects.filter(
            Q(tenant__in=Tenant.objects.filter(memberships__user=user, is_active=True))
            | Q(user=user)
            | Q(key__user=user, key__revoked_at=None)
        )
        .select_related("tenant", "user", "key__tenant", "model")
        .order_by(F("key").asc(nulls_first=True), F("user").asc(nulls_last=True), "tenant", "unit", "window", "model")
    )
    spans = {quota.pk: span(quota, zone, now) for quota in quotas if quota.window in ("day", "month")}
    spent = spending([quota for quota in quotas if quota.pk in spans], {pk: first for pk, (first, _) in spans.items()})
    found = [
        allowance(quota, spent.get(quota.pk), spans[quota.pk][1] if quota.pk in spans else None) for quota in quotas
    ]
    return sorted(found, key=lambda one: one.spent is None)


def span(quota: Quota, zone: ZoneInfo, now: datetime) -> tuple[date, datetime]:
    """The first day of the window that holds `now`, and its end: by the tenant's zone, for a person by `zone`."""
    tenant = quota.tenant or (quota.key.tenant if quota.key else None)
    where = tenant.zone if tenant else zone
    begin, end = bounds(quota.window, now.timestamp(), where)
    return datetime.fromtimestamp(begin, where).date(), datetime.fromtimestamp(end, UTC)


def spending(quotas: Iterable[Quota], begins: dict[int, date]) -> dict[int, int]:
    """What was spent of each, by primary key. One query, whatever their number; none for none."""
    sums: dict[str, Any] = {}
    any_of = Q()
    for quota in quotas:
        mine = within(quota, begins[quota.pk])
        unit = F("requests") if quota.unit == Quota.Unit.REQUESTS else F("prompt_tokens") + F("completion_tokens")
        sums[f"q{quota.pk}"] = Sum(unit, filter=mine, default=0)
        any_of |= mine
    if not sums:
        return {}
    return {int(name[1:]): value for name, value in UsageDay.objects.filter(any_of).aggregate(**sums).items()}


def within(quota: Quota, begin: date) -> Q:
    """The sums of days that count against this quota since `begin`."""
    of = {name: getattr(quota, f"{name}_id") for name in ("tenant", "user", "key")}
    mine = Q(day__gte=begin, **{f"{name}_id": pk for name, pk in of.items() if pk is not None})
    return mine & Q(model=quota.model.name) if quota.model else mine


def allowance(quota: Quota, spent: int | None, renews_at: datetime | None) -> Allowance:
    of = "tenant" if quota.tenant else "user" if quota.user else "key"
    owner = quota.tenant or quota.user or quota.key
    return Allowance(
        of=of,
        owner=quota.key.name if quota.key else str(owner),
        model=quota.model.name if quota.model else "",
        unit=quota.unit,
        window=quota.window,
        amount=quota.amount,
        spent=spent,
        renews_at=renews_at,
    )
