"""Serializers that are stricter than Django REST framework's, as the API's description says.

A text must be a string (the framework takes a number as well), a time needs its offset (the framework takes it for one
of the site's zone), and a body may contain known fields only.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn, TypeVar

from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import gettext_noop
from rest_framework import serializers
from rest_framework.settings import api_settings

from portal.web.line_breaks import unify_line_breaks

M = TypeVar("M", bound=models.Model)

gettext_noop("Null characters are not allowed.")  # Django's Japanese of it says that something must be entered


class CharField(serializers.CharField):
    """Takes strings only, without half of a surrogate pair, which is no character. A line break counts one."""

    default_error_messages = {"invalid": _("This must be a string."), "surrogate": _("This has half of a character.")}

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        if any("\ud800" <= character <= "\udfff" for character in data):
            self.fail("surrogate")
        text: str = super().to_internal_value(unify_line_breaks(data))
        return text


class DateTimeField(serializers.DateTimeField):
    default_error_messages = {"no_offset": _("Give the time with its offset, such as 2026-12-01T09:00:00+09:00.")}

    def enforce_timezone(self, value: datetime) -> datetime:
        if timezone.is_naive(value):
            self.fail("no_offset")
        aware: datetime = super().enforce_timezone(value)
        return aware


class FloatField(serializers.FloatField):
    """Refuses true and false, which are numbers to Python."""

    def to_internal_value(self, data: Any) -> float:
        if isinstance(data, bool):
            self.fail("invalid")
        number: float = super().to_internal_value(data)
        return number


class ChoiceField(serializers.ChoiceField):
    """Names the choices when it refuses another value."""

    default_error_messages = {"invalid_choice": _("“{input}” is not one of: {choices}.")}

    def fail(self, key: str, **kwargs: Any) -> NoReturn:
        given = {name: str(value)[:40] for name, value in kwargs.items()}
        super().fail(key, **given, choices=", ".join(map(str, self.choices)))


class ModelSerializer(serializers.ModelSerializer[M]):
    serializer_choice_field = ChoiceField
    serializer_field_mapping = {
        **serializers.ModelSerializer.serializer_field_mapping,
        models.CharField: CharField,
        models.TextField: CharField,
    }


class KnownFields(serializers.Serializer[Any]):
    """Refuses unknown fields: a misspelt one would otherwise be ignored, and the request would seem to succeed."""

    def validate_empty_values(self, data: Any) -> tuple[bool, Any]:
        """Refuse a body of null as one of another kind: the framework's sentence about it is English alone."""
        if data is None and self.root is self:
            raise serializers.ValidationError({api_settings.NON_FIELD_ERRORS_KEY: [_("Send an object with fields.")]})
        is_empty, value = super().validate_empty_values(data)
        return is_empty, value

    def to_internal_value(self, data: Any) -> Any:
        unknown = sorted(set(map(str, data)) - set(self.fields)) if isinstance(data, Mapping) else []
        if unknown:
            raise serializers.ValidationError({name[:100]: [_("There is no such field.")] for name in unknown[:20]})
        return super().to_internal_value(data)
