"""What was spent of quotas since their windows began: of a few for a page, of all for a notice, by the same queries."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import Q, QuerySet, Sum

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

Owner = tuple[Any, ...]
Used = dict[Owner, list[tuple[str, dict[str, int]]]]


def adds_up(quota: Quota) -> bool:
    """Return whether there is a sum to show: a minute is over before a page is read."""
    return quota.window in CALENDAR


def window_span(window: str, zone: ZoneInfo, now: datetime) -> tuple[date, datetime]:
    """Return the first day of the calendar window that holds `now`, and its end."""
    begin, end = window_bounds(window, now.timestamp(), zone)
    return datetime.fromtimestamp(begin, zone).date(), datetime.fromtimestamp(end, UTC)


def usage_since_start(counted: Sequence[tuple[AppliedQuota, date]]) -> list[int]:
    """Return what was used of each (bound, first day of its window), in their order.

    One query for each scope among them; two where both days and months count, which are summed in tables of their own;
    one for which keys are whose successors. A key goes on with what its predecessors used.
    `bound.quota.model` must be there without a query.
    """
    groups: dict[tuple[str, type[Sums]], list[tuple[AppliedQuota, date]]] = defaultdict(list)
    for bound, begin in counted:
        groups[bound.scope, _table(bound)].append((bound, begin))
    of_keys = {bound.key for bound, _ in counted if bound.scope == "key" and bound.key is not None}
    lines = lineage.lineage_of(of_keys) if of_keys else lineage.Lineage(())
    used = {group: _sum_usage(*group, some, lines) for group, some in groups.items()}
    return [_sum(bound, begin, used[bound.scope, _table(bound)], lines) for bound, begin in counted]


def owner_of(bound: AppliedQuota) -> Owner:
    return tuple(getattr(bound, name) for name in OWNER[bound.scope])


def _table(bound: AppliedQuota) -> type[Sums]:
    """Return the table in which the fewest rows add up to it."""
    if bound.scope == "tenant":
        return UsageTenantDay
    return UsageMonth if bound.quota.window == Quota.Window.MONTH else UsageDay


def _sum_usage(
    scope: str, table: type[Sums], counted: Sequence[tuple[AppliedQuota, date]], lines: lineage.Lineage
) -> Used:
    """Return (model, sums) by owner, the sums named by `_name`. Model "": all together, if no bound is for one."""
    begins = {begin for _, begin in counted}
    column = "month" if table is UsageMonth else "day"
    sums = {}
    for begin in begins:
        since = Q(**{f"{column}__gte": begin})
        for unit in UNITS.values():
            if unit.summed is not None:
                sums[_name(unit.name, begin)] = Sum(unit.summed, filter=since, default=0)
    owner = [f"{name}_id" for name in OWNER[scope]]
    by_model = ["model"] if any(bound.quota.model for bound, _ in counted) else []
    rows = table._default_manager.filter(**{f"{column}__gte": min(begins)})
    found: Used = defaultdict(list)
    for row in _narrow_rows(rows, scope, counted, lines).values(*owner, *by_model).annotate(**sums).order_by():
        found[tuple(row[name] for name in owner)].append((row.get("model", ""), row))
    return found


def _narrow_rows(
    rows: QuerySet[Sums], scope: str, counted: Sequence[tuple[AppliedQuota, date]], lines: lineage.Lineage
) -> QuerySet[Sums]:
    for name in OWNER[scope]:
        ids = {getattr(bound, name) for bound, _ in counted}
        if scope == "key":
            ids = {one for key in ids for one in lines.chain(key)}
        if len(ids) <= NAMED:
            rows = rows.filter(**{f"{name}_id__in": ids})
    return rows


def _sum(bound: AppliedQuota, begin: date, used: Used, lines: lineage.Lineage) -> int:
    name, model = _name(bound.quota.unit, begin), bound.quota.model
    owners = [owner_of(bound)] if bound.key is None else [(key,) for key in lines.chain(bound.key)]
    rows = [row for owner in owners for row in used.get(owner, ())]
    return sum(sums[name] for used_model, sums in rows if model is None or model.name == used_model)


def _name(unit: str, begin: date) -> str:
    return f"{unit}_{begin:%Y%m%d}"
