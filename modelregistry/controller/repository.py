"""The controller's side of the database: its claim, the hosts of the cluster, and where replicas are placed.

Every function blocks on the database and raises django.db.Error when it is away; call them from one thread.
"""

import logging
import re
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import F
from django.utils import timezone

from modelregistry import addresses, fit
from modelregistry.controller.election import Claim
from modelregistry.controller.shortages import Gap, Shortage
from modelregistry.database_clock import database_now
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import engine_named
from modelregistry.hostside.replicas import ReplicaKey
from modelregistry.models import (
    ControllerClaim,
    Host,
    ModelCopy,
    PlacementGap,
    Replica,
    ReplicaMove,
    ReplicaPlacement,
    ReplicaShortage,
    ServedModel,
)
from modelregistry.moves import record_move, record_scaling
from modelregistry.overview import MADE_UP
from modelregistry.supervisor.office import Office
from modelregistry.supervisor.repository import WELL_PLACED, ReplicaFacts, replica_facts, spec_of

log = logging.getLogger(__name__)

ONLY = 1  # the id of the site's row


def read_claim() -> Claim:
    """Return the site's claim; the row is created if there is none."""
    row, _ = ControllerClaim.objects.get_or_create(pk=ONLY)
    return Claim(row.number, row.holder, row.seen_at)


def take_claim(found: Claim, number: str, holder: str, *, above: int = 0) -> Office | None:
    """Become the controller, in a term above all before and `above`; None: the row has changed since it was read."""
    with transaction.atomic():
        as_read = ControllerClaim.objects.filter(pk=ONLY, number=found.number, seen_at=found.seen_at)
        # A claim that was released, or whose holder was this machine's, was not taken from another one.
        taken = found.number and place_of(found.holder) != place_of(holder[:200])
        replaced = found.holder if taken else ""
        values = {"number": number, "holder": holder[:200], "term": F("term") + 1, "replaced": replaced}
        if not as_read.update(**values, seen_at=database_now(), since=database_now()):
            return None
        mine = ControllerClaim.objects.filter(pk=ONLY)
        mine.filter(term__lte=above).update(term=above + 1)
        return Office(number=number, holder=holder, term=mine.values_list("term", flat=True).get())


def place_of(holder: str) -> str:
    """Return where a holder's process ran: its machine and state directory."""
    return re.sub(r", process [0-9]+", "", holder)


def renew_claim(number: str) -> bool:
    """Record that the controller is alive; False: it was replaced."""
    return bool(ControllerClaim.objects.filter(pk=ONLY, number=number).update(seen_at=database_now()))


def release_claim(number: str) -> None:
    """Delete the claim of a leaving controller, so that the next one need not wait."""
    ControllerClaim.objects.filter(pk=ONLY, number=number).update(number="")


# --- Hosts


def clustered_hosts() -> set[str]:
    """Return the names of the hosts that are reached through the cluster."""
    return set(Host.objects.filter(clustered=True).values_list("name", flat=True))


def note_host(name: str, address: str, agent: Mapping[str, Any]) -> None:
    """Record a host of the cluster, and what its agent says of itself. Its row is created if there is none."""
    try:
        addresses.validate(address)
    except ValidationError as error:
        log.error("%s says that its address is %.100r: %s", name, address, "; ".join(error.messages))
        return
    values = {"clustered": True, "address": address, "agent": dict(agent)}
    row, created = Host.objects.get_or_create(name=name, defaults=values)
    if not created and any(getattr(row, field) != value for field, value in values.items()):
        Host.objects.filter(pk=row.pk).update(**values)


def note_bookings(name: str, found: Mapping[str, Any]) -> None:
    """Record what is booked in Ray of a host's memory, as `booker.HostBookings.stored`."""
    Host.objects.filter(name=name).update(bookings=dict(found))


# --- Placements


@dataclass(frozen=True, slots=True, kw_only=True)
class PlacedAt:
    """Where a replica was placed `age` seconds ago, and what it does there. `state`: "" if it has no row yet.

    `former`: where it serves until it is ready on this host.
    """

    host: int
    state: str = ""
    former: int | None = None
    age: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FreeModel:
    """A model that may run on any host. An external one has no files, and needs no room.

    Of one over several hosts `placed` has a number for each rank: as many for each replica as hosts.

    `most`: how many replicas it may have, the further ones included that are there only while calls wait long.

    `placed`: its replicas by number, also those for which it runs already without a placement. `called`: callers wait
    for it. `unplaced`: the numbers among these that have no placement yet.
    """

    spec: Spec
    replicas: int
    external: bool
    enabled: bool
    called: bool
    placed: Mapping[int, PlacedAt]
    unplaced: frozenset[int] = frozenset()
    most: int = 0


def free_models() -> dict[int, FreeModel]:
    """Return the models without a host of their own, by their ids, the oldest first. Three queries."""
    rows = list(ServedModel.objects.filter(host=None).select_related("wake_request").order_by("pk"))
    placed: dict[int, dict[int, PlacedAt]] = {row.pk: {} for row in rows}
    unplaced: dict[int, set[int]] = {row.pk: set() for row in rows}
    nodes = {row.pk: row.nodes for row in rows}
    states: dict[tuple[int, int, int], str] = {
        (model, number, host): state
        for model, number, host, state in Replica.objects.filter(model__host=None).values_list(
            "model_id", "index", "host_id", "state"
        )
    }
    least = {row.pk: row.replicas for row in rows}
    most = {row.pk: row.most_replicas * row.nodes for row in rows}
    placements = list(ReplicaPlacement.objects.all())
    kept = [one for one in placements if one.number < most.get(one.model_id, 0)]
    if len(kept) < len(placements):  # fewer replicas, or a model with a host of its own
        ReplicaPlacement.objects.filter(pk__in={one.pk for one in placements} - {one.pk for one in kept}).delete()
    for one in kept:
        state = states.get((one.model_id, one.number, one.host_id), "")
        age = (timezone.now() - one.at).total_seconds()
        placed[one.model_id][one.number] = PlacedAt(host=one.host_id, state=state, former=one.former_id, age=age)
    for (model, number, host), state in states.items():
        alone = model in nodes and nodes[model] == 1  # a rank that has lost its placement is no replica
        if alone and number not in placed[model] and number < least[model] and state in WELL_PLACED:
            placed[model][number] = PlacedAt(host=host, state=state)
            unplaced[model].add(number)
    today = timezone.localdate()
    return {
        row.pk: FreeModel(
            spec=spec_of(row),
            replicas=1 if engine_named(row.engine).external else row.replicas,
            external=engine_named(row.engine).external,
            enabled=row.enabled and (row.retires_on is None or today < row.retires_on),
            called=getattr(row, "wake_request", None) is not None,
            placed=placed[row.pk],
            unplaced=frozenset(unplaced[row.pk]),
            most=1 if engine_named(row.engine).external else row.most_replicas,
        )
        for row in rows
    }


def place_replica(model_id: int, number: int, host_id: int, *, before: int | None, serves_on: bool = False) -> bool:
    """Place a replica, which was placed on the host `before`; False if that, or the model, is not so any more.

    `serves_on`: it serves there until it is ready on the new one.
    """
    with transaction.atomic():
        if not ServedModel.objects.select_for_update().filter(pk=model_id, host=None).exists():
            return False
        if not Host.objects.filter(pk=host_id).exists():
            return False
        mine = ReplicaPlacement.objects.filter(model=model_id, number=number)
        values = {"host_id": host_id, "at": timezone.now()}
        if before is not None:
            row = mine.filter(host=before).first()
            if row is None:
                return False
            former = before if serves_on else row.former_id  # where it has served until now, unless it goes back there
            mine.update(**values, former=None if former == host_id else former)
            if before != host_id:
                record_move(model_id, number, source=before, target=host_id)
            return True
        _, created = ReplicaPlacement.objects.get_or_create(model_id=model_id, number=number, defaults=values)
        return created


def place_gang(model_id: int, first: int, hosts: Sequence[int], before: Sequence[int | None]) -> bool:
    """Place all ranks of a replica over several hosts, the `first` number and those after it, or none.

    False if they are not placed on the hosts `before` any more, or a host or the model is gone.
    """
    with transaction.atomic():
        model = ServedModel.objects.select_for_update().filter(pk=model_id, host=None, nodes=len(hosts)).first()
        if model is None or Host.objects.filter(pk__in=hosts).count() < len(hosts):
            return False
        numbers = range(first, first + len(hosts))
        mine = ReplicaPlacement.objects.filter(model=model_id, number__in=numbers)
        there = dict(mine.values_list("number", "host_id"))
        if [there.get(number) for number in numbers] != list(before):
            return False
        for number, host in zip(numbers, hosts, strict=True):
            values = {"host_id": host, "at": timezone.now(), "former": None}
            ReplicaPlacement.objects.update_or_create(model_id=model_id, number=number, defaults=values)
            if (source := there.get(number)) not in (None, host):
                record_move(model_id, number // model.nodes, source=source, target=host)
    return True


def add_replica(model_id: int, number: int, host_id: int) -> bool:
    """Place one more replica, as calls wait long; False if it is placed already, or the model may not have it."""
    with transaction.atomic():
        model = ServedModel.objects.filter(pk=model_id, enabled=True).first()
        if model is None or number >= model.most_replicas or not place_replica(model_id, number, host_id, before=None):
            return False
        record_scaling(model_id, number, host=host_id, cause=ReplicaMove.Cause.BUSY)
        return True


def remove_replica(model_id: int, number: int, *, cause: str) -> None:
    """Have one replica fewer, which leaves when its running answers are over. `cause`: a `ReplicaMove.Cause`."""
    with transaction.atomic():
        row = ReplicaPlacement.objects.filter(model=model_id, number=number, number__gte=F("model__replicas")).first()
        if row is not None:
            record_scaling(model_id, number, host=row.host_id, cause=cause)
            row.delete()


def note_shortages(found: Mapping[int, Shortage]) -> None:
    """Record which models lack a replica, by their ids, and that no other one does. A model may be gone."""
    names = dict(Host.objects.filter(pk__in=[one.host for one in found.values()]).values_list("pk", "name"))
    values = {model: {**asdict(one), "host": names.get(one.host or 0, "")} for model, one in found.items()}
    _replace_rows(ReplicaShortage, values)


def note_gaps(found: Mapping[int, Gap]) -> None:
    """Record which models have replicas without a place, by their ids, and that no other one has."""
    _replace_rows(PlacementGap, {model: asdict(one) for model, one in found.items()})


def _replace_rows(kind: type[ReplicaShortage | PlacementGap], found: Mapping[int, dict[str, Any]]) -> None:
    """Have rows for these models alone. A model may be gone."""
    with transaction.atomic():
        kind.objects.exclude(model__in=found).delete()
        for model_id in ServedModel.objects.filter(pk__in=found).values_list("pk", flat=True):
            # Since when it lacks one stays as it was, also when it is for another reason now.
            kind.objects.update_or_create(
                model_id=model_id,
                defaults=found[model_id],
                create_defaults={**found[model_id], "since": database_now()},
            )


def forget_former(model_id: int, number: int) -> None:
    """Have a replica stop on the host where it served until now."""
    ReplicaPlacement.objects.filter(model=model_id, number=number).update(former=None)


def forsaken_replicas(supervised: Collection[int]) -> dict[int, dict[ReplicaKey, ReplicaFacts]]:
    """Return the replicas on hosts outside of the cluster that are not `supervised`, but for what was moved from there.

    One query, and two more for each such host.
    """
    hosts = Host.objects.filter(clustered=False).exclude(pk__in=supervised).exclude(seen_at=MADE_UP)
    found = {}
    for host in hosts.exclude(replica_set=None).values_list("pk", flat=True).distinct():
        moved = set(ReplicaPlacement.objects.exclude(host=host).values_list("model_id", "number"))
        found[host] = {key: facts for key, facts in replica_facts(host).items() if key not in moved}
    return found


# --- Copies of files


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyRequest:
    """Files that are to be brought to a host; see `ModelCopy`."""

    number: str
    path: str
    host: str
    source: str
    limit: int
    progress: "CopyProgress"


@dataclass(frozen=True, slots=True, kw_only=True)
class CopyProgress:
    """How far a copy is."""

    state: str = ModelCopy.State.WAITING
    done: int = 0
    total: int = 0
    cause: str = ""
    detail: str = ""


def open_copies() -> list[CopyRequest]:
    """Return the copies that are not over, the oldest first."""
    over = (ModelCopy.State.DONE, ModelCopy.State.FAILED)
    rows = ModelCopy.objects.exclude(state__in=over).select_related("model", "host").order_by("requested_at", "pk")
    return [
        CopyRequest(
            number=row.number,
            path=row.model.path,
            host=row.host.name,
            source=row.source,
            limit=row.limit,
            progress=CopyProgress(state=row.state, done=row.done, total=row.total, cause=row.cause, detail=row.detail),
        )
        for row in rows
    ]


def note_copy(number: str, progress: CopyProgress) -> None:
    """Record how far a copy is, unless it was requested again, or to be stopped, meanwhile."""
    values = {**asdict(progress), "changed_at": timezone.now()}
    ModelCopy.objects.filter(number=number).exclude(state=ModelCopy.State.STOPPING).update(**values)


def delete_copy(number: str) -> None:
    """Delete a copy that was given up."""
    ModelCopy.objects.filter(number=number).delete()


def request_files(model_id: int, having: Collection[int]) -> None:
    """Request that a model's files are copied to a host where it fits, which is none of `having`.

    Not while they are copied anywhere, and not again to where that failed. Reads headers of files.
    """
    model = ServedModel.objects.filter(pk=model_id).first()
    copies = ModelCopy.objects.filter(model=model_id)
    open_ones = (ModelCopy.State.WAITING, ModelCopy.State.RUNNING, ModelCopy.State.STOPPING)
    if model is None or copies.filter(state__in=open_ones).exists():
        return
    outlook = fit.estimate(model)
    fitting = [one.host for one in outlook.hosts if one.fits and not one.unavailable] if outlook else []
    failed = copies.filter(state=ModelCopy.State.FAILED).values("host")
    possible = {
        row.name: row
        for row in Host.objects.filter(name__in=fitting, clustered=True).exclude(pk__in=having).exclude(pk__in=failed)
    }
    chosen = next((possible[name] for name in fitting if name in possible), None)
    if chosen:
        log.info("the files of %s are copied to %s, where it fits", model.name, chosen.name)
        ModelCopy.objects.update_or_create(model=model, host=chosen, defaults=new_copy())


def new_copy(*, source: str = "", limit: int = 0) -> dict[str, Any]:
    """Return the values of a copy that is requested now."""
    values = {"number": secrets.token_hex(8), "source": source, "limit": limit, "requested_at": timezone.now()}
    return {**values, **asdict(CopyProgress())}
