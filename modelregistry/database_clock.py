"""The clock that all machines share: the database's. Their own may be hours apart."""

from datetime import datetime

from django.db import connection
from django.db.models import DateTimeField, Expression, Value
from django.db.models.functions import Now
from django.utils import timezone


def database_now() -> Expression:
    """Return the current time, for queries and updates.

    SQLite is a file of this machine and uses its clock; its text format of a time is not Django's.
    """
    if connection.vendor == "sqlite":
        return Value(timezone.now(), output_field=DateTimeField())
    return Now()


def read_now() -> datetime:
    """Return the current time, to compare with what `database_now` wrote. One query at most."""
    if connection.vendor == "sqlite":
        return timezone.now()
    with connection.cursor() as cursor:
        cursor.execute("SELECT CURRENT_TIMESTAMP")
        [found] = cursor.fetchone()
    now: datetime = found
    return now
