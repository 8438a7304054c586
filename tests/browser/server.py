"""The portal as it runs for real, sockets and gateway and all, in a thread of the tests' process."""

import threading
from dataclasses import dataclass, field
from typing import Literal

import uvicorn
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler

from tests.waiting import until


@dataclass
class Site:
    """`lifespan` "on" has the gateway started and stopped with the server, "off" leaves it out."""

    port: int
    lifespan: Literal["on", "off"] = "off"
    server: uvicorn.Server = field(init=False, repr=False)
    thread: threading.Thread = field(init=False, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        from apiproxy.server.single_process import application

        # Files as in development: nothing was collected.
        served = ASGIStaticFilesHandler(application)
        config = uvicorn.Config(
            served, port=self.port, lifespan=self.lifespan, log_config=None, timeout_graceful_shutdown=1
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        until(lambda: self.server.started)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
