"""The machine on which it runs, as a surface: what takes no time waits for nothing that does."""

import asyncio
import threading

import pytest

from modelregistry.engines.base import EngineCommand
from modelregistry.hostside import file_reading, local, own_address
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.local import READING_THREADS, THREADS, LocalHost
from modelregistry.hostside.surface import HostFault
from modelregistry.process import gpus, process
from modelregistry.process.gpus import RAM
from modelregistry.process.process import Life
from tests.waiting import eventually

LABEL = {
    **{"model": 1, "replica": 0, "name": "m", "task": "chat", "fingerprint": "", "launcher": "llama-server"},
    **{"slots": 1, "port": 0, "url": "", "api_key": ""},
}


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


async def test_models_on_a_disk_that_hangs_keep_no_engine_from_being_stopped(host, monkeypatch):
    held, begun = threading.Event(), []

    def read(watched: object) -> list[object]:
        begun.append(watched)
        assert held.wait(60)
        return []

    monkeypatch.setattr(file_reading, "read_changed", read)
    stuck = [asyncio.create_task(host.read_changed_files([])) for _ in range(2 * THREADS)]
    try:
        await eventually(lambda: len(begun) == READING_THREADS)
        async with asyncio.timeout(20):
            assert await host.stop("none", 0.0) == ""
            assert await host.list_runs() == []
    finally:
        held.set()
        await asyncio.gather(*stuck)


def test_nothing_is_concluded_from_a_disk_that_fails(host, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(process, "life_of", fail)
    monkeypatch.setattr(host.runs, "find", lambda _run_id: object())
    assert host.life_of("some") is None


async def test_what_a_disk_raises_is_a_fault_of_the_host(host, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(host.runs, "find", fail)
    monkeypatch.setattr(host.runs, "all", fail)
    monkeypatch.setattr(process, "log_tail", fail)
    asked = [
        host.list_runs(),
        host.kill_strays(),
        host.stop("some", 0.0),
        host.kill("some"),
        host.forget_run("some"),
        host.cpu_seconds("some"),
        host.log_tail("some", 5),
        host.describe_end("some", 5),
        host.measure_use("some", ()),
    ]
    for each in asked:
        with pytest.raises(HostFault, match="Input/output error"):
            await each


async def test_what_is_no_id_of_a_run_is_a_fault_of_the_request(host):
    for each in (host.stop("../x", 0.0), host.log_tail("a/b", 5), host.settle_launch(""), host.kill("..")):
        with pytest.raises(HostFault):
            await each


async def test_nothing_is_known_of_runs_whose_disk_is_away(host):
    assert host.life_of("some") is Life.LOST
    host.runs.root.rmdir()
    assert host.life_of("some") is None
    with pytest.raises(HostFault):
        await host.take_snapshot()


async def test_a_run_whose_record_was_cut_short_hides_no_other(host, tmp_path):
    """As after a loss of power."""
    run = host.runs.start("whole", EngineCommand(argv=("/bin/sleep", "60"), env={}), label=LABEL, grace=1.0)
    for name, written in (("empty", ""), ("half", '{"label'), ("other", "[]"), ("poor", "{}")):
        (host.runs.root / name).mkdir()
        for each in ("spec.json", "state.json"):
            (host.runs.root / name / each).write_text(written)
    try:
        assert [each.run_id for each in await host.list_runs()] == ["whole"]
        assert set((await host.take_snapshot()).lives) == {"whole"}
    finally:
        assert process.stop(run, grace=0.0)


async def test_engines_that_take_all_of_their_grace_keep_no_other_from_being_asked_to_stop(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "THREADS", 2)
    host = LocalHost(HostConfig(runs=tmp_path / "runs", cache=tmp_path, commands={}, ports=range(18100, 18200)))
    asked = tmp_path / "asked"
    asked.mkdir()
    stubborn = f"trap 'touch {asked}/$0' TERM; touch {asked}/$0-waits; while :; do sleep 0.1; done"
    names = [f"r{number}" for number in range(5)]
    for name in names:
        host.runs.start(name, EngineCommand(argv=("/bin/sh", "-c", stubborn, name), env={}), label=LABEL, grace=60.0)
    await eventually(lambda: len(list(asked.glob("*-waits"))) == len(names))
    stops = [asyncio.create_task(host.stop(name, 60.0)) for name in names]
    try:
        await eventually(lambda: all((asked / name).exists() for name in names))
        assert not any(stop.done() for stop in stops)
    finally:
        await asyncio.gather(*(host.kill(name) for name in names))
        async with asyncio.timeout(60):
            assert await asyncio.gather(*stops) == [""] * len(names)
        await host.close()


async def test_what_others_have_reserved_is_not_free(host):
    before = (await host.measure_room([])).free[RAM]
    ram = gpus.read_ram()
    await host.reserve({RAM: ram.total})
    assert (await host.measure_room([])).free[RAM] < 0 < before
    assert not await host.has_ram(1, [])
    await host.reserve({})
    assert (await host.measure_room([])).free[RAM] > 0
    assert await host.has_ram(1, [])
