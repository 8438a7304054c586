"""Which socket answers which address, and to whom: a signed-in person whose browser shows a page of this site."""

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host
from django.urls import path, re_path

from portal.operations.consumers import Log, State
from portal.operations.live import LiveState
from portal.usage.consumers import Usage
from portal.usage.live import LiveUsageFeed
from portal.web import converters  # noqa: F401 - registers `id`


class SameOrigin:
    """Passes on what pages of this site open, and refuses what those of others do.

    As Django judges forms: scheme, host and port of the page are those at which we are asked, or trusted ones. Another
    port of the same host is another site: anybody with an account there may listen on one.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        served = self._application if is_ours(dict(scope["headers"])) else WebsocketDenier()
        await served(scope, receive, send)


def is_ours(headers: dict[bytes, bytes]) -> bool:
    """Return whether the page that opens a socket with these headers is of this site."""
    origin, host = (headers.get(name, b"").decode("latin-1").lower() for name in (b"origin", b"host"))
    if origin in {trusted.lower() for trusted in settings.CSRF_TRUSTED_ORIGINS}:
        return True
    domain, _port = split_domain_port(host)
    scheme = "https" if settings.HTTPS else "http"
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS) and origin == f"{scheme}://{host}"


def sockets(live: LiveState, pulse: LiveUsageFeed) -> Any:
    """Return an ASGI application for WebSockets. Consumers look themselves whether the person may look."""
    routes = [
        path("ws/usage/", Usage.as_asgi(pulse=pulse)),
        path("ws/operations/", State.as_asgi(live=live)),
        path("ws/operations/replicas/<id:replica>/log/", Log.as_asgi(live=live)),
        re_path("", WebsocketDenier.as_asgi()),
    ]
    return SameOrigin(AuthMiddlewareStack(URLRouter(routes)))
