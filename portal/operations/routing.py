"""Which socket answers which address, and to whom: a signed-in person whose browser shows a page of this site."""

from typing import Any

from channels.auth import AuthMiddlewareStack
from channels.routing import URLRouter
from channels.security.websocket import AllowedHostsOriginValidator, WebsocketDenier
from django.urls import path, re_path

from portal.metering.consumers import Usage
from portal.metering.live import Pulse
from portal.operations.consumers import Log, State
from portal.operations.live import Live


def sockets(live: Live, pulse: Pulse) -> Any:
    """An ASGI application for WebSockets. Consumers look themselves whether the person may look."""
    routes = [
        path("ws/usage/", Usage.as_asgi(pulse=pulse)),
        path("ws/operations/", State.as_asgi(live=live)),
        path("ws/operations/replicas/<int:replica>/log/", Log.as_asgi(live=live)),
        re_path("", WebsocketDenier.as_asgi()),
    ]
    return AllowedHostsOriginValidator(AuthMiddlewareStack(URLRouter(routes)))
