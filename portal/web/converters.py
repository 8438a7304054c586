"""A path converter for ids of rows."""

from django.urls import register_converter
from django.urls.converters import IntConverter


class RowId(IntConverter):
    """Like Django's `int`, but at most 18 digits: a number that no database can hold failed in the query (500)."""

    regex = "[0-9]{1,18}"


register_converter(RowId, "id")
