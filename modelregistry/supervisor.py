"""Keeps the engines of this host as operators want them: one loop that looks, plans and acts, one that keeps the books.

`plan.plan` decides; this carries out. The loops share nothing with the database but values, so while it is away
engines go on, are restarted and looked at, and the rows follow when it is back. Work on one replica never waits for
another: each action is a task; starting and stopping block in threads.

Ending the supervisor leaves its engines to the next one, which finds them by their run directories and adopts them.
asyncio rather than threads alone, because most of the time is spent waiting for answers of many engines at once.
"""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, ParamSpec, TypeVar

import httpx2
from django.db import Error, close_old_connections, connections
from django.utils import timezone

from modelregistry import engines, gpus, launching, memory, plan, probe, process, rows
from modelregistry.charge import Charge
from modelregistry.launching import CannotLaunch, House, label_of
from modelregistry.plan import Key, State
from modelregistry.process import Life, Run
from modelregistry.rows import Facts, Order

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

TICK = 0.5  # seconds between two plans
BOOKS_EVERY = 1.0  # seconds between two exchanges with the database
SEEN_EVERY = 10.0
MEASURE_EVERY = 30.0
CHECK_WITHIN = 10.0  # seconds for a question to a ready engine whose health was bad
UNTOLD_LIMIT = 60.0  # seconds without metrics from an engine that has them, before it is asked a question
BRIEF_DRAIN = 3.0  # seconds for running requests when everything is to stop
LOG_LINES = 15


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
        self, house: House, *, clock: Callable[[], float] = time.monotonic, chance: random.Random | None = None
    ) -> None:
        self.house = house
        self.clock = clock
        self.chance = chance or random.Random()  # noqa: S311 -- chooses ports
        self.runs = process.Runs(house.runs)
        self.charges: dict[Key, Charge] = {}
        self.orders: dict[int, Order] = {}
        self.removed: set[Key] = set()
        self.host: rows.HostRow | None = None
        self.database_away = False
        self.seen_at = float("-inf")
        self.wake = asyncio.Event()
        self.changed = asyncio.Event()
        # One thread, so that there is one connection; the others wait for processes.
        self.bookkeeper = ThreadPoolExecutor(1, "books")
        self.hands = ThreadPoolExecutor(32, "hands")

    async def run(self, signals: Signals, *, stop_engines: bool) -> None:
        """Adopts what runs, then supervises until `signals.stop`. With `stop_engines` it ends all engines first,
        within BRIEF_DRAIN + the stop grace + a few seconds; else they go on.
        """
        log.info("supervising %s: %s", self.house.host, ", ".join(map(str, gpus.devices())))
        try:
            # No proxy from the environment, and no kept connection: an engine may be gone at the next look.
            limits = httpx2.Limits(max_keepalive_connections=0)
            async with httpx2.AsyncClient(limits=limits, trust_env=False) as self.client:
                if await self._begin(signals):
                    await self._supervise(signals)
                    if stop_engines:
                        await self._stop_engines(signals)
        finally:
            with contextlib.suppress(Error):
                await self._in_books(connections.close_all)
            self.bookkeeper.shutdown(wait=False)
            self.hands.shutdown(wait=False)

    # --- Beginning ----------------------------------------------------------------------------------------------

    async def _begin(self, signals: Signals) -> bool:
        """Waits for the database and adopts; False if told to stop before."""
        while not signals.stop.is_set():
            try:
                self.host = await self._in_books(rows.host, self.house.host)
                self.orders = await self._in_books(rows.orders, self.host.id)
                known = await self._in_books(rows.replicas, self.host.id)
            except Error as error:
                self._database_failed(error)
                await _either(signals.stop, BOOKS_EVERY)
                continue
            self._database_answered()
            await self._with_hands(self._adopt, known)
            return True
        return False

    def _adopt(self, known: Mapping[Key, Facts]) -> None:
        """Takes over what the supervisor before us left: engines by their runs, states by their rows."""
        process.kill(self.runs.strays())
        latest: dict[Key, Run] = {}
        for run in self.runs.all():
            key = label_of(run).key
            if key in latest and process.life(latest[key]) is not Life.ENDED:
                process.stop(latest[key], grace=self.house.stop_grace)  # two of one replica: the younger stays
            latest[key] = run
        for key in known.keys() | latest.keys():
            charge = self._adopted(key, known.get(key), latest.get(key))
            if charge:
                self.charges[key] = charge
        for run in self.runs.all():
            if label_of(run).key not in self.charges:
                self.runs.forget(run)  # of a model that is gone: nobody will look for its log

    def _adopted(self, key: Key, facts: Facts | None, run: Run | None) -> Charge | None:
        now = self.clock()
        lives = run is not None and process.life(run) in (Life.RUNNING, Life.ENDING)
        if facts is None and not lives:
            return None
        order = self.orders.get(key.model) or _order_of_deleted(run)
        charge = Charge(key=key, order=order, fingerprint="", state=State.STARTING, since=now, written=facts)
        if facts:
            charge.state, charge.detail, charge.restarts = facts.state, facts.detail, facts.restarts
            charge.launcher, charge.slots, charge.run_id = facts.launcher, facts.slots, facts.run_id
            charge.retry_at = now + _seconds_until(facts.retry_at)
        if run:
            charge.fingerprint = label_of(run).fingerprint
        if order.external:
            if run and lives:
                process.stop(run, grace=self.house.stop_grace)  # it was ours until the model became external
            charge.fingerprint, charge.url, charge.api_key = order.fingerprint(), order.url, order.upstream_key
        elif run and lives:
            self._take_over(charge, run, now)
        elif charge.state in (State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING):
            self._found_dead(charge, run)
        return charge

    def _take_over(self, charge: Charge, run: Run, now: float) -> None:
        charge.launched(run, label_of(run), now)
        if charge.state in (State.READY, State.UNHEALTHY):
            charge.ready_at = now
        elif charge.state != State.DRAINING:
            charge.state = State.STARTING
        log.info("%s: adopted, process %d", charge, run.engine.pid)

    def _found_dead(self, charge: Charge, run: Run | None) -> None:
        if run and run.of_this_boot:
            charge.run = run  # the plan will see that it ended, and how
        else:
            charge.state = State.STOPPED  # the host was restarted: nobody's fault

    # --- The loops ----------------------------------------------------------------------------------------------

    async def _supervise(self, signals: Signals) -> None:
        books = asyncio.create_task(self._keep_books())
        try:
            while not signals.stop.is_set():
                if books.done():
                    books.result()  # raises: without books we must not go on as if all were well
                self._act()
                await _either(self.wake, TICK, signals.stop)
                self.wake.clear()
        finally:
            await _cancelled([books, *self._tasks("looking")])
        if unfinished := self._tasks("working"):
            await asyncio.wait(unfinished, timeout=self.house.stop_grace)
        with contextlib.suppress(Error):
            await self._exchange()

    def _act(self) -> None:
        now = self.clock()
        free = {key: charge for key, charge in self.charges.items() if charge.working is None}
        wanted = {key: want for key, want in self._wanted().items() if key in free or key not in self.charges}
        observed = [charge.observe() for charge in free.values()]
        for action in plan.plan(wanted, observed, now, start_limit=self.house.start_limit):
            self._carry_out(action, now)

    def _wanted(self) -> dict[Key, plan.Wanted]:
        return {
            Key(model_id, number): plan.Wanted(
                fingerprint=order.fingerprint(),
                external=order.external,
                enabled=order.enabled,
                idle_after=order.idle_after,
                wished=order.wished,
            )
            for model_id, order in self.orders.items()
            for number in range(order.replicas)
        }

    def _carry_out(self, action: plan.Action, now: float) -> None:
        charge = self.charges.get(action.key)
        if isinstance(action, plan.Start):
            self._begin_start(action.key, charge, now)
            return
        assert charge, "only a start is planned for what is not there"
        if isinstance(action, plan.Ask | plan.Look):
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
                self.removed.add(charge.key)
        self.changed.set()

    def _begin_start(self, key: Key, charge: Charge | None, now: float) -> None:
        order = self.orders[key.model]
        if charge is None:
            charge = Charge(key=key, order=order, fingerprint="", state=State.STOPPED, since=now)
            self.charges[key] = charge
            self.removed.discard(key)
        charge.begin(order, now)
        if order.external:
            charge.url, charge.api_key, charge.launcher, charge.slots = order.url, order.upstream_key, "", None
        else:
            charge.working = self._task(charge, "working", self._start(charge))
        self.changed.set()

    def _task(self, charge: Charge, kind: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        def done(task: asyncio.Task[None]) -> None:
            if getattr(charge, kind) is task:
                setattr(charge, kind, None)
            if not task.cancelled() and (error := task.exception()):
                log.error("%s", charge, exc_info=error)
            self.wake.set()
            self.changed.set()

        task = asyncio.create_task(work)
        task.add_done_callback(done)
        return task

    def _tasks(self, kind: str) -> list[asyncio.Task[None]]:
        return [task for charge in self.charges.values() if (task := getattr(charge, kind))]

    # --- Starting and stopping -----------------------------------------------------------------------------------

    async def _start(self, charge: Charge) -> None:
        assert self.host, "known since the beginning"
        taken = {other.port for other in self.charges.values()}
        try:
            run, label = await self._with_hands(
                launching.launch,
                *(self.house, self.runs, charge.key, charge.order.spec),
                address=self.host.address,
                taken=taken,
                chance=self.chance,
            )
        except CannotLaunch as error:
            charge.crashed(self.clock(), str(error))
        else:
            charge.launched(run, label, self.clock())

    async def _stop(self, charge: Charge) -> None:
        left = await self._end(charge)
        charge.over()
        charge.enter(charge.then, self.clock(), left)
        charge.then = State.STOPPED

    async def _fail(self, charge: Charge, why: str) -> None:
        run = charge.run
        if why and charge.detail:
            why = f"{why}: {charge.detail}"
        # Off the catalogue before the tree is ended, which may take the whole grace.
        charge.crashed(self.clock(), why)
        left = await self._end(charge)
        charge.over()
        charge.detail = "\n".join(filter(None, [_story(charge.launcher, run, why), left]))

    async def _end(self, charge: Charge) -> str:
        """Ends its engine; tells what could not be ended."""
        if charge.run is None:
            return ""
        if await self._with_hands(process.stop, charge.run, grace=self.house.stop_grace):
            return ""
        pids = ", ".join(str(who.pid) for who in process.remains(charge.run))
        return f"processes that cannot be ended: {pids}"

    # --- Asking --------------------------------------------------------------------------------------------------

    async def _ask(self, charge: Charge) -> None:
        if charge.order.external or charge.state == State.STARTING:
            seen = await probe.look(self.client, charge.target)
            if not seen.well:
                return
        try:
            await probe.ask(self.client, charge.target)
        except probe.NoAnswer as error:
            charge.refusals += isinstance(error, probe.Refusal)
            charge.detail = str(error)
            return
        charge.answered(await probe.look(self.client, charge.target), self.clock())

    async def _look(self, charge: Charge) -> None:
        seen = await probe.look(self.client, charge.target)
        now = self.clock()
        if charge.order.external:
            charge.enter(State.READY if seen.well else State.UNHEALTHY, now, seen.detail)
            return
        charge.note(seen, now)
        if charge.state == State.DRAINING or (seen.well and now - charge.told_at < UNTOLD_LIMIT):
            charge.bad_looks = 0
            return
        try:
            await probe.ask(self.client, charge.target, within=CHECK_WITHIN)
        except probe.NoAnswer as error:
            charge.bad_looks += 1
            if charge.bad_looks >= plan.BAD_LOOKS_LIMIT:
                charge.enter(State.UNHEALTHY, self.clock(), str(error))
        else:
            charge.bad_looks = 0
            charge.told_at = self.clock()

    # --- The books -----------------------------------------------------------------------------------------------

    async def _keep_books(self) -> None:
        while True:
            try:
                await self._exchange()
            except Error as error:
                self._database_failed(error)
            else:
                self._database_answered()
            await _either(self.changed, BOOKS_EVERY)
            self.changed.clear()

    async def _exchange(self) -> None:
        """Reads what is wanted, writes what changed."""
        assert self.host, "known since the beginning"
        await self._in_books(close_old_connections)
        if self.clock() - self.seen_at >= SEEN_EVERY:
            await self._in_books(rows.seen, self.host.id)
            self.seen_at = self.clock()
        for key in list(self.removed):
            await self._in_books(rows.remove, self.host.id, key)
            self.removed.discard(key)
        for charge in list(self.charges.values()):
            await self._publish(charge)
        asked_at = timezone.now()
        self.orders = await self._in_books(rows.orders, self.host.id)
        for model_id in self._fulfilled():
            await self._in_books(rows.granted, model_id, asked_at)
        self.wake.set()

    async def _publish(self, charge: Charge) -> None:
        assert self.host, "known since the beginning"
        facts = charge.facts(self.clock())
        if facts != charge.written:
            await self._in_books(rows.write, self.host.id, charge.key, facts)
            charge.written = facts
        if charge.published_at is None and facts.state == charge.state:
            charge.published_at = self.clock()
        if charge.run and charge.state == State.READY and self.clock() - charge.measured_at >= MEASURE_EVERY:
            charge.measured_at = self.clock()
            used = (await self._with_hands(memory.held, process.tree(charge.run))).taken
            await self._in_books(rows.measured, self.host.id, charge.key, used)

    def _fulfilled(self) -> list[int]:
        ready = {charge.key.model for charge in self.charges.values() if charge.state == State.READY}
        return [model_id for model_id, order in self.orders.items() if order.wished and model_id in ready]

    def _database_failed(self, error: Error) -> None:
        if not self.database_away:
            log.error("the database does not answer; engines go on as they are: %s", error)
        self.database_away = True

    def _database_answered(self) -> None:
        if self.database_away:
            log.warning("the database answers again")
        self.database_away = False

    async def _in_books(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.bookkeeper, lambda: function(*args, **kwargs))

    async def _with_hands(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self.hands, lambda: function(*args, **kwargs))

    # --- The end -------------------------------------------------------------------------------------------------

    async def _stop_engines(self, signals: Signals) -> None:
        """Off the catalogue, BRIEF_DRAIN for what runs, and all at once ended. A second signal ends all waiting."""
        running = [charge for charge in self.charges.values() if charge.run]
        for charge in running:
            charge.enter(State.DRAINING, self.clock())
        with contextlib.suppress(Error):
            await self._exchange()
        deadline = self.clock() + BRIEF_DRAIN
        while self.clock() < deadline and not signals.hurry.is_set() and await self._any_busy(running):
            await _either(signals.hurry, plan.DRAIN_LOOK_EVERY)
        hurry = asyncio.create_task(self._hurry(signals, running))
        await asyncio.gather(*(self._stop(charge) for charge in running))
        await _cancelled([hurry])
        with contextlib.suppress(Error):
            await self._exchange()

    async def _hurry(self, signals: Signals, charges: list[Charge]) -> None:
        await signals.hurry.wait()
        for charge in charges:
            if charge.run:
                process.terminate_at_once(charge.run)

    async def _any_busy(self, charges: list[Charge]) -> bool:
        looks = await asyncio.gather(*(probe.look(self.client, charge.target) for charge in charges))
        return any(seen.well and seen.running != 0 for seen in looks)


def _story(launcher: str, run: Run | None, why: str) -> str:
    """One sentence on what happened, then the engine's last words."""
    if run is None:
        return why
    how = why or str(process.ending(run) or "its shim was killed")
    written = process.log_tail(run.directory, 400)
    cause = engines.telling_line(launcher, written)
    tail = "\n".join(written.splitlines()[-LOG_LINES:])
    return f"{how}: {cause}\n{tail}" if cause else how


def _seconds_until(instant: datetime | None) -> float:
    if instant is None:
        return 0.0
    return min(max((instant - timezone.now()).total_seconds(), 0.0), plan.LONGEST_BACKOFF)


def _order_of_deleted(run: Run | None) -> Order:
    """For an engine whose model was deleted meanwhile: enough to ask and stop it."""
    label = label_of(run) if run else None
    spec = engines.Spec(engine="", name=label.name if label else "", path="", task=label.task if label else "chat")
    return Order(
        spec=spec,
        enabled=False,
        replicas=0,
        idle_after=None,
        wished=False,
        url="",
        upstream_key="",
        upstream_model="",
    )


async def _either(event: asyncio.Event, seconds: float, other: asyncio.Event | None = None) -> None:
    """Until one of the events is set or the time is over."""
    waits = [asyncio.create_task(each.wait()) for each in (event, other) if each]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await _cancelled(waits)


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
