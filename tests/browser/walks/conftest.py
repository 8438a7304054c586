"""What walks need: pages, gateway and engine, and a chat program's address that keeps what is posted to it."""

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.browser.playground.conftest import engine_, serve, site  # noqa: F401 - three fixtures


@dataclass
class PostedMessages:
    """What was posted to `url`."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)


@pytest.fixture
def posted() -> Iterator[PostedMessages]:
    """Provide an address on this machine that accepts whatever a webhook posts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            found.bodies.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = PostedMessages(f"http://127.0.0.1:{server.server_port}/channel")
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield found
    server.shutdown()
    thread.join()
    server.server_close()
