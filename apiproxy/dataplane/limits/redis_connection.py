"""One connection to Redis for many commands at once: those of one turn of the event loop leave in one write.

An `asyncio.Protocol` around hiredis: a command and its answer take 10 µs of CPU, through redis-py's own connection 38
(measured on one core), and every call under a limit sends one. URLs are read by redis-py.
"""

import asyncio
import hashlib
import ssl
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import hiredis
from redis.asyncio.connection import SSLConnection, parse_url

# A command without an answer for so many ticks (200 to 300 ms) closes the connection. Ticks of the event loop and not
# the clock, so that a long turn of this process is not counted against Redis.
TICK = 0.1
MAX_TICKS = 3
CONNECT_TIMEOUT = 1.0  # seconds for a connection, its encryption and its greeting

OnReply = Callable[[Any], None]
OnMessage = Callable[[bytes], None]


class RedisUnavailable(Exception):
    """Redis does not answer; the text says why, never with a password."""


class PendingCommand(NamedTuple):
    tick: int
    words: tuple[Any, ...]
    on_reply: OnReply


async def connect(url: str, script: str) -> "RedisConnection":
    """Return a connection that is signed in. Raises RedisUnavailable, within CONNECT_TIMEOUT seconds."""
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            connection = await open_stream(url, script)
            try:
                await authenticate(connection, url)
            except BaseException:
                connection.close("not signed in")
                raise
            return connection
    except TimeoutError:
        raise RedisUnavailable(f"no connection within {CONNECT_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise RedisUnavailable(str(error)) from error


async def open_stream(url: str, script: str) -> "RedisConnection":
    """Open a connection to redis://, unix:// or rediss://. Raises OSError.

    rediss:// takes ssl_ca_certs, ssl_certfile, ssl_keyfile and ssl_cert_reqs=none.
    """
    loop, options = asyncio.get_running_loop(), parse_url(url)
    if "path" in options:
        _, connection = await loop.create_unix_connection(lambda: RedisConnection(script), options["path"])
        return connection
    encrypted = options.get("connection_class") is SSLConnection
    host, port = options.get("host", "localhost"), options.get("port", 6379)
    context = encryption(options) if encrypted else None
    _, connection = await loop.create_connection(
        lambda: RedisConnection(script), host, port, ssl=context, server_hostname=host if encrypted else None
    )
    return connection


def encryption(options: Mapping[str, Any]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    if options.get("ssl_certfile"):
        context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    if options.get("ssl_cert_reqs") == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def authenticate(connection: "RedisConnection", url: str) -> None:
    options = parse_url(url)
    if options.get("password"):
        who = [options["username"]] if options.get("username") else []
        await connection.request("AUTH", *who, options["password"])
    if options.get("db"):
        await connection.request("SELECT", options["db"])


class RedisConnection(asyncio.Protocol):
    """`script` is sent when the server does not have it, else named by its digest.

    `on_reply` is called once for every command: with the answer, or with None when the connection is lost.

    An error other than "no such script" (the server is loading, read-only, out of memory) closes the connection.
    """

    def __init__(self, script: str) -> None:
        self._script = script
        self._digest = hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader()
        self._pending: deque[PendingCommand] = deque()
        self._out: list[bytes] = []
        self._tick = 0
        self._ticking = False
        self._why = "the connection was closed"
        self._on_message: OnMessage | None = None
        self.lost: asyncio.Future[str] = self._loop.create_future()  # why

    def send(self, words: tuple[Any, ...], on_reply: OnReply) -> None:
        if self.lost.done():
            on_reply(None)
            return
        self._pending.append(PendingCommand(self._tick, words, on_reply))
        if not self._out:
            self._loop.call_soon(self._write)
        self._out.append(hiredis.pack_command(words))
        if not self._ticking:
            self._ticking = True
            self._loop.call_later(TICK, self._on_tick)

    def send_script(self, keys: Sequence[str], arguments: Sequence[Any], on_reply: OnReply) -> None:
        self.send(("EVALSHA", self._digest, len(keys), *keys, *arguments), on_reply)

    async def request(self, *words: Any) -> Any:
        """Send a command and return its answer. Raises RedisUnavailable."""
        return await self._wait_for(lambda on_reply: self.send(words, on_reply))

    async def run_script(self, keys: Sequence[str], arguments: Sequence[Any]) -> Any:
        """Run the script and return its answer. Raises RedisUnavailable."""
        return await self._wait_for(lambda on_reply: self.send_script(keys, arguments, on_reply))

    async def subscribe(self, channel: str, on_message: OnMessage) -> None:
        """Have `on_message` called with what is published to this channel, in the order of Redis's work with answers.

        Commands may be sent as before, for which Redis 6 is needed. Raises RedisUnavailable.
        """
        await self.request("HELLO", 3)
        self._on_message = on_message
        # The confirmation is a message itself, so the one of the next command shows that nothing was wrong.
        subscribe: tuple[Any, ...] = ("SUBSCRIBE", channel)
        self._write_now(hiredis.pack_command(subscribe))
        await self.request("PING")

    def close(self, why: str) -> None:
        self._why = why
        self._transport.abort()
        self._fail_pending()

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
            if isinstance(reply, hiredis.PushNotification):
                if reply[0] == b"message" and self._on_message is not None:
                    self._on_message(reply[2])
            else:
                self._on_reply(reply)

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self._why = str(error)
        self._fail_pending()

    # --- inner

    async def _wait_for(self, send: Callable[[OnReply], None]) -> Any:
        future: asyncio.Future[Any] = self._loop.create_future()

        def on_reply(reply: Any) -> None:
            if not future.done():
                future.set_result(reply)

        send(on_reply)
        reply = await future
        if reply is None:
            raise RedisUnavailable(self._why)
        return reply

    def _on_reply(self, reply: Any) -> None:
        command = self._pending.popleft()
        if not isinstance(reply, hiredis.ReplyError):
            command.on_reply(reply)
        elif str(reply).startswith("NOSCRIPT"):
            self.send(("EVAL", self._script, *command.words[2:]), command.on_reply)
        else:
            self._pending.appendleft(command)
            self.close(str(reply))

    def _write(self) -> None:
        out, self._out = self._out, []
        self._write_now(b"".join(out))

    def _write_now(self, packed: bytes) -> None:
        if not self.lost.done():
            self._transport.write(packed)

    def _on_tick(self) -> None:
        self._tick += 1
        if not self._pending or self.lost.done():
            self._ticking = False
        elif self._tick - self._pending[0].tick >= MAX_TICKS:
            self.close(f"no answer for {MAX_TICKS * TICK:.1f} s")
        else:
            self._loop.call_later(TICK, self._on_tick)

    def _fail_pending(self) -> None:
        if self.lost.done():
            return
        self.lost.set_result(self._why)
        pending, self._pending = self._pending, deque()
        for command in pending:
            command.on_reply(None)
