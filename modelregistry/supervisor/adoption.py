"""What a starting supervisor finds: engines that go on, engines that died, processes that nobody answers for.

Blocks on the processes that it must end. An engine that lives is taken over as it is, and must prove that it answers
(`ManagedReplica.unproven`) before it is believed: alive is not well.
"""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime

from django.utils import timezone

from modelregistry.engines import base
from modelregistry.process import process
from modelregistry.process.process import Life, Run, Runs
from modelregistry.supervisor import plan
from modelregistry.supervisor.launching import metadata_of
from modelregistry.supervisor.managed_replica import ManagedReplica
from modelregistry.supervisor.plan import Key, State
from modelregistry.supervisor.repository import DesiredModel, ReplicaFacts

log = logging.getLogger(__name__)


def adopt_runs(
    runs: Runs,
    known: Mapping[Key, ReplicaFacts],
    orders: Mapping[int, DesiredModel],
    *,
    grace: float,
    clock: Callable[[], float],
) -> dict[Key, ManagedReplica]:
    """Engines by their runs, states by their rows. Ends what is ours and belongs to no living shim, and the older of
    two engines of one replica; deletes the runs of models that are gone."""
    process.kill(runs.strays())
    latest: dict[Key, Run] = {}
    for run in runs.all():
        key = metadata_of(run).key
        if key in latest and process.life_of(latest[key]) is not Life.ENDED:
            process.stop(latest[key], grace=grace)  # two of one replica: the younger stays
        latest[key] = run
    charges = {}
    for key in known.keys() | latest.keys():
        order = orders.get(key.model) or _order_of_deleted(latest.get(key))
        charge = _adopted(key, known.get(key), latest.get(key), order, grace, clock())
        if charge:
            charges[key] = charge
    for run in runs.all():
        if metadata_of(run).key not in charges:
            runs.forget(run)  # of a model that is gone: nobody will look for its log
    return charges


def _adopted(
    key: Key, facts: ReplicaFacts | None, run: Run | None, order: DesiredModel, grace: float, now: float
) -> ManagedReplica | None:
    lives = run is not None and process.life_of(run) in (Life.RUNNING, Life.ENDING)
    if facts is None and not lives:
        return None
    charge = ManagedReplica(key=key, order=order, fingerprint="", state=State.STARTING, since=now, written=facts)
    if facts:
        charge.remember(facts, now + _seconds_until(facts.retry_at))
    if run:
        charge.fingerprint = metadata_of(run).fingerprint
    if order.external:
        if run and lives:
            process.stop(run, grace=grace)  # it was ours until the model became external
        charge.fingerprint, charge.url, charge.api_key = order.fingerprint(), order.url, order.upstream_key
    elif run and lives:
        _take_over(charge, run, now)
    elif charge.state in (State.STARTING, State.READY, State.UNHEALTHY, State.DRAINING):
        _found_dead(charge, facts, run)
    return charge


def _take_over(charge: ManagedReplica, run: Run, now: float) -> None:
    charge.launched(run, metadata_of(run), now)
    if charge.state in (State.READY, State.UNHEALTHY):
        charge.ready_at, charge.unproven = now, True
    elif charge.state != State.DRAINING:
        charge.state = State.STARTING
    log.info("%s: adopted, process %d", charge, run.engine.pid)


def _found_dead(charge: ManagedReplica, facts: ReplicaFacts | None, run: Run | None) -> None:
    # Nobody's fault: the host was restarted, or the supervisor before us died before it had started the next engine
    # (it was known that this one is over).
    over_before = facts and run and facts.pid is None and facts.run_id == run.run_id
    if run and run.of_this_boot and not over_before:
        charge.run = run  # the plan will see that it ended, and how
    else:
        charge.state = State.STOPPED


def _seconds_until(instant: datetime | None) -> float:
    # Bounded on both sides: the wall clock may have jumped since it was written.
    if instant is None:
        return 0.0
    return min(max((instant - timezone.now()).total_seconds(), 0.0), plan.FAILED_PAUSE)


def _order_of_deleted(run: Run | None) -> DesiredModel:
    """For an engine whose model was deleted meanwhile: enough to ask and stop it."""
    label = metadata_of(run) if run else None
    spec = base.Spec(engine="", name=label.name if label else "", path="", task=label.task if label else "chat")
    return DesiredModel(
        spec=spec,
        enabled=False,
        replicas=0,
        idle_after=None,
        wake_requested=False,
        url="",
        upstream_key="",
        upstream_model="",
    )
