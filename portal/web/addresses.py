"""The address of this server."""

from django.conf import settings
from django.http import HttpRequest


def base_address(request: HttpRequest) -> str:
    """Return the address for programs: PUBLIC_URL, else the one that this person's browser used."""
    return settings.PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")
