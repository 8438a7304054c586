"""One process of the portal: `python -m apiproxy.server.portal_worker FD…`, on sockets that `up` has bound."""

import os
import socket
import sys

import uvicorn

from apiproxy.server.worker import OPTIONS, Worker

# Callers wait for tokens more than for pages: behind the gateways in the queue for a core.
NICE = 5
PATIENCE = 300.0  # seconds that an answer may take which was asked for before its process retired: exports are long


def main(descriptors: list[int]) -> None:
    os.nice(NICE)
    config = uvicorn.Config(
        "portal.asgi:application",
        **OPTIONS,
        ws="apiproxy.server.protocol:Socket",
        ws_max_size=16384,  # browsers send little; a socket is there to be read from
        ws_per_message_deflate=False,
        lifespan="off",
    )
    Worker(config, patience=PATIENCE).run(sockets=[socket.socket(fileno=number) for number in descriptors])


if __name__ == "__main__":
    main([int(word) for word in sys.argv[1:]])
