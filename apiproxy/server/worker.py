"""A process that serves, gateway or portal: a uvicorn server that reports when it accepts, and that can retire.

uvicorn closes idle connections when it stops. nginx may be sending a call by one of them at that moment; it repeats no
POST, so its caller gets an error. So a worker that retires leaves idle connections open: clients close them, or it does
after KEEP_ALIVE, and a call that still comes by one is answered, with the request to close it. One that is to end soon
closes those by which nothing has come for IDLE seconds: nginx calls by the one that was used last.

Several workers accept on one socket, one connection in each turn of their event loop: who is busy takes fewer. uvloop
takes all that wait; of 20 streams that waited for two workers to start, one got all 20.
"""

import asyncio
import logging
import math
import os
import signal
import socket
from collections.abc import Callable
from typing import Any

import uvicorn

from apiproxy.server.succession import RETIRE, STOP_SECONDS, wait_for_others

log = logging.getLogger("madoguchi.up")

KEEP_ALIVE = 75  # seconds: longer than nginx keeps an idle connection (60 s), so that it never finds one closed
IDLE = 0.3
EXIT_SECONDS = 0.1  # within which a worker that may not accept yet notices that it is to end; uvicorn looks as often
FULL_SECONDS = 1.0  # after which a process without a free descriptor looks again
OPTIONS: dict[str, Any] = {
    "loop": "uvloop",
    "http": "apiproxy.server.protocol:Protocol",
    "log_level": "warning",
    "access_log": False,
    "server_header": False,
    "proxy_headers": False,
    "timeout_graceful_shutdown": STOP_SECONDS,
    "timeout_keep_alive": KEEP_ALIVE,
}


class Worker(uvicorn.Server):
    """`patience`: seconds that answers may go on after RETIRE. `ending` is called when no more connections come."""

    def __init__(self, config: uvicorn.Config, *, patience: float, ending: Callable[[], None] = lambda: None) -> None:
        super().__init__(config)
        self._patience = patience
        self._ending = ending
        self._hurrying = False
        self._accepted: set[asyncio.Task[None]] = set()  # connections that have no protocol yet

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        signal.signal(RETIRE, self._on_retire)
        await super().startup([])
        await self._wait_for_others()
        for listener in sockets or []:
            listener.setblocking(False)
            listener.listen(self.config.backlog)
            self._watch(listener)

    async def _wait_for_others(self) -> None:
        """Return when this worker may accept, or when it is to end before that."""
        waiting = asyncio.ensure_future(wait_for_others(os.environ))
        while not (waiting.done() or self.should_exit):
            await asyncio.wait([waiting], timeout=EXIT_SECONDS)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=self.should_exit)

    def _watch(self, listener: socket.socket) -> None:
        if not self.should_exit:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):  # another worker was quicker; the client has left
            return
        except OSError as error:  # no descriptor is left
            log.error("no connection is accepted for %.0f s: %s", FULL_SECONDS, error)
            asyncio.get_running_loop().remove_reader(listener)
            asyncio.get_running_loop().call_later(FULL_SECONDS, self._watch, listener)
            return
        task = asyncio.get_running_loop().create_task(self._begin(connection))
        self._accepted.add(task)
        task.add_done_callback(self._accepted.discard)

    async def _begin(self, connection: socket.socket) -> None:
        """Give a new connection its protocol."""
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make_protocol, connection)
        except OSError:  # it was closed meanwhile
            connection.close()

    def _make_protocol(self) -> asyncio.Protocol:
        make: Any = self.config.http_protocol_class
        protocol: asyncio.Protocol = make(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return protocol

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for listener in sockets or []:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        await asyncio.gather(*self._accepted)
        self._ending()
        begun = asyncio.get_running_loop().time()
        if not self._hurrying:
            await self._drain(begun + self._patience, lambda: self._hurrying)
        await self._drain(asyncio.get_running_loop().time() + STOP_SECONDS, lambda: self.force_exit, idle=IDLE)
        self.config.timeout_graceful_shutdown = 1  # second: what is open by now has had its time
        await super().shutdown(sockets)

    async def _drain(self, deadline: float, over: Callable[[], bool], idle: float = math.inf) -> None:
        """Wait until all connections have been closed, for as long as there is time.

        `idle`: seconds without a request after which they are closed here.
        """
        asked: set[Any] = set()
        while (left := self.server_state.connections) and not over() and asyncio.get_running_loop().time() < deadline:
            for connection in left - asked:  # also those that were accepted just before the end
                # A WebSocket has no end of its own: browsers connect again.
                getattr(connection, "retire", connection.shutdown)()
            asked = set(left)
            for connection in [one for one in left if getattr(one, "idle_seconds", 0.0) > idle]:
                connection.shutdown()
            await asyncio.sleep(0.1)

    def _on_retire(self, number: int, frame: object) -> None:
        self.should_exit = True

    def handle_exit(self, sig: int, frame: Any) -> None:
        self._hurrying = True
        super().handle_exit(sig, frame)
