"""Troubles of which operators are notified once, when they have lasted; again only after they were over for long."""

from collections.abc import Callable
from datetime import datetime, timedelta

from django.db import transaction

from portal.operations.models import BookingTrouble, MachineTrouble


def continue_trouble(
    row: BookingTrouble | MachineTrouble, now: datetime, least: timedelta, notify: Callable[[], None]
) -> None:
    """Note that it lasts, and `notify` once it has for `least`: within the transaction that notes it."""
    mine = type(row)._default_manager.filter(pk=row.pk)
    if row.ended_at:
        mine.update(ended_at=None)
    if row.notified_at is None and now - row.began_at >= least:
        with transaction.atomic():
            if mine.filter(notified_at=None).update(notified_at=now):
                notify()


def end_trouble(row: BookingTrouble | MachineTrouble, now: datetime, steady: timedelta) -> None:
    """Forget what was never notified; else note since when it has been well, until that was for `steady`."""
    mine = type(row)._default_manager.filter(pk=row.pk)
    if row.notified_at is None or (row.ended_at and now - row.ended_at >= steady):
        mine.delete()
    elif row.ended_at is None:
        mine.update(ended_at=now)
