"""The parser of requests to the API.

In a module of its own, because Django REST framework imports it while it is being imported itself.
"""

import json
from typing import Any, NoReturn

from django.utils.translation import gettext as _
from rest_framework.exceptions import ParseError
from rest_framework.parsers import JSONParser


class JsonParser(JSONParser):
    """Says in the reader's language what is wrong with a body, and where; the framework's has Python's English in it.

    JSON is UTF-8 (RFC 8259), whatever the head of the request says. Too deeply nested brackets are the client's error
    (400), not ours (500).
    """

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        try:
            return json.loads(stream.read().decode("utf-8-sig"), parse_constant=_refuse_constant)
        except UnicodeDecodeError as error:
            raise ParseError(_("This is not UTF-8 from byte %(number)d on.") % {"number": error.start + 1}) from error
        except json.JSONDecodeError as error:
            place = {"line": error.lineno, "column": error.colno}
            sentence = _("This is not valid JSON from line %(line)s, column %(column)s on.")
            raise ParseError(sentence % place) from error
        except RecursionError as error:
            raise ParseError(_("Lists or objects are nested too deeply.")) from error
        except ValueError as error:  # of `int`, whose sentence names a setting of the interpreter
            raise ParseError(_("A number has too many digits.")) from error


def _refuse_constant(name: str) -> NoReturn:
    """Raise ParseError for what Python would read as a number: NaN, Infinity or -Infinity."""
    raise ParseError(_("JSON has no %(name)s.") % {"name": name})
