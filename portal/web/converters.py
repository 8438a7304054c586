"""Parts of addresses that are numbers of rows."""

from django.urls import register_converter
from django.urls.converters import IntConverter


class RowId(IntConverter):
    """As Django's `int`, but what no database can hold is no number: a longer one failed in the query (500)."""

    regex = "[0-9]{1,18}"


register_converter(RowId, "id")
