"""The portal's sockets: a server as `up` runs it, and a client that reads them."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from channels.routing import ProtocolTypeRouter
from django.db import OperationalError
from django.test import Client
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect
from websockets.typing import Origin

from portal.accounts.models import User
from portal.operations.live import LiveOperationsFeed
from portal.operations.routing import build_sockets
from portal.usage.live import LiveUsageFeed
from tests.waiting import until

OPERATIONS = "/ws/operations/"


class Database:
    """A reader between a live view and the real database, which may be away."""

    def __init__(self, reader: Callable[..., Any]) -> None:
        self.away = False
        self.reads = 0
        self.reader = reader

    def __call__(self, *args: Any, **options: Any) -> Any:
        self.reads += 1
        if self.away:
            raise OperationalError("the database does not answer")
        return self.reader(*args, **options)


@contextmanager
def serving(operations: LiveOperationsFeed, usage: LiveUsageFeed) -> Iterator[SimpleNamespace]:
    """Provide the portal on a port: `port`, and uvicorn's `server`."""
    from portal.asgi import django

    application = ProtocolTypeRouter({"http": django, "websocket": build_sockets(operations, usage)})
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        application,
        loop="uvloop",
        lifespan="off",
        log_level="error",
        ws_per_message_deflate=False,
        http="apiproxy.server.protocol:Protocol",
        ws="apiproxy.server.protocol:Socket",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    until(lambda: server.started)
    yield SimpleNamespace(port=listener.getsockname()[1], server=server, thread=thread)
    server.should_exit = True
    thread.join(30)
    listener.close()
    assert not thread.is_alive()


def session_of(user: User | None) -> Client:
    client = Client()
    if user:
        client.force_login(user)
    return client


def open_socket(
    site: Any,
    user: User | None,
    path: str = OPERATIONS,
    *,
    origin: str | None = None,
    client: Client | None = None,
    **more: Any,
) -> ClientConnection:
    client = client or session_of(user)
    cookies = "; ".join(f"{name}={value.value}" for name, value in client.cookies.items())
    return connect(
        f"ws://127.0.0.1:{site.port}{path}",
        origin=Origin(origin or f"http://127.0.0.1:{site.port}"),
        additional_headers={"Cookie": cookies},
        **more,
    )


def next_message(connection: ClientConnection, kind: str | None = None, seconds: float = 30) -> dict[str, Any]:
    """Return the next message; the next of this kind, passing over others."""
    deadline = time.monotonic() + seconds
    while True:
        message = json.loads(connection.recv(timeout=max(0.1, deadline - time.monotonic())))
        assert message["version"] == 1
        if kind in (None, message["type"]):
            return message


def is_refused(site: Any, user: User | None, path: str = OPERATIONS, **more: Any) -> bool:
    with pytest.raises(InvalidStatus) as caught:
        open_socket(site, user, path, **more)
    return caught.value.response.status_code == 403
