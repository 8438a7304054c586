"""The parser of requests to the API.

In a module of its own, because Django REST framework imports it while it is being imported itself.
"""

from typing import Any

from django.utils.translation import gettext as _
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser


class JsonParser(JSONParser):
    """Like the framework's, but too deeply nested brackets are the client's error (400), not ours (500)."""

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            return super().parse(stream, media_type, parser_context)
        except RecursionError as error:
            raise ParseError(_("Lists or objects are nested too deeply.")) from error
