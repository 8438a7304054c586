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
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import httpx2
from django.utils import timezone

from modelregistry import failure_advice, placement_messages
from modelregistry.engines import version_trials
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import launched_by
from modelregistry.engines.selection import ChosenEngine, explain_mismatch
from modelregistry.engines.version_trials import FAILED, NOT_ITS_FAULT, PROVEN, UNTRIED, Installed, Trial
from modelregistry.failure_advice import NO_ANSWER, NO_ROOM, SILENT_HOST
from modelregistry.hostside import inspection
from modelregistry.hostside.faults import describe_exception
from modelregistry.hostside.local import LocalHost
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import (
    HostedRun,
    HostFault,
    HostSilent,
    HostSurface,
    HostUnreadable,
    LaunchOrder,
    LaunchRefused,
    RankOrder,
    RunEnd,
)
from modelregistry.memory.placement import Space
from modelregistry.process import probe
from modelregistry.process.process import Life
from modelregistry.supervisor import doubts, plan, room_maker, sleeping, state_sync
from modelregistry.supervisor.adoption import adopt_runs
from modelregistry.supervisor.async_helpers import cancel_and_wait, wait_for_either
from modelregistry.supervisor.database import Database, take_turn
from modelregistry.supervisor.doubts import HOST_UNHEARD
from modelregistry.supervisor.eviction import RoomOutcome
from modelregistry.supervisor.file_watch import FileWatch
from modelregistry.supervisor.gangs import GangIncomplete, Gangs, Likeness, OthersFirst
from modelregistry.supervisor.launching import CannotLaunch, DoesNotFit, SupervisorConfig, explain_launch_refusal
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.offers import Offer
from modelregistry.supervisor.office import Office
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts, Report
from modelregistry.supervisor.room_maker import RoomMaker
from modelregistry.supervisor.sleeper import Sleeper
from modelregistry.supervisor.sleeping import SleepFault
from modelregistry.supervisor.state_sync import StateSync
from modelregistry.supervisor.watchdog import Watchdog

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK = 0.5  # seconds between two plans
CHECK_WITHIN = 10.0  # seconds for a question to a ready engine whose health check failed
# The same while a host of a replica over several hosts is silent: none of it may be there. The first unanswered one
# takes it off the catalogue some 7 s after a host went, and is asked for long enough for a question beside others.
FIRST_RANK_CHECK_WITHIN = 2.0
RANK_CHECK_WITHIN = 4.0
STUCK_LIMIT = 300.0  # seconds with requests and without a token: as long as gateways wait for a first byte
SILENT_LIMIT = 60.0  # seconds without metrics from an engine that has them, before it is asked a question
MOVED_WITHIN = 300.0  # seconds of maintenance in which the placer finds other hosts, one replica after the other
BRIEF_DRAIN = 3.0  # seconds for running requests when everything is to stop
UNKNOWN_END = "it ended, and its host cannot read how"
SHIM_KILLED = "its shim was killed"  # how a run ended that has no record of it
HOST_SILENT = "its host does not answer: it is started when that does"
DOUBT_AFTER = 4.0  # seconds until a host that answered nothing yet counts as silent: as for any other
SILENCE_PAUSE = 1.0  # seconds between two questions to a host that did not answer one
STOP_BESIDE_GRACE = 60.0  # seconds beside the grace after which a leaving supervisor waits for no engine any more
COMING = (RoomOutcome.FITS, RoomOutcome.COMING)  # there is room as soon as those have left that leave anyway
LOG_LINES = 15
UNREADABLE = "unreadable-answer"  # the code of a host's problem
ADOPTION = "adoption"
NOTHING_REPORTED = Report(
    devices=[],
    strangers=[],
    engines={},
    installed={},
    stamps={},
    default_versions={},
    problems=[],
    at=datetime.min.replace(tzinfo=UTC),
)
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

    `office`: of the controller whose part it is; `database`: its thread. `host`: None is the machine on which this
    runs; the caller holds its lock. `may_move`: whether another place for a replica may yet be found, which was not
    looked for since that time. `gangs`: what it knows of the other hosts of replicas that are split over several.
    """

    def __init__(
        self,
        config: SupervisorConfig,
        *,
        office: Office,
        database: Database,
        host: HostSurface | None = None,
        may_move: Callable[[ReplicaKey, float], bool] = lambda key, since: False,
        gangs: Gangs | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.host: HostSurface = host or LocalHost(config.local, rng=rng)
        self.may_move = may_move
        self.gangs = gangs or Gangs(clock=clock)
        self.clock = clock
        self.replicas: dict[ReplicaKey, ManagedReplica] = {}
        self.watchdog = Watchdog()
        self.wake = asyncio.Event()
        self.allocation_lock = asyncio.Lock()  # two that start at the same time must not count on the same memory
        self.file_watch = FileWatch(self.host)
        self.strangers: set[tuple[int, int]] = set()
        self.installed: list[Installed] | None = None  # versions of engines, as last seen
        self.silent_since: float | None = None  # since when the host is silent; None: it answers
        self.sync = StateSync(
            *(config, self.replicas, self.host),
            office=office,
            database=database,
            clock=clock,
            on_exchange=self.wake.set,
        )
        self.supervises = False  # its runs were found, and what it may do there is done
        self.rows: Mapping[ReplicaKey, ReplicaFacts] | None = None  # until its runs are found; None: not read yet
        self.syncing: asyncio.Task[None] | None = None
        self.room_maker = RoomMaker(
            *(self.replicas, self.sync),
            measure=self.host.measure_room,
            lock=self.allocation_lock,
            begin_drain=self._begin_leaving,
            gangs=self.gangs,
            clock=clock,
        )
        self.unreadable: dict[str, str] = {}  # why the host's answers cannot be read, by what was asked
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
        try:
            # No proxy from the environment, and no kept connection: an engine may be gone at the next check.
            limits = httpx2.Limits(max_keepalive_connections=0)
            async with httpx2.AsyncClient(limits=limits, trust_env=False) as self.client:
                await self.host.open()
                known = self.rows = await self.sync.open(signals.stop)
                if known is not None and await self._find_runs(known, signals.stop):
                    await self._supervise(signals)
                    if stop_engines:
                        await self._stop_engines(signals)
        finally:
            self.supervises, self.rows = False, None
            left = [*self._running_tasks("engine_task"), *self._running_tasks("probe_task")]
            await cancel_and_wait([*left, *([self.syncing] if self.syncing else [])])
            await self.sync.close()
            await self.host.close()

    async def _find_runs(self, known: dict[ReplicaKey, ReplicaFacts], stop: asyncio.Event) -> bool:
        """Adopt what runs on the host, once that answers; False if `stop` is set first. Raises as `StateSync.run`."""
        while not stop.is_set():
            doubting = asyncio.create_task(self._doubt_while_silent(known))
            try:
                await self._adopt(known)
            except (HostSilent, HostFault) as error:
                self._explain_waiting(error)
            else:
                self.unreadable.pop(ADOPTION, None)
                return True
            finally:
                await cancel_and_wait([doubting])
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

    def _explain_waiting(self, error: HostSilent | HostFault) -> None:
        if isinstance(error, HostUnreadable):
            self._report_unreadable(ADOPTION, error)
        else:
            log.warning("%s: nothing is started or stopped there until it answers (%s)", self.config.host, error)

    async def _doubt_while_silent(self, known: dict[ReplicaKey, ReplicaFacts]) -> None:
        """Doubt engines of a host that has not answered yet: adoption may wait for a minute until it gives up."""
        await asyncio.sleep(DOUBT_AFTER)
        if self.host.silent_for():
            await self._doubt_engines(known)

    async def _doubt_engines(self, known: dict[ReplicaKey, ReplicaFacts]) -> None:
        """Take engines off the catalogue that do not answer either, as long as their host is silent, and back."""
        while True:
            here = {key: facts for key, facts in known.items() if key.model in self.sync.desired_models}
            known.update(await doubts.look(self.client, here, self.sync.write_facts))
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
        observe = partial(take_turn, self.sync.observe_machine, state_sync.EVERY)
        background.append(self.watchdog.keep_running("measurement", observe))
        background.append(self.watchdog.keep_running("room", self._make_room))
        self.supervises = True
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
        try:
            await work()
            self.unreadable.pop(work.__name__, None)
        except HostUnreadable as fault:
            self._report_unreadable(work.__name__, fault)
        except HostSilent:
            pass
        await asyncio.sleep(inspection.EVERY)

    def _report_unreadable(self, what: str, fault: HostUnreadable) -> None:
        """Report to operators that what the host answers cannot be read; else its report stays as it was."""
        if self.unreadable.get(what) == str(fault):
            return
        log.warning("%s answers what cannot be read (%s)", self.config.host, fault)
        self.unreadable[what] = str(fault)
        before = self.sync.report or NOTHING_REPORTED
        others = [one for one in before.problems if one["code"] != UNREADABLE]
        problems = [*others, *self._unreadable_answers()]
        self.sync.report = replace(before, problems=problems, at=timezone.now())

    def _unreadable_answers(self) -> list[dict[str, str]]:
        return [{"code": UNREADABLE, "detail": fault} for fault in self.unreadable.values()]

    async def _make_room(self) -> None:
        """Make room for models that are called, as a watchdog's step."""
        with contextlib.suppress(HostSilent):
            await self.room_maker.make_room()
        self.wake.set()
        await wait_for_either(self.room_changed, room_maker.EVERY)
        self.room_changed.clear()

    def _begin_leaving(self, replica: ManagedReplica, spaces: tuple[Space, ...]) -> None:
        if replica.rank:  # all of it leaves, and it follows its rank 0
            replica.for_room = True
            self.gangs.give_place(replica)
            return
        if replica.probe_task:
            replica.probe_task.cancel()
        replica.leave_for(spaces, self.clock())
        self.sync.changed.set()

    def give_place(self, key: ReplicaKey) -> None:
        """Have a replica, rank 0 of a gang, leave for a model on the host of another rank."""
        # It has its room here when it is to come back, which depends on the other host.
        if replica := self.replicas.get(key):
            self._begin_leaving(replica, ())

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
            devices = ", ".join(f"{each.name} {each.total / 1e9:.0f} GB" for each in found.devices)
            log.info("%s has %s", self.config.host, devices)
        for each in found.strangers:
            if (each.pid, each.device) not in self.strangers:
                log.info("%s", inspection.describe_stranger(asdict(each)))
        self.strangers = {(each.pid, each.device) for each in found.strangers}
        report = Report(**{one.name: getattr(found, one.name) for one in fields(found)}, at=timezone.now())
        report.problems.extend(self._unreadable_answers())
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
        self.gangs.look()
        free = {key: replica for key, replica in self.replicas.items() if replica.engine_task is None}
        wanted = {
            key: want
            for key, want in self._wanted_replicas().items()
            if key in free or (key not in self.replicas and (want.external or not silent))
        }
        observed = [self._observe(replica, now, silent=silent) for replica in free.values()]
        for action in plan.plan_actions(wanted, observed, now, start_limit=self.config.start_limit):
            self._carry_out(action, now)

    def _observe(self, replica: ManagedReplica, now: float, *, silent: bool) -> plan.Observed:
        if replica.rank and (lead := self.gangs.lead_of(replica)):
            replica.follow(lead, now, silent=silent)
            if replica.for_room and lead.state == ReplicaState.READY:  # it stays after all
                replica.for_room = False
                self.sync.evictions.call_off(replica.key)
            replica.version = replica.version or self._installed_version(replica)  # nothing asks it
        seen = replica.observe(self.host.life_of, unreachable=silent)
        if replica.rank:
            seen = replace(seen, lead=self.gangs.find_lead(replica))
            if silent and replica.state == ReplicaState.JOINED and seen.lead in (plan.Lead.GONE, plan.Lead.FAILED):
                replica.enter(ReplicaState.UNHEALTHY, now, HOST_UNHEARD, SILENT_HOST)
            return seen
        if replica.run and replica.hosts:
            doubtful = self.gangs.has_silent_rank(replica)
            return replace(seen, broken=self.gangs.find_break(replica), doubtful=doubtful)
        return seen

    def _note_silence(self, now: float) -> bool:
        """Return whether the host is silent; when it answers again, what was concluded meanwhile is looked at again."""
        silent = self.host.silent_for() > 0
        if silent and self.silent_since is None:
            self.silent_since = now
            for replica in self.replicas.values():
                # A question that was asked before may wait for long; what matters now is whether the engine is there.
                if replica.probe_task and not replica.desired.external:
                    replica.probe_task.cancel()
                    replica.checked_at = float("-inf")
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
        keys = [ReplicaKey(model, number) for model, one in self.sync.desired_models.items() for number in one.numbers]
        return {key: self._wanted_replica(key, self.sync.desired_models[key.model], address, hour) for key in keys}

    def _wanted_replica(self, key: ReplicaKey, model: DesiredModel, address: str, hour: datetime) -> plan.Wanted:
        desired, known = model.of(key.number), self.replicas.get(key)
        spec, without_room = desired.spec, known is not None and known.without_room
        return plan.Wanted(
            fingerprint=desired.fingerprint(),
            address="" if desired.external else address,
            external=desired.external,
            enabled=desired.enabled and self._may_run(key, desired),
            idle_after=desired.idle_after_at(hour),
            wake_requested=desired.wake_requested,
            rank=spec.rank,
            called_up=spec.rank > 0 and self.gangs.is_called_up(key, spec, without_room=without_room),
        )

    def _may_run(self, key: ReplicaKey, desired: DesiredModel) -> bool:
        """Return whether maintenance lets it run, here or on the other hosts over which it is split."""
        if desired.external:
            return True  # it does not run on this machine: cutting it off would help no one
        if desired.spec.nodes > 1:
            return not self.sync.maintenance and not self.gangs.is_maintained(desired.spec)
        return not self.sync.maintenance or self._leaves_later(desired, key)

    def _leaves_later(self, desired: DesiredModel, key: ReplicaKey) -> bool:
        """Return whether a replica serves on in maintenance, until it is ready on another host, or may yet get one."""
        since = self.sync.maintenance_since
        undecided = desired.free and self.clock() - since < MOVED_WITHIN and self.may_move(key, since)
        return key.number in desired.leaving or undecided

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
        desired = self.sync.desired_models[key.model].of(key.number)
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
            if kind == "engine_task" or self.sync.has_news_of(replica):
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
            run = await self._launch(replica, run_id)
        except HostSilent as silence:
            await self._settle_start(replica, run_id, silence)
        except DoesNotFit as error:
            outlook = await self._record_no_room(replica, error)
            self._report_no_room(replica, error, outlook)
        except LaunchRefused as refused:
            self._record_refusal(replica, explain_launch_refusal(refused.refusal))
        except CannotLaunch as error:
            self._record_refusal(replica, error)
        except HostFault as error:  # run directories that cannot be read, a command that is none
            replica.record_crash(self.clock(), str(error), failure_advice.cause(str(error)) or "start-fault")
        except Exception as error:  # an unforeseen fault of one model must neither hang it nor stop the others
            log.exception("%s: its start failed", replica)
            reason = f"The supervisor could not start it: {describe_exception(error)}"
            replica.record_crash(self.clock(), reason, "start-fault")
        else:
            self._record_launch(replica, run)
            self.gangs.note_launch(replica, run.label)

    async def _launch(self, replica: ManagedReplica, run_id: str) -> HostedRun:
        """Set its memory apart and start it. Raises CannotLaunch, LaunchRefused, HostSilent, HostFault."""
        if replica.desired.spec.nodes == 1:
            engine = await self._allocate(replica)
            return await self.host.launch(self._make_order(replica, engine, run_id))
        with self.gangs.take_part(replica.key, replica.desired.spec) as muster:
            if replica.rank and (prior := self.room_maker.find_prior(replica)):
                called = self.sync.demands.since(replica.key.model, self.clock()) is not None
                raise OthersFirst(prior, called=called)
            engine = await self._allocate(replica)
            muster.hold(replica.rank, await self._find_likeness(replica, engine))
            if replica.rank:
                order = await self.gangs.wait_for_lead(muster)
            else:
                await self.gangs.wait_for_all(muster, lambda: self._is_still_wanted(replica))
                order = RankOrder(gang=run_id, address=replica.address)
            replica.gang = order.gang
            run = await self.host.launch(self._make_order(replica, engine, run_id, order))
            await self._require_rank(replica, run)
        return run

    async def _find_likeness(self, replica: ManagedReplica, engine: ChosenEngine) -> Likeness:
        """Return what its other ranks have to have as well. Raises HostSilent, HostFault."""
        if engine.choice is None and self.sync.report is None:
            await self.inspect()  # which asks a program that operators named for its version
        versions = self.sync.report.engines if self.sync.report else {}
        grant = replica.allocation.grant if replica.allocation else None
        return Likeness(
            launcher=engine.launcher,
            version=replica.installed or versions.get(engine.launcher, ""),
            on_cards=bool(grant and grant.visible),
            context=grant.context if grant else 0,
            batch=grant.batch if grant else 0,
            parallel=grant.parallel if grant else 0,
        )

    async def _require_rank(self, replica: ManagedReplica, run: HostedRun) -> None:
        """Stop an engine that does not belong to the start for which it was to be started. Raises GangIncomplete."""
        if run.label.gang == replica.gang:
            return
        # An agent of an earlier release knows no ranks; or an engine of an earlier start, which was not known. It is
        # recorded first, so that it is supervised should this be called off.
        self._record_launch(replica, run)
        await self._stop_engine(replica)
        raise GangIncomplete("its host did not start it as a rank: it may have an earlier release", lasting=True)

    def _is_still_wanted(self, replica: ManagedReplica) -> bool:
        model = self.sync.desired_models.get(replica.key.model)
        if model is None or replica.key.number not in model.numbers:
            return False
        desired = model.of(replica.key.number)
        wanted = desired.enabled and self._may_run(replica.key, desired)
        return wanted and desired.fingerprint() == replica.desired.fingerprint()

    def _report_no_room(self, replica: ManagedReplica, error: DoesNotFit, outlook: RoomOutcome) -> None:
        if replica.rank:
            called = self.sync.demands.since(replica.key.model, self.clock()) is not None
            values = {"can_come": outlook is not RoomOutcome.NEVER, "coming": called or outlook in COMING}
            self.gangs.report_no_room(replica.key, replica.desired.spec, str(error), **values)

    def _make_order(
        self, replica: ManagedReplica, engine: ChosenEngine, run_id: str, rank: RankOrder | None = None
    ) -> LaunchOrder:
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
            rank=rank,
        )

    def _record_launch(self, replica: ManagedReplica, run: HostedRun) -> None:
        replica.oom_kills = self.host.oom_kills()
        replica.record_launch(run, run.label, self.clock())

    def _record_refusal(self, replica: ManagedReplica, error: CannotLaunch) -> None:
        if isinstance(error, GangIncomplete):  # nothing crashed, so nothing is counted
            retry_at = self.gangs.choose_next_try(error.pause)
            values = {"lasting": error.lasting, "asleep": error.asleep}
            replica.wait_for_ranks(retry_at, self.clock(), str(error), error.cause, **values)
            return
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
            return
        replica.detail = ""
        try:
            await self._require_rank(replica, run)
        except GangIncomplete as error:
            self._record_refusal(replica, error)
        else:
            self._record_launch(replica, run)

    async def _record_no_room(self, replica: ManagedReplica, error: DoesNotFit) -> RoomOutcome:
        """Record that there is no room for it; return whether there will be some."""
        try:
            outlook = await self.room_maker.find_outlook(replica, error.spaces)
        except (HostSilent, HostFault):
            outlook = RoomOutcome.NEVER
        can_come = outlook is not RoomOutcome.NEVER
        if_called = outlook in (RoomOutcome.EVICT, RoomOutcome.LATER)
        detail = placement_messages.explain_waiting(str(error)) if if_called else str(error)
        replica.record_no_room(self.clock(), detail, error.need, error.spaces, can_come=can_come)
        self.room_changed.set()
        return outlook

    async def _allocate(self, replica: ManagedReplica) -> ChosenEngine:
        """Choose its engine and allocate its memory. Raises CannotLaunch, HostSilent."""
        async with self.allocation_lock:
            model, spec = replica.key.model, replica.desired.spec
            others = [one for one in self.replicas.values() if one.key.model == model and one is not replica]
            tried_now = [one.installed for one in others if one.trial and one.state == ReplicaState.STARTING]
            placed = [other.hosted for other in self.replicas.values() if other is not replica and other.hosted]
            versions = self.sync.report.engines if self.sync.report else {}
            try:
                trials = self.sync.trials.get(model, ()) if spec.nodes == 1 else ()
                engine = await self.host.choose_engine(spec, list(trials), tried_now)
                if mismatch := explain_mismatch(spec, engine):
                    raise CannotLaunch(mismatch, "no-engine")
                if engine.choice and spec.nodes > 1:
                    # All ranks need the same version: none tries one, or falls back to another, by itself.
                    engine = replace(engine, choice=replace(engine.choice, trial=False, instead=""))
                if engine.choice:
                    replica.set_engine(engine.choice)
                replica.allocation = await self.host.allocate(spec, engine, placed, self.sync.measurements, versions)
            except LaunchRefused as refused:
                raise explain_launch_refusal(refused.refusal) from refused
        return engine

    # --- Models that may run on any host, as `controller.placer.PlaceableHost`

    @property
    def maintenance(self) -> bool:
        return self.sync.maintenance

    @property
    def takes_models(self) -> bool:
        return self.supervises and not self.sync.maintenance and not self.host.silent_for()

    def silent_for(self) -> float:
        return self.host.silent_for()

    def life_of(self, replica: ManagedReplica) -> Life | None:
        return self.host.life_of(replica.run.run_id) if replica.run else None

    @property
    def address(self) -> str:
        """Where its engines listen; empty: not known, or nothing can listen there."""
        return "" if self.sync.address_fault else self.sync.address

    def cause_of(self, key: ReplicaKey) -> str:
        replica = self.replicas.get(key)
        return NO_ROOM if replica and replica.without_room else replica.cause if replica else ""

    def is_proving(self, key: ReplicaKey) -> bool:
        replica = self.replicas.get(key)
        return replica is not None and replica.proving

    def look_again(self) -> None:
        self.sync.changed.set()

    async def find_files(self, paths: Collection[str]) -> set[str]:
        """Return those of these paths at which the host has something. Raises HostSilent, HostFault."""
        return set(await self.host.find_existing(list(paths)))

    async def make_offer(self, spec: Spec) -> Offer:
        """Return what this host offers for a replica of a model. Raises HostSilent."""
        async with self.allocation_lock:
            hosted = [replica.hosted for replica in self.replicas.values() if replica.hosted]
            versions = self.sync.report.engines if self.sync.report else {}
            try:
                found = await self.host.make_offer(spec, 1, hosted, self.sync.measurements, versions)
            except HostFault:  # a host may get it even where it fits nowhere, and its start reports the reason
                log.exception("%s: cannot determine whether it fits on %s", spec.name, self.config.host)
                return Offer(fits=False, free=0)
        try:
            cost = None if found.fits else await self.room_maker.price(found.spaces)
        except HostFault:
            cost = None
        need = min((sum(space.needs.values()) for space in found.spaces), default=None)
        return Offer(fits=found.fits, free=found.free, need=need, cost=cost)

    def is_settled(self, key: ReplicaKey, given_at: float) -> bool:
        """Return whether a replica has its memory, if it is to run at all: it is known then how much is left.

        `given_at`: when it was placed here; what is wanted may have changed since then.
        """
        desired, replica = self.sync.desired_models.get(key.model), self.replicas.get(key)
        wanted = desired is not None and key.number in desired.numbers
        if not wanted and self.sync.desired_at <= given_at:
            return False  # that it was placed here may not have been read yet
        if desired is not None and not desired.enabled:
            return True
        if replica is None:
            return not wanted
        return bool(replica.allocation or replica.run or replica.state != ReplicaState.STARTING)

    # --- What is booked of its memory, as `controller.booker.BookableHost`

    def list_promises(self) -> dict[str, dict[int, int]] | None:
        """Return the bytes by device that each replica here was promised; None: it is not known what runs here.

        Of a silent host those that were placed elsewhere are left out: they are not to come back.
        """
        if not self.supervises:
            return None
        silent = self.host.silent_for() > 0
        return {
            hosted.name: hosted.allocation.amounts
            for key, replica in self.replicas.items()
            if (hosted := replica.hosted) and not (silent and self._is_elsewhere(key))
        }

    def _is_elsewhere(self, key: ReplicaKey) -> bool:
        desired = self.sync.desired_models.get(key.model)
        return desired is None or key.number not in desired.numbers

    async def reserve(self, amounts: Mapping[int, int]) -> None:
        """Have the host count so much as taken by others. Raises HostSilent, HostFault."""
        await self.host.reserve(amounts)

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
            replica.without_room = bool(replica.spaces) and not replica.rank

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
        if run is None:
            return None
        try:
            return await self._insist(lambda: self.host.describe_end(run.run_id, CAUSE_LINES))
        except HostFault as fault:  # its record cannot be read: it is over all the same
            log.warning("how %s ended is not known: %s", run.run_id, fault)
            return None

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
        desired = self.sync.desired_models.get(replica.key.model, replica.desired).of(replica.key.number)
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
        while True:
            try:
                return await self._insist(lambda: self.host.stop(run_id, grace))
            except HostFault as fault:
                log.warning("%s cannot be stopped yet: %s", replica, fault)
            await asyncio.sleep(SILENCE_PAUSE)

    # --- Probing -------------------------------------------------------------------------------------------------

    async def _ask_question(self, replica: ManagedReplica) -> None:
        if replica.desired.external or replica.state == ReplicaState.STARTING:
            seen = await probe.check_health(self.client, replica.target)
            if not seen.healthy:
                return
        elif self.gangs.has_silent_rank(replica):
            await self._check_answer(replica)
            return
        try:
            await probe.ask_question(self.client, replica.target)
        except probe.ProbeFailed as error:
            refused = isinstance(error, probe.ProbeRefusal)
            replica.record_failed_question(str(error), refused=refused, host_silent=self.host.silent_for() > 0)
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
        host_silent = self.host.silent_for() > 0
        seen = await probe.check_health(self.client, replica.target)
        used = await self._cpu_seconds(replica)
        now = self.clock()
        worked = replica.has_worked(seen)
        replica.oom_kills = self.host.oom_kills()
        if replica.desired.external:
            state, cause = (ReplicaState.READY, "") if seen.healthy else (ReplicaState.UNHEALTHY, NO_ANSWER)
            replica.enter(state, now, seen.detail, cause)
            return
        replica.record_health(seen, now, used)
        replica.version = replica.version or self._installed_version(replica)
        if replica.state == ReplicaState.DRAINING:
            replica.failed_checks = 0 if seen.healthy else replica.failed_checks + 1
            return
        if seen.healthy and not self._is_doubtful(replica, now, worked=worked):
            replica.failed_checks = 0
            return
        if host_silent and not seen.healthy:  # neither answers, so the machine is gone or cut off
            replica.enter(ReplicaState.UNHEALTHY, now, HOST_UNHEARD, SILENT_HOST)
            return
        await self._check_answer(replica)

    async def _check_answer(self, replica: ManagedReplica) -> None:
        """Ask an engine that is in doubt; after some failures it is off the catalogue."""
        alone = not self.gangs.has_silent_rank(replica)
        try:
            rank_within = RANK_CHECK_WITHIN if replica.failed_checks else FIRST_RANK_CHECK_WITHIN
            within = CHECK_WITHIN if alone else rank_within
            await probe.ask_question(self.client, replica.target, within=within)
        except probe.ProbeFailed as error:
            refused = isinstance(error, probe.ProbeRefusal)
            worked = not alone and not refused and await self._has_worked(replica)
            replica.record_unanswered(self.clock(), str(error), refused=refused, alone=alone, worked=worked)
        else:
            if replica.state == ReplicaState.UNHEALTHY:
                await self._begin_service(replica)
                return
            replica.failed_checks, replica.unproven = 0, False
            replica.reported_at = replica.progressed_at = self.clock()

    async def _has_worked(self, replica: ManagedReplica) -> bool:
        """Return whether an engine that is busy has made tokens since its last check, which takes all its ranks."""
        seen = await probe.check_health(self.client, replica.target)
        worked = replica.has_worked(seen)
        replica.record_health(seen, self.clock())
        return worked

    async def _cpu_seconds(self, replica: ManagedReplica) -> float | None:
        """Return the CPU time that an engine without metrics has used; None: it is not needed, or not known."""
        if replica.run is None or replica.reports_work or self.host.silent_for():
            return None
        try:
            return await self.host.cpu_seconds(replica.run.run_id)
        except (HostSilent, HostFault):
            return None

    def _is_doubtful(self, replica: ManagedReplica, now: float, *, worked: bool) -> bool:
        """Return whether there is reason not to believe an engine that reports itself healthy.

        `worked`: it has made tokens since its last check, which takes all its ranks.
        """
        return (
            replica.unproven
            or now - replica.reported_at >= SILENT_LIMIT
            or now - replica.progressed_at >= STUCK_LIMIT
            or (not worked and self.gangs.has_silent_rank(replica))
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
        return reason or UNKNOWN_END
    how = reason or str(end.exit or SHIM_KILLED)
    # A killed engine had no time to log why.
    silent = not reason and (end.exit is None or end.exit.signal == signal.SIGKILL)
    cause = "" if silent else launched_by(launcher).last_telling_line(end.log)
    tail = "\n".join(end.log.splitlines()[-LOG_LINES:])
    return "\n".join(filter(None, [f"{how}: {cause}" if cause else how, tail]))
