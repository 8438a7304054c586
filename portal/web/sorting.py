"""By what a table is sorted: the name of a column, or "-" and the name for the other direction than it begins with."""

from collections.abc import Collection
from typing import Any

from django.db.models.expressions import OrderBy


def choose_sort(wanted: str, columns: Collection[str], default: str) -> str:
    """Return what was asked for if it is one of these columns, in either direction, or else the default."""
    return wanted if column_of(wanted) in columns else default


def column_of(sort: str) -> str:
    return sort.removeprefix("-")


def is_turned(sort: str) -> bool:
    """Return whether it is the other direction than the column begins with."""
    return sort.startswith("-")


def turn_order(order: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the other direction of what a query is ordered by. Rows without a value stay where they are."""
    return tuple(_turn(one) for one in order)


def _turn(one: Any) -> Any:
    if isinstance(one, str):
        return one.removeprefix("-") if one.startswith("-") else f"-{one}"
    if isinstance(one, OrderBy):
        nulls = {"nulls_first": one.nulls_first, "nulls_last": one.nulls_last}
        return OrderBy(one.expression, descending=not one.descending, **nulls)
    return one.desc()
