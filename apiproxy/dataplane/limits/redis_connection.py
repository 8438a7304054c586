"""One connection to Redis on which many ask at once: questions of one turn of the event loop leave in one write.

An `asyncio.Protocol` around hiredis: a question and its answer take 10 µs of CPU, through redis-py's own connection 38
(measured on one core), and every call under a limit asks once. URLs are read by redis-py.
"""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

# Who waits longer than PATIENCE ticks has been left alone: 200 to 300 ms. Counted in ticks of the event loop, not by
# the clock, so that a turn of our own that took long is not held against Redis.
TICK = 0.1
PATIENCE = 3
CONNECT = 1.0  # seconds for a connection, its encryption and its greeting

OnReply = Callable[[Any], None]


class RedisUnavailable(Exception):
    """Redis cannot be asked; says why, never with a password."""


class PendingCommand(NamedTuple):
    tick: int
    words: tuple[Any, ...]
    heard: OnReply


async def connect(url: str, script: str) -> "RedisConnection":
    """Return a connection that is signed in. Raises Away, within CONNECT seconds."""
    try:
        async with asyncio.timeout(CONNECT):
            link = await open_stream(url, script)
            try:
                await authenticate(link, url)
            except BaseException:
                link.close("not signed in")
                raise
            return link
    except TimeoutError:
        raise RedisUnavailable(f"no connection within {CONNECT:.0f} s") from None
    except OSError as error:
        raise RedisUnavailable(str(error)) from error


async def open_stream(url: str, script: str) -> "RedisConnection":
    """redis://, unix:// or rediss:// (with ssl_ca_certs, ssl_certfile, ssl_keyfile, ssl_cert_reqs=none).

    Raises OSError.
    """
    loop, where = asyncio.get_running_loop(), parse_url(url)
    if "path" in where:
        _, link = await loop.create_unix_connection(lambda: RedisConnection(script), where["path"])
        return link
    encrypted = where.get("connection_class") is SSLConnection
    host, port = where.get("host", "localhost"), where.get("port", 6379)
    context = encryption(where) if encrypted else None
    _, link = await loop.create_connection(
        lambda: RedisConnection(script), host, port, ssl=context, server_hostname=host if encrypted else None
    )
    return link


def encryption(where: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=where.get("ssl_ca_certs"))
    if where.get("ssl_certfile"):
        context.load_cert_chain(where["ssl_certfile"], where.get("ssl_keyfile"))
    if where.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def authenticate(link: "RedisConnection", url: str) -> None:
    where = parse_url(url)
    if where.get("password"):
        who = [where["username"]] if where.get("username") else []
        await link.answer("AUTH", *who, where["password"])
    if where.get("db"):
        await link.answer("SELECT", where["db"])


class RedisConnection(asyncio.Protocol):
    """`script` is what `run` runs: sent when the server does not have it, else named by its digest.

    `heard` is called once for every question: with the answer, or with None when the connection is lost.

    A server that answers an error other than "no such script" (it is loading, read-only, out of memory) is of no use:
    the connection is closed.
    """

    def __init__(self, script: str) -> None:
        self._script = script
        self._digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._asked: deque[PendingCommand] = deque()
        self._out: list[bytes] = []
        self._tick = 0
        self._ticking = False
        self._why = "the connection was closed"
        self.lost: asyncio.Future[str] = self._loop.create_future()  # why

    def ask(self, words: tuple[Any, ...], heard: OnReply) -> None:
        if self.lost.done():
            heard(None)
            return
        self._asked.append(PendingCommand(self._tick, words, heard))
        if not self._out:
            self._loop.call_soon(self._write)
        self._out.append(hiredis.pack_command(words))
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK, self._ticked)

    def run(self, keys: Sequence[str], arguments: Sequence[Any], heard: OnReply) -> None:
        self.ask(("EVALSHA", self._digest, len(keys), *keys, *arguments), heard)

    async def answer(self, *words: Any) -> Any:
        """Raise Away."""
        return await self._answer(lambda heard: self.ask(words, heard))

    async def result(self, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """What the script answers. Raises Away."""
        return await self._answer(lambda heard: self.run(keys, arguments, heard))

    def close(self, why: str) -> None:
        self._why = why
        self._transport.abort()
        self._end()

    # --- asyncio.Protocol

    def connection_made(self, transport: Any) -> None:
        self._transport: asyncio.Transport = transport

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        while not self.lost.done():
            try:
                reply = self._reader.gets()
            except hiredis.ProtocolError as error:
                self.close(f"it does not speak Redis: {error}")
                return
            if reply is False:
                return
            self._heard(reply)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._why = str(error)
        self._end()

    # --- inner

    async def _answer(self, ask: Callable[[OnReply], None]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()

        def heard(reply: Any) -> None:
            if not future.done():
                future.set_result(reply)

        ask(heard)
        reply = await future
        if reply is None:
            raise RedisUnavailable(self._why)
        return reply

    def _heard(self, reply: Any) -> None:
        question = self._asked.popleft()
        if not isinstance(reply, hiredis.ReplyError):
            question.heard(reply)
        elif str(reply).startswith("NOSCRIPT"):
            self.ask(("EVAL", self._script, *question.words[2:]), question.heard)
        else:
            self._asked.appendleft(question)
            self.close(str(reply))

    def _write(self) -> None:
        out, self._out = self._out, []
        if not self.lost.done():
            self._transport.write(b"".join(out))

    def _ticked(self) -> None:
        self._tick += 1
        if not self._asked or self.lost.done():
            self._ticking = False
        elif self._tick - self._asked[0].tick >= PATIENCE:
            self.close(f"no answer for {PATIENCE * TICK:.1f} s")
        else:
            self._loop.call_later(TICK, self._ticked)

    def _end(self) -> None:
        if self.lost.done():
            return
        self.lost.set_result(self._why)
        asked, self._asked = self._asked, deque()
        for question in asked:
            question.heard(None)
