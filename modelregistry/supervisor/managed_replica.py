"""One replica under supervision: what is known of it now. Blocks on nothing, and touches no host."""

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils import timezone

from modelregistry.engines.base import LEVEL_2
from modelregistry.engines.registry import launched_by
from modelregistry.engines.version_trials import Choice, Trial
from modelregistry.failure_advice import BAD_ANSWER, GANG_WAITS, NO_ANSWER, NO_ROOM, SILENT_HOST
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.run_metadata import RunMetadata
from modelregistry.hostside.sleep_record import NEVER_SLEPT, SleepRecord
from modelregistry.hostside.surface import HostedRun, PlacedReplica
from modelregistry.memory.allocation import (
    Allocation,
    Occupant,
    after_sleep,
    space_to_wake,
    while_asleep,
)
from modelregistry.memory.estimate import Prediction
from modelregistry.memory.placement import Space
from modelregistry.process import probe
from modelregistry.process.process import Life
from modelregistry.supervisor import eviction, plan
from modelregistry.supervisor.doubts import HOST_UNHEARD
from modelregistry.supervisor.eviction import HeldShare, Standing
from modelregistry.supervisor.plan import Observed, ReplicaState
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts
from modelregistry.supervisor.sleeping import MOST_FAILURES, SleepFault

log = logging.getLogger(__name__)

HOUR = 3600.0
USUAL_LOAD = 30.0  # seconds that a load is taken to last while it is not known
WAITING = (ReplicaState.BACKOFF, ReplicaState.FAILED)  # for the next try
BUSY_CPU = 0.2  # of one core; an idle llama-cpp-python server uses 0.00


@dataclass(slots=True, kw_only=True, eq=False)
class ManagedReplica:
    """The state of one replica. `since` and `…_at` are monotonic seconds."""

    key: ReplicaKey
    desired: DesiredModel  # as what runs or last ran was started, like `fingerprint` and `address`
    fingerprint: str
    state: ReplicaState
    since: float
    state_after_drain: ReplicaState = ReplicaState.STOPPED

    run: HostedRun | None = None
    rank: int = 0  # of a replica over several hosts, as are the next two
    hosts: tuple[str, ...] = ()  # of the ranks of its run, or of the one that is to start
    gang: str = ""  # the run of rank 0 to which its own belongs
    oom_kills: int = 0  # of this machine, when the engine was last known to be alive
    run_id: str = ""  # of the last run, also when it is over: its log shows why
    url: str = ""
    api_key: str = ""
    address: str = ""  # where its engine listens; empty: not known, or it is an external one
    port: int = 0
    launcher: str = ""
    slots: int | None = None
    version: str = ""  # of the engine, as it reports it
    installed: str = ""  # the installed version that it was started from; "": a program that operators named
    stamp: str = ""  # of that installation
    trial: bool = False  # this start has to prove that version
    fallback: str = ""  # the version that is started if it does not
    blamed_trial: Trial | None = None  # the failed trial for which this start fell back

    sleep: str = ""  # the level at which its engine can sleep; "": it cannot
    slept: str = ""  # the level at which it sleeps now; "": it is awake, or there is none
    sleep_record: SleepRecord = NEVER_SLEPT
    sleep_fault: str = ""  # why it does not, or did not, sleep as it is to: a code of `failure_advice`
    sleep_failures: int = 0  # in a row

    allocation: Allocation | None = None  # its part of the host's memory
    needed: Prediction | None = None  # the memory for which there was no room
    spaces: tuple[Space, ...] = ()  # where it could go if others made room
    without_room: bool = False  # it is not started before there is
    for_room: bool = False  # it is drained for another model
    drain_limit: float = plan.DRAIN_LIMIT
    written_placement: tuple[Any, ...] | None = None
    peak: int = 0  # bytes, the most that this run was measured to take on one device

    detail: str = ""
    cause: str = ""  # a code of `failure_advice`
    last_failure: str = ""  # what came instead of an answer to the last question
    crashes: int = 0  # in a row
    futile_starts: int = 0  # starts in a row that never answered
    restarts: int = 0
    retry_at: float = 0.0

    published_at: float | None = None
    checked_at: float = 0.0
    reported_at: float = 0.0  # when it last reported whether it works on requests
    ready_at: float | None = None
    loaded_at: float = float("-inf")  # when it was ready for the first time; not known of an adopted one
    load_seconds: float | None = None  # from its last start until it answered
    uses: float = 0.0  # health checks at which it had worked since the one before, those of an hour ago counted as 1/e
    used_at: float = 0.0  # when `uses` was counted
    active_at: float = 0.0
    measured_at: float = 0.0
    failed_checks: int = 0
    refusals: int = 0
    running: int | None = None
    work_done: float | None = None  # as `HealthCheck.work`
    progressed_at: float = 0.0  # when it last made progress, or had nothing to do
    proving: bool = False  # unhealthy, as it has to prove that all its ranks are there, and was not asked often enough
    unproven: bool = False  # adopted: it is alive, and has not answered a question yet
    generated: tuple[float, float] | None = None  # when, and how many tokens until then
    live: Mapping[str, Any] | None = None  # as `Replica.live`
    cpu: tuple[float, float] | None = None  # when, and how many seconds of CPU time until then

    written: ReplicaFacts | None = None  # what its row is known to say
    written_live: Mapping[str, Any] | None = None
    probe_task: asyncio.Task[None] | None = None  # a question or health check; may be cancelled at any time
    engine_task: asyncio.Task[None] | None = None  # starts or stops the engine; nothing else may happen meanwhile

    def __str__(self) -> str:
        return f"{self.desired.spec.name} #{self.key.number}"

    @property
    def target(self) -> probe.Target:
        return probe.Target(
            launcher=self.launcher,
            url=self.url,
            api_key=self.api_key,
            model=self.desired.upstream_model or self.desired.spec.name,
            task=self.desired.spec.task,
        )

    @property
    def hosted(self) -> PlacedReplica | None:
        """What others that need memory must know of it; None: it has no memory."""
        if self.promised is None or (self.run is None and self.engine_task is None):
            return None
        run_id = self.run.run_id if self.run else ""
        settled = self.ready_at is not None
        return PlacedReplica(name=str(self), allocation=self.promised, run_id=run_id, settled=settled)

    @property
    def promised(self) -> Allocation | None:
        """Its part of the host's memory as it is now, awake or asleep."""
        if self.allocation is None:
            return None
        ram = self.sleep_record.ram
        return while_asleep(self.allocation, ram) if self.slept else after_sleep(self.allocation, ram)

    @property
    def sleeping(self) -> bool:
        """Whether its engine lives and sleeps, and is neither woken nor stopped now."""
        return bool(self.slept) and self.state in (ReplicaState.ASLEEP, ReplicaState.FAILED)

    @property
    def can_sleep(self) -> bool:
        """Whether its engine can be put to sleep, and could prove itself when it wakes."""
        gave_up = self.sleep_failures >= MOST_FAILURES
        return bool(self.sleep) and self.sleep_record.answer is not None and not gave_up

    @property
    def placement(self) -> tuple[Prediction | None, tuple[int, ...]]:
        """What was predicted for its last start, and its devices."""
        if self.promised:
            return self.promised.prediction, self.promised.devices
        return self.needed, ()

    def observe(self, life_of: Callable[[str], Life | None], *, unreachable: bool = False) -> Observed:
        """Return what the plan needs to know of it. `life_of`: of its host, as is `unreachable`: that it is silent."""
        life = life_of(self.run.run_id) if self.run else None
        return Observed(
            key=self.key,
            state=self.state,
            fingerprint=self.fingerprint,
            since=self.since,
            address=self.address,
            external=self.desired.external,
            ended=life is not None and life is not Life.RUNNING,
            published_at=self.published_at,
            checked_at=self.checked_at,
            reported_at=self.reported_at,
            failed_checks=self.failed_checks,
            refusals=self.refusals,
            running=self.running,
            active_at=self.active_at,
            retry_at=self.retry_at,
            drain_limit=self.drain_limit,
            for_room=self.for_room,
            without_room=self.without_room,
            may_sleep=self.can_sleep and not self.slept and self.state_after_drain == ReplicaState.ASLEEP,
            sleeping=self.sleeping,
            unreachable=unreachable,
            rank=self.rank,
            engine=self.run is not None,
        )

    def share(self, occupant: Occupant, *, kept: bool, now: float, lead: "ManagedReplica | None" = None) -> HeldShare:
        """Return what a decision about others' room must know of it. `lead`: rank 0, which alone is used, of a rank."""
        used = lead or self
        held: dict[int, int] = {}
        for part in occupant.shares:
            held[part.device] = held.get(part.device, 0) + max(part.predicted, part.held)
        return HeldShare(
            key=self.key,
            held=held,
            standing=used.standing,
            kept=kept,
            ready_at=used.loaded_at,
            active_at=used.active_at,
            busy=used.running != 0,
            reload_seconds=USUAL_LOAD if used.load_seconds is None else used.load_seconds,
            calls_per_hour=used.uses * math.exp((used.used_at - now) / HOUR),
        )

    @property
    def standing(self) -> Standing:
        """What can become of its memory."""
        if (self.state == ReplicaState.READY or self.sleeping) and self.engine_task is None:
            return Standing.READY
        # One that is to start again, with other settings, takes the same room again.
        leaves = self.state == ReplicaState.DRAINING and self.state_after_drain == ReplicaState.ASLEEP
        return Standing.LEAVING if leaves else Standing.FIXED

    def current_facts(self, now: float) -> ReplicaFacts:
        """Return what its row is to say."""
        waits = self.state in WAITING
        stays = self.state in (ReplicaState.READY, ReplicaState.ASLEEP)
        return ReplicaFacts(
            state=self.state,
            url=self.url,
            api_key=self.api_key,
            launcher=self.launcher,
            slots=self.slots,
            pid=self.run.pid if self.run else None,
            run_id=self.run_id,
            restarts=self.restarts,
            retry_at=self._retry_instant(now) if waits else None,
            detail=self.detail,
            cause=self.cause or (self.sleep_fault if stays else ""),
            version=self.version,
            load_seconds=self.load_seconds,
            slept=self.slept if self.state == ReplicaState.ASLEEP else "",
        )

    def restore(self, facts: ReplicaFacts, retry_at: float) -> None:
        """Restore what its row says, as an earlier supervisor wrote it."""
        self.state, self.detail, self.cause, self.restarts = facts.state, facts.detail, facts.cause, facts.restarts
        self.launcher, self.slots, self.version = facts.launcher, facts.slots, facts.version
        self.run_id, self.retry_at, self.load_seconds = facts.run_id, retry_at, facts.load_seconds

    def _retry_instant(self, now: float) -> datetime:
        instant = timezone.now() + timedelta(seconds=self.retry_at - now)
        written = self.written.retry_at if self.written else None
        # Written once for each crash: computed again each time it would differ by microseconds.
        return written if written and abs((written - instant).total_seconds()) < 1 else instant

    # --- Events -------------------------------------------------------------------------------------------------

    def enter(self, state: ReplicaState, now: float, detail: str = "", cause: str = "") -> None:
        if state != self.state:
            sentence = detail.partition("\n")[0]
            log.info("%s: %s%s", self, state, f" ({sentence})" if sentence else "")
            self.since = now
            self.published_at = None
        self.state = state
        self.detail, self.cause = detail, cause
        self.proving = False

    def resume_after_silence(self, now: float, silent_for: float) -> None:
        """Give it another chance: while its host was silent its engine may have been cut off as well."""
        self.checked_at = float("-inf")
        if self.state == ReplicaState.UNHEALTHY:
            self.since = now
        elif self.state == ReplicaState.STARTING:
            self.since = min(now, self.since + silent_for)
        elif self.state == ReplicaState.READY:
            self.failed_checks = 0
            self.reported_at = self.progressed_at = now

    def begin_start(self, desired: DesiredModel, address: str, now: float) -> None:
        """Prepare a start as `desired`, listening at this address."""
        if desired.fingerprint() != self.fingerprint or self.address not in ("", address):
            self.crashes = self.futile_starts = self.sleep_failures = 0
            self.sleep_fault = ""
        self.version = self.installed = self.stamp = self.fallback = ""
        self.trial = False
        self.desired, self.fingerprint = desired, desired.fingerprint()
        self.rank, self.hosts = desired.spec.rank, desired.spec.hosts
        self.drain_to(ReplicaState.STOPPED)
        self.address = address
        self.retry_at = now
        self.without_room = False
        self.clear_run()
        self.checked_at = 0.0
        # Until it answers its row shows why it had to be started again.
        detail, cause = (self.detail, self.cause) if self.crashes else ("", "")
        self.enter(ReplicaState.STARTING, now, detail)
        self.cause = cause

    def record_launch(self, run: HostedRun, metadata: RunMetadata, now: float) -> None:
        self.run, self.run_id = run, run.run_id
        self.address, self.port, self.url, self.api_key = (
            metadata.address,
            metadata.port,
            metadata.url,
            metadata.api_key,
        )
        self.launcher, self.slots = metadata.launcher, metadata.slots
        self.allocation, self.peak = metadata.allocation, 0
        self.fingerprint = metadata.fingerprint
        self.installed, self.stamp = metadata.installed, metadata.stamp
        self.trial, self.fallback = metadata.trial, metadata.fallback
        self.rank, self.hosts, self.gang = metadata.rank, tuple(metadata.hosts), metadata.gang
        self.sleep, self.sleep_record = metadata.sleep, run.sleep_record
        self.sleep_fault = metadata.no_sleep or (self.sleep_fault if self.sleep_failures else "")
        self.since = self.active_at = self.reported_at = self.progressed_at = now

    def record_answer(self, seen: probe.HealthCheck, now: float) -> None:
        """Record that it answered a question. `seen`: a later check, so that the question does not count as work."""
        self.work_done, self.running = seen.work, seen.running
        self.reported_at = self.active_at = self.ready_at = self.progressed_at = now
        self.measured_at = 0.0
        self.failed_checks = self.refusals = self.futile_starts = 0
        self.last_failure = ""
        self.unproven = False
        if self.state == ReplicaState.STARTING and self.loaded_at < self.since:
            self.load_seconds, self.loaded_at = now - self.since, now
        self.enter(ReplicaState.READY, now)

    def wait_for_ranks(
        self, retry_at: float, now: float, detail: str, cause: str, *, lasting: bool = False, asleep: bool = False
    ) -> None:
        """Give its memory back until all hosts over which it is split can start their ranks. Nothing crashed.

        `lasting`: callers are not to wait for that. `asleep`: it sleeps until then, as others have its place.
        """
        self.clear_run()
        self.retry_at = retry_at
        self.spaces = ()  # it is not this host that lacks room
        waiting = ReplicaState.ASLEEP if asleep else ReplicaState.BACKOFF
        self.enter(ReplicaState.FAILED if lasting else waiting, now, detail)
        if self.rank:  # it follows its rank 0
            cause = GANG_WAITS if self.state in WAITING else ""
        self.cause = cause

    def follow(self, lead: "ManagedReplica", now: float, *, silent: bool = False) -> None:
        """Show the state of the rank 0 of which this is another rank; its own reason for not running stays.

        `silent`: its host is, so no more is known of its engine than that it does not answer.
        """
        state = ReplicaState.JOINED if lead.state == ReplicaState.READY else lead.state
        if (self.run is None) != (state in plan.WITHOUT_ENGINE):
            return
        if self.run is None and (self.without_room or self.cause not in ("", GANG_WAITS, SILENT_HOST)):
            return
        if silent and state == ReplicaState.STARTING:
            state = ReplicaState.UNHEALTHY
        if state == ReplicaState.JOINED and self.ready_at is None:
            self.ready_at, self.measured_at = now, 0.0
            self.load_seconds, self.loaded_at = now - self.since, now
            self.futile_starts = 0
        detail, cause = self._explain_following(lead, state, silent=silent)
        if (state, cause) != (self.state, self.cause):
            self.retry_at = lead.retry_at
            self.enter(state, now, detail, cause)

    def _explain_following(self, lead: "ManagedReplica", state: ReplicaState, *, silent: bool) -> tuple[str, str]:
        """Return why it is in the state of its rank 0, and the same as a code of `failure_advice`."""
        waits = state in WAITING
        if silent and (waits or state == ReplicaState.UNHEALTHY):
            return HOST_UNHEARD, SILENT_HOST
        same = state == self.state or (waits and self.state in WAITING)
        if same and self.cause != SILENT_HOST and (self.detail or not waits):
            return self.detail, self.cause
        return (f"waits for rank 0 on {lead.hosts[0]}", GANG_WAITS) if waits else ("", "")

    def record_crash(self, now: float, detail: str, cause: str = "") -> None:
        """Count a crash, and plan the next try by how often it crashed."""
        lived_well = self.ready_at is not None and now - self.ready_at >= plan.LIVED_WELL
        self.crashes = 1 if lived_well else self.crashes + 1
        self.futile_starts += self.ready_at is None
        self.restarts += 1
        state, pause = plan.after_crash(self.crashes, self.futile_starts)
        self.retry_at = now + pause
        self.enter(state, now, detail)
        self.cause = cause

    def set_engine(self, choice: Choice) -> None:
        """Set the installation that it is started from."""
        self.launcher = choice.installed.launcher
        self.installed, self.stamp = choice.installed.version, choice.installed.stamp
        self.trial, self.fallback = choice.trial, choice.instead

    def record_no_room(
        self, now: float, detail: str, need: Prediction | None, spaces: tuple[Space, ...], *, can_come: bool
    ) -> None:
        """Record that there is no room for it.

        Nothing crashed, so nothing is counted; it is tried again soon, as others may stop. `can_come`: others can be
        unloaded for it, so that it sleeps until it is called.
        """
        self.needed, self.spaces = need, spaces
        if can_come:
            self.wait_for_room(now, detail)
            return
        self.retry_at = now + plan.ROOM_PAUSE
        self.enter(ReplicaState.FAILED, now, detail)
        self.cause = NO_ROOM

    def wait_for_room(self, now: float, detail: str) -> None:
        """Sleep until there is room for it."""
        self.without_room = True
        self.enter(ReplicaState.ASLEEP, now, detail)

    def leave_for(self, spaces: tuple[Space, ...], now: float) -> None:
        """Begin to leave its place to another model, and come back when there is room for it."""
        self.spaces = spaces
        self.for_room, self.drain_limit = True, eviction.DRAIN_LIMIT
        self.state_after_drain = ReplicaState.ASLEEP
        self.enter(ReplicaState.DRAINING, now)

    def stay(self, now: float) -> None:
        """Serve on, or sleep on, after all."""
        if self.slept:
            self.fall_asleep(now)
            return
        self.drain_to(ReplicaState.STOPPED)
        self.enter(ReplicaState.READY, now)

    def drain_to(self, state: ReplicaState) -> None:
        """Set what it enters when it has stopped, for no other model's sake."""
        self.state_after_drain = state
        self.for_room, self.drain_limit = False, plan.DRAIN_LIMIT

    def record_bad_address(self, now: float, detail: str) -> None:
        """Record that this machine lacks the host's address. It is tried again soon, or at another address."""
        self.retry_at = now + plan.ADDRESS_PAUSE
        self.enter(ReplicaState.FAILED, now, detail)
        self.cause = "bad-address"

    def fall_asleep(self, now: float) -> None:
        """Record that its engine sleeps, as its record says; when that is stopped it is asleep all the same."""
        self.slept = self.sleep_record.level or LEVEL_2
        self.drain_to(ReplicaState.ASLEEP)
        self.ready_at, self.unproven, self.measured_at = now, False, 0.0
        self.running, self.live = 0, None
        self.spaces = (space_to_wake(self.allocation),) if self.allocation else ()
        self.enter(ReplicaState.ASLEEP, now)

    def record_sleep_fault(self, fault: SleepFault) -> None:
        """Record that it did not sleep or wake as it should."""
        log.warning("%s: %s: %s", self, fault.cause, fault)
        self.sleep_fault = fault.cause
        self.sleep_failures += 1

    def refuse_sleep(self, cause: str, now: float) -> None:
        """Have it started without its sleep mode, at once, until its settings or its engine change."""
        self.sleep_fault, self.sleep_failures = cause, MOST_FAILURES
        self.retry_at = now

    def clear_run(self) -> None:
        """Forget the run, which is over."""
        self.run = None
        self.gang = ""
        self.sleep = self.slept = ""
        self.sleep_record = NEVER_SLEPT
        self.needed = self.allocation.prediction if self.allocation else self.needed
        self.allocation = None
        self.url = self.api_key = ""
        self.port = 0
        self.ready_at = None
        self.running = self.work_done = self.cpu = self.generated = self.live = None
        self.failed_checks = self.refusals = 0
        self.last_failure = ""
        self.unproven = False

    @property
    def reports_work(self) -> bool:
        """Whether its engine has metrics that show whether it works."""
        return bool(launched_by(self.launcher).monitoring.metrics)

    def record_health(self, seen: probe.HealthCheck, now: float, cpu_seconds: float | None = None) -> None:
        """Record whether it works on requests now, and whether it did since the last check.

        `cpu_seconds`: of an engine that does not report it, what its processes have used; None: that is not known.
        """
        if not self.reports_work:
            seen = self._health_by_cpu_time(now, cpu_seconds)
        self.live = self._live_values(seen, now)
        self.running = seen.running
        if seen.running is None:
            self.active_at = now  # too busy to report
            return
        self.reported_at = now
        if seen.running or seen.work != self.work_done:
            self.active_at = now
            self.uses, self.used_at = self.uses * math.exp((self.used_at - now) / HOUR) + 1, now
        if not seen.running or seen.work is None or seen.work != self.work_done:
            self.progressed_at = now
        self.work_done = seen.work

    def has_worked(self, seen: probe.HealthCheck) -> bool:
        """Return whether it has made tokens since its last check, by its metrics."""
        return seen.work is not None and self.work_done is not None and seen.work > self.work_done

    def record_unanswered(self, now: float, reason: str, *, refused: bool, alone: bool, worked: bool) -> None:
        """Record that a ready engine in doubt did not answer a question; after some of them it is off the catalogue.

        `alone`: it is not one over several hosts of which one is silent. `worked`: it has made tokens meanwhile.
        """
        # Busy with requests from before the adoption; or all its ranks are there: asked again at the next check.
        busy = self.running and self.unproven if alone else worked
        if busy and not refused:
            return
        self.failed_checks += 1
        if self.failed_checks >= (plan.FAILED_CHECKS_LIMIT if alone else 1):
            self.enter(ReplicaState.UNHEALTHY, now, reason, BAD_ANSWER if refused else NO_ANSWER)
            self.proving = not alone and self.failed_checks < plan.RANK_CHECKS_LIMIT

    def record_failed_question(self, reason: str, *, refused: bool, host_silent: bool) -> None:
        """Record that an engine that starts, or that was off the catalogue, did not answer a question well."""
        self.refusals += refused
        self.last_failure = reason
        if self.state == ReplicaState.UNHEALTHY:
            if not (host_silent and self.cause == SILENT_HOST):  # that no question gets there is no news
                self.detail, self.cause = reason, BAD_ANSWER if refused else NO_ANSWER
        elif refused:
            self.detail, self.cause = reason, ""

    def _live_values(self, seen: probe.HealthCheck, now: float) -> Mapping[str, Any]:
        speed = None
        if seen.generated is not None:
            if self.generated and now > self.generated[0]:
                # An engine that was restarted counts from zero.
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

    def _health_by_cpu_time(self, now: float, used: float | None) -> probe.HealthCheck:
        """Judge an engine without metrics by whether its processes use CPU time. The first check cannot know."""
        before, self.cpu = self.cpu, (now, used) if used is not None else None
        if before is None or used is None:
            return probe.HealthCheck(healthy=True, running=None)
        return probe.HealthCheck(healthy=True, running=int(used - before[1] > BUSY_CPU * (now - before[0])))
