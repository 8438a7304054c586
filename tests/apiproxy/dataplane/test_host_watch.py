"""Hosts that say nothing: noticed at once, given no calls, taken back; those that only refuse are no such hosts."""

import asyncio
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from apiproxy.dataplane import engine_pools, host_watch
from apiproxy.dataplane.balancer import Balancer
from apiproxy.dataplane.catalogue import Replica
from apiproxy.dataplane.host_watch import CERTAIN, HostWatch
from apiproxy.dataplane.upstream import Address, Connection, Pool, Unreachable
from tests.apiproxy.served import SERVED
from tests.installation import ROOT
from tests.slapd import unused_port

A, B = (Replica(id=number, url=f"http://127.0.0.1:{number}", api_key="", upstream_model="m") for number in (1, 2))

UNSHARE = [shutil.which("unshare") or "unshare", *(() if os.geteuid() == 0 else ("--user", "--map-root-user"))]


@pytest.fixture
def full() -> Iterator[int]:
    """Provide the port of a server that takes no more connections: the kernel drops attempts, as for a dead host."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        waiting = []
        for _ in range(3):
            waiting.append(one := socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield server.getsockname()[1]
        for one in waiting:
            one.close()


def pool(port: int, host: str = "127.0.0.1") -> Pool:
    return Pool(Address.parse(f"http://{host}:{port}"), time.monotonic)


def test_o5_a_silent_host_is_off_at_once_and_back_at_once_and_no_caller_waits(tmp_path):
    command = [*UNSHARE, "--net", "--kill-child", sys.executable, "-m", "tests.silent_host", str(tmp_path / "var")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["off_after"] < 10
    assert seen["back_after"] < 10
    assert seen["longest"] < 1
    assert (seen["statuses"], seen["then"]) == ([503], 200)
    assert seen["stream_ended_after"] < 10
    assert "model_unavailable" in seen["stream_last"]
    assert seen["blamed"] == 0  # no call is taken for what its engine died of


async def test_o5_a_host_that_refuses_is_there_and_one_that_says_nothing_is_not(full):
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert await host_watch.answers(pool(server.getsockname()[1]))
    assert await host_watch.answers(pool(unused_port()))
    assert not await host_watch.answers(pool(full))


@pytest.mark.parametrize(
    ("told", "there"),
    [
        (0, True),
        (errno.ECONNREFUSED, True),
        (errno.ECONNRESET, True),
        (errno.EADDRNOTAVAIL, True),  # all of our own ports are taken
        (errno.EHOSTUNREACH, False),
        (errno.ENETUNREACH, False),
        (errno.EINPROGRESS, False),
    ],
)
def test_o5_only_who_is_not_there_is_silent(told, there):
    assert host_watch.is_answer(told) is there


async def test_o5_a_connection_that_we_were_too_slow_for_is_made_once_more(monkeypatch):
    """Of 127.0.0.1 the watch knows nothing, so this is another machine for once."""
    monkeypatch.setattr(engine_pools, "is_distant", lambda host: True)
    patient: list[float] = []

    class Slow(Pool):
        async def connect(self, patience: float) -> Connection:
            patient.append(patience)
            if len(patient) == 1:
                raise Unreachable("no connection within 0.8 s") from TimeoutError()
            return await super().connect(patience)

    model = replace(SERVED, external=False, timeouts=replace(SERVED.timeouts, connect=5.0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        slow = Slow(Address.parse(f"http://127.0.0.1:{server.getsockname()[1]}"), time.monotonic)
        pools = engine_pools.EnginePools(time.monotonic)
        (await pools.connect(slow, model, is_silent=lambda host: False)).abort()
        assert patient == [engine_pools.CONNECT_WITHIN, engine_pools.RECONNECT_WITHIN]
        patient.clear()
        with pytest.raises(Unreachable):
            await pools.connect(slow, model, is_silent=lambda host: True)
        assert sum((engine_pools.CONNECT_WITHIN, engine_pools.RECONNECT_WITHIN)) < 1


async def test_o5_a_gateway_that_was_held_up_takes_no_host_for_silent():
    with socket.create_server(("127.0.0.1", 0)) as server:
        asked = asyncio.create_task(host_watch.answers(pool(server.getsockname()[1])))
        await asyncio.sleep(0)  # it has begun
        time.sleep(2 * host_watch.PATIENCE)
        assert await asked


async def test_o5_a_host_of_which_one_engine_takes_no_connections_is_there(full, monkeypatch):
    monkeypatch.setattr(host_watch, "is_distant", lambda host: True)
    hosts = HostWatch(time.monotonic)
    with socket.create_server(("127.0.0.1", 0)) as server:
        living = pool(server.getsockname()[1])
        await hosts.ask([pool(full), living])
        assert hosts.silent == {}
        await hosts.ask([pool(full)])
        assert hosts.silent.keys() == {"127.0.0.1"}
        await hosts.ask([pool(full), living])
        assert hosts.silent == {}


async def test_o5_a_name_that_does_not_resolve_says_nothing_about_its_host():
    assert await host_watch.answers(pool(80, "no-such-host.invalid"))


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", False),
        ("127.9.9.9", False),
        ("::1", False),
        ("localhost", False),
        ("10.1.2.3", True),
        ("gpu1", True),
    ],
)
def test_o5_hosts_on_loopback_need_not_be_asked(host, asked):
    assert host_watch.is_distant(host) is asked


async def test_o5_one_question_is_a_doubt_and_several_are_certainty(monkeypatch):
    answers = {"gpu1": True, "gpu2": False}

    async def answers_probe(pool: Pool) -> bool:
        return answers[pool.address.host]

    monkeypatch.setattr(host_watch, "answers", answers_probe)
    now = 100.0
    hosts = HostWatch(lambda: now)
    pools = [pool(8001, "gpu1"), pool(8001, "gpu2"), pool(8002, "gpu2")]
    await hosts.ask(pools)
    assert hosts.silent == {"gpu2": 100.0}
    assert not hosts.is_certain("gpu2")
    now = 101.0
    for _ in range(CERTAIN - 1):
        await hosts.ask(pools)
    assert hosts.silent == {"gpu2": 100.0}
    assert hosts.is_certain("gpu2")
    answers["gpu2"] = True
    await hosts.ask(pools)
    assert hosts.silent == {}
    answers["gpu2"] = False
    await hosts.ask(pools)
    await hosts.ask(pools[:1])  # its models are gone: it will not be asked again
    assert hosts.silent == {}


def test_o5_replicas_on_silent_hosts_are_not_chosen():
    balancer = Balancer()
    balancer.add_call(B)
    balancer.unreachable = frozenset({A.id})
    assert balancer.choose((A, B), 0.0) is B
    assert balancer.choose((A,), 0.0) is None
    assert list(balancer.keep_reachable((A, B))) == [B]


class Answer:
    failure: Exception | None = None

    def failed(self, error: Exception) -> None:
        self.failure = error


@pytest.mark.parametrize(
    ("error", "lost"),
    [
        (None, True),
        (ConnectionResetError(), True),
        (TimeoutError(110, "timed out"), False),
        (OSError(113, "no"), False),
    ],
)
async def test_o5_a_host_that_is_out_of_reach_is_no_engine_that_died(error, lost):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        loop = asyncio.get_running_loop()
        transport, connection = await loop.create_connection(lambda: Connection(pool(port)), "127.0.0.1", port)
        answer = Answer()
        connection.request(b"POST / HTTP/1.1\r\n\r\n", answer)
        connection.connection_lost(error)
        transport.abort()
    assert answer.failure.lost is lost
