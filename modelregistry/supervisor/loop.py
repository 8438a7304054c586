"""Keeps the engines of this host as operators want them: one loop observes, plans and acts, one syncs rows.

`plan.plan_actions` decides; this carries out. The loops share only values with the database, so while it is away
engines keep running, are restarted and checked, and the rows follow when it is back. Work on one replica never waits
for another: each action is a task; starting and stopping block in threads.

A supervisor that stops leaves its engines to the next one, which finds them by their run directories and adopts them.
asyncio rather than threads alone, because most of the time is spent waiting for answers of many engines at once.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import httpx2
from django.utils import timezone

from modelregistry import failure_advice, placement_messages
from modelregistry.engines import version_trials
from modelregistry.engines.registry import launched_by
from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import FAILED, NOT_ITS_FAULT, PROVEN, UNTRIED, Installed, Trial
from modelregistry.hostside import inspection
from modelregistry.hostside.faults import describe_exception
from modelregistry.hostside.launching import metadata_of
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import (
    HostedRun,
    HostFault,
    HostSilent,
    HostSurface,
    LaunchOrder,
    LaunchRefused,
    RunEnd,
)
from modelregistry.memory.placement import Space
from modelregistry.process import probe
from modelregistry.supervisor import plan, room_maker, sleeping
from modelregistry.supervisor.adoption import adopt_runs
from modelregistry.supervisor.async_helpers import cancel_and_wait, wait_for_either
from modelregistry.supervisor.bidding import Bidder, Offer, Unassigned
from modelregistry.supervisor.file_watch import FileWatch
from modelregistry.supervisor.launching import CannotLaunch, DoesNotFit, SupervisorConfig, explain_launch_refusal
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import ReplicaFacts, Report
from modelregistry.supervisor.room_maker import RoomMaker
from modelregistry.supervisor.sleeper import Sleeper
from modelregistry.supervisor.sleeping import SleepFault
from modelregistry.supervisor.state_sync import StateSync
from modelregistry.supervisor.tasks import TaskRunner
from modelregistry.supervisor.watchdog import Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK = 0.5  # seconds between two plans
CHECK_WITHIN = 10.0  # seconds for a question to a ready engine whose health check failed
STUCK_LIMIT = 300.0  # seconds with requests and without a token: as long as gateways wait for a first byte
SILENT_LIMIT = 60.0  # seconds without metrics from an engine that has them, before it is asked a question
NAME_THREADS = 64  # a lookup may occupy one for half a minute, and each external model is checked every 10 s
BRIEF_DRAIN = 3.0  # seconds for running requests when everything is to stop
SHIM_KILLED = "its shim was killed"  # how a run ended that has no record of it
HOST_UNHEARD = "neither it nor its host answers"
HOST_SILENT = "its host does not answer: it is started when that does"
SILENCE_PAUSE = 1.0  # seconds between two questions to a host that did not answer one
STOP_BESIDE_GRACE = 60.0  # seconds beside the grace after which a leaving supervisor waits for no engine any more
LOG_LINES = 15
CAUSE_LINES = 400  # vLLM logs the cause far above its last line


@dataclass(slots=True)
class Signals:
    """How an operator's signals reach the loops."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    kill: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self) -> None:
        (self.kill if self.stop.is_set() else self.stop).set()


class Supervisor:
    """The engines of one host, which it touches through a `HostSurface` only.

    `host`: None is the machine on which this runs; the caller holds its lock.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        *,
        host: HostSurface | None = None,
        periodic_tasks: TaskRunner | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.host: HostSurface = host or LocalHost(config.local, rng=rng)
        self.periodic_tasks = periodic_tasks
        self.clock = clock
        self.replicas: dict[ReplicaKey, ManagedReplica] = {}
        self.watchdog = Watchdog()
        self.wake = asyncio.Event()
        self.allocation_lock = asyncio.Lock()  # two that start at the same time must not count on the same memory
        self.file_watch = FileWatch(self.host)
        self.strangers: set[tuple[int, int]] = set()
        self.installed: list[Installed] | None = None  # versions of engines, as last seen
        self.silent_since: float | None = None  # since when the host is silent; None: it answers
        self.sync = StateSync(config, self.replicas, self.host, clock=clock, on_exchange=self.wake.set)
        self.syncing: asyncio.Task[None] | None = None
        self.room_maker = RoomMaker(
            *(self.replicas, self.sync),
            measure=self.host.measure_room,
            lock=self.allocation_lock,
            begin_drain=self._begin_leaving,
            clock=clock,
        )
        self.room_changed = asyncio.Event()
        self.sleeper = Sleeper(
            *(self.replicas, self.host),
            lock=self.allocation_lock,
            start_limit=config.start_limit,
            clock=clock,
        )

    async def run(self, signals: Signals, *, stop_engines: bool) -> None:
        """Adopt the running engines, then supervise until `signals.stop`.

        With `stop_engines` all engines are stopped before it returns, within BRIEF_DRAIN + the stop grace + a few
        seconds; otherwise they keep running.
        """
        log.info("supervising %s", self.config.host)
        release = False
        # Names are resolved by the loop's own threads, of which there are six by default: lookups for one external
        # model whose name server does not answer must not keep others from being checked.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NAME_THREADS, "names"))
        try:
            # No proxy from the environment, and no kept connection: an engine may be gone at the next check.
            limits = httpx2.Limits(max_keepalive_connections=0)
            async with httpx2.AsyncClient(limits=limits, trust_env=False) as self.client:
                await self.host.open()
                known = await self.sync.open(signals.stop)
                if known is not None and await self._find_runs(known, signals.stop):
                    await self._supervise(signals)
                    if stop_engines:
                        await self._stop_engines(signals)
                release = known is not None
        finally:
            if self.syncing:
                await cancel_and_wait([self.syncing])
            await self.sync.close(release=release)
            await self.host.close()

    async def _find_runs(self, known: dict[ReplicaKey, ReplicaFacts], stop: asyncio.Event) -> bool:
        """Adopt what runs on the host, once that answers; False if `stop` is set first. Raises HeldElsewhere."""
        while not stop.is_set():
            try:
                await self._adopt(known)
            except HostSilent as silence:
                log.warning("%s: nothing is started or stopped there until it answers (%s)", self.config.host, silence)
            else:
                return True
            # Meanwhile the claim is kept. There are no replicas yet, so that no row is written.
            self.syncing = self.syncing or asyncio.create_task(self.sync.run())
            waits = [
                asyncio.create_task(self._wait_for_host()),
                asyncio.create_task(self._doubt_engines(known)),
                asyncio.create_task(stop.wait()),
            ]
            try:
                await asyncio.wait([*waits, self.syncing], return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_and_wait(waits)
            if self.syncing.done():
                self.syncing.result()
        return False

    async def _doubt_engines(self, known: dict[ReplicaKey, ReplicaFacts]) -> None:
        """Take engines off the catalogue that do not answer either, as long as their host is silent."""
        while True:
            for key, facts in list(known.items()):
                desired = self.sync.desired_models.get(key.model)
                if facts.state != ReplicaState.READY or desired is None or desired.external:
                    continue
                one = ManagedReplica(key=key, desired=desired, fingerprint="", state=facts.state, since=self.clock())
                one.restore(facts, 0.0)
                one.url, one.api_key = facts.url, facts.api_key
                if not (await probe.check_health(self.client, one.target)).healthy:
                    doubted = replace(facts, state=ReplicaState.UNHEALTHY, detail=HOST_UNHEARD)
                    if await self.sync.write_facts(key, doubted):
                        known[key] = doubted
            await asyncio.sleep(plan.CHECK_EVERY)

    async def _wait_for_host(self) -> None:
        await asyncio.sleep(SILENCE_PAUSE)
        await self.host.wait_until_heard()

    async def _insist(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Return the answer to what may be asked again, however long the host is silent."""
        while True:
            try:
                return await ask()
            except HostSilent as silence:
                log.warning("%s", silence)
            await self._wait_for_host()

    async def _adopt(self, known: Mapping[ReplicaKey, ReplicaFacts]) -> None:
        grace = self.config.stop_grace
        found = await adopt_runs(self.host, known, self.sync.desired_models, grace=grace, clock=self.clock)
        self.replicas.update(found)
        await asyncio.gather(
            *(
                self.sleeper.adopt(self.client, one, known[key].state if key in known else None)
                for key, one in found.items()
                if one.run and one.sleep
            )
        )

    # --- Loops --------------------------------------------------------------------------------------------------

    async def _supervise(self, signals: Signals) -> None:
        sync = self.syncing = self.syncing or asyncio.create_task(self.sync.run())
        # Tasks of their own, as a disk may hang.
        background = [
            self.watchdog.keep_running(name, partial(self._run_step, work))
            for name, work in (("inspection", self.inspect), ("files", self._read_files))
        ]
        background.append(self.watchdog.keep_running("room", self._make_room))
        bidder = Bidder(
            *(self.sync.host.id, self.sync),
            make_offer=self._make_offer,
            is_settled=self._is_settled,
            with_files=self._with_files,
            clock=self.clock,
        )
        background.append(self.watchdog.keep_running("bids", partial(bidder.run_turn, self.sync.changed.set)))
        if self.periodic_tasks:
            background.append(self.watchdog.keep_running("periodic tasks", self.periodic_tasks.run))
        try:
            while not signals.stop.is_set():
                if sync.done():
                    sync.result()  # raises: without the database's orders nothing here may go on
                self._act_on_plan()
                await wait_for_either(self.wake, TICK, signals.stop)
                self.wake.clear()
        finally:
            await cancel_and_wait([sync, *background, *self._running_tasks("probe_task")])
        if unfinished := self._running_tasks("engine_task"):
            _, late = await asyncio.wait(unfinished, timeout=self.config.stop_grace)
            # Waking may take minutes, and an engine that is stopped meanwhile would be started again.
            await cancel_and_wait(list(late))
        await self.sync.last_exchange()

    async def _run_step(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run one step of work that engines do not depend on; the watchdog repeats it, also after a failure."""
        with contextlib.suppress(HostSilent):
            await work()
        await asyncio.sleep(inspection.EVERY)

    async def _make_room(self) -> None:
        """Make room for models that are called, as a watchdog's step."""
        with contextlib.suppress(HostSilent):
            await self.room_maker.make_room()
        self.wake.set()
        await wait_for_either(self.room_changed, room_maker.EVERY)
        self.room_changed.clear()

    def _begin_leaving(self, replica: ManagedReplica, spaces: tuple[Space, ...]) -> None:
        if replica.probe_task:
            replica.probe_task.cancel()
        replica.leave_for(spaces, self.clock())
        self.sync.changed.set()

    async def inspect(self) -> None:
        """Look at the machine for the next report, and retry failed replicas when the installed engines changed."""
        installed = await self.host.list_installed()
        if self.installed not in (None, installed):
            # A model that had no engine, or one that does not work, may have one now.
            for replica in self.replicas.values():
                replica.sleep_failures = 0
                if replica.state in (ReplicaState.BACKOFF, ReplicaState.FAILED):
                    replica.retry_at = self.clock()
        self.installed = installed
        found = await self.host.inspect()
        if self.sync.report is None:
            devices = ", ".join(f"{each['name']} {each['total'] / 1e9:.0f} GB" for each in found.devices)
            log.info("%s has %s", self.config.host, devices)
        for each in found.strangers:
            who = each["pid"], each["device"]
            if who not in self.strangers:
                log.info("%s", inspection.describe_stranger(each))
        self.strangers = {(each["pid"], each["device"]) for each in found.strangers}
        report = Report(**{**asdict(found), "at": timezone.now()})
        if fault := self.sync.address_fault:
            report.problems.append({**asdict(fault), "detail": str(fault)})
        self.sync.report = report

    async def _read_files(self) -> None:
        """Read the models' files that changed. A model that failed is retried at once when its files have changed."""
        known = set(self.file_watch.read)
        fresh = await self.file_watch.read_changed(self.sync.desired_models)
        self.sync.unwritten_file_facts.update(fresh)
        for replica in self.replicas.values():
            if replica.key.model in fresh.keys() & known and replica.state in (
                ReplicaState.BACKOFF,
                ReplicaState.FAILED,
            ):
                replica.retry_at = self.clock()

    def _act_on_plan(self) -> None:
        now = self.clock()
        silent = self._note_silence(now)
        free = {key: replica for key, replica in self.replicas.items() if replica.engine_task is None}
        wanted = {
            key: want
            for key, want in self._wanted_replicas().items()
            if key in free or (key not in self.replicas and (want.external or not silent))
        }
        observed = [replica.observe(self.host.life_of, unreachable=silent) for replica in free.values()]
        for action in plan.plan_actions(wanted, observed, now, start_limit=self.config.start_limit):
            self._carry_out(action, now)

    def _note_silence(self, now: float) -> bool:
        """Return whether the host is silent; when it answers again, what was concluded meanwhile is looked at again."""
        silent = self.host.silent_for() > 0
        if silent and self.silent_since is None:
            self.silent_since = now
        elif not silent and self.silent_since is not None:
            for replica in self.replicas.values():
                if not replica.desired.external:
                    replica.resume_after_silence(now, now - self.silent_since)
            self.silent_since = None
        return silent

    def _wanted_replicas(self) -> dict[ReplicaKey, plan.Wanted]:
        # Running engines are not stopped for an address at which nothing could be started.
        address = "" if self.sync.address_fault else self.sync.address
        hour = timezone.now()
        return {
            ReplicaKey(model_id, number): plan.Wanted(
                fingerprint=desired.fingerprint(),
                address="" if desired.external else address,
                external=desired.external,
                # An external engine does not run on this machine: cutting it off would help no one.
                enabled=desired.enabled and (desired.external or not self.sync.maintenance),
                idle_after=desired.idle_after_at(hour),
                wake_requested=desired.wake_requested,
            )
            for model_id, desired in self.sync.desired_models.items()
            for number in range(desired.replicas)
        }

    def _carry_out(self, action: plan.Action, now: float) -> None:
        replica = self.replicas.get(action.key)
        if isinstance(action, plan.Start):
            self._begin_start(action.key, replica, now)
            return
        assert replica, "only a start is planned for a replica that does not exist"
        if isinstance(action, plan.AskQuestion | plan.CheckHealth):
            self._begin_probe(replica, action, now)
        elif isinstance(action, plan.Wake):
            replica.enter(ReplicaState.STARTING, now)
            replica.engine_task = self._create_task(replica, "engine_task", self._wake_replica(replica))
            self.sync.changed.set()
        else:
            self._end_service(replica, action, now)

    def _begin_probe(self, replica: ManagedReplica, action: plan.AskQuestion | plan.CheckHealth, now: float) -> None:
        if replica.probe_task is None:
            replica.checked_at = now
            probing = self._ask_question if isinstance(action, plan.AskQuestion) else self._check_health
            replica.probe_task = self._create_task(replica, "probe_task", probing(replica))

    def _end_service(
        self,
        replica: ManagedReplica,
        action: plan.Drain | plan.Resume | plan.Sleep | plan.Stop | plan.Fail | plan.Remove,
        now: float,
    ) -> None:
        if replica.probe_task:
            replica.probe_task.cancel()
        match action:
            case plan.Drain(next_state=next_state):
                replica.drain_to(next_state)
                replica.enter(ReplicaState.DRAINING, now)
            case plan.Resume():
                replica.stay(now)
                self.sync.evictions.call_off(replica.key)
            case plan.Sleep() | plan.Stop():
                work = self._sleep_replica if isinstance(action, plan.Sleep) else self._stop_replica
                replica.engine_task = self._create_task(replica, "engine_task", work(replica))
            case plan.Fail(reason=reason, cause=cause):
                failing = self._fail_replica(replica, reason, cause)
                replica.engine_task = self._create_task(replica, "engine_task", failing)
            case plan.Remove():
                del self.replicas[replica.key]
                self.sync.removed.add(replica.key)
        self.sync.changed.set()

    def _begin_start(self, key: ReplicaKey, replica: ManagedReplica | None, now: float) -> None:
        desired = self.sync.desired_models[key.model]
        if replica is None:
            replica = ManagedReplica(key=key, desired=desired, fingerprint="", state=ReplicaState.STOPPED, since=now)
            self.replicas[key] = replica
            self.sync.removed.discard(key)
        if not desired.external and self._is_unreachable(replica):
            replica.retry_at = now + plan.ADDRESS_PAUSE
            return
        replica.begin_start(desired, "" if desired.external else self.sync.address, now)
        if desired.external:
            replica.url, replica.api_key, replica.launcher, replica.slots = desired.url, desired.upstream_key, "", None
        elif self.sync.address_fault:
            replica.record_bad_address(now, str(self.sync.address_fault))
        else:
            replica.engine_task = self._create_task(replica, "engine_task", self._start_replica(replica))
        self.sync.changed.set()

    def _is_unreachable(self, replica: ManagedReplica) -> bool:
        """Return whether it failed before because this machine lacks the host's address, and still lacks it."""
        failed_before = replica.cause == "bad-address" and replica.address == self.sync.address
        return failed_before and self.sync.address_fault is not None

    def _create_task(self, replica: ManagedReplica, kind: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def done(task: asyncio.Task[None]) -> None:
            if getattr(replica, kind) is task:
                setattr(replica, kind, None)
            if not task.cancelled() and (error := task.exception()):
                log.error("%s", replica, exc_info=error)
            self.wake.set()
            self.sync.changed.set()

        task = asyncio.create_task(work)
        task.add_done_callback(done)
        return task

    def _running_tasks(self, kind: str) -> list[asyncio.Task[None]]:
        return [task for replica in self.replicas.values() if (task := getattr(replica, kind))]

    # --- Starting and stopping -----------------------------------------------------------------------------------

    async def _start_replica(self, replica: ManagedReplica) -> None:
        run_id = secrets.token_hex(8)
        try:
            engine = await self._allocate(replica)
            run = await self.host.launch(self._make_order(replica, engine, run_id))
        except HostSilent as silence:
            await self._settle_start(replica, run_id, silence)
        except DoesNotFit as error:
            await self._record_no_room(replica, error)
        except LaunchRefused as refused:
            self._record_refusal(replica, explain_launch_refusal(refused.refusal))
        except CannotLaunch as error:
            self._record_refusal(replica, error)
        except OSError as error:  # run directories that cannot be read
            replica.record_crash(self.clock(), str(error), failure_advice.cause(str(error)))
        except Exception as error:  # an unforeseen fault of one model must neither hang it nor stop the others
            log.exception("%s: its start failed", replica)
            reason = f"The supervisor could not start it: {describe_exception(error)}"
            replica.record_crash(self.clock(), reason, "start-fault")
        else:
            self._record_launch(replica, run)

    def _make_order(self, replica: ManagedReplica, engine: ChosenEngine, run_id: str) -> LaunchOrder:
        return LaunchOrder(
            run_id=run_id,
            key=replica.key,
            spec=replica.desired.spec,
            engine=engine,
            address=replica.address,
            grace=self.config.stop_grace,
            granted=replica.allocation,
            no_sleep=replica.sleep_fault if replica.sleep_failures >= sleeping.MOST_FAILURES else "",
            isolation=self.config.isolation,
        )

    def _record_launch(self, replica: ManagedReplica, run: HostedRun) -> None:
        replica.oom_kills = self.host.oom_kills()
        replica.record_launch(run, metadata_of(run), self.clock())

    def _record_refusal(self, replica: ManagedReplica, error: CannotLaunch) -> None:
        replica.record_crash(self.clock(), str(error), error.cause)
        self._blame_version(replica)

    async def _settle_start(self, replica: ManagedReplica, run_id: str, silence: HostSilent) -> None:
        """Find out what became of a start, once the host answers; until then nothing else is done with the replica."""
        log.warning("%s: %s", replica, silence)
        replica.detail = HOST_SILENT
        self.sync.changed.set()
        try:
            run = await self._insist(lambda: self.host.settle_launch(run_id))
        except HostFault as fault:  # should it run after all, the next start finds it: see `HostSurface.launch`
            replica.record_crash(self.clock(), str(fault))
            return
        if run is None:
            replica.allocation = None
            replica.enter(ReplicaState.STOPPED, self.clock())  # nothing was started: it is planned again
        else:
            replica.detail = ""
            self._record_launch(replica, run)

    async def _record_no_room(self, replica: ManagedReplica, error: DoesNotFit) -> None:
        try:
            can_come = await self.room_maker.can_come(replica, error.spaces)
        except HostSilent:
            can_come = False
        detail = placement_messages.explain_waiting(str(error)) if can_come else str(error)
        replica.record_no_room(self.clock(), detail, error.need, error.spaces, can_come=can_come)
        self.room_changed.set()

    async def _allocate(self, replica: ManagedReplica) -> ChosenEngine:
        """Choose its engine and allocate its memory. Raises CannotLaunch, HostSilent."""
        async with self.allocation_lock:
            model, spec = replica.key.model, replica.desired.spec
            others = [one for one in self.replicas.values() if one.key.model == model and one is not replica]
            tried_now = [one.installed for one in others if one.trial and one.state == ReplicaState.STARTING]
            placed = [other.hosted for other in self.replicas.values() if other is not replica and other.hosted]
            versions = self.sync.report.engines if self.sync.report else {}
            try:
                engine = await self.host.choose_engine(spec, list(self.sync.trials.get(model, ())), tried_now)
                if engine.choice:
                    replica.set_engine(engine.choice)
                replica.allocation = await self.host.allocate(spec, engine, placed, self.sync.measurements, versions)
            except LaunchRefused as refused:
                raise explain_launch_refusal(refused.refusal) from refused
        return engine

    async def _with_files(self, found: Mapping[int, Unassigned]) -> list[int]:
        """Return the models whose files the host sees."""
        paths = {one.spec.path for one in found.values() if one.spec.path}
        try:
            there = set(await self.host.find_existing(sorted(paths))) if paths else set()
        except HostSilent:
            return []
        return [model for model, one in found.items() if one.spec.path in there]

    async def _make_offer(self, model: Unassigned) -> Offer:
        """Return what this host offers for a model that no host has."""
        async with self.allocation_lock:
            hosted = [replica.hosted for replica in self.replicas.values() if replica.hosted]
            try:
                versions = self.sync.report.engines if self.sync.report else {}
                found = await self.host.make_offer(model.spec, model.replicas, hosted, self.sync.measurements, versions)
            except Exception:  # a host takes it even where it fits nowhere, and its start reports the reason
                log.exception("%s: cannot determine whether it fits here", model.spec.name)
                return Offer(fits=False, free=0)
        cost = None if found.fits else await self.room_maker.price(found.spaces)
        return Offer(fits=found.fits, free=found.free, cost=cost)

    def _is_settled(self, model_id: int) -> bool:
        """Return whether each replica of the model has its memory, if they are to run at all."""
        desired = self.sync.desired_models.get(model_id)
        if desired is None:
            return False
        replicas = [self.replicas.get(ReplicaKey(model_id, number)) for number in range(desired.replicas)]
        return not desired.enabled or all(
            replica and (replica.allocation or replica.run or replica.state != ReplicaState.STARTING)
            for replica in replicas
        )

    async def _stop_replica(self, replica: ManagedReplica) -> None:
        left = await self._stop_engine(replica)
        replica.clear_run()
        self._note_left(replica)
        replica.enter(replica.state_after_drain, self.clock(), left)
        replica.drain_to(ReplicaState.STOPPED)
        self.room_changed.set()

    def _note_left(self, replica: ManagedReplica) -> None:
        """Record that it has left its place, if that was for another model."""
        if replica.for_room:
            self.sync.evictions.on_stopped(replica.key, self.clock())
            replica.without_room = True

    async def _fail_replica(self, replica: ManagedReplica, reason: str, cause: str = "") -> None:
        run, never_answered = replica.run, replica.ready_at is None
        if reason and replica.last_failure:
            reason = f"{reason}: {replica.last_failure}"
        # Off the catalogue before the processes are stopped, which may take the whole grace.
        replica.record_crash(self.clock(), reason)
        left = await self._stop_engine(replica)
        replica.clear_run()
        end = await self._find_end(run)
        story = _describe_end(replica.launcher, end, reason)
        replica.detail = "\n".join(filter(None, [story, left]))
        found = _find_cause(end, stopped=reason != "") or cause
        oom_kills = end.oom_kills if end else self.host.oom_kills()
        replica.cause = "host-memory" if oom_kills > replica.oom_kills else found
        if replica.cause == "sleep-unsupported":
            replica.refuse_sleep(replica.cause, self.clock())
        if never_answered:
            self._blame_version(replica)

    async def _find_end(self, run: HostedRun | None) -> RunEnd | None:
        return await self._insist(lambda: self.host.describe_end(run.run_id, CAUSE_LINES)) if run else None

    async def _sleep_replica(self, replica: ManagedReplica) -> None:
        try:
            work = self.sleeper.put_to_sleep(self.client, replica)
            fault = await self._find_sleep_fault(replica, work, "sleep-failed")
        except HostSilent as silence:
            log.warning("%s: %s", replica, silence)
            return  # it goes to sleep when the host answers
        if fault:
            replica.record_sleep_fault(fault)
            await self._stop_replica(replica)
        else:
            self._note_left(replica)
            replica.fall_asleep(self.clock())
            self.room_changed.set()

    async def _wake_replica(self, replica: ManagedReplica) -> None:
        try:
            fault = await self._find_sleep_fault(replica, self.sleeper.wake(self.client, replica), "wake-failed")
        except DoesNotFit as error:
            await self._record_no_room(replica, error)
            return
        except HostSilent as silence:
            log.warning("%s: %s", replica, silence)
            replica.fall_asleep(self.clock())  # it sleeps on, until the host answers
            return
        if fault:
            replica.record_sleep_fault(fault)
            await self._start_again(replica, fault)
        else:
            await self._begin_service(replica)

    async def _find_sleep_fault(
        self, replica: ManagedReplica, work: Coroutine[Any, Any, None], cause: str
    ) -> SleepFault | None:
        """Do the work and return what went wrong, so that nothing is left between awake and asleep.

        Raises DoesNotFit, HostSilent.
        """
        try:
            await work
        except SleepFault as fault:
            return fault
        except (DoesNotFit, HostSilent):
            raise
        except Exception as error:  # an unforeseen fault: it is stopped, as if it had answered wrongly
            log.exception("%s: %s", replica, cause)
            return SleepFault(cause, describe_exception(error))
        return None

    async def _start_again(self, replica: ManagedReplica, fault: SleepFault) -> None:
        """Stop an engine that did not wake as it should, and start it as if it had been stopped before."""
        await self._stop_engine(replica)
        desired = self.sync.desired_models.get(replica.key.model, replica.desired)
        replica.begin_start(desired, self.sync.address, self.clock())
        replica.restarts += 1
        replica.detail, replica.cause = str(fault), fault.cause
        self.sync.changed.set()
        await self._start_replica(replica)

    async def _stop_engine(self, replica: ManagedReplica) -> str:
        """Stop its engine and return what is left of it, or "". Returns only when the host says that it is over."""
        if replica.run is None:
            return ""
        run_id, grace = replica.run.run_id, self.config.stop_grace
        return await self._insist(lambda: self.host.stop(run_id, grace))

    # --- Probing -------------------------------------------------------------------------------------------------

    async def _ask_question(self, replica: ManagedReplica) -> None:
        if replica.desired.external or replica.state == ReplicaState.STARTING:
            seen = await probe.check_health(self.client, replica.target)
            if not seen.healthy:
                return
        try:
            await probe.ask_question(self.client, replica.target)
        except probe.ProbeFailed as error:
            replica.refusals += isinstance(error, probe.ProbeRefusal)
            replica.last_failure = str(error)
            if replica.state == ReplicaState.UNHEALTHY or isinstance(error, probe.ProbeRefusal):
                replica.detail, replica.cause = replica.last_failure, ""
            return
        if replica.state == ReplicaState.STARTING and replica.installed and not await self._proves_its_version(replica):
            return
        if replica.state == ReplicaState.STARTING and replica.sleep and not await self._answers_as_before(replica):
            return
        replica.blamed_trial = None
        replica.version = await probe.read_version(self.client, replica.target) or self._installed_version(replica)
        await self._begin_service(replica)

    async def _begin_service(self, replica: ManagedReplica) -> None:
        """Have it serve, as it has answered."""
        replica.record_answer(await probe.check_health(self.client, replica.target), self.clock())
        model = replica.key.model
        self.sync.evictions.on_ready(model, self.clock(), self.sync.demands.calls(model))

    async def _answers_as_before(self, replica: ManagedReplica) -> bool:
        """Keep the first answer of an engine that can sleep; return whether one that was woken still gives it."""
        try:
            difference = await self.sleeper.keep_answer(self.client, replica)
        except SleepFault as fault:
            replica.record_sleep_fault(fault)
            return True
        except HostSilent:
            return False  # it is asked again
        if difference:
            work = self._fail_replica(replica, difference, "wake-damaged")
            replica.engine_task = self._create_task(replica, "engine_task", work)
        return not difference

    def _installed_version(self, replica: ManagedReplica) -> str:
        """Return the version of an engine that does not report it itself."""
        return replica.installed or (self.sync.report.engines.get(replica.launcher, "") if self.sync.report else "")

    # --- Versions of engines -------------------------------------------------------------------------------------

    async def _proves_its_version(self, replica: ManagedReplica) -> bool:
        """Return whether a start with one of our installations may serve.

        The answer of an untried version is compared with the one of the version before it.
        """
        known = self.sync.trials.get(replica.key.model, ())
        mine = [one for one in known if (one.launcher, one.version) == (replica.launcher, replica.installed)]
        if any(one.state == PROVEN and one.stamp == replica.stamp for one in mine):
            return True
        answer = await probe.ask_sample(self.client, replica.target)
        before = version_trials.find_reference(known, replica.launcher)
        if replica.trial and (other := version_trials.explain_difference(before, answer)):
            reason = f"{replica.launcher} {replica.installed} {other}"
            replica.engine_task = self._create_task(replica, "engine_task", self._fail_replica(replica, reason))
            return False
        self.sync.record_trial(replica.key.model, _make_trial(replica, PROVEN, answer))
        replica.trial = False
        return True

    def _blame_version(self, replica: ManagedReplica) -> None:
        """Record the version of a failed trial as failed, and start the one before it at once.

        If that one fails for the same cause, it was not the version's fault.
        """
        blamed, replica.blamed_trial = replica.blamed_trial, None
        if blamed and blamed.cause and blamed.cause == replica.cause:
            self.sync.record_trial(replica.key.model, replace(blamed, state=UNTRIED, cause="", detail=""))
            return
        if not (replica.trial and replica.fallback) or replica.cause in NOT_ITS_FAULT:
            return
        replica.blamed_trial = _make_trial(replica, FAILED)
        self.sync.record_trial(replica.key.model, replica.blamed_trial)
        log.warning("%s: %s %s failed, back to %s", replica, replica.launcher, replica.installed, replica.fallback)
        replica.trial = False
        replica.retry_at = self.clock()

    async def _check_health(self, replica: ManagedReplica) -> None:
        seen = await probe.check_health(self.client, replica.target)
        used = await self._cpu_seconds(replica)
        now = self.clock()
        replica.oom_kills = self.host.oom_kills()
        if replica.desired.external:
            replica.enter(ReplicaState.READY if seen.healthy else ReplicaState.UNHEALTHY, now, seen.detail)
            return
        replica.record_health(seen, now, used)
        replica.version = replica.version or self._installed_version(replica)
        if replica.state == ReplicaState.DRAINING:
            replica.failed_checks = 0 if seen.healthy else replica.failed_checks + 1
            return
        if seen.healthy and not self._is_doubtful(replica, now):
            replica.failed_checks = 0
            return
        try:
            await probe.ask_question(self.client, replica.target, within=CHECK_WITHIN)
        except probe.ProbeFailed as error:
            if replica.unproven and replica.running and not isinstance(error, probe.ProbeRefusal):
                return  # busy with requests from before the adoption: asked again at the next check
            replica.failed_checks += 1
            if replica.failed_checks >= plan.FAILED_CHECKS_LIMIT:
                replica.enter(ReplicaState.UNHEALTHY, self.clock(), str(error))
        else:
            replica.failed_checks, replica.unproven = 0, False
            replica.reported_at = replica.progressed_at = self.clock()

    async def _cpu_seconds(self, replica: ManagedReplica) -> float | None:
        """Return the CPU time that an engine without metrics has used; None: it is not needed, or not known."""
        if replica.run is None or replica.reports_work or self.host.silent_for():
            return None
        try:
            return await self.host.cpu_seconds(replica.run.run_id)
        except HostSilent:
            return None

    def _is_doubtful(self, replica: ManagedReplica, now: float) -> bool:
        """Return whether there is reason not to believe an engine that reports itself healthy."""
        return (
            replica.unproven or now - replica.reported_at >= SILENT_LIMIT or now - replica.progressed_at >= STUCK_LIMIT
        )

    # --- Shutdown ------------------------------------------------------------------------------------------------

    async def _stop_engines(self, signals: Signals) -> None:
        """Take all engines off the catalogue, give running requests BRIEF_DRAIN seconds, and stop all engines at once.

        A second signal kills them without waiting.
        """
        running = [replica for replica in self.replicas.values() if replica.run]
        for replica in running:
            replica.enter(ReplicaState.DRAINING, self.clock())
        await self.sync.last_exchange()
        deadline = self.clock() + BRIEF_DRAIN
        while self.clock() < deadline and not signals.kill.is_set() and await self._any_busy(running):
            await wait_for_either(signals.kill, plan.DRAIN_CHECK_EVERY)
        kill = asyncio.create_task(self._kill_at_second_signal(signals, running))
        # One that cannot be stopped must not keep the others running.
        stops = [asyncio.create_task(self._stop_replica(replica)) for replica in running]
        if stops:  # a host that is silent may stay so
            await asyncio.wait(stops, timeout=self.config.stop_grace + STOP_BESIDE_GRACE)
        await cancel_and_wait([kill, *(stop for stop in stops if not stop.done())])
        for replica, stop in zip(running, stops, strict=True):
            if stop.cancelled() or stop.exception():
                log.error("%s could not be stopped", replica, exc_info=None if stop.cancelled() else stop.exception())
        await self.sync.last_exchange()

    async def _kill_at_second_signal(self, signals: Signals, replicas: list[ManagedReplica]) -> None:
        await signals.kill.wait()
        run_ids = [replica.run.run_id for replica in replicas if replica.run]
        await asyncio.gather(*(self.host.kill(run_id) for run_id in run_ids), return_exceptions=True)

    async def _any_busy(self, replicas: list[ManagedReplica]) -> bool:
        checks = await asyncio.gather(*(probe.check_health(self.client, replica.target) for replica in replicas))
        return any(seen.healthy and seen.running != 0 for seen in checks)


def _make_trial(replica: ManagedReplica, state: str, answer: Mapping[str, Any] | None = None) -> Trial:
    return Trial(
        launcher=replica.launcher,
        version=replica.installed,
        stamp=replica.stamp,
        state=state,
        answer=answer,
        cause=replica.cause if state == FAILED else "",
        detail=replica.detail[:4000] if state == FAILED else "",
    )


def _find_cause(end: RunEnd | None, *, stopped: bool) -> str:
    """Find the cause in its log, or "". `stopped`: it did not end by itself."""
    written = end.log if end else ""
    if end and not stopped and end.exit:
        written += f"\n{end.exit}"  # a signal hints at the cause as well, unless it was ours
    return failure_advice.cause(written)


def _describe_end(launcher: str, end: RunEnd | None, reason: str) -> str:
    """Return one sentence on what happened, then the engine's last log lines."""
    if end is None:
        return reason
    how = reason or str(end.exit or SHIM_KILLED)
    # A killed engine had no time to log why.
    silent = not reason and (end.exit is None or end.exit.signal == signal.SIGKILL)
    cause = "" if silent else launched_by(launcher).last_telling_line(end.log)
    tail = "\n".join(end.log.splitlines()[-LOG_LINES:])
    return "\n".join(filter(None, [f"{how}: {cause}" if cause else how, tail]))
