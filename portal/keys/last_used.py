"""When, from where and with which program keys were last used.

Written together with the usage, by one statement for a whole batch: key by key took 130 µs each.
"""

from collections.abc import Mapping
from itertools import chain
from typing import Any

from django.db import connection
from django.db.backends.utils import CursorWrapper

from portal.keys.models import ApiKey

KEYS = 5000  # of one statement: SQLite takes 32,766 values


def record_use(last: Mapping[int, Mapping[str, Any]], cursor: CursorWrapper) -> None:
    """Store the last use of keys, unless a later one is stored. Call it in a transaction.

    `last`: by key id, of the key's newest call `started_at` (aware), and `address` and `client` if they are known. No
    signal is sent: gateways and the audit have no use for it.
    """
    keys = sorted(last)
    if connection.features.has_select_for_update:
        # In the same order for every writer, or two writers could deadlock.
        list(ApiKey.objects.select_for_update(no_key=True).filter(pk__in=keys).order_by("pk").values_list("pk"))
    for start in range(0, len(keys), KEYS):
        some = keys[start : start + KEYS]
        cursor.execute(update_statement(len(some)), list(chain.from_iterable(_values(key, last[key]) for key in some)))


def update_statement(keys: int) -> str:
    """Return the statement for so many keys.

    SQLite (3.33 and later) and PostgreSQL both know UPDATE … FROM, and use the same names for the columns of VALUES.
    """
    table, field = ApiKey._meta.db_table, ApiKey._meta.get_field
    address = field("last_used_from").db_type(connection)
    return (
        f"UPDATE {table} SET last_used_at = used.column2, "  # noqa: S608 -- names of our own columns
        f"last_used_from = CAST(used.column3 AS {address}), last_used_with = used.column4 "
        f"FROM (VALUES {', '.join(['(%s, %s, %s, %s)'] * keys)}) AS used "
        f"WHERE {table}.id = used.column1 AND ({table}.last_used_at IS NULL OR {table}.last_used_at < used.column2)"
    )


def _values(key: int, row: Mapping[str, Any]) -> tuple[Any, ...]:
    at = connection.ops.adapt_datetimefield_value(row["started_at"])
    return key, at, row.get("address") or None, row.get("client", "")
