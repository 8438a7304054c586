"""What is sent and what is answered: checked on the way in, plain values on the way out."""

from typing import Any

import orjson
from django.http import QueryDict
from rest_framework.serializers import Serializer


def validated(shape: type[Serializer[Any]], values: Any, **context: Any) -> dict[str, Any]:
    """What was sent, checked. Raises ValidationError."""
    if isinstance(values, QueryDict):
        values = values.dict()  # as JSON: forms would take what is empty for what is not there
    filled = shape(data=values, context=context)
    filled.is_valid(raise_exception=True)
    return dict(filled.validated_data)


def to_plain(value: Any) -> Any:
    """As sockets send it."""
    return orjson.loads(orjson.dumps(value))
