"""Gateway and portal in one process: for `runserver` and for tests. `up` gives each processes of its own.

The gateway is a plain ASGI callable under Channels' router, not a consumer: after a client left at the 4th of 60
chunks a consumer (AsyncHttpConsumer) ran to the end of the stream, a plain callable stopped within 0.16 s
(django/channels#1249). Which of the two HTTP applications is meant is decided here and not by Channels' URLRouter:
that resolves Django's URL patterns, 8 µs of the 150 that a whole call takes.
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

from channels.routing import ProtocolTypeRouter

from portal import asgi as portal  # first: it sets Django up for what the gateway imports

# isort: split
from apiproxy.dataplane.routes import is_gateway_path
from apiproxy.server.asgi import application as gateway


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await (gateway if is_gateway_path(scope["path"]) else portal.http)(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": portal.websocket, "lifespan": gateway})
