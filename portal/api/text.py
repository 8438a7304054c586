"""What the API takes for a text: a string, as it describes itself. Django REST framework takes a number for one."""

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
