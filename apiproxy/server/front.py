"""The application of a gateway's process: answers the gateway's paths itself, all others through the portal's socket.

`apiproxy.server.gateway_worker` serves it.
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "apiproxy.server.gateway_settings")

import django

django.setup()  # first: the gateway's bridge imports models

from django.conf import settings

from apiproxy.dataplane.routes import is_gateway_path
from apiproxy.server.asgi import application as gateway
from apiproxy.server.portal_proxy import STATE, PortalProxy

pages = PortalProxy(settings.PORTAL_SOCKET)


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    # No Channels' router: it would be one more coroutine to resume with every step of a call, and a WebSocket never
    # comes this far (see `Tunnel`).
    if scope["type"] == "http":
        await (gateway.http if is_gateway_path(scope["path"]) else pages)(scope, receive, send)
    else:
        await lifespan(scope, receive, send)


async def lifespan(scope: dict[str, Any], receive: Any, send: Any) -> None:
    scope["state"][STATE] = pages.socket
    try:
        await gateway(scope, receive, send)
    finally:
        pages.close()
