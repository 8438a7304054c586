"""What usage of a scope in a period costs, by tenant, month and model, where prices are set (`portal.prices`)."""

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from typing import Any

from django.db.models import Case, DateField, Value, When

from portal.accounts.models import Tenant
from portal.accounts.tenant_names import TenantName, read_tenant_names
from portal.prices import price_list
from portal.prices.models import TenantBudget, TokenPrice
from portal.prices.price_list import PriceList, round_yen
from portal.usage.models import UsageTenantDay
from portal.usage.periods import Period, next_month
from portal.usage.report import sum_as_integer
from portal.usage.scopes import UsageScope

TOKENS = ("prompt_tokens", "cached_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """What one tenant's use of a model cost in a month, or in a part of it. None: there was no price."""

    tenant: int
    month: date
    model: str
    tokens: tuple[int, int, int]  # as TOKENS
    internal: Decimal | None
    outside: Decimal | None

    @property
    def priceless(self) -> int:
        """The tokens without an internal price."""
        return self.tokens[0] + self.tokens[2] if self.internal is None else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageCosts:
    """Amounts of a scope in a period; exact ones in `rows`, whole yen everywhere else."""

    rows: list[CostRow]
    has_internal: bool
    has_outside: bool
    references: list[str]
    names: dict[int, TenantName]
    budget: int | None = None  # of a month, of the one tenant that it is about

    @property
    def total(self) -> int:
        return self._sum(self.rows, "internal")

    @property
    def outside(self) -> int:
        return self._sum(self.rows, "outside")

    @property
    def priceless(self) -> int:
        return sum(row.priceless for row in self.rows)

    @property
    def by_tenant_and_month(self) -> list[dict[str, Any]]:
        """Rows of "tenant", "month", "yen" and "outside", the latest month and the dearest tenant first."""
        found: dict[tuple[date, int], list[CostRow]] = defaultdict(list)
        for row in self.rows:
            found[row.month, row.tenant].append(row)
        rows = [
            {
                "tenant": self.name_of(tenant),
                "month": month,
                "yen": self._sum(parts, "internal"),
                "outside": self._sum(parts, "outside"),
            }
            for (month, tenant), parts in found.items()
        ]
        return sorted(rows, key=lambda row: (-row["month"].toordinal(), -row["yen"], row["tenant"]))

    @property
    def export_columns(self) -> list[str]:
        return ["month", "tenant", "slug", "model", *TOKENS, "yen", "yen_elsewhere"]

    @property
    def export_rows(self) -> list[dict[str, Any]]:
        """Rows by month, tenant and model, with exact amounts; empty where there was no price."""
        found: dict[tuple[date, int, str], list[CostRow]] = defaultdict(list)
        for row in self.rows:
            found[row.month, row.tenant, row.model].append(row)
        return [
            {
                "month": f"{month:%Y-%m}",
                "tenant": self.name_of(tenant),
                "slug": self.names[tenant].slug if tenant in self.names else "",
                "model": model,
                **{name: sum(row.tokens[n] for row in parts) for n, name in enumerate(TOKENS)},
                "yen": _exact_sum(row.internal for row in parts),
                "yen_elsewhere": _exact_sum(row.outside for row in parts),
            }
            for (month, tenant, model), parts in sorted(
                found.items(), key=lambda item: (item[0][0], self.name_of(item[0][1]), item[0][2])
            )
        ]

    def sum_by(self, key: Callable[[CostRow], Any]) -> dict[Any, int]:
        """Return the internal yen by what `key` gives."""
        found: dict[Any, Decimal] = defaultdict(Decimal)
        for row in self.rows:
            found[key(row)] += row.internal or 0
        return {name: round_yen(amount) for name, amount in found.items()}

    def name_of(self, tenant: int) -> str:
        """Return what differs from each other tenant's, deleted ones too."""
        return self.names[tenant].name if tenant in self.names else f"#{tenant}"

    def _sum(self, rows: list[CostRow], kind: str) -> int:
        return round_yen(sum((getattr(row, kind) or Decimal(0) for row in rows), Decimal(0)))


def _exact_sum(amounts: Iterable[Decimal | None]) -> str:
    known = [amount for amount in amounts if amount is not None]
    return f"{sum(known, Decimal(0)).normalize():f}" if known else ""


def read_costs(scope: UsageScope, period: Period) -> UsageCosts | None:
    """Return what this usage costs; None where no price is set, or people are not to see theirs. Five queries."""
    lists = price_list.read_price_lists()
    internal, outside = lists[TokenPrice.Kind.INTERNAL], lists[TokenPrice.Kind.OUTSIDE]
    if not (internal or outside) or (scope.personal and not price_list.is_shown_to_people()):
        return None
    rows = _read_rows(period.filter_days(scope.sums), internal, outside, period)
    budget = None
    if scope.owner is not None and scope.owner[0] == "tenant":
        budget = TenantBudget.objects.filter(tenant=scope.owner[1]).values_list("yen", flat=True).first()
    return UsageCosts(
        rows=rows,
        has_internal=bool(internal),
        has_outside=bool(outside),
        references=outside.find_references({row.model for row in rows}),
        names=read_tenant_names(),
        budget=budget,
    )


def _read_rows(days: Any, internal: PriceList, outside: PriceList, period: Period) -> list[CostRow]:
    """Sum tokens up by month and between two changes of any price, by one query; price each sum by its first day."""
    first_of_months = {day for day in period.days if day.day == 1}
    changes = internal.find_changes() | outside.find_changes() | first_of_months
    inside = {day for day in changes if period.first < day <= period.last}
    since: Any = Value(period.first, output_field=DateField())
    if inside:
        since = Case(
            *(When(day__gte=day, then=Value(day)) for day in sorted(inside, reverse=True)),
            default=since,
            output_field=DateField(),
        )
    found = (
        days.annotate(since=since)
        .order_by()
        .values_list("tenant_id", "model", "since")
        .annotate(**{f"sum_{name}": sum_as_integer(name) for name in TOKENS})
    )
    return [
        CostRow(
            tenant=tenant,
            month=since.replace(day=1),
            model=model,
            tokens=(prompt, cached, completion),
            internal=_price(internal, model, since, (prompt, cached, completion)),
            outside=_price(outside, model, since, (prompt, cached, completion)),
        )
        for tenant, model, since, prompt, cached, completion in found
    ]


def _price(prices: PriceList, model: str, day: date, tokens: tuple[int, int, int]) -> Decimal | None:
    price = prices.find_price(model, day)
    return None if price is None else price.cost(*tokens)


def read_spending(tenants: list[Tenant], months: dict[int, date]) -> dict[int, Decimal]:
    """Return the exact internal yen of these tenants in a month each, by its first day. A query for each month."""
    internal = price_list.read_price_lists()[TokenPrice.Kind.INTERNAL]
    found: dict[int, Decimal] = defaultdict(Decimal)
    for month in set(months.values()) if internal else ():
        those = [tenant.pk for tenant in tenants if months[tenant.pk] == month]
        last = date.fromordinal(next_month(month).toordinal() - 1)
        period = Period(name="", first=month, last=last)
        days = UsageTenantDay.objects.filter(tenant__in=those, day__range=(month, last))
        for row in _read_rows(days, internal, PriceList([]), period):
            found[row.tenant] += row.internal or 0
    return found
