"""The portal's ASGI application: sockets to their consumers, all other requests to Django.

The gateway is a process of its own (`apiproxy.server.front`) that hands pages on to this one's Unix socket; behind
nginx they come by a port as well. `apiproxy.server.single_process` is both in one.
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

django = get_asgi_application()  # first: it sets Django up for what the consumers import

from django.conf import settings

from portal.database import use_pool
from portal.operations.live import LiveOperationsFeed
from portal.operations.routing import build_sockets
from portal.usage.live import LiveUsageFeed
from portal.web.django_handler import Pages
from portal.web.request_bounds import RequestBounds

use_pool(settings.DATABASES["default"])  # before anything asks the database
pages = RequestBounds(Pages(django))
# On its own socket a gateway tells whose connection a request came by. Elsewhere this is a client's word, and ignored.
PEER = b"x-madoguchi-peer"


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await pages(with_peer(scope), receive, send)


async def websocket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await consumers(with_peer(scope), receive, send)


consumers = build_sockets(LiveOperationsFeed(), LiveUsageFeed())
application = ProtocolTypeRouter({"http": http, "websocket": websocket})


def with_peer(scope: dict[str, Any]) -> dict[str, Any]:
    """Return the scope with the address that the gateway tells.

    Where the connection itself has none (a Unix socket).
    """
    if scope.get("client") is not None:
        return scope
    told = dict(scope["headers"]).get(PEER, b"").decode("latin-1")
    return {**scope, "client": (told, 0)} if told else scope
