"""Lists come in pages."""

from typing import Any

from django.utils.translation import gettext as _
from rest_framework.pagination import PageNumberPagination
from rest_framework.request import Request
from rest_framework.serializers import ValidationError

LEAST, MOST = 1, 500


class Pages(PageNumberPagination):
    page_size = 50
    page_size_query_param = "page_size"

    def get_page_size(self, request: Request) -> int | None:
        """Raise ValidationError: what is not understood would go unnoticed otherwise."""
        asked = request.query_params.get("page_size")
        if asked is None:
            return self.page_size
        if not (asked.isascii() and asked.isdecimal() and LEAST <= int(asked[:9]) <= MOST):
            text = _("Give a whole number from %(least)d to %(most)d.") % {"least": LEAST, "most": MOST}
            raise ValidationError({"page_size": text})
        return int(asked)

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)
        for parameter in parameters:
            least = {"minimum": LEAST}
            parameter["schema"] |= {**least, "maximum": MOST} if parameter["name"] == "page_size" else least
        return parameters
