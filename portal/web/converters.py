"""Path converters for ids of rows and for names of models."""

from django.urls import register_converter
from django.urls.converters import IntConverter, PathConverter


class RowId(IntConverter):
    """Like Django's `int`, but at most 18 digits: a number that no database can hold failed in the query (500)."""

    regex = "[0-9]{1,18}"


class ModelName(PathConverter):
    """The name of a model, with ~ for its slashes, which no name contains.

    Browsers would take "a/../b" for "b", and servers in front "a//b" for "a/b". An address with slashes is understood.
    """

    def to_python(self, value: str) -> str:
        return value.replace("~", "/")

    def to_url(self, value: str) -> str:
        return value.replace("/", "~")


register_converter(RowId, "id")
register_converter(ModelName, "model")
