"""Errors of the API as problem details (RFC 9457), in the person's language."""

from collections.abc import Iterator
from typing import Any

from django.core.exceptions import ValidationError as Invalid
from django.utils.translation import gettext as _
from rest_framework import status
from rest_framework.exceptions import APIException, NotAuthenticated, ValidationError
from rest_framework.response import Response
from rest_framework.views import exception_handler

from portal.web.refusals import Refused

MEDIA_TYPE = "application/problem+json"


class Conflict(APIException):
    """The request conflicts with the current state."""

    status_code = status.HTTP_409_CONFLICT


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """Return the response to an error, for Django REST framework; None for a fault of ours (500)."""
    if isinstance(error, Invalid):
        error = Refused.of(error)
    if isinstance(error, Refused):
        return problem(_status_of(error), error.sentence, list(_pointers(error.fields)))
    answer = exception_handler(error, context)
    if answer is None:
        return None
    response = _describe(error, answer.status_code)
    for name, value in answer.headers.items():
        if name != "Content-Type":
            response.headers[name] = value  # Allow, Retry-After, WWW-Authenticate
    return response


def _status_of(refused: Refused) -> int:
    if not refused.allowed:
        return status.HTTP_403_FORBIDDEN
    # If it is about fields, what was sent is wrong. Otherwise it conflicts with the current state.
    return status.HTTP_400_BAD_REQUEST if refused.fields else status.HTTP_409_CONFLICT


def _describe(error: Exception, code: int) -> Response:
    if isinstance(error, ValidationError):
        found = list(_pointers(error.detail))
        return problem(code, _sum_up(found), found)
    if isinstance(error, NotAuthenticated):
        return problem(code, _("Sign in, or send a management key."))
    return problem(code, str(error.detail) if isinstance(error, APIException) else "")


def problem(code: int, detail: str, errors: list[dict[str, str]] | None = None) -> Response:
    """Return a problem. `errors`: what is wrong with parts of the request, each with a JSON pointer to the part."""
    body: dict[str, Any] = {"type": "about:blank", "title": title(code), "status": code}
    body |= {"detail": detail} if detail else {}
    body |= {"errors": errors} if errors else {}
    return Response(body, status=code, content_type=MEDIA_TYPE)


def _sum_up(found: list[dict[str, str]]) -> str:
    """Return all sentences, each once; one that is about several parts of the request with their names."""
    places: dict[str, list[str]] = {}
    for one in found:
        places.setdefault(one["detail"], []).append(one["pointer"].removeprefix("#").removeprefix("/"))
    return " ".join(
        f"{', '.join(names)}: {sentence}" if len(names) > 1 and all(names) else sentence
        for sentence, names in places.items()
    )


def title(code: int) -> str:
    titles = {
        400: _("This request cannot be carried out"),
        401: _("Not signed in"),
        403: _("Not allowed"),
        404: _("Not found"),
        405: _("Not possible here"),
        409: _("Not possible now"),
        413: _("Too large"),
        415: _("Send JSON"),
        429: _("Too many requests"),
        503: _("Not available right now"),
    }
    return titles.get(code, _("Error"))


def _pointers(found: Any, at: str = "#") -> Iterator[dict[str, str]]:
    """Yield each sentence in a tree of errors with the path to its place."""
    if isinstance(found, dict):
        for name, below in found.items():
            yield from _pointers(
                below, at if name in ("", "non_field_errors") else f"{at}/{_escape_pointer(str(name))}"
            )
    elif isinstance(found, list):
        for place, below in enumerate(found):
            yield from _pointers(below, at if isinstance(below, str) else f"{at}/{place}")
    elif found:
        yield {"pointer": at, "detail": str(found)}


def _escape_pointer(name: str) -> str:
    """Escape a name for a JSON pointer (RFC 6901)."""
    return name.replace("~", "~0").replace("/", "~1")
