"""The clock that all machines share: the database's. Their own may be hours apart."""

from django.db import connection
from django.db.models import DateTimeField, Expression, Value
from django.db.models.functions import Now
from django.utils import timezone


def database_now() -> Expression:
    """Return the present instant, for queries and updates.

    SQLite is a file of this machine, whose clock it uses; the text that it makes of an instant is not Django's.
    """
    if connection.vendor == "sqlite":
        return Value(timezone.now(), output_field=DateTimeField())
    return Now()
