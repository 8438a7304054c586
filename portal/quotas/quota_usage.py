"""What was spent of quotas since their windows began: of a few for a page, of all for a notice, by the same queries."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import F, QuerySet, Sum, Value

from portal.keys import lineage
from portal.quotas.models import Quota
from portal.quotas.policy import AppliedQuota
from portal.quotas.units import UNITS
from portal.quotas.windows import window_bounds
from portal.usage.models import Sums, UsageDay, UsageMonth, UsageTenantDay

# By which columns of the sums the use of an owner is found, in the words of policy.Scope.
OWNER: Mapping[str, tuple[str, ...]] = {
    "tenant": ("tenant",),
    "user": ("user",),
    "member": ("tenant", "user"),
    "key": ("key",),
}
# Ids in one condition; of more all are read, which is quicker than to name them.
NAMED = 500
CALENDAR = (Quota.Window.DAY, Quota.Window.MONTH)

# What adds up, by unit.
SUMMED = {name: unit.summed for name, unit in UNITS.items() if unit.summed is not None}

OF_PEOPLE = -1  # in place of the number of a group

CountedQuota = tuple[AppliedQuota, date]  # and the first day of its window
Group = tuple[str, type[Sums], date]  # what is summed alike: a scope, its table, the first day
Owner = tuple[Any, ...]
Used = dict[Owner, list[tuple[str, dict[str, int]]]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantMonth:
    """The use of a tenant in the month that begins on `first`."""

    tenant: int
    first: date


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRead:
    """What was used: of each bound, in its unit; by tenant and person, in each unit. Person None: by service keys."""

    by_bound: Mapping[AppliedQuota, int]
    by_person: Mapping[int, Mapping[int | None, Mapping[str, int]]]


def adds_up(quota: Quota) -> bool:
    """Return whether there is a sum to show: a minute is over before a page is read."""
    return quota.window in CALENDAR


def window_span(window: str, zone: ZoneInfo, now: datetime) -> tuple[date, datetime]:
    """Return the first day of the calendar window that holds `now`, and its end."""
    begin, end = window_bounds(window, now.timestamp(), zone)
    return datetime.fromtimestamp(begin, zone).date(), datetime.fromtimestamp(end, UTC)


def usage_since_start(counted: Sequence[CountedQuota]) -> list[int]:
    """Return what was used of each (bound, first day of its window), in their order. Queries as of `read_usage`."""
    used = read_usage(counted).by_bound
    return [used[bound] for bound, _ in counted]


def read_usage(
    counted: Iterable[CountedQuota],
    months: Collection[TenantMonth] = (),
    chained: Collection[int] | None = None,
) -> UsageRead:
    """Return what was used of each bound since the first day of its window, and by the people of tenants in a month.

    One query, in however many tables the sums are; one more for which keys are whose successors, if any bound is of a
    key, which goes on with what its predecessors used: of `chained`, where it is known which keys replaced another or
    were replaced. `bound.quota.model` must be there without a query. A bound has one first day wherever it is named.
    """
    begins = dict(counted)
    groups: dict[Group, list[AppliedQuota]] = defaultdict(list)
    for bound, begin in begins.items():
        groups[bound.scope, _table(bound), begin].append(bound)
    of_keys = {bound.key for bound in begins if bound.scope == "key" and bound.key is not None}
    if chained is not None:
        of_keys &= set(chained)
    lines = lineage.lineage_of(of_keys) if of_keys else lineage.Lineage(())
    numbered = list(groups)
    parts = [_sums_of(number, group, groups[group], lines) for number, group in enumerate(numbered)]
    parts += [_sums_of_people(month) for month in months]
    used: dict[Group, Used] = {group: defaultdict(list) for group in groups}
    people: dict[int, dict[int | None, dict[str, int]]] = defaultdict(dict)
    for number, first, second, model, *amounts in parts[0].union(*parts[1:], all=True) if parts else ():
        sums = dict(zip(SUMMED, map(int, amounts), strict=True))
        if number == OF_PEOPLE:
            people[first][second] = sums
        else:
            owner = (first, second)[: len(OWNER[numbered[number][0]])]
            used[numbered[number]][owner].append((model, sums))
    by_bound = {bound: _sum(bound, used[bound.scope, _table(bound), begin], lines) for bound, begin in begins.items()}
    return UsageRead(by_bound=by_bound, by_person=people)


def owner_of(bound: AppliedQuota) -> Owner:
    return tuple(getattr(bound, name) for name in OWNER[bound.scope])


def _table(bound: AppliedQuota) -> type[Sums]:
    """Return the table in which the fewest rows add up to it."""
    if bound.scope == "tenant":
        return UsageTenantDay
    return UsageMonth if bound.quota.window == Quota.Window.MONTH else UsageDay


def _sums_of(
    number: int, group: Group, bounds: Sequence[AppliedQuota], lines: lineage.Lineage
) -> QuerySet[Any, tuple[Any, ...]]:
    """Return (number, owner, second part of the owner, model, sums of SUMMED) of a group. Model "": of all of them."""
    scope, table, begin = group
    first, second = (*OWNER[scope], None)[:2]
    rows = table._default_manager.filter(**{f"{'month' if table is UsageMonth else 'day'}__gte": begin})
    return (
        _narrow_rows(rows, scope, bounds, lines)
        .order_by()
        .annotate(
            part=Value(number),
            first=F(f"{first}_id"),
            second=F(f"{second}_id") if second else Value(0),
            of_model=F("model") if any(bound.quota.model for bound in bounds) else Value(""),
        )
        .values_list("part", "first", "second", "of_model")
        .annotate(**{f"sum_{name}": Sum(summed, default=0) for name, summed in SUMMED.items()})
    )


def _sums_of_people(month: TenantMonth) -> QuerySet[Any, tuple[Any, ...]]:
    """Return (OF_PEOPLE, tenant, person, "", sums of SUMMED) of a month of a tenant; person None: of service keys."""
    return (
        UsageMonth.objects.filter(tenant=month.tenant, month=month.first)
        .order_by()
        .annotate(part=Value(OF_PEOPLE), first=F("tenant_id"), second=F("user_id"), of_model=Value(""))
        .values_list("part", "first", "second", "of_model")
        .annotate(**{f"sum_{name}": Sum(summed, default=0) for name, summed in SUMMED.items()})
    )


def _narrow_rows(
    rows: QuerySet[Sums], scope: str, bounds: Sequence[AppliedQuota], lines: lineage.Lineage
) -> QuerySet[Sums]:
    for name in OWNER[scope]:
        ids = {getattr(bound, name) for bound in bounds}
        if scope == "key":
            ids = {one for key in ids for one in lines.chain(key)}
        if len(ids) <= NAMED:
            rows = rows.filter(**{f"{name}_id__in": ids})
    return rows


def _sum(bound: AppliedQuota, used: Used, lines: lineage.Lineage) -> int:
    model = bound.quota.model
    owners = [owner_of(bound)] if bound.key is None else [(key,) for key in lines.chain(bound.key)]
    rows = [row for owner in owners for row in used.get(owner, ())]
    return sum(sums[bound.quota.unit] for used_model, sums in rows if model is None or model.name == used_model)
