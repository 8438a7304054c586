"""Answers callers with 503 while no server accepts on a listener, instead of leaving them in its queue.

The listeners of Madoguchi stay open while what serves on them restarts, so callers wait. If it does not come back they
would wait for as long as they are patient: nginx gives a call an hour. The process that holds a listener therefore
answers on it itself after a while, and stops as soon as a server accepts again.

To an nginx of several machines an answer looks as if this one served, and being so quick it would get most calls. A
request that carries PASS_OVER is therefore closed without one: nginx counts that as a failure, leaves the machine out
for some seconds, and answers itself what it cannot send to another one.

Imports nothing but the standard library: `handover` outlives versions.
"""

import asyncio
import contextlib
import errno
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence

log = logging.getLogger("madoguchi.stand_in")

# Seconds that callers wait for a server that starts: it takes 3 to 10 s, on busy machines up to 30 s, and waiting for
# that is better than an error.
PATIENCE = 30.0
PATIENCE_AFTER_FAILURE = 5.0  # when a start has failed: the next one may be quicker to fail than to serve
LOOK_SECONDS = 0.25  # between two looks whether a server accepts
RETRY_AFTER = 5
HEAD_SECONDS = 5.0  # that the head of a request may take to arrive
LINGER_SECONDS = 2.0  # for which what a caller still sends is read: closing before that could take the answer from it
MAX_HEAD = 64 * 1024  # bytes
MAX_CALLERS = 500  # at a time; what comes then is closed without an answer
BACKLOG = 2048
PASS_OVER = b"x-pass-over"  # a field of requests, set in nginx.conf
EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

MESSAGE = "The server does not answer right now. Try again in a few seconds."  # as nginx.conf says it
ERROR = {"type": "server_error", "message": MESSAGE, "param": None, "code": "server_unavailable"}
JSON = json.dumps({"type": "error", "error": ERROR}).encode()
PAGE = f"""<!doctype html><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Madoguchi</title><body style="font-family:system-ui,sans-serif;margin:4rem auto;max-width:32rem;padding:0 1rem">
<p lang="ja">現在サーバーが応答していません。しばらくしてからもう一度お試しください。</p>
<p lang="en">{MESSAGE}</p>
""".encode()


class StandIn:
    """Answers on `listeners` while `find_patience` says so.

    `find_patience` returns None while a server accepts, otherwise how many seconds callers may wait from the moment at
    which none did.
    """

    def __init__(self, listeners: Sequence[socket.socket], find_patience: Callable[[], float | None]) -> None:
        self._listeners = listeners
        self._find_patience = find_patience
        self._answering = False
        self._answers: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Answer meanwhile, whenever no server has accepted for too long."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        since = loop.time()
        try:
            while True:
                patience = self._find_patience()
                if patience is None:
                    since = loop.time()
                    self._end()
                elif loop.time() - since >= patience:
                    self._begin()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            self._end()

    async def answer_waiting(self) -> None:
        """Answer all that wait now, and return when that is done."""
        self._begin()
        for listener in self._listeners:
            for _ in range(BACKLOG):  # those that come meanwhile wait for the next process
                if not self._accept(listener):
                    break
        self._end()
        if self._answers:
            await asyncio.wait(self._answers, timeout=LINGER_SECONDS)

    def _begin(self) -> None:
        if not self._answering:
            self._answering = True
            log.error("no server accepts: callers are answered with 503")
            for listener in self._listeners:
                # Servers accept without waiting as well; it is the same socket that is set so.
                listener.setblocking(False)
                listener.listen(BACKLOG)
        for listener in self._listeners:  # also those that `_accept` has left alone
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _end(self) -> None:
        if self._answering:
            self._answering = False
            for listener in self._listeners:
                asyncio.get_running_loop().remove_reader(listener)

    def _accept(self, listener: socket.socket) -> bool:
        """Answer one caller. Return whether there was one."""
        try:
            connection, _ = listener.accept()
        except OSError as error:  # another process was quicker; the caller has left
            if error.errno in EXHAUSTED:  # the caller stays in the queue: until the next look, or this would never rest
                asyncio.get_running_loop().remove_reader(listener)
            return False
        if len(self._answers) >= MAX_CALLERS:
            connection.close()
            return True
        task = asyncio.get_running_loop().create_task(answer(connection))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)
        return True


async def answer(connection: socket.socket) -> None:
    """Read the head of one request, refuse it, and close the connection."""
    with contextlib.suppress(OSError, TimeoutError, EOFError, asyncio.LimitOverrunError):
        try:
            reader, writer = await asyncio.open_connection(sock=connection, limit=MAX_HEAD)
        except BaseException:
            connection.close()
            raise
        with contextlib.closing(writer):
            await refuse(reader, writer)


async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Refuse one request, unless it is to be passed over."""
    async with asyncio.timeout(HEAD_SECONDS):
        head = await reader.readuntil(b"\r\n\r\n")
    if has_field(head, PASS_OVER):
        return
    writer.write(refusal(head))
    writer.write_eof()
    async with asyncio.timeout(LINGER_SECONDS):
        await writer.drain()
        while await reader.read(MAX_HEAD):
            pass


def has_field(head: bytes, name: bytes) -> bool:
    return any(line.startswith(name + b":") for line in head.lower().split(b"\r\n")[1:])


def refusal(head: bytes) -> bytes:
    """Return the answer to a request with this head: a page for browsers, an error in JSON for all others."""
    method, _, rest = head.partition(b" ")
    page = any(b"text/html" in line for line in rest.lower().split(b"\r\n") if line.startswith(b"accept:"))
    kind, body = ("text/html; charset=utf-8", PAGE) if page else ("application/json", JSON)
    lines = (
        "HTTP/1.1 503 Service Unavailable",
        f"content-type: {kind}",
        f"content-length: {len(body)}",
        f"retry-after: {RETRY_AFTER}",
        "cache-control: no-store",
        "connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == b"HEAD" else body)
