"""Reads what is sent to the API. Apart from the views, as Django REST framework imports this while it is being imported
itself."""

from typing import Any

from django.utils.translation import gettext as _
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser


class Json(JSONParser):
    """As the framework's, but brackets that stand in each other without end are the sender's mistake, not ours."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError as error:
            raise ParseError(_("Too many lists or objects stand in each other.")) from error
