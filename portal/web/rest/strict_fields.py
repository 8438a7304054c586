"""What the API takes: for a text a string, as it describes itself (Django REST framework takes a number for one), and
for a body nothing that it does not know.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from django.db import models
from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

M = TypeVar("M", bound=models.Model)


class CharField(serializers.CharField):
    default_error_messages = {"invalid": _("This must be a text.")}

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        text: str = super().to_internal_value(data)
        return text


class ModelSerializer(serializers.ModelSerializer[M]):
    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.CharField: CharField,
        models.TextField: CharField,
    }


class KnownFields(serializers.Serializer[Any]):
    """Refuses a field that there is not: a misspelt one would be answered as if it had been changed."""

    def to_internal_value(self, data: Any) -> Any:
        unknown = sorted(set(map(str, data)) - set(self.fields)) if isinstance(data, Mapping) else []
        if unknown:
            raise serializers.ValidationError({name[:100]: [_("There is no such field.")] for name in unknown[:20]})
        return super().to_internal_value(data)
