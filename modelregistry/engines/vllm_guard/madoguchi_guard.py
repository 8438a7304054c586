"""Keeps vLLM to those who know its key. Runs inside vLLM (`--middleware`), so it imports nothing of ours.

vLLM's own `--api-key` guards what lies under /v1 and little else: seen with 0.32, `/invocations` answers whole chat
completions to everybody, and `/tokenize`, `/metrics`, `/load` and `/scale_elastic_ep` are open too. Here all but
`/health` wants the key, as with llama-server.

vLLM has the routes of its sleep mode only with VLLM_SERVER_DEV_MODE, and with them those that call any method of its
workers, exchange its weights, pause it and show its configuration. There only what is listed here is let through:
what gateways and supervisors ask for, the three routes of sleep, and one method of the workers.
"""

import hmac
import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

NO_KEY = b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}'
CLOSED = b'{"error":{"message":"This route is closed","type":"invalid_request_error","code":404}}'

SERVED = ("/v1/", "/v2/")
SERVED_PATHS = frozenset(["/health", "/metrics", "/version", "/rerank"])
SLEEP_ROUTES = frozenset([("POST", "/sleep"), ("POST", "/wake_up"), ("GET", "/is_sleeping")])
RELOAD_ROUTE = ("POST", "/collective_rpc")
RELOAD = {"method": "reload_weights"}
LONGEST_CALL = 256  # bytes of a call of RELOAD_ROUTE


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self.expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()
        self.development = bool(int(os.environ.get("VLLM_SERVER_DEV_MODE", "0")))  # as vLLM reads it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["path"] != "/health" and not self._knows_the_key(scope):
            await _refuse(scope, send, 401, NO_KEY)
        elif not self.development or _is_served(scope):
            await self.app(scope, receive, send)
        elif _route_of(scope) == RELOAD_ROUTE and await _asks_to_reload(receive):
            # Not what came, which another parser may read otherwise.
            await self.app(scope, _replay(json.dumps(RELOAD).encode(), receive), send)
        else:
            await _refuse(scope, send, 404, CLOSED)

    def _knows_the_key(self, scope: Scope) -> bool:
        given: bytes = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self.expected)


def _route_of(scope: Scope) -> tuple[str, str]:
    return scope.get("method", ""), scope["path"]


def _is_served(scope: Scope) -> bool:
    path = scope["path"]
    return path.startswith(SERVED) or path in SERVED_PATHS or _route_of(scope) in SLEEP_ROUTES


async def _asks_to_reload(receive: Receive) -> bool:
    """Return whether the body is the one call that is let through."""
    body, more = b"", True
    while more and len(body) <= LONGEST_CALL:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        return not more and len(body) <= LONGEST_CALL and json.loads(body) == RELOAD
    except ValueError:
        return False


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives this body first, and then what comes from the client: its leaving."""
    first = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> dict[str, Any]:
        return first.pop() if first else await receive()

    return replayed


async def _refuse(scope: Scope, send: Send, status: int, body: bytes) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
