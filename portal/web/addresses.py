"""Where this server is found."""

from django.conf import settings
from django.http import HttpRequest


def base_address(request: HttpRequest) -> str:
    """Where programs find this server: PUBLIC_URL, else as this person's browser did."""
    return settings.PUBLIC_URL or request.build_absolute_uri("/").rstrip("/")
