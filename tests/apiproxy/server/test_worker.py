"""How a worker ends: what it does with connections that are open, and with those that come."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from apiproxy.server.gateway_lock import GatewayLock, SecondGateway
from apiproxy.server.succession import READY, RETIRE
from apiproxy.server.worker import IDLE
from tests.waiting import until

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("small_worker.py")


@dataclass
class Running:
    process: "subprocess.Popen[bytes]"
    listener: socket.socket
    reports: socket.socket

    @contextlib.contextmanager
    def connect(self) -> Iterator[httpx2.Client]:
        """Provide a client with one connection, which has carried an answer."""
        port = self.listener.getsockname()[1]
        limits = httpx2.Limits(max_connections=1, keepalive_expiry=60)
        with httpx2.Client(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=20) as client:
            assert client.get("/0").status_code == 200
            yield client

    def accepts(self) -> bool:
        """Return whether its event loop waits for connections."""
        inode = os.fstat(self.listener.fileno()).st_ino
        for entry in Path(f"/proc/{self.process.pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):  # it was closed meanwhile
                if f"ino:{inode:x} " in entry.read_text():
                    return True
        return False


@pytest.fixture
def worker() -> Iterator[Running]:
    reports, theirs = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as listener, reports, theirs:
        numbers = [listener.fileno(), theirs.fileno()]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), READY: str(numbers[1])}
        command = [sys.executable, str(WORKER), str(numbers[0])]
        running = Running(subprocess.Popen(command, env=environment, pass_fds=numbers), listener, reports)
        theirs.close()
        try:
            reports.settimeout(30)
            assert reports.recv(100) == b"ready\n"
            yield running
        finally:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def serving(worker) -> Running:
    worker.reports.close()
    until(worker.accepts)
    return worker


def test_a_worker_that_is_ready_waits_until_it_may_begin(worker):
    assert not worker.accepts()
    worker.reports.close()
    until(worker.accepts)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, RETIRE])
def test_one_that_may_not_begin_yet_ends_when_asked_to(worker, number):
    worker.process.send_signal(number)
    worker.process.wait(5)


def test_one_that_retires_answers_a_connection_that_was_left_open_and_asks_to_close_it(serving):
    with serving.connect() as client:
        serving.process.send_signal(RETIRE)
        until(lambda: not serving.accepts())
        time.sleep(3 * IDLE)  # a worker that is to end soon would have closed it
        answer = client.get("/0")
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    assert serving.process.wait(20) == 0


def test_one_that_retires_waits_for_its_last_answer(serving):
    with serving.connect() as client, ThreadPoolExecutor() as threads:
        answer = threads.submit(client.get, "/2")
        serving.process.send_signal(RETIRE)
        until(lambda: not serving.accepts())
        assert not answer.done()
        assert answer.result().text == "ok"
    assert serving.process.wait(20) == 0


def test_one_that_retires_leaves_new_connections_to_others(serving):
    with serving.connect():
        serving.process.send_signal(RETIRE)
        until(lambda: not serving.accepts())
        port = serving.listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as waiting:
            serving.listener.settimeout(20)
            connection, _ = serving.listener.accept()
            with connection:
                assert connection.getpeername() == waiting.getsockname()


def test_one_that_is_to_end_soon_closes_idle_connections_itself(serving):
    with serving.connect():
        serving.process.terminate()
        assert serving.process.wait(5) == -signal.SIGTERM


def test_gateways_of_one_group_may_follow_each_other(tmp_path):
    path = tmp_path / "gateway.lock"
    first = GatewayLock(path, shared=False, group="a")
    first.acquire()
    second = GatewayLock(path, shared=False, group="a")
    second.acquire()
    assert (first.held, second.held, second.retry()) == (True, False, False)
    first.release()
    assert second.retry()
    second.release()


@pytest.mark.parametrize("group", ["", "b"])
def test_a_gateway_of_another_group_is_refused(tmp_path, group):
    path = tmp_path / "gateway.lock"
    first = GatewayLock(path, shared=True, group="a" if group else "")
    first.acquire()
    with pytest.raises(SecondGateway):
        GatewayLock(path, shared=False, group=group).acquire()
    first.release()
