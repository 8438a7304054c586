"""Validation of what clients send, and conversion of what they get to plain values."""

from typing import Any

import orjson
from django.http import QueryDict
from rest_framework.serializers import Serializer


def validated(shape: type[Serializer[Any]], values: Any, **context: Any) -> dict[str, Any]:
    """Return the values that were sent, validated by `shape`. Raises ValidationError."""
    if isinstance(values, QueryDict):
        values = values.dict()  # as for JSON: form data would take an empty value for a missing one
    serializer = shape(data=values, context=context)
    serializer.is_valid(raise_exception=True)
    return dict(serializer.validated_data)


def to_plain(value: Any) -> Any:
    """Convert to what a client gets over a socket: plain values of JSON."""
    return orjson.loads(orjson.dumps(value))
