"""Fields for what hosts and engines report: whatever that is, any database accepts it.

An engine's log may hold a NUL, a JSON file half of a surrogate pair, a metric NaN, and PostgreSQL refuses all of these:
then nothing of the host could be written any more, as one exchange writes all of it. So these fields change what cannot
be stored, on its way to the database, wherever it comes from.
"""

import math
from typing import Any

from django.db import models

from modelregistry.wire_bounds import shorten


def make_storable(value: Any) -> Any:
    """Return the value, text or JSON, with "?" in place of characters that no database takes, and None of numbers."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode().replace("\0", "?")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {make_storable(key): make_storable(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [make_storable(one) for one in value]
    return value


MOST_STORED = 8_000  # characters of a text that pages show as a whole


class ReportedTextField(models.TextField):  # type: ignore[type-arg]  # generic in its stubs only
    """`most`: characters of it that are stored; None: all. No part of the column, so migrations know nothing of it."""

    def __init__(self, *args: Any, most: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.most = most

    def get_prep_value(self, value: Any) -> Any:
        text = super().get_prep_value(make_storable(value))
        return shorten(text, self.most) if isinstance(text, str) and self.most else text

    def deconstruct(self) -> Any:
        return _name_plainly(super().deconstruct(), "TextField")


class ReportedCharField(models.CharField):  # type: ignore[type-arg]  # generic in its stubs only
    """As much as there is room for is stored."""

    def get_prep_value(self, value: Any) -> Any:
        text = super().get_prep_value(make_storable(value))
        return text[: self.max_length] if isinstance(text, str) else text

    def deconstruct(self) -> Any:
        return _name_plainly(super().deconstruct(), "CharField")


class ReportedJSONField(models.JSONField):
    def get_prep_value(self, value: Any) -> Any:
        return super().get_prep_value(make_storable(value))

    def deconstruct(self) -> Any:
        return _name_plainly(super().deconstruct(), "JSONField")


def _name_plainly(deconstructed: Any, name: str) -> Any:
    """Return what migrations know of a field: it is a usual one to the database."""
    own, _path, args, kwargs = deconstructed
    return own, f"django.db.models.{name}", args, kwargs
