"""A gateway that starts waits for what is away at once, not for one after the other."""

import socket
import threading

from tests.apiproxy.conftest import serve_gateway
from tests.waiting import until


class SilentServer:
    """Takes connections and never answers; notes when each was opened and closed."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.events: list[str] = []
        self.url = f"redis://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.events.append("opened")
            threading.Thread(target=self._read, args=[connection], daemon=True).start()

    def _read(self, connection: socket.socket) -> None:
        with connection:
            try:
                while connection.recv(4096):
                    pass
            except OSError:
                pass
        self.events.append("closed")


def test_limits_and_queue_wait_for_redis_side_by_side(transactional_db, settings, tmp_path):
    settings.SPOOL, settings.RUN = tmp_path / "spool", tmp_path / "run"
    silent = SilentServer()
    settings.REDIS_URL = silent.url
    with serve_gateway():
        until(lambda: "closed" in silent.events)
        assert silent.events[:2] == ["opened", "opened"]
    silent.listener.close()
