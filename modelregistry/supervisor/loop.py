"""Keeps the engines of this host as operators want them: one loop that looks, plans and acts, one that keeps the books.

`plan.plan` decides; this carries out. The loops share nothing with the database but values, so while it is away
engines go on, are restarted and looked at, and the rows follow when it is back. Work on one replica never waits for
another: each action is a task; starting and stopping block in threads.

Ending the supervisor leaves its engines to the next one, which finds them by their run directories and adopts them.
asyncio rather than threads alone, because most of the time is spent waiting for answers of many engines at once.
"""

import asyncio
import logging
import random
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import httpx2
from django.utils import timezone

from modelregistry import failure_advice
from modelregistry.engines import base, version_trials
from modelregistry.engines.selection import ChosenEngine
from modelregistry.engines.version_trials import FAILED, NOT_ITS_FAULT, PROVEN, UNTRIED, Installed, Trial
from modelregistry.process import gpus, probe, process, stopping
from modelregistry.process.process import Run
from modelregistry.supervisor import inspection, launching, plan
from modelregistry.supervisor.adoption import adopt_runs
from modelregistry.supervisor.async_helpers import cancel_and_wait, wait_for_either
from modelregistry.supervisor.bidding import Bidder, Offer, Unassigned, with_files
from modelregistry.supervisor.executor import Executor
from modelregistry.supervisor.faults import describe_exception
from modelregistry.supervisor.file_watch import FileWatch
from modelregistry.supervisor.inspection import Inspector
from modelregistry.supervisor.launching import CannotLaunch, DoesNotFit, SupervisorConfig
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import Key, State
from modelregistry.supervisor.repository import ReplicaFacts, Report
from modelregistry.supervisor.state_sync import StateSync
from modelregistry.supervisor.tasks import TaskRunner
from modelregistry.supervisor.watchdog import Watchdog

log = logging.getLogger(__name__)

TICK = 0.5  # seconds between two plans
CHECK_WITHIN = 10.0  # seconds for a question to a ready engine whose health was bad
STUCK_LIMIT = 300.0  # seconds with requests and without a token: as long as gateways wait for a first byte
UNTOLD_LIMIT = 60.0  # seconds without metrics from an engine that has them, before it is asked a question
NAME_THREADS = 64  # each look up may hold one for half a minute, and each external model is looked at every 10 s
BRIEF_DRAIN = 3.0  # seconds for running requests when everything is to stop
LOG_LINES = 15
CAUSE_LINES = 400  # vLLM's cause stands high above its last line


@dataclass(slots=True)
class Signals:
    """How an operator's signals reach the loops."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    hurry: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self) -> None:
        (self.hurry if self.stop.is_set() else self.stop).set()


class Supervisor:
    """One per host (the caller holds the lock). `run` until told to stop."""

    def __init__(
        self,
        house: SupervisorConfig,
        *,
        periodic_tasks: TaskRunner | None = None,
        clock: Callable[[], float] = time.monotonic,
        chance: random.Random | None = None,
    ) -> None:
        self.house = house
        self.periodic_tasks = periodic_tasks
        self.clock = clock
        self.chance = chance or random.Random()  # noqa: S311 -- chooses ports
        self.runs = process.Runs(house.runs, groups=process.own_group())
        self.charges: dict[Key, ManagedReplica] = {}
        self.watchdog = Watchdog()
        self.wake = asyncio.Event()
        self.allotting = asyncio.Lock()  # two that start at a time must not count on the same memory
        self.hands = Executor(32, "hands")  # which wait for processes
        self.readings = FileWatch()
        self.strangers: set[tuple[int, int]] = set()
        self.installed: list[Installed] | None = None  # engines' versions, as seen last
        self.inspector = Inspector(self.runs, house.cache, house.commands)
        self.books = StateSync(house, self.charges, self.hands, clock=clock, heard=self.wake.set)

    async def run(self, signals: Signals, *, stop_engines: bool) -> None:
        """Adopt what runs, then supervises until `signals.stop`. With `stop_engines` it ends all engines first,
        within BRIEF_DRAIN + the stop grace + a few seconds; else they go on.
        """
        log.info("supervising %s: %s", self.house.host, ", ".join(map(str, gpus.list_devices())))
        leave = False
        # Names are looked up by the loop's own threads, of which there are six by default: those of one external model
        # whose name server says nothing must not keep others from being looked at.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(NAME_THREADS, "names"))
        try:
            # No proxy from the environment, and no kept connection: an engine may be gone at the next look.
            limits = httpx2.Limits(max_keepalive_connections=0)
            async with httpx2.AsyncClient(limits=limits, trust_env=False) as self.client:
                known = await self.books.open(signals.stop)
                if known is not None:
                    await self._adopt(known)
                    await self._supervise(signals)
                    if stop_engines:
                        await self._stop_engines(signals)
                    leave = True
        finally:
            await self.books.close(leave=leave)
            self.hands.close()

    async def _adopt(self, known: Mapping[Key, ReplicaFacts]) -> None:
        grace = self.house.stop_grace
        found = await self.hands.do(adopt_runs, self.runs, known, self.books.orders, grace=grace, clock=self.clock)
        self.charges.update(found)

    # --- The loops ----------------------------------------------------------------------------------------------

    async def _supervise(self, signals: Signals) -> None:
        books = asyncio.create_task(self.books.keep())
        # Apart, as a disk may hang.
        beside = [
            self.watchdog.keep(name, partial(self._turn, work))
            for name, work in (("inspection", self.inspect), ("files", self._read_files))
        ]
        bidder = Bidder(
            *(self.books.host.id, self.books),
            offer=self._offer,
            settled=self._is_settled,
            here=lambda found: self.hands.do(with_files, found),
            clock=self.clock,
        )
        beside.append(self.watchdog.keep("bids", partial(bidder.keep, self.books.changed.set)))
        if self.periodic_tasks:
            beside.append(self.watchdog.keep("periodic tasks", self.periodic_tasks.keep))
        try:
            while not signals.stop.is_set():
                if books.done():
                    books.result()  # raises: without books we must not go on as if all were well
                self._act()
                await wait_for_either(self.wake, TICK, signals.stop)
                self.wake.clear()
        finally:
            await cancel_and_wait([books, *beside, *self._tasks("looking")])
        if unfinished := self._tasks("working"):
            await asyncio.wait(unfinished, timeout=self.house.stop_grace)
        await self.books.last_exchange()

    async def _turn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """One turn of work without which engines go on as well; the watchdog runs it again whatever becomes of it."""
        await work()
        await asyncio.sleep(inspection.EVERY)

    async def inspect(self) -> None:
        installed = await self.hands.do(base.all_installed, self.house.cache)
        if self.installed not in (None, installed):
            # What had no engine, or one that does not work, may have one now.
            for charge in self.charges.values():
                if charge.state in (State.BACKOFF, State.FAILED):
                    charge.retry_at = self.clock()
        self.installed = installed
        found = await self.hands.do(self.inspector.inspect)
        for each in found.strangers:
            who = each["pid"], each["device"]
            if who not in self.strangers:
                log.info(
                    "process %d (%s) is not ours and holds %s of device %d", who[0], each["name"], each["bytes"], who[1]
                )
        self.strangers = {(each["pid"], each["device"]) for each in found.strangers}
        report = Report(**{**asdict(found), "at": timezone.now()})
        if fault := self.books.address_fault:
            report.problems.append({**asdict(fault), "detail": str(fault)})
        self.books.report = report

    async def _read_files(self) -> None:
        """What the models' files tell. One that failed is tried at once when its files have changed."""
        known = set(self.readings.read)
        fresh = await self.hands.do(self.readings.fresh, list(self.books.orders.items()))
        self.books.readings.update(fresh)
        for charge in self.charges.values():
            if charge.key.model in fresh.keys() & known and charge.state in (State.BACKOFF, State.FAILED):
                charge.retry_at = self.clock()

    def _act(self) -> None:
        now = self.clock()
        free = {key: charge for key, charge in self.charges.items() if charge.working is None}
        wanted = {key: want for key, want in self._wanted().items() if key in free or key not in self.charges}
        observed = [charge.observe() for charge in free.values()]
        for action in plan.plan_actions(wanted, observed, now, start_limit=self.house.start_limit):
            self._carry_out(action, now)

    def _wanted(self) -> dict[Key, plan.Wanted]:
        # What runs is not ended for an address at which nothing could be started.
        address = "" if self.books.address_fault else self.books.address
        return {
            Key(model_id, number): plan.Wanted(
                fingerprint=order.fingerprint(),
                address="" if order.external else address,
                external=order.external,
                # An external engine is not of this machine: nobody is served by cutting it off.
                enabled=order.enabled and (order.external or not self.books.maintenance),
                idle_after=order.idle_after,
                wake_requested=order.wake_requested,
            )
            for model_id, order in self.books.orders.items()
            for number in range(order.replicas)
        }

    def _carry_out(self, action: plan.Action, now: float) -> None:
        charge = self.charges.get(action.key)
        if isinstance(action, plan.Start):
            self._begin_start(action.key, charge, now)
            return
        assert charge, "only a start is planned for what is not there"
        if isinstance(action, plan.Ask | plan.CheckHealth):
            if charge.looking is None:
                charge.looked_at = now
                work = self._ask(charge) if isinstance(action, plan.Ask) else self._look(charge)
                charge.looking = self._task(charge, "looking", work)
            return
        if charge.looking:
            charge.looking.cancel()
        match action:
            case plan.Drain(then=then):
                charge.then = then
                charge.enter(State.DRAINING, now)
            case plan.Stop():
                charge.working = self._task(charge, "working", self._stop(charge))
            case plan.Fail(why=why):
                charge.working = self._task(charge, "working", self._fail(charge, why))
            case plan.Remove():
                del self.charges[charge.key]
                self.books.removed.add(charge.key)
        self.books.changed.set()

    def _begin_start(self, key: Key, charge: ManagedReplica | None, now: float) -> None:
        order = self.books.orders[key.model]
        if charge is None:
            charge = ManagedReplica(key=key, order=order, fingerprint="", state=State.STOPPED, since=now)
            self.charges[key] = charge
            self.books.removed.discard(key)
        if not order.external and self._is_unreachable(charge):
            charge.retry_at = now + plan.ADDRESS_PAUSE
            return
        charge.begin(order, "" if order.external else self.books.address, now)
        if order.external:
            charge.url, charge.api_key, charge.launcher, charge.slots = order.url, order.upstream_key, "", None
        elif self.books.address_fault:
            charge.unreachable(now, str(self.books.address_fault))
        else:
            charge.working = self._task(charge, "working", self._start(charge))
        self.books.changed.set()

    def _is_unreachable(self, charge: ManagedReplica) -> bool:
        """It was told already that this machine does not have the host's address."""
        told = charge.cause == "bad-address" and charge.address == self.books.address
        return told and self.books.address_fault is not None

    def _task(self, charge: ManagedReplica, kind: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def done(task: asyncio.Task[None]) -> None:
            if getattr(charge, kind) is task:
                setattr(charge, kind, None)
            if not task.cancelled() and (error := task.exception()):
                log.error("%s", charge, exc_info=error)
            self.wake.set()
            self.books.changed.set()

        task = asyncio.create_task(work)
        task.add_done_callback(done)
        return task

    def _tasks(self, kind: str) -> list[asyncio.Task[None]]:
        return [task for charge in self.charges.values() if (task := getattr(charge, kind))]

    # --- Starting and stopping -----------------------------------------------------------------------------------

    async def _start(self, charge: ManagedReplica) -> None:
        try:
            engine = await self._allot(charge)
            # Chosen before anything more is waited for: engines that start at once would be given the same one, and
            # an engine may load for a minute before it finds its port in use.
            taken = {other.port for other in self.charges.values()}
            charge.port = launching.free_port(charge.address, self.house.ports, taken, self.chance)
            run, label = await self.hands.do(
                launching.launch,
                *(self.house, self.runs, charge.key, charge.order.spec, engine),
                address=charge.address,
                port=charge.port,
                allotted=charge.allotment,
            )
        except DoesNotFit as error:
            charge.refused(self.clock(), str(error), error.need)
        except CannotLaunch as error:
            charge.port = 0
            charge.crashed(self.clock(), str(error), error.cause)
            self._blame_version(charge)
        except OSError as error:  # run directories that cannot be read
            charge.port = 0
            charge.crashed(self.clock(), str(error), failure_advice.cause(str(error)))
        except Exception as error:  # a model that we stumble over must neither wait for ever nor stop the others
            log.exception("%s: its start failed", charge)
            charge.port = 0
            why = f"The supervisor could not start it: {describe_exception(error)}"
            charge.crashed(self.clock(), why, "start-fault")
        else:
            charge.oom_kills = process.oom_kills()
            charge.launched(run, label, self.clock())

    async def _allot(self, charge: ManagedReplica) -> ChosenEngine:
        """Choose its engine and find it a place. Raises CannotLaunch."""
        async with self.allotting:
            model, spec = charge.key.model, charge.order.spec
            others = [one for one in self.charges.values() if one.key.model == model and one is not charge]
            engine = await self.hands.do(
                launching.choose_engine,
                *(self.house, spec),
                trials=list(self.books.trials.get(model, ())),
                tried_now=[one.installed for one in others if one.trial and one.state == State.STARTING],
            )
            if engine.choice:
                charge.chosen(engine.choice)
            tenants = [other.tenant for other in self.charges.values() if other is not charge and other.tenant]
            charge.allotment = await self.hands.do(
                launching.allocate,
                *(self.house, spec, engine),
                before=self.inspector.devices,
                tenants=tenants,
                past=self.books.measurements,
                versions=self.books.report.engines if self.books.report else {},
            )
        return engine

    async def _offer(self, model: Unassigned) -> Offer:
        """What this host has for a model that belongs to none."""
        async with self.allotting:
            tenants = [charge.tenant for charge in self.charges.values() if charge.tenant]
            try:
                return await self.hands.do(
                    launching.make_offer,
                    *(self.house, model.spec, model.replicas),
                    before=self.inspector.devices,
                    tenants=tenants,
                    past=self.books.measurements,
                    versions=self.books.report.engines if self.books.report else {},
                )
            except Exception:  # where it fits nowhere somebody takes it all the same, and its start says why not
                log.exception("%s: nobody can say whether it fits here", model.spec.name)
                return Offer(fits=False, free=0)

    def _is_settled(self, model_id: int) -> bool:
        """Return whether it is known what each of its replicas got, if they are to run at all."""
        order = self.books.orders.get(model_id)
        if order is None:
            return False
        charges = [self.charges.get(Key(model_id, number)) for number in range(order.replicas)]
        return not order.enabled or all(
            charge and (charge.allotment or charge.run or charge.state != State.STARTING) for charge in charges
        )

    async def _stop(self, charge: ManagedReplica) -> None:
        left = await self._end(charge)
        charge.over()
        charge.enter(charge.then, self.clock(), left)
        charge.then = State.STOPPED

    async def _fail(self, charge: ManagedReplica, why: str) -> None:
        run, never_answered = charge.run, charge.ready_at is None
        if why and charge.said:
            why = f"{why}: {charge.said}"
        # Off the catalogue before the tree is ended, which may take the whole grace.
        charge.crashed(self.clock(), why)
        left = await self._end(charge)
        charge.over()
        story = _story(charge.launcher, run, why)
        charge.detail = "\n".join(filter(None, [story, left]))
        charge.cause = "host-memory" if process.oom_kills() > charge.oom_kills else _cause(run, why)
        if never_answered:
            self._blame_version(charge)

    async def _end(self, charge: ManagedReplica) -> str:
        """End its engine; tells what is left of it."""
        if charge.run is None:
            return ""
        return await self.hands.do(stopping.stop_and_release, charge.run, grace=self.house.stop_grace)

    # --- Asking --------------------------------------------------------------------------------------------------

    async def _ask(self, charge: ManagedReplica) -> None:
        if charge.order.external or charge.state == State.STARTING:
            seen = await probe.check_health(self.client, charge.target)
            if not seen.well:
                return
        try:
            await probe.ask_question(self.client, charge.target)
        except probe.NoAnswer as error:
            charge.refusals += isinstance(error, probe.ProbeRefusal)
            charge.said = str(error)
            if charge.state == State.UNHEALTHY or isinstance(error, probe.ProbeRefusal):
                charge.detail, charge.cause = charge.said, ""
            return
        if charge.state == State.STARTING and charge.installed and not await self._proves_its_version(charge):
            return
        charge.blamed = None
        charge.version = await probe.version(self.client, charge.target) or self._installed(charge)
        charge.answered(await probe.check_health(self.client, charge.target), self.clock())

    def _installed(self, charge: ManagedReplica) -> str:
        """Return the version of an engine that does not tell it itself."""
        return charge.installed or (self.books.report.engines.get(charge.launcher, "") if self.books.report else "")

    # --- Versions of engines -------------------------------------------------------------------------------------

    async def _proves_its_version(self, charge: ManagedReplica) -> bool:
        """Return whether a start with one of our installations may serve: an untried version is held to the one before
        it.
        """
        known = self.books.trials.get(charge.key.model, ())
        mine = [one for one in known if (one.launcher, one.version) == (charge.launcher, charge.installed)]
        if any(one.state == PROVEN and one.stamp == charge.stamp for one in mine):
            return True
        answer = await probe.ask_sample(self.client, charge.target)
        before = version_trials.reference(known, charge.launcher)
        if charge.trial and (other := version_trials.difference(before, answer)):
            why = f"{charge.launcher} {charge.installed} {other}"
            charge.working = self._task(charge, "working", self._fail(charge, why))
            return False
        self.books.tried(charge.key.model, _trial(charge, PROVEN, answer))
        charge.trial = False
        return True

    def _blame_version(self, charge: ManagedReplica) -> None:
        """A trial that failed: its version is left alone, and the one before it is started at once.

        If that fails of the same, it was not the version's fault.
        """
        blamed, charge.blamed = charge.blamed, None
        if blamed and blamed.cause and blamed.cause == charge.cause:
            self.books.tried(charge.key.model, replace(blamed, state=UNTRIED, cause="", detail=""))
            return
        if not (charge.trial and charge.instead) or charge.cause in NOT_ITS_FAULT:
            return
        charge.blamed = _trial(charge, FAILED)
        self.books.tried(charge.key.model, charge.blamed)
        log.warning("%s: %s %s failed, back to %s", charge, charge.launcher, charge.installed, charge.instead)
        charge.trial = False
        charge.retry_at = self.clock()

    async def _look(self, charge: ManagedReplica) -> None:
        seen = await probe.check_health(self.client, charge.target)
        now = self.clock()
        charge.oom_kills = process.oom_kills()
        if charge.order.external:
            charge.enter(State.READY if seen.well else State.UNHEALTHY, now, seen.detail)
            return
        charge.note(seen, now)
        charge.version = charge.version or self._installed(charge)
        if charge.state == State.DRAINING:
            charge.bad_looks = 0 if seen.well else charge.bad_looks + 1
            return
        if seen.well and not self._in_doubt(charge, now):
            charge.bad_looks = 0
            return
        try:
            await probe.ask_question(self.client, charge.target, within=CHECK_WITHIN)
        except probe.NoAnswer as error:
            if charge.unproven and charge.running and not isinstance(error, probe.ProbeRefusal):
                return  # busy with what it was given before we came: asked again at the next look
            charge.bad_looks += 1
            if charge.bad_looks >= plan.BAD_LOOKS_LIMIT:
                charge.enter(State.UNHEALTHY, self.clock(), str(error))
        else:
            charge.bad_looks, charge.unproven = 0, False
            charge.told_at = charge.worked_at = self.clock()

    def _in_doubt(self, charge: ManagedReplica, now: float) -> bool:
        """It says that it is well; is there reason not to believe it?"""
        return charge.unproven or now - charge.told_at >= UNTOLD_LIMIT or now - charge.worked_at >= STUCK_LIMIT

    # --- The end -------------------------------------------------------------------------------------------------

    async def _stop_engines(self, signals: Signals) -> None:
        """Off the catalogue, BRIEF_DRAIN for what runs, and all at once ended. A second signal ends all waiting."""
        running = [charge for charge in self.charges.values() if charge.run]
        for charge in running:
            charge.enter(State.DRAINING, self.clock())
        await self.books.last_exchange()
        deadline = self.clock() + BRIEF_DRAIN
        while self.clock() < deadline and not signals.hurry.is_set() and await self._any_busy(running):
            await wait_for_either(signals.hurry, plan.DRAIN_LOOK_EVERY)
        hurry = asyncio.create_task(self._hurry(signals, running))
        # One that cannot be ended must not save the others.
        ends = await asyncio.gather(*(self._stop(charge) for charge in running), return_exceptions=True)
        for charge, end in zip(running, ends, strict=True):
            if isinstance(end, BaseException):
                log.error("%s could not be ended", charge, exc_info=end)
        await cancel_and_wait([hurry])
        await self.books.last_exchange()

    async def _hurry(self, signals: Signals, charges: list[ManagedReplica]) -> None:
        await signals.hurry.wait()
        for charge in charges:
            if charge.run:
                process.terminate_at_once(charge.run)

    async def _any_busy(self, charges: list[ManagedReplica]) -> bool:
        looks = await asyncio.gather(*(probe.check_health(self.client, charge.target) for charge in charges))
        return any(seen.well and seen.running != 0 for seen in looks)


def _trial(charge: ManagedReplica, state: str, answer: Mapping[str, Any] | None = None) -> Trial:
    return Trial(
        launcher=charge.launcher,
        version=charge.installed,
        stamp=charge.stamp,
        state=state,
        answer=answer,
        cause=charge.cause if state == FAILED else "",
        detail=charge.detail[:4000] if state == FAILED else "",
    )


def _cause(run: Run | None, why: str) -> str:
    written = process.log_tail(run.directory, CAUSE_LINES) if run else ""
    if run and not why and (ended := process.exit_of(run)):
        written += f"\n{ended}"  # a signal tells something, too, unless it was ours
    return failure_advice.cause(written) or ("too-slow" if "did not answer within" in why else "")


def _story(launcher: str, run: Run | None, why: str) -> str:
    """Return one sentence on what happened, then the engine's last words."""
    if run is None:
        return why
    ended = process.exit_of(run)
    how = why or str(ended or "its shim was killed")
    written = process.log_tail(run.directory, CAUSE_LINES)
    # Who was killed had no time to say why.
    silent = not why and (ended is None or ended.signal == signal.SIGKILL)
    cause = "" if silent else base.last_telling_line(launcher, written)
    tail = "\n".join(written.splitlines()[-LOG_LINES:])
    return "\n".join(filter(None, [f"{how}: {cause}" if cause else how, tail]))
