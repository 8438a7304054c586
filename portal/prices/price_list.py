"""Prices by model and day: looked up, checked before they are stored, changed by operators.

A price applies from its first day until its last one, or until the day before the model's next price. Days are those by
which usage is summed: of the calendar of the key's tenant. So a price that begins on a day begins at each tenant's own
midnight. All arithmetic is exact (Decimal); only what is shown is rounded, each amount by itself, half up to whole yen.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from datetime import date, timedelta
from decimal import ROUND_HALF_UP, Decimal
from itertools import pairwise

from django.core.exceptions import ValidationError
from django.db import transaction
from django.utils.translation import gettext as _

from portal.accounts import permissions
from portal.accounts.models import Tenant, User
from portal.prices.models import PriceOptions, TenantBudget, TokenPrice

DAY = timedelta(days=1)
FIRST_YEAR, YEARS_AHEAD = 2000, 2
ROW = 1  # the primary key of the only row of PriceOptions


class PriceList:
    """The prices of one kind."""

    def __init__(self, prices: Iterable[TokenPrice]) -> None:
        self._by_model: dict[str, list[TokenPrice]] = defaultdict(list)
        for price in sorted(prices, key=lambda price: price.first_day):
            self._by_model[price.model].append(price)

    def __bool__(self) -> bool:
        return bool(self._by_model)

    def find_price(self, model: str, day: date) -> TokenPrice | None:
        """Return the price that applies on the day; None: the model has none then."""
        prices = self._by_model.get(model, [])
        n = bisect_right(prices, day, key=lambda price: price.first_day)
        return prices[n - 1] if n and prices[n - 1].is_valid_on(day) else None

    def find_changes(self) -> set[date]:
        """Return the days on which any price begins, or no longer applies."""
        return {
            day
            for prices in self._by_model.values()
            for price in prices
            for day in (price.first_day, price.last_day + DAY if price.last_day else None)
            if day is not None
        }

    def find_references(self, models: Iterable[str]) -> list[str]:
        """Return whose prices those of these models are."""
        return sorted(
            {price.reference for model in models for price in self._by_model.get(model, []) if price.reference}
        )


def read_price_lists() -> dict[str, PriceList]:
    """Return the lists of both kinds, which may be empty. One query."""
    rows = list(TokenPrice.objects.all())
    return {kind: PriceList(row for row in rows if row.kind == kind) for kind in TokenPrice.Kind.values}


def is_shown_to_people() -> bool:
    """Return whether everyone sees what their own usage costs. One query."""
    return PriceOptions.objects.filter(pk=ROW, shown_to_people=True).exists()


def round_yen(amount: Decimal) -> int:
    """Return whole yen, half of one up."""
    return int(amount.quantize(Decimal(1), ROUND_HALF_UP))


def save_price(price: TokenPrice, *, by: User | None, today: date) -> None:
    """Store a new or changed price. Raises PermissionDenied, and ValidationError by field, as `check_price`."""
    permissions.check_access(by)
    with transaction.atomic():
        lock_prices()
        others = list(TokenPrice.objects.filter(kind=price.kind, model=price.model).exclude(pk=price.pk))
        before = TokenPrice.objects.filter(pk=price.pk).first() if price.pk else None
        check_price(price, others, today)
        if before is not None and (before.kind, before.model) != (price.kind, price.model):
            check_gaps([*_of_same_model(before)])
        price.save()


def remove_price(price: TokenPrice, *, by: User | None) -> None:
    """Delete a price; the one before applies on if it has no last day. Raises ValidationError if a gap would remain."""
    permissions.check_access(by)
    with transaction.atomic():
        lock_prices()
        check_gaps(_of_same_model(price))
        price.delete()


def lock_prices() -> PriceOptions:
    """Return the row of options, locked until the end of the caller's transaction.

    Who changes anything here waits for others that do: rows that another is about to add cannot be locked.
    """
    PriceOptions.objects.bulk_create([PriceOptions(pk=ROW)], ignore_conflicts=True)
    return PriceOptions.objects.select_for_update().get(pk=ROW)


def _of_same_model(price: TokenPrice) -> list[TokenPrice]:
    rows = TokenPrice.objects.filter(kind=price.kind, model=price.model)
    return list(rows.exclude(pk=price.pk).order_by("first_day"))


def check_price(price: TokenPrice, others: Iterable[TokenPrice], today: date) -> None:
    """Raise ValidationError unless the price is sound beside the others of its model.

    Codes: those of the fields, "order", "year", "no-reference", "same-day", "overlap" and "gap".
    """
    price.clean_fields()
    if price.kind == TokenPrice.Kind.OUTSIDE and not price.reference.strip():
        raise _error("reference", "no-reference", _("Name the service whose price this is."))
    for name, day in (("first_day", price.first_day), ("last_day", price.last_day)):
        if day is not None and not FIRST_YEAR <= day.year <= today.year + YEARS_AHEAD:
            raise _error(
                name, "year", _("Choose a day from %(year)d on, at most two years ahead.") % {"year": FIRST_YEAR}
            )
    if price.last_day is not None and price.last_day < price.first_day:
        raise _error("last_day", "order", _("The last day is before the first one."))
    if any(other.first_day == price.first_day for other in others):
        raise _error("first_day", "same-day", _("The model has a price from this day on already. Change that one."))
    check_gaps(sorted([*others, price], key=lambda one: one.first_day))


def check_gaps(prices: Iterable[TokenPrice]) -> None:
    """Raise ValidationError unless each price that has a last day ends on the day before the next one begins."""
    rows = list(prices)
    for earlier, later in pairwise(rows):
        if earlier.last_day is None:
            continue
        days = {"first": earlier.last_day + DAY, "last": later.first_day - DAY}
        if earlier.last_day >= later.first_day:
            message = _(
                "Two prices of %(model)s apply on %(day)s. Let the earlier one end before, or leave its end empty."
            )
            raise _error("last_day", "overlap", message % {"model": later.model, "day": later.first_day})
        if days["first"] <= days["last"]:
            message = _(
                "From %(first)s to %(last)s %(model)s would have no price. Leave the end of the earlier one empty."
            )
            raise _error("last_day", "gap", message % {**days, "model": later.model})


def _error(field: str, code: str, message: str) -> ValidationError:
    return ValidationError({field: ValidationError(message, code=code)})


def set_shown_to_people(shown: bool, *, by: User | None) -> None:
    """Let everyone see what their own usage costs, or only admins and operators."""
    permissions.check_access(by)
    with transaction.atomic():
        row = lock_prices()
        row.shown_to_people = shown
        row.save()


def set_budget(tenant: Tenant, yen: int | None, *, by: User | None) -> None:
    """Set a tenant's budget of a month; None: it has none. Raises PermissionDenied and ValidationError."""
    permissions.check_access(by)
    with transaction.atomic():
        lock_prices()
        row = TenantBudget.objects.filter(tenant=tenant).first()
        if yen is None:
            if row is not None:
                row.delete()
            return
        row = row or TenantBudget(tenant=tenant)
        row.yen = yen
        row.clean_fields()
        row.save()
