"""What a starting supervisor finds: engines that still run, engines that died, processes without a living shim.

Waits for the processes that must be stopped. A running engine is adopted as it is, and must prove that it answers
(`ManagedReplica.unproven`) before it counts as healthy. All of it may be done again if the host falls silent meanwhile.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from django.utils import timezone

from modelregistry.engines.base import Spec
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.hostside.surface import HostedRun, HostSurface
from modelregistry.process.process import Life
from modelregistry.supervisor import plan
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import ReplicaState
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts

log = logging.getLogger(__name__)

ADOPTED = "%s: adopted, process %d"
LIVING = (Life.RUNNING, Life.ENDING)


async def adopt_runs(
    host: HostSurface,
    known: Mapping[ReplicaKey, ReplicaFacts],
    desired_models: Mapping[int, DesiredModel],
    *,
    grace: float,
    clock: Callable[[], float],
) -> dict[ReplicaKey, ManagedReplica]:
    """Adopt engines by their runs and states by their rows.

    Kills processes of ours that belong to no living shim, and stops the older of two engines of one replica. Deletes
    the runs of models that are gone.
    """
    await host.kill_strays()
    runs = await host.list_runs()
    latest: dict[ReplicaKey, HostedRun] = {}
    for run in runs:
        key = run.label.key
        if key in latest and latest[key].life is not Life.ENDED:
            await host.stop(latest[key].run_id, grace)  # two of one replica: the younger one stays
        latest[key] = run
    replicas = {}
    for key in known.keys() | latest.keys():
        desired = (desired_models.get(key.model) or _desired_of_deleted(latest.get(key))).of(key.number)
        newest = latest.get(key)
        if newest and newest.life in LIVING and desired.external:
            await host.stop(newest.run_id, grace)  # it was ours until the model became external
        replica = _adopt(key, known.get(key), newest, desired, clock())
        if replica:
            replicas[key] = replica
    for run in runs:
        if run.label.key not in replicas:
            await host.forget_run(run.run_id)  # of a model that is gone, and its log with it
    return replicas


def _adopt(
    key: ReplicaKey, facts: ReplicaFacts | None, run: HostedRun | None, desired: DesiredModel, now: float
) -> ManagedReplica | None:
    lives = run is not None and run.life in LIVING
    if facts is None and not lives:
        return None
    # Its row is written once more: it may have been doubted since it was read, while its host was silent.
    replica = ManagedReplica(
        key=key, desired=desired, fingerprint="", state=ReplicaState.STARTING, since=now, written=None
    )
    replica.rank, replica.hosts = desired.spec.rank, desired.spec.hosts
    if facts:
        replica.restore(facts, now + _seconds_until(facts.retry_at))
    if run:
        replica.fingerprint = run.label.fingerprint
    if desired.external:
        replica.fingerprint, replica.url, replica.api_key = desired.fingerprint(), desired.url, desired.upstream_key
    elif run and lives:
        _take_over(replica, run, now)
    elif replica.state not in plan.WITHOUT_ENGINE:
        _record_death(replica, facts, run)
    return replica


def _take_over(replica: ManagedReplica, run: HostedRun, now: float) -> None:
    replica.record_launch(run, run.label, now)
    if replica.state == ReplicaState.DRAINING and _is_wanted(replica):
        # To sleep, or for another model: both are decided again, by what is known now.
        replica.state = ReplicaState.JOINED if replica.rank else ReplicaState.READY
    if replica.state in (ReplicaState.READY, ReplicaState.JOINED, ReplicaState.UNHEALTHY):
        replica.ready_at, replica.unproven = now, True
    elif replica.state != ReplicaState.DRAINING:
        replica.state = ReplicaState.STARTING
    log.info(ADOPTED, replica, run.pid)


def _is_wanted(replica: ManagedReplica) -> bool:
    return replica.desired.enabled and replica.desired.fingerprint() == replica.fingerprint


def _record_death(replica: ManagedReplica, facts: ReplicaFacts | None, run: HostedRun | None) -> None:
    # Not a crash: the host was restarted, or the supervisor before us died before it had started the next engine (it
    # was known that this one is over).
    over_before = facts and run and facts.pid is None and facts.run_id == run.run_id
    if run and run.of_this_boot and not over_before:
        replica.run = run  # the plan will observe that it ended, and how
    else:
        replica.state = ReplicaState.STOPPED


def _seconds_until(instant: datetime | None) -> float:
    # Bounded on both sides: the wall clock may have jumped since it was written.
    if instant is None:
        return 0.0
    return min(max((instant - timezone.now()).total_seconds(), 0.0), plan.FAILED_PAUSE)


def _desired_of_deleted(run: HostedRun | None) -> DesiredModel:
    """Return enough to probe and stop an engine whose model was deleted meanwhile."""
    metadata = run.label if run else None
    spec = Spec(engine="", name=metadata.name if metadata else "", path="", task=metadata.task if metadata else "chat")
    return DesiredModel(
        spec=spec,
        enabled=False,
        numbers=frozenset(),
        idle_after=None,
        hours=None,
        url="",
        upstream_key="",
        upstream_model="",
    )
