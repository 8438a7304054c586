"""The ASGI application: /v1/ and the probes to the gateway, sockets to consumers, the rest to Django.

The gateway is a plain ASGI callable under Channels' router, not a consumer: after a client left at the 4th of 60
chunks a consumer (AsyncHttpConsumer) ran to the end of the stream, a plain callable stopped within 0.16 s
(django/channels#1249). Which of the two HTTP applications is meant is decided here and not by Channels' URLRouter:
that resolves Django's URL patterns, 8 µs of the 150 that a whole call takes.
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

from channels.routing import ProtocolTypeRouter
from django.core.asgi import get_asgi_application

django = get_asgi_application()  # first: it sets Django up for what the gateway imports

from apiproxy.asgi import application as gateway
from portal.metering.live import Pulse
from portal.operations.live import Live
from portal.operations.routing import sockets

PROBES = frozenset({"/healthz", "/readyz", "/metrics"})


async def http(scope: dict[str, Any], receive: Any, send: Any) -> None:
    path = scope["path"]
    if path.startswith("/v1/") or path in PROBES:
        await gateway(scope, receive, send)
    else:
        await django(scope, receive, send)


application = ProtocolTypeRouter({"http": http, "websocket": sockets(Live(), Pulse()), "lifespan": gateway})
