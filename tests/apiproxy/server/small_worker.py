"""A worker in a process of its own, on the listener with this descriptor: it answers after the seconds in the path."""

import asyncio
import socket
import sys
from typing import Any

import uvicorn

from apiproxy.server.worker import OPTIONS, Worker


async def application(scope: dict[str, Any], receive: Any, send: Any) -> None:
    await asyncio.sleep(float(scope["path"].strip("/")))
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


if __name__ == "__main__":
    config = uvicorn.Config(application, **OPTIONS, lifespan="off")
    Worker(config, patience=60.0).run(sockets=[socket.socket(fileno=int(sys.argv[1]))])
