"""One process of the portal: `python -m apiproxy.server.portal_worker FD…`, on sockets that `up` has bound."""

import os
import socket
import sys

import uvicorn

# Callers wait for tokens more than for pages: behind the gateways in the queue for a core.
NICE = 5
DRAIN_SECONDS = 10


def main(descriptors: list[int]) -> None:
    os.nice(NICE)
    config = uvicorn.Config(
        "portal.asgi:application",
        loop="uvloop",
        http="apiproxy.server.protocol:Protocol",
        ws="apiproxy.server.protocol:Socket",
        ws_max_size=16384,  # browsers send little; a socket is there to be read from
        ws_per_message_deflate=False,
        lifespan="off",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        timeout_keep_alive=75,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=number) for number in descriptors])


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
