"""One replica in the supervisor's care: what is known of it now. Blocks on nothing but small files of /proc."""

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from modelregistry.engines import base
from modelregistry.engines.version_trials import Choice, Trial
from modelregistry.memory.allocation import Allocation, HostedReplica
from modelregistry.memory.estimate import Prediction
from modelregistry.process import probe, process
from modelregistry.process.process import Life, Run
from modelregistry.supervisor import plan
from modelregistry.supervisor.launching import RunMetadata
from modelregistry.supervisor.plan import Key, Observed, State
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts

log = logging.getLogger(__name__)

BUSY_CPU = 0.2  # of one core; an idle llama-cpp-python server uses 0.00


@dataclass(slots=True, kw_only=True, eq=False)
class ManagedReplica:
    """`order`, `fingerprint` and `address` are of what runs or last ran. `since` and `…_at` are monotonic seconds.

    `looking` is a question on its way, which may be given up at any time; `working` starts or ends its engine, and
    nothing else may happen to it meanwhile. `written` is what its row is known to say.
    """

    key: Key
    order: DesiredModel
    fingerprint: str
    state: State
    since: float
    then: State = State.STOPPED  # after draining

    run: Run | None = None
    oom_kills: int = 0  # of this machine, when it was last known to live
    run_id: str = ""  # of the last run, also when it is over: its log tells why
    url: str = ""
    api_key: str = ""
    address: str = ""  # where its engine listens; empty: not known, or it is an external one
    port: int = 0
    launcher: str = ""
    slots: int | None = None
    version: str = ""  # of the engine, as it tells
    installed: str = ""  # the version of ours that it was started from, "": a program that operators named
    stamp: str = ""
    trial: bool = False  # this start has to prove that version
    instead: str = ""  # what is taken if it does not
    blamed: Trial | None = None  # the version that failed before this start, with one that is to do better

    allotment: Allocation | None = None  # its part of the host's memory
    needed: Prediction | None = None  # what it was refused for want of
    placed_written: tuple[Any, ...] | None = None
    peak: int = 0  # bytes, the most that this run was measured to take on one device

    detail: str = ""
    cause: str = ""  # a code of `failure_advice`
    said: str = ""  # what came instead of an answer when it was asked last
    crashes: int = 0  # in a row
    futile: int = 0  # starts in a row that never answered
    restarts: int = 0
    retry_at: float = 0.0

    published_at: float | None = None
    looked_at: float = 0.0
    told_at: float = 0.0  # when it last told whether it works
    ready_at: float | None = None
    active_at: float = 0.0
    measured_at: float = 0.0
    bad_looks: int = 0
    refusals: int = 0
    running: int | None = None
    work: float | None = None
    worked_at: float = 0.0  # when it last did something, or had nothing to do
    unproven: bool = False  # adopted: it lives, and was not asked yet
    generated: tuple[float, float] | None = None  # when, and how many tokens until then
    live: Mapping[str, Any] | None = None  # as `Replica.live`
    cpu: tuple[float, float] | None = None  # when, and how many seconds of CPU time until then

    written: ReplicaFacts | None = None
    live_written: Mapping[str, Any] | None = None
    looking: asyncio.Task[None] | None = None
    working: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.order.spec.name} #{self.key.number}"

    @property
    def target(self) -> probe.Target:
        return probe.Target(
            launcher=self.launcher,
            url=self.url,
            api_key=self.api_key,
            model=self.order.upstream_model or self.order.spec.name,
            task=self.order.spec.task,
        )

    @property
    def tenant(self) -> HostedReplica | None:
        """As others that want memory have to know it; None: it has none."""
        if self.allotment is None or (self.run is None and self.working is None):
            return None
        return HostedReplica(name=str(self), allotment=self.allotment, run=self.run, settled=self.ready_at is not None)

    @property
    def placed(self) -> tuple[Prediction | None, tuple[int, ...]]:
        """What was predicted of its last start, and its devices."""
        if self.allotment:
            return self.allotment.prediction, self.allotment.devices
        return self.needed, ()

    def observe(self) -> Observed:
        """For the plan."""
        return Observed(
            key=self.key,
            state=self.state,
            fingerprint=self.fingerprint,
            since=self.since,
            address=self.address,
            external=self.order.external,
            ended=self.run is not None and process.life_of(self.run) is not Life.RUNNING,
            published_at=self.published_at,
            looked_at=self.looked_at,
            told_at=self.told_at,
            bad_looks=self.bad_looks,
            refusals=self.refusals,
            running=self.running,
            active_at=self.active_at,
            retry_at=self.retry_at,
        )

    def facts(self, now: float) -> ReplicaFacts:
        """For its row."""
        waits = self.state in (State.BACKOFF, State.FAILED)
        return ReplicaFacts(
            state=self.state,
            url=self.url,
            api_key=self.api_key,
            launcher=self.launcher,
            slots=self.slots,
            pid=self.run.engine.pid if self.run else None,
            run_id=self.run_id,
            restarts=self.restarts,
            retry_at=self._retry_instant(now) if waits else None,
            detail=self.detail,
            cause=self.cause,
            version=self.version,
        )

    def remember(self, facts: ReplicaFacts, retry_at: float) -> None:
        """What its row says, of a life before ours."""
        self.state, self.detail, self.cause, self.restarts = facts.state, facts.detail, facts.cause, facts.restarts
        self.launcher, self.slots, self.version = facts.launcher, facts.slots, facts.version
        self.run_id, self.retry_at = facts.run_id, retry_at

    def _retry_instant(self, now: float) -> datetime:
        instant = timezone.now() + timedelta(seconds=self.retry_at - now)
        told = self.written.retry_at if self.written else None
        # Told once for each crash: counted anew each time it would differ by microseconds.
        return told if told and abs((told - instant).total_seconds()) < 1 else instant

    # --- What happens to it -------------------------------------------------------------------------------------

    def enter(self, state: State, now: float, detail: str = "") -> None:
        if state != self.state:
            sentence = detail.partition("\n")[0]
            log.info("%s: %s%s", self, state, f" ({sentence})" if sentence else "")
            self.since = now
            self.published_at = None
        self.state = state
        self.detail, self.cause = detail, ""

    def begin(self, order: DesiredModel, address: str, now: float) -> None:
        """It is to be started, from now on as this order says, to listen at this address."""
        if order.fingerprint() != self.fingerprint or self.address not in ("", address):
            self.crashes = self.futile = 0
        self.version = self.installed = self.stamp = self.instead = ""
        self.trial = False
        self.order, self.fingerprint, self.then = order, order.fingerprint(), State.STOPPED
        self.address = address
        self.over()
        self.looked_at = 0.0
        # Until it answers it is told why it had to be started again.
        detail, cause = (self.detail, self.cause) if self.crashes else ("", "")
        self.enter(State.STARTING, now, detail)
        self.cause = cause

    def launched(self, run: Run, label: RunMetadata, now: float) -> None:
        self.run, self.run_id = run, run.run_id
        self.address, self.port, self.url, self.api_key = label.address, label.port, label.url, label.api_key
        self.launcher, self.slots = label.launcher, label.slots
        self.allotment, self.peak = label.allotted, 0
        self.fingerprint = label.fingerprint
        self.installed, self.stamp = label.installed, label.stamp
        self.trial, self.instead = label.trial, label.instead
        self.since = self.active_at = self.told_at = self.worked_at = now

    def answered(self, seen: probe.HealthCheck, now: float) -> None:
        """It did its work when asked. `seen` afterwards, so that the question itself does not count as somebody's."""
        self.work, self.running = seen.work, seen.running
        self.told_at = self.active_at = self.ready_at = self.worked_at = now
        self.measured_at = 0.0
        self.bad_looks = self.refusals = self.futile = 0
        self.said = ""
        self.unproven = False
        self.enter(State.READY, now)

    def crashed(self, now: float, detail: str, cause: str = "") -> None:
        """Count; when it is tried again follows from how often it happened."""
        lived_well = self.ready_at is not None and now - self.ready_at >= plan.LIVED_WELL
        self.crashes = 1 if lived_well else self.crashes + 1
        self.futile += self.ready_at is None
        self.restarts += 1
        state, pause = plan.after_crash(self.crashes, self.futile)
        self.retry_at = now + pause
        self.enter(state, now, detail)
        self.cause = cause

    def chosen(self, choice: Choice) -> None:
        """With what it is started now."""
        self.launcher = choice.installed.launcher
        self.installed, self.stamp = choice.installed.version, choice.installed.stamp
        self.trial, self.instead = choice.trial, choice.instead

    def refused(self, now: float, detail: str, need: Prediction | None) -> None:
        """There is no room for it. Nothing crashed, so nothing is counted; looked at again soon, as others may go."""
        self.retry_at = now + plan.ROOM_PAUSE
        self.needed = need
        self.enter(State.FAILED, now, detail)
        self.cause = "does-not-fit"

    def unreachable(self, now: float, detail: str) -> None:
        """This machine does not have the address: nothing is started. Tried again soon or at another address."""
        self.retry_at = now + plan.ADDRESS_PAUSE
        self.enter(State.FAILED, now, detail)
        self.cause = "bad-address"

    def over(self) -> None:
        """Nothing runs any more."""
        self.run = None
        self.needed = self.allotment.prediction if self.allotment else self.needed
        self.allotment = None
        self.url = self.api_key = ""
        self.port = 0
        self.ready_at = None
        self.running = self.work = self.cpu = self.generated = self.live = None
        self.bad_looks = self.refusals = 0
        self.said = ""
        self.unproven = False

    def note(self, seen: probe.HealthCheck, now: float) -> None:
        """Whether it works now, and whether it did since the last look."""
        if not base.MONITORING[self.launcher].metrics:
            seen = self._by_cpu_time(now)
        self.live = self._live(seen, now)
        self.running = seen.running
        if seen.running is None:
            self.active_at = now  # too busy to tell
            return
        self.told_at = now
        if seen.running or seen.work != self.work:
            self.active_at = now
        if not seen.running or seen.work is None or seen.work != self.work:
            self.worked_at = now
        self.work = seen.work

    def _live(self, seen: probe.HealthCheck, now: float) -> Mapping[str, Any]:
        speed = None
        if seen.generated is not None:
            if self.generated and now > self.generated[0]:
                # An engine that was started anew counts from zero.
                speed = max(0.0, seen.generated - self.generated[1]) / (now - self.generated[0])
            self.generated = (now, seen.generated)
        waiting = seen.waiting
        return {
            "at": timezone.now().isoformat(),
            "running": None if seen.running is None else seen.running - (waiting or 0),
            "waiting": waiting,
            "tokens_per_second": None if speed is None else round(speed, 2),
            "cache_used": seen.cache_used,
        }

    def _by_cpu_time(self, now: float) -> probe.HealthCheck:
        """For an engine without metrics: it works if its processes use CPU time. The first look cannot tell."""
        assert self.run, "only what runs is looked at"
        used = process.cpu_seconds(self.run)
        before, self.cpu = self.cpu, (now, used)
        if before is None:
            return probe.HealthCheck(well=True, running=None)
        return probe.HealthCheck(well=True, running=int(used - before[1] > BUSY_CPU * (now - before[0])))
