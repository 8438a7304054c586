"""How much the people, keys and tenants used this month, for lists of up to 2,000 lines that are read page by page."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from operator import attrgetter
from typing import Any
from zoneinfo import ZoneInfo

from django.db.models import Count, F, Max, Q, QuerySet

from portal.accounts import membership
from portal.accounts.models import Membership, Tenant, User
from portal.keys.models import ApiKey
from portal.quotas import quota_usage, status
from portal.quotas.status import Allowance, Names
from portal.usage import periods, records
from portal.usage.models import UsageMonth, UsageTenantDay
from portal.web.sorting import column_of, is_turned, turn_order
from portal.web.templatetags.formatting import person

SORTS = ("use", "name", "requests")
TENANT_SORTS = ("use", "name", "requests", "members")


@dataclass(frozen=True, slots=True, kw_only=True)
class Used:
    """What a person, a key or a tenant used this month."""

    tokens: int = 0
    requests: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRow:
    """A line of the list of people. `tightest`: the person's quota of which most is used; None without any."""

    membership: Membership
    used: Used
    tightest: Allowance | None

    @property
    def user(self) -> User:
        return self.membership.user


def usage_this_month(tenant: Tenant, now: datetime) -> QuerySet[UsageMonth]:
    """Return this month's usage of the tenant, a row for each key and model."""
    return UsageMonth.objects.filter(tenant=tenant, month=this_month(tenant, now))


def this_month(tenant: Tenant, now: datetime) -> date:
    """Return the first day of this month in the tenant's calendar."""
    return periods.parse_period("this-month", now, tenant.zone).first


def usage_by(sums: QuerySet[Any], column: str) -> dict[int | None, Used]:
    """Return the usage by the value of `column`. One query."""
    rows = records.sum_by(sums, column)
    return {row[column]: Used(tokens=row["total_tokens"], requests=row["requests"]) for row in rows}


def rank_members(found: QuerySet[Membership], used: dict[int | None, Used], sort: str) -> list[int]:
    """Return the ids of these memberships, by tokens or requests (most first) or by name, or the other way round.

    One query of narrow rows: 2,000 are sorted here in milliseconds.
    """
    rows = found.values_list("pk", "user_id", "user__last_name", "user__first_name", "user__username")
    none, turned = Used(), is_turned(sort)
    if column_of(sort) == "name":
        ranked = sorted(rows, key=lambda row: [part.casefold() for part in row[2:]], reverse=turned)
    else:
        number = attrgetter("requests" if column_of(sort) == "requests" else "tokens")
        ranked = sorted(rows, key=lambda row: row[4].casefold())
        ranked.sort(key=lambda row: number(used.get(row[1], none)), reverse=not turned)
    return [row[0] for row in ranked]


def member_rows(tenant: Tenant, ids: Sequence[int], used: dict[int | None, Used], now: datetime) -> list[MemberRow]:
    """Return the lines for these memberships, in their order. Four queries at most."""
    rows = {row.pk: row for row in membership.members_of(tenant).filter(pk__in=ids)}
    users = {row.user_id: row.user for row in rows.values()}
    rules = status.rules_for(tenants=[tenant.pk], users=users)
    bounds = [bound for user in users for bound in rules.member(tenant.pk, user) if quota_usage.adds_up(bound.quota)]
    names = Names(zone=tenant.zone, tenants={tenant.pk: tenant}, users=users)
    tightest = _tightest_by_owner([bound.user for bound in bounds], status.read_allowances(bounds, names, now))
    return [
        MemberRow(
            membership=rows[pk],
            used=used.get(rows[pk].user_id, Used()),
            tightest=tightest.get(rows[pk].user_id),
        )
        for pk in ids
        if pk in rows
    ]


def usage_by_tenant(zone: ZoneInfo, now: datetime) -> dict[int | None, Used]:
    """Return this month's usage by tenant, in the calendar of `zone` whatever zone a tenant has. One query."""
    month = periods.parse_period("this-month", now, zone)
    return usage_by(UsageTenantDay.objects.filter(day__range=(month.first, month.last)), "tenant_id")


def rank_tenants(found: QuerySet[Any], used: dict[int | None, Used], sort: str) -> list[int]:
    """Return the ids of these tenants, which have `members`, by one of TENANT_SORTS: the active ones, then the others.

    By usage or members (most first) or by name, or the other way round. One query of narrow rows.
    """
    none = Used()
    keys: dict[str, Callable[[Any], Any]] = {
        "use": lambda row: -used.get(row[0], none).tokens,
        "requests": lambda row: -used.get(row[0], none).requests,
        "members": lambda row: -row[4],
        "name": lambda row: row[3].casefold(),
    }
    rows = sorted(found.values_list("pk", "slug", "is_active", "name", "members"), key=lambda row: row[1])
    rows.sort(key=keys[column_of(sort)], reverse=is_turned(sort))
    return [row[0] for row in sorted(rows, key=lambda row: not row[2])]


def tightest_by_tenant(tenants: Mapping[int, Tenant], zone: ZoneInfo, now: datetime) -> dict[int | None, Allowance]:
    """Return for each tenant the quota of which most is used. Two queries."""
    rules = status.rules_for(tenants=tenants)
    bounds = [bound for pk in tenants for bound in rules.tenant(pk) if quota_usage.adds_up(bound.quota)]
    names = Names(zone=zone, tenants=tenants)
    return _tightest_by_owner([bound.tenant for bound in bounds], status.read_allowances(bounds, names, now))


def _tightest_by_owner(owners: Sequence[int | None], allowances: Sequence[Allowance]) -> dict[int | None, Allowance]:
    found: dict[int | None, Allowance] = {}
    for owner, one in zip(owners, allowances, strict=True):
        if owner not in found or one.percent > found[owner].percent:
            found[owner] = one
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Top:
    """A person or a key among those with the most usage. `share`: per cent of the first one's usage, for its bar."""

    label: str
    detail: str
    used: Used
    share: int
    prefix: str = ""
    user: int | None = None


def top_people(used: dict[int | None, Used], count: int) -> list[Top]:
    """Return the people with the most usage, most first. One query."""
    first = _first_by_tokens({who: one for who, one in used.items() if who is not None}, count)
    people = User.objects.in_bulk([who for who, _ in first])
    return [
        Top(label=person(people[who]), detail=people[who].username, used=one, share=_share(one, first), user=who)
        for who, one in first
        if who in people
    ]


def top_keys(used: dict[int | None, Used], count: int) -> list[Top]:
    """Return the keys with the most usage, most first. One query."""
    first = _first_by_tokens(used, count)
    keys = ApiKey.objects.select_related("user").in_bulk([key for key, _ in first])
    return [
        Top(
            label=keys[pk].name,
            detail=_holder_of(keys[pk]),
            used=one,
            share=_share(one, first),
            prefix="" if keys[pk].user_id else keys[pk].prefix,
        )
        for pk, one in first
        if pk in keys
    ]


def _holder_of(key: ApiKey) -> str:
    return person(key.user) if key.user else key.service


def _first_by_tokens(used: dict[int | None, Used], count: int) -> list[tuple[int | None, Used]]:
    return sorted(used.items(), key=lambda pair: -pair[1].tokens)[:count]


def _share(one: Used, first: Sequence[tuple[int | None, Used]]) -> int:
    return 100 * one.tokens // max(1, first[0][1].tokens)


HOLDER_SORTS: dict[str, tuple[Any, ...]] = {
    "last-used": (F("last_used").desc(nulls_last=True),),
    "keys": ("-keys",),
    "name": ("user__last_name", "user__username"),
}


def key_holders(tenant: Tenant, text: str = "", sort: str = "last-used") -> QuerySet[Membership]:
    """Return the members who have personal keys that are not revoked.

    Each with the number of these `keys` and when one of them was `last_used`.
    """
    order = HOLDER_SORTS[column_of(sort)]
    mine = Q(user__keys__tenant=tenant, user__keys__revoked_at=None, user__keys__is_playground=False)
    return (
        membership.members_of(tenant, text)
        .annotate(keys=Count("user__keys", filter=mine), last_used=Max("user__keys__last_used_at", filter=mine))
        .filter(keys__gt=0)
        .order_by(*(turn_order(order) if is_turned(sort) else order), "pk")
    )
