"""The machine on which this runs, as a `HostSurface`: the supervisor's own, or a node behind a `HostServer`.

A failing or full disk shows as `HostFault`, as it does of a host that is another machine.
"""

import asyncio
import contextlib
import math
import os
import random
import re
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import ParamSpec, TypeVar

from modelregistry.engines import programs
from modelregistry.engines.base import Spec
from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import Installed, Trial
from modelregistry.hostside import file_reading, launching, own_address, sleep_record
from modelregistry.hostside.executor import Executor
from modelregistry.hostside.faults import describe_exception
from modelregistry.hostside.inspection import Inspection, Inspector
from modelregistry.hostside.launching import HostConfig
from modelregistry.hostside.own_address import AddressFault
from modelregistry.hostside.run_metadata import metadata_of
from modelregistry.hostside.sleep_record import SleepRecord
from modelregistry.hostside.surface import (
    FilesRead,
    HostedRun,
    HostFault,
    HostOffer,
    HostRoom,
    HostSnapshot,
    LaunchOrder,
    LaunchRefusal,
    LaunchRefused,
    PlacedReplica,
    RunEnd,
    WatchedFiles,
)
from modelregistry.memory import allocation
from modelregistry.memory.allocation import Allocation, FitResult, HostedReplica, MemoryUse
from modelregistry.memory.estimate import Measured
from modelregistry.process import process, stopping
from modelregistry.process.gpus import Device
from modelregistry.process.process import Life, Run, Runs
from modelregistry.wire_bounds import shorten

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 32  # that wait for processes, and for the disk of their runs
# For models' files, which are often on a share: one that hangs must not keep engines from being stopped.
READING_THREADS = 8
# Beside them, for what takes no time: 32 engines that stop hold all of those for as long as their grace.
QUICK_THREADS = 4
BEGUN_WITHIN = 30.0  # seconds for a shim whose starter was killed to report itself, as for one whose starter waits
LOOK_AGAIN = 0.1
CALLED_OFF_FOR = 86_400.0  # seconds; a request that is late by a day is not on its way any more
LIVING = (Life.RUNNING, Life.ENDING)
RUN_ID = re.compile(r"[\w-]{1,64}", re.ASCII)
CALLED_OFF = "its start was called off"


@contextlib.contextmanager
def _as_host_fault() -> Iterator[None]:
    """Turn what disks raise, and what is no id of a run, into HostFault."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise HostFault(describe_exception(error)) from error


async def _wait_while(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not await condition():
            return
        await asyncio.sleep(LOOK_AGAIN)


class LocalHost:
    """A HostSurface of the machine on which it runs; what blocks runs in threads."""

    def __init__(self, config: HostConfig, *, rng: random.Random | None = None) -> None:
        self.config = config
        self.runs = Runs(config.runs, groups=process.own_group())
        self.inspector = Inspector(self.runs, config.cache, config.commands, config.directories)
        self.executor = Executor(THREADS, "processes")
        self.quick = Executor(QUICK_THREADS, "looks")
        self.readers = Executor(READING_THREADS, "models")
        self.rng = rng or random.Random()  # noqa: S311 -- chooses ports
        # Kept, as processes are to be found also when the disk with their directories is away.
        self.known: dict[str, Run] = {}
        with contextlib.suppress(OSError):  # what is asked later says why
            self.runs.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.launching = threading.Condition()
        self.launches: dict[str, LaunchOrder] = {}  # that are being carried out
        self.ports: dict[str, list[int]] = {}  # of these
        self.reserved: Mapping[int, int] = {}  # bytes by device

    async def _run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what waits for processes or disks. Raises HostFault for what they raise."""
        with _as_host_fault():
            return await self.executor.run(function, *args, **kwargs)

    async def _look(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what takes no time, also while all threads of `_run` wait. Raises HostFault."""
        with _as_host_fault():
            return await self.quick.run(function, *args, **kwargs)

    async def _read(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run what looks at models' files. Raises HostFault."""
        with _as_host_fault():
            return await self.readers.run(function, *args, **kwargs)

    # --- What is known without asking

    def silent_for(self) -> float:
        return 0.0

    def life_of(self, run_id: str) -> Life | None:
        try:
            if run := self._find(run_id):
                return process.life_of(run)
            return Life.LOST if self.runs.root.exists() else None
        except (OSError, ValueError):
            return None  # the disk does not answer

    def oom_kills(self) -> int:
        return process.oom_kills()

    # --- Connection

    async def open(self) -> None:
        return

    async def wait_until_heard(self) -> None:
        return

    async def close(self) -> None:
        self.executor.close()
        self.quick.close()
        self.readers.close()

    async def take_snapshot(self) -> HostSnapshot:
        return await self._look(self._take_snapshot)

    def _take_snapshot(self) -> HostSnapshot:
        # A root that is gone is a disk that is away: nothing is known of the runs on it then.
        there = {name for name in os.listdir(self.runs.root) if RUN_ID.fullmatch(name)}
        found = {name: run for name in there | set(self.known) if (run := self._find(name))}
        lives = {name: process.life_of(run) for name, run in found.items()}
        kept = {name: life for name, life in lives.items() if name in there or life in LIVING}
        return HostSnapshot(lives=kept, oom_kills=process.oom_kills())

    # --- The machine

    async def inspect(self) -> Inspection:
        return await self._run(self.inspector.inspect)

    async def list_installed(self) -> list[Installed]:
        return await self._run(programs.all_installed, self.config.cache)

    async def find_address_fault(self, address: str) -> AddressFault | None:
        return await self._run(own_address.find_fault, address)

    async def find_existing(self, paths: Sequence[str]) -> list[str]:
        return await self._read(lambda: [path for path in paths if path and Path(path).exists()])

    async def read_changed_files(self, watched: Sequence[WatchedFiles]) -> list[FilesRead]:
        return await self._read(file_reading.read_changed, watched)

    # --- Memory

    async def measure_room(self, placed: Sequence[PlacedReplica]) -> HostRoom:
        return await self._run(
            lambda: launching.measure_room(self.inspector.devices, self._hosted(placed), self.reserved)
        )

    async def reserve(self, amounts: Mapping[int, int]) -> None:
        self.reserved = dict(amounts)

    async def has_ram(self, wanted: int, placed: Sequence[PlacedReplica]) -> bool:
        return await self._run(lambda: allocation.has_ram(wanted, self._hosted(placed), self._read_devices(placed)))

    async def find_room_to_wake(
        self, given: Allocation, sleeper: PlacedReplica, others: Sequence[PlacedReplica]
    ) -> FitResult:
        def find() -> FitResult:
            [own] = self._hosted([sleeper])
            devices = self._read_devices([sleeper, *others])
            return allocation.find_room_to_wake(given, own, self._hosted(others), devices)

        return await self._run(find)

    async def keeps_memory_asleep(self, given: Allocation, run_id: str) -> bool:
        def find() -> bool:
            run, devices = self._find(run_id), launching.read_devices(self.inspector.devices)
            return run is not None and allocation.keeps_memory_asleep(given, run, devices)

        return await self._run(find)

    async def measure_use(self, run_id: str, devices: Sequence[int]) -> MemoryUse | None:
        def measure() -> MemoryUse | None:
            run = self._find(run_id)
            return allocation.measure_use(run, devices) if run else None

        return await self._run(measure)

    async def cpu_seconds(self, run_id: str) -> float:
        def count() -> float:
            run = self._find(run_id)
            return process.cpu_seconds(run) if run else 0.0

        return await self._look(count)

    # --- Starting

    async def choose_engine(self, spec: Spec, trials: Sequence[Trial], tried_now: Collection[str]) -> ChosenEngine:
        return await self._read(launching.choose_engine, self.config, spec, trials=trials, tried_now=tried_now)

    async def allocate(
        self,
        spec: Spec,
        engine: ChosenEngine,
        placed: Sequence[PlacedReplica],
        measurements: Sequence[Measured],
        versions: Mapping[str, str],
    ) -> Allocation | None:
        return await self._read(
            lambda: launching.allocate(
                *(spec, engine),
                before=self.inspector.devices,
                reserved=self.reserved,
                hosted=self._hosted(placed),
                measurements=measurements,
                versions=versions,
            )
        )

    async def make_offer(
        self,
        spec: Spec,
        replicas: int,
        placed: Sequence[PlacedReplica],
        measurements: Sequence[Measured],
        versions: Mapping[str, str],
    ) -> HostOffer:
        return await self._read(
            lambda: launching.make_offer(
                *(self.config, spec, replicas),
                before=self.inspector.devices,
                reserved=self.reserved,
                hosted=self._hosted(placed),
                measurements=measurements,
                versions=versions,
            )
        )

    async def launch(self, order: LaunchOrder) -> HostedRun:
        return await self._run(self._launch, order)

    def _launch(self, order: LaunchOrder) -> HostedRun:
        with self._only_launch_of(order):
            # A repeated request, or one that was overtaken: its replica has an engine.
            for run in self._living():
                if run.run_id == order.run_id or metadata_of(run).key == order.key:
                    return self._describe(run)
            if self._directory(order.run_id).exists():
                raise LaunchRefused(LaunchRefusal(failed=CALLED_OFF))
            self._drop_deleted()
            port, *more = self._reserve_ports(order)
            master_port = more[0] if more else 0
            run = launching.launch(self.config, self.runs, order, port=port, master_port=master_port)
            return self._describe(run)

    def _drop_deleted(self) -> None:
        for run_id, run in list(self.known.items()):
            if not run.directory.exists() and process.life_of(run) not in LIVING:
                self.known.pop(run_id, None)

    @contextlib.contextmanager
    def _only_launch_of(self, order: LaunchOrder) -> Iterator[None]:
        """Wait until nothing else is started for the same replica, or by the same id; then be the one that is."""

        def is_free() -> bool:
            return all(one.key != order.key and one.run_id != order.run_id for one in self.launches.values())

        with self.launching:
            self.launching.wait_for(is_free)
            self.launches[order.run_id] = order
        try:
            yield
        finally:
            with self.launching:
                del self.launches[order.run_id]
                self.ports.pop(order.run_id, None)
                self.launching.notify_all()

    def _reserve_ports(self, order: LaunchOrder) -> list[int]:
        """Return a port for its API, and for rank 0 of several hosts a second one, at which the others find it."""
        # An engine may load for a minute before it finds its port in use, by one that loads as well.
        leads = order.rank is not None and order.rank.port == 0
        with self.launching:
            living = [metadata_of(run) for run in self._living()]
            taken = {port for ports in self.ports.values() for port in ports}
            taken |= {one.port for one in living} | {one.master_port for one in living if one.rank == 0}
            mine = self.ports[order.run_id] = []
            for _ in range(2 if leads else 1):
                mine.append(launching.free_port(order.address, self.config.ports, {*taken, *mine}, self.rng))
        return mine

    async def settle_launch(self, run_id: str) -> HostedRun | None:
        return await self._run(self._settle_launch, run_id)

    def _settle_launch(self, run_id: str) -> HostedRun | None:
        """Wait for its launch if there is one; else occupy its directory, without which no run starts."""
        directory = self._directory(run_id)
        with self.launching:
            self.launching.wait_for(lambda: run_id not in self.launches)
            with contextlib.suppress(FileExistsError):
                directory.mkdir(mode=0o700, parents=True)
        deadline = time.monotonic() + BEGUN_WITHIN
        while (run := self._find(run_id)) is None and (directory / "spec.json").exists():
            # The process that launched it was killed meanwhile; the shim goes on by itself.
            if time.monotonic() >= deadline:
                (directory / "spec.json").unlink(missing_ok=True)
                self._kill_marked(directory)
            time.sleep(LOOK_AGAIN)
        return self._describe(run) if run else None

    async def keep_sleep_record(self, run_id: str, record: SleepRecord) -> None:
        def keep() -> None:
            run = self._find(run_id)
            if run is None:
                raise FileNotFoundError(f"there is no run {run_id}")
            sleep_record.store_record(run, record)

        await self._run(keep)

    # --- Runs

    async def kill_strays(self) -> None:
        await self._run(self._kill_strays)

    def _kill_strays(self) -> None:
        with self.launching:  # the processes of a run that is just starting look like strays
            self.launching.wait_for(lambda: not self.launches)
            process.kill(self.runs.find_strays())
        self._remove_called_off()

    def _remove_called_off(self) -> None:
        """Remove the directories that `settle_launch` occupied long ago; others are not empty."""
        for path in self.runs.root.iterdir() if self.runs.root.exists() else ():
            with contextlib.suppress(OSError):
                if time.time() - path.stat().st_mtime > CALLED_OFF_FOR:
                    path.rmdir()

    async def list_runs(self) -> list[HostedRun]:
        return await self._run(lambda: [self._describe(run) for run in self.runs.all()])

    async def describe_end(self, run_id: str, lines: int) -> RunEnd:
        def describe() -> RunEnd:
            run = self._find(run_id)
            ended = process.exit_of(run) if run else None
            log = process.log_tail(self._directory(run_id), lines)
            return RunEnd(exit=ended, log=log, oom_kills=process.oom_kills())

        return await self._run(describe)

    async def log_tail(self, run_id: str, lines: int) -> str:
        return await self._look(process.log_tail, self._find_directory(run_id), lines)

    async def stop(self, run_id: str, grace: float) -> str:
        directory = self._find_directory(run_id)
        await _wait_while(lambda: self._is_launching(run_id), math.inf)
        run = await self._run(self._find, run_id)
        if run is None:  # its directory is gone; what it started is not, perhaps
            return shorten(await self._run(self._kill_marked, directory))
        pids = await self._run(stopping.processes_of, run)
        await self._look(process.terminate, run)
        # Without a thread: many that take all of their grace would keep others from being asked to stop.
        await _wait_while(lambda: self._lives(run), grace)
        return shorten(await self._run(stopping.stop_and_release, run, grace=0.0, pids=pids))

    async def _is_launching(self, run_id: str) -> bool:
        return run_id in self.launches

    async def _lives(self, run: Run) -> bool:
        return await self._look(process.life_of, run) in LIVING

    def _find_directory(self, run_id: str) -> Path:
        with _as_host_fault():
            return self._directory(run_id)

    def _kill_marked(self, directory: Path) -> str:
        """Kill what carries the mark of this run, whatever its directory holds; return what is left, in words."""
        mark, deadline = os.fspath(directory), time.monotonic() + process.GONE_WITHIN
        while left := [who for who, found in process.find_marked(mark) if found == mark]:
            if time.monotonic() >= deadline:
                return f"processes that cannot be stopped: {', '.join(str(who.pid) for who in left)}"
            process.kill(left)
            time.sleep(LOOK_AGAIN)
        return ""

    async def kill(self, run_id: str) -> None:
        def kill() -> None:
            if run := self._find(run_id):
                process.terminate_at_once(run)

        await self._look(kill)

    async def forget_run(self, run_id: str) -> None:
        def forget() -> None:
            run = self._find(run_id)
            if run and process.life_of(run) not in LIVING:
                self.runs.forget(run)
                self.known.pop(run_id, None)

        await self._run(forget)

    def _directory(self, run_id: str) -> Path:
        """Return where this run is kept. Raises ValueError for what is no id: it may come from another machine."""
        if not RUN_ID.fullmatch(run_id):
            raise ValueError("this is no id of a run")
        return self.runs.root / run_id

    def _find(self, run_id: str) -> Run | None:
        """Return a run that is there, or was when it was last seen."""
        run = self.known.get(run_id) or self.runs.find(self._directory(run_id).name)
        if run:
            self.known[run_id] = run
        return run

    def _living(self) -> list[Run]:
        return [run for run in self.runs.all() if process.life_of(run) in LIVING]

    def _describe(self, run: Run) -> HostedRun:
        self.known[run.run_id] = run
        return HostedRun(
            run_id=run.run_id,
            label=metadata_of(run),
            pid=run.engine.pid,
            of_this_boot=run.of_this_boot,
            life=process.life_of(run),
            sleep_record=sleep_record.load_record(run),
        )

    def _read_devices(self, placed: Sequence[PlacedReplica]) -> list[Device]:
        """Return the devices as they are now, with what others have reserved as taken. `placed`: all of ours there."""
        return launching.read_memory(self.inspector.devices, self._hosted(placed), self.reserved)[0]

    def _hosted(self, placed: Sequence[PlacedReplica]) -> list[HostedReplica]:
        return [
            HostedReplica(
                name=one.name,
                allocation=one.allocation,
                run=self._find(one.run_id) if one.run_id else None,
                settled=one.settled,
            )
            for one in placed
        ]
