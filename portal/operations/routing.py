"""The addresses of sockets. They are for signed-in people whose browser shows a page of this site."""

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import WebsocketDenier
from django.conf import settings
from django.http.request import split_domain_port, validate_host
from django.urls import path, re_path

from portal.operations.consumers import LogConsumer, OverviewConsumer, QueueConsumer
from portal.operations.live import LiveOperationsFeed
from portal.usage.consumers import UsageConsumer
from portal.usage.live import LiveUsageFeed
from portal.web import converters  # noqa: F401 - registers `id`


class SameOrigin:
    """Accepts sockets that pages of this site open, and refuses those of other sites.

    As Django judges forms: scheme, host and port of the page must be those of the request, or trusted ones. Another
    port of the same host is another site: anyone with an account there may listen on one.
    """

    def __init__(self, application: Any) -> None:
        self._application = application

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        application = self._application if is_same_origin(dict(scope["headers"])) else WebsocketDenier()
        await application(scope, receive, send)


def is_same_origin(headers: dict[bytes, bytes]) -> bool:
    """Return whether a page of this site opens the socket with these headers."""
    origin, host = (headers.get(name, b"").decode("latin-1").lower() for name in (b"origin", b"host"))
    if origin in {trusted.lower() for trusted in settings.CSRF_TRUSTED_ORIGINS}:
        return True
    domain, _port = split_domain_port(host)
    scheme = "https" if settings.HTTPS else "http"
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS) and origin == f"{scheme}://{host}"


def build_sockets(operations: LiveOperationsFeed, usage: LiveUsageFeed) -> Any:
    """Return an ASGI application for WebSockets. Each consumer checks whether the person is permitted."""
    routes = [
        path("ws/usage/", UsageConsumer.as_asgi(feed=usage)),
        path("ws/operations/", OverviewConsumer.as_asgi(feed=operations)),
        path("ws/operations/queue/", QueueConsumer.as_asgi(feed=operations)),
        path("ws/operations/replicas/<id:replica>/log/", LogConsumer.as_asgi(feed=operations)),
        re_path("", WebsocketDenier.as_asgi()),
    ]
    return SameOrigin(AuthMiddlewareStack(URLRouter(routes)))
