"""Bounds on request bodies: each is read here, bounded in size and time, before Django handles the request.

Django spools whatever a stranger sends to disk, however long it takes, and looks for a session only afterwards. Here a
request without a session or key may send as much as a sign-in needs, others as much as a form or the API needs. Whether
a session is valid is for Django to check: a forged cookie gets the larger bound, but all bodies together have one too.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from html import escape
from typing import Any

from django.conf import settings
from django.utils import translation
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

Message = dict[str, Any]
Scope = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[..., Awaitable[None]]

# Bytes of a body: without a session or key, of a form on a page, of a request to the API.
STRANGER = 64 * 1024
FORM = 1024 * 1024
API = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
# Bytes of all bodies that are being read. Beyond it, the one that has been silent longest is dropped.
TOGETHER = 64 * 1024 * 1024
# Seconds between two parts of a body, and for all of it.
PAUSE = 60.0
WHOLE = 300.0


class BodyRefused(Exception):
    """The body cannot be taken. `facts` are formatted into the sentence, in the reader's language."""

    def __init__(self, status: int, sentence: Any, **facts: int) -> None:
        super().__init__(status)
        self.status = status
        self.sentence = sentence
        self.facts = facts


class ClientGone(Exception):
    """The client closed its connection before its body was complete."""


class BodyReading:
    """One body that is being read."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.patience: asyncio.Timeout | None = None

    def give_up(self) -> None:
        if self.patience is not None:
            self.patience.reschedule(0)


class RequestBounds:
    """An ASGI middleware that reads bodies before `app`."""

    def __init__(self, app: App, *, together: int = TOGETHER, pause: float = PAUSE, whole: float = WHOLE) -> None:
        self._app = app
        self._together = together
        self._pause = pause
        self._whole = whole
        self._readings: dict[BodyReading, None] = {}  # the one that has been silent longest first
        self.buffered = 0  # bytes of all of them

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if b"transfer-encoding" not in headers and not int(length):
            await self._app(scope, receive, send)
            return
        try:
            most = max_body_size(scope["path"], headers)
            if int(length) > most:
                raise size_refusal(most)
            body = await self._read(receive, most)
        except ClientGone:
            return
        except BodyRefused as refused:
            with translation.override(choose_language(headers)):
                await send_refusal(refused, scope["path"], send)
            return
        await self._app(scope, BufferedReceive(body, receive), send)

    async def _read(self, receive: Receive, most: int) -> bytes:
        """Return the whole body. Raises BodyRefused and ClientGone."""
        reading = BodyReading()
        try:
            async with asyncio.timeout(self._whole):
                while await self._read_part(reading, receive):
                    if len(reading.body) > most:
                        raise size_refusal(most)
        except TimeoutError:
            raise BodyRefused(408, _("The rest of the request did not come in time.")) from None
        finally:
            self._readings.pop(reading, None)
            self.buffered -= len(reading.body)
        if len(reading.body) > most:
            raise size_refusal(most)
        return bytes(reading.body)

    async def _read_part(self, reading: BodyReading, receive: Receive) -> bool:
        """Read the next part; return whether there is more. Raises TimeoutError and ClientGone."""
        self._readings[reading] = self._readings.pop(reading, None)  # to the end
        async with asyncio.timeout(self._pause) as reading.patience:
            message = await receive()
        reading.patience = None
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        reading.body += piece
        self.buffered += len(piece)
        if self.buffered > self._together:
            silent = next(iter(self._readings))
            del self._readings[silent]
            silent.give_up()
        return bool(message.get("more_body", False))


class BufferedReceive:
    """Replaces `receive` once the body has been read: returns the body in one message, then what the server sends."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        body, self._body = self._body, None
        if body is None:
            return await self._receive()
        return {"type": "http.request", "body": body, "more_body": False}


def max_body_size(path: str, headers: dict[bytes, bytes]) -> int:
    """Return how many bytes the body may have."""
    session = f"{settings.SESSION_COOKIE_NAME}=".encode() in headers.get(b"cookie", b"")
    if not session and b"authorization" not in headers:
        return STRANGER
    return API if path.startswith("/api/") else FORM


def size_refusal(most: int) -> BodyRefused:
    return BodyRefused(
        413, _("The request is larger than the %(limit)s KB that are accepted here."), limit=most // 1024
    )


def choose_language(headers: dict[bytes, bytes]) -> str:
    """Return the language that was chosen on a page, else the browser's."""
    chosen = headers.get(b"cookie", b"").partition(f"{settings.LANGUAGE_COOKIE_NAME}=".encode())[2]
    return "ja" if (chosen or headers.get(b"accept-language", b"")).startswith(b"ja") else "en"


async def send_refusal(refused: BodyRefused, path: str, send: Send) -> None:
    """Answer with a problem of the API, or with a page."""
    sentence = str(refused.sentence) % refused.facts
    if path.startswith("/api/"):
        kind = b"application/problem+json"
        problem = {"type": "about:blank", "title": gettext("Error"), "status": refused.status, "detail": sentence}
        body = json.dumps(problem, ensure_ascii=False).encode()
    else:
        kind = b"text/html; charset=utf-8"
        start = f'<!doctype html><html lang="{translation.get_language()}"><meta charset="utf-8">'
        body = f"{start}<title>{refused.status}</title><p>{escape(sentence)}</p>".encode()
    headers = [(b"content-type", kind), (b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
