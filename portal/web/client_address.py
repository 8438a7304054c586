"""The address that a request to the portal comes from."""

import ipaddress

from django.conf import settings
from django.http import HttpRequest
from rest_framework.request import Request


def client_address(request: HttpRequest | Request) -> str | None:
    """Return the address of the person's computer, as seen by the outermost proxy that is ours.

    A client may write anything into X-Forwarded-For; each proxy appends the address that it saw. So with
    TRUSTED_PROXIES = n the n-th entry from the right is the first one that a client cannot invent.
    """
    peer = _address(request.META.get("REMOTE_ADDR", ""))
    if not settings.TRUSTED_PROXIES:
        return peer
    seen = request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")
    if len(seen) < settings.TRUSTED_PROXIES:
        return peer  # did not come through all of them
    return _address(seen[-settings.TRUSTED_PROXIES]) or peer


def _address(text: str) -> str | None:
    """Return an address alone: proxies may add a port, and brackets around IPv6. None for what is no address."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return None
