"""Keeps vLLM to those who know its key. Runs inside vLLM (`--middleware`), so it imports nothing of ours.

vLLM's own `--api-key` guards what lies under /v1 and little else: seen with 0.32, `/invocations` answers whole chat
completions to everybody, and `/tokenize`, `/metrics`, `/load` and `/scale_elastic_ep` are open too. Here all but
`/health` wants the key, as with llama-server.
"""

import hmac
import os

REFUSAL = b'{"error":{"message":"Invalid API Key","type":"authentication_error","code":401}}'


class Guard:
    """An ASGI application around another one."""

    def __init__(self, app) -> None:  # type: ignore[no-untyped-def]
        self.app = app
        self.expected = f"Bearer {os.environ['VLLM_API_KEY']}".encode()

    async def __call__(self, scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        if scope["type"] == "lifespan" or scope["path"] == "/health" or self._knows_the_key(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = [(b"content-type", b"application/json"), (b"content-length", str(len(REFUSAL)).encode())]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": REFUSAL})

    def _knows_the_key(self, scope) -> bool:  # type: ignore[no-untyped-def]
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self.expected)
