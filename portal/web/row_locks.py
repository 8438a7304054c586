"""Locks for what is counted before a row is added: of two requests at the same time, one counts after the other.

Every bound of how many rows there may be is held so: within a transaction lock what the rows belong to, count them, and
add one. On SQLite a transaction is alone from its beginning, and these locks do nothing.
"""

from django.contrib.contenttypes.models import ContentType
from django.db import transaction
from django.db.models import Model


def lock_row(model: type[Model], pk: int) -> None:
    """Let others that lock this row wait until the end of the caller's transaction.

    Rows that refer to it can still be added: its key does not change.
    """
    list(model._default_manager.select_for_update(no_key=True).filter(pk=pk).values("pk"))


def lock_kind(model: type[Model]) -> None:
    """Let others that lock all rows of this kind wait until the end of the caller's transaction.

    What another is about to add has no row that could be locked: Django's row of the kind stands for all.
    """
    with transaction.atomic():  # in which a kind that is used for the first time gets its row
        lock_row(ContentType, ContentType.objects.get_for_model(model).pk)
