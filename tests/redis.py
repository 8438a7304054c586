"""A real Redis of the tests' own: on a free port of this machine, in a temporary directory, writing nothing to disk."""

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import redis

from tests.ports import unused_port
from tests.waiting import until


@dataclass
class Redis:
    """`start` and `kill` as often as one likes; what was counted is gone then."""

    directory: Path
    port: int
    options: tuple[str, ...] = ()
    url: str = ""
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)
    client: redis.Redis = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.url = self.url or f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, decode_responses=True, socket_timeout=5)

    def start(self) -> None:
        """Return when it answers."""
        port = [] if "--tls-port" in self.options else ["--port", str(self.port)]
        command = ["redis-server", "--bind", "127.0.0.1", *port, "--save", "", "--dir", str(self.directory)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen([*command, *self.options], stdout=log, stderr=log)
        until(self.answers)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        """Suspend it: it takes connections (the system does) and says nothing."""
        os.kill(self.process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self.process.pid, signal.SIGCONT)

    def answers(self) -> bool:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            return bool(self.client.ping())
        return False


@contextlib.contextmanager
def redis_server(*options: str, url: str = "", port: int = 0) -> Iterator[Redis]:
    """Provide one that is started. `options` are redis-server's; `url` is what clients use instead of its own."""
    directory = Path(tempfile.mkdtemp(prefix="madoguchi-redis-"))
    server = Redis(directory, port or unused_port(), options, url)
    try:
        server.start()
        yield server
    finally:
        server.client.close()
        if hasattr(server, "process") and server.process.poll() is None:
            server.kill()
        shutil.rmtree(directory, ignore_errors=True)
