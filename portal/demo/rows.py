"""Rows of the past: what inserts them now must not be recorded as having been done now."""

from typing import TypeVar

from django.db.models import Model

Row = TypeVar("Row", bound=Model)


def insert_row(row: Row) -> Row:
    """Insert the row without the signals by which the audit log and gateways learn of changes."""
    type(row)._default_manager.bulk_create([row])
    return row
