"""What buttons and hidden fields of our own pages send: one of a few words, never anything else."""

from django.core.exceptions import BadRequest
from django.http import HttpRequest


def choice(request: HttpRequest, name: str, *allowed: str) -> str:
    """Return the posted value of this name. Raises BadRequest (400) unless it is one of `allowed`.

    A value that is missing or unknown must never count as "the other one": a button that sent nothing granted once
    what was to be refused.
    """
    value = request.POST.get(name, "")
    if value not in allowed:
        raise BadRequest(f"{name} must be one of {', '.join(map(repr, allowed))}")
    return value
