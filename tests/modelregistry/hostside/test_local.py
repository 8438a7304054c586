"""The machine on which it runs, as a surface: what takes no time waits for nothing that does."""

import asyncio
import threading

import pytest

from modelregistry.hostside import own_address
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import THREADS, LocalHost
from modelregistry.process import process
from tests.waiting import eventually


@pytest.fixture
async def host(tmp_path):
    host = LocalHost(HostConfig(runs=tmp_path / "runs", cache=tmp_path, commands={}, ports=range(18100, 18200)))
    yield host
    await host.close()


async def test_looks_wait_for_nothing_that_holds_a_thread(host, monkeypatch):
    held, begun = threading.Event(), []

    def find_fault(address: str) -> None:
        begun.append(address)
        assert held.wait(60)

    monkeypatch.setattr(own_address, "find_fault", find_fault)
    stuck = [asyncio.create_task(host.find_address_fault(str(number))) for number in range(THREADS)]
    try:
        await eventually(lambda: len(begun) == THREADS)
        async with asyncio.timeout(20):
            assert (await host.take_snapshot()).lives == {}
            assert await host.log_tail("none", 5) == ""
            assert await host.cpu_seconds("none") == 0.0
            await host.kill("none")
    finally:
        held.set()
        await asyncio.gather(*stuck)


def test_nothing_is_concluded_from_a_disk_that_fails(host, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(process, "life_of", fail)
    monkeypatch.setattr(host.runs, "find", lambda _run_id: object())
    assert host.life_of("some") is None
