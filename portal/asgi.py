"""The ASGI application: /v1/ and the probes to the gateway, the rest to Django.

The gateway is a plain ASGI callable under Channels' router, not a consumer: after a client left at the 4th of 60
chunks a consumer (AsyncHttpConsumer) ran to the end of the stream, a plain callable stopped within 0.16 s
(django/channels#1249).
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application
from django.urls import re_path

django = get_asgi_application()  # first: it sets Django up for what the gateway imports

from apiproxy.asgi import application as gateway

# Channels routes ASGI applications by Django's URL patterns, whose types know views only.
route: Any = re_path
application = ProtocolTypeRouter(
    {
        "http": URLRouter([route(r"^(?:v1/|healthz$|readyz$|metrics$)", gateway), route(r"", django)]),
        "lifespan": gateway,
    }
)
