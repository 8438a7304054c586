"""One process of the gateway: `python -m apiproxy.server.gateway_worker FD`, on a socket that `up` has bound.

`ADDRESS PORT` instead of a descriptor: on a socket of its own.
"""

import socket
import sys

import uvicorn

from apiproxy.server.front import application  # first: it sets Django up

# isort: split
from django.conf import settings

from apiproxy.server.asgi import application as gateway
from apiproxy.server.succession import listening_port
from apiproxy.server.worker import OPTIONS, Worker


def main(words: list[str]) -> None:
    listener = listening_port(words[0], int(words[1])) if len(words) > 1 else socket.socket(fileno=int(words[0]))
    config = uvicorn.Config(application, **OPTIONS, ws="apiproxy.server.portal_proxy:Tunnel", lifespan="on")
    Worker(config, patience=settings.GATEWAY_DRAIN, ending=gateway.note_ending).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1:])
