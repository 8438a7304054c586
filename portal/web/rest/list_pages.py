"""Pagination of lists in the API."""

from typing import Any

from django.utils.translation import gettext as _
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.serializers import ValidationError

MIN_PAGE_SIZE, MAX_PAGE_SIZE = 1, 500


class ListPagination(PageNumberPagination):
    page_size = 50
    page_size_query_param = "page_size"

    def get_page_size(self, request: Request) -> int | None:
        """Return the requested page size. Raises ValidationError for an invalid one, instead of ignoring it."""
        text = request.query_params.get("page_size")
        if text is None:
            return self.page_size
        if not (text.isascii() and text.isdecimal() and MIN_PAGE_SIZE <= int(text[:9]) <= MAX_PAGE_SIZE):
            bounds = {"least": MIN_PAGE_SIZE, "most": MAX_PAGE_SIZE}
            sentence = _("Give a whole number from %(least)d to %(most)d.") % bounds
            raise ValidationError({"page_size": sentence})
        return int(text)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            least = {"minimum": MIN_PAGE_SIZE}
            parameter["schema"] |= {**least, "maximum": MAX_PAGE_SIZE} if parameter["name"] == "page_size" else least
        return parameters
