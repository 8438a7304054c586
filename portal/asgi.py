"""The portal's ASGI application: it passes sockets to their consumers and all other requests to Django.

The gateway is a process of its own (`apiproxy.server.front`), which passes pages on to the Unix socket of this one;
behind nginx they also come by a port. `apiproxy.server.single_process` is both in one.
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

django = get_asgi_application()  # first: it sets Django up for what the consumers import

from django.conf import settings

from modelregistry.database import use_pool
from portal.operations.live import LiveOperationsFeed
from portal.operations.routing import build_sockets
from portal.usage.live import LiveUsageFeed
from portal.web.django_handler import DjangoHandler
from portal.web.request_bounds import RequestBounds

use_pool(settings.DATABASES["default"], most=settings.DATABASE_POOL)  # before anything asks the database
pages = RequestBounds(DjangoHandler(django))
# On the Unix socket a gateway sends the client's address in this header. Elsewhere it comes from clients and is
# ignored.
PEER = b"x-madoguchi-peer"


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await pages(with_peer(scope), receive, send)


async def websocket(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await consumers(with_peer(scope), receive, send)


consumers = build_sockets(LiveOperationsFeed(), LiveUsageFeed())
application = ProtocolTypeRouter({"http": http, "websocket": websocket})


def with_peer(scope: dict[str, Any]) -> dict[str, Any]:
    """Return the scope with the address that the gateway sent, if the connection has none itself (a Unix socket)."""
    if scope.get("client") is not None:
        return scope
    address = dict(scope["headers"]).get(PEER, b"").decode("latin-1")
    return {**scope, "client": (address, 0)} if address else scope
