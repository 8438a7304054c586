"""Keep the times in which models did not answer.

Supervisors note each change as they write it (`receivers`), exactly to the second; the periodic task adds what writes
nothing: a host that fell silent, and the time in which no task ran.
"""

from datetime import datetime, timedelta

from django.db import transaction
from django.db.models import F, Prefetch, QuerySet
from django.utils.timezone import localdate

from modelregistry.models import Replica, ServedModel
from modelregistry.overview import ModelState, is_maintained, replica_now, state_of, with_placements
from portal.status.models import StatusInterval, StatusWatch

Kind = StatusInterval.Kind
KEPT = timedelta(days=92)
# Breaks that are shorter belong to the outage: a model that restarts every few minutes cannot be worked with.
SHORT_BREAK = timedelta(minutes=5)
# The task runs every 5 minutes. After a longer silence no one can say what was in between.
MOST_SILENCE = timedelta(minutes=15)

UP = frozenset({ModelState.READY, ModelState.PARTLY, ModelState.ASLEEP})
OFF = frozenset({ModelState.STOPPED, ModelState.RETIRED})
# As it was before: a model that is woken is on its way to answer, one that restarts after a failure still does not.
UNCHANGED = frozenset({ModelState.STARTING})
NEW = "new"  # the reason of OFF for a model that has never answered


def note_state(model: ServedModel, now: datetime) -> None:
    """Note whether the model is available now. Two queries, and a write if that changed."""
    replicas = [replica_now(row, now) for row in model.replica_set.all()]
    retired = model.retires_on is not None and model.retires_on <= localdate(now)
    wanted = 1 if model.is_external else model.replicas
    maintained = is_maintained(model)
    state = state_of(replicas, enabled=model.enabled, retired=retired, wanted=wanted, maintained=maintained)
    if maintained and state == ModelState.DRAINING:  # the outage has begun, and this is why
        state = ModelState.MAINTENANCE
    _note(model, state, now)


def load_model(pk: int) -> ServedModel | None:
    """Return the model with what `note_state` reads."""
    return _watched_models().filter(pk=pk).first()


def watch(now: datetime) -> int:
    """Note the state of all models, and the time since the last run if that is long; return the number of models."""
    first = StatusWatch.objects.first()
    if first is None:
        StatusWatch.objects.create(since=now, last_at=now)
    else:
        if now - first.last_at > MOST_SILENCE:
            StatusInterval.objects.create(kind=Kind.UNWATCHED, began_at=first.last_at, ended_at=now)
        StatusWatch.objects.filter(pk=first.pk).update(last_at=now)
    models = list(_watched_models())
    for model in models:
        note_state(model, now)
    StatusInterval.objects.filter(ended_at__lt=now - KEPT).exclude(reason=NEW).delete()
    return len(models)


def _watched_models() -> QuerySet[ServedModel]:
    replicas = Prefetch("replica_set", with_placements(Replica.objects.select_related("host", "model")))
    return ServedModel.objects.select_related("host").prefetch_related(replicas)


def _note(model: ServedModel, state: ModelState, now: datetime) -> None:
    if not _is_change(_newest(model), state):
        return
    with transaction.atomic():
        # Supervisors of several hosts may note the same model at the same time.
        ServedModel.objects.select_for_update().filter(pk=model.pk).first()
        newest = _newest(model)
        if _is_change(newest, state):
            _record(model, newest, state, now)


def _newest(model: ServedModel) -> StatusInterval | None:
    """Return the open interval, else the newest; None: the model was never noted."""
    open_first = F("ended_at").desc(nulls_first=True)
    return StatusInterval.objects.filter(model=model).order_by(open_first, "-pk").first()


def _is_change(newest: StatusInterval | None, state: ModelState) -> bool:
    if newest is None:
        return True
    return _kind_of(state, newest) != (newest.kind if newest.ended_at is None else None)


def _record(model: ServedModel, newest: StatusInterval | None, state: ModelState, now: datetime) -> None:
    kind = _kind_of(state, newest)
    if newest is None and kind is None:
        # Remembers that it has answered: from then on it is down when it does not.
        StatusInterval.objects.create(model=model, kind=Kind.OFF, reason=NEW, began_at=model.created_at, ended_at=now)
        return
    if newest is not None and newest.ended_at is None:
        newest.ended_at = max(newest.began_at, now)
        newest.save(update_fields=["ended_at"])
    if kind is None:
        return
    recent = StatusInterval.objects.filter(model=model, kind=kind, ended_at__gt=now - SHORT_BREAK).first()
    if recent and kind == Kind.DOWN:
        recent.ended_at = None
        recent.save(update_fields=["ended_at"])
        return
    began_at = (_last_seen(model) or now) if state == ModelState.UNSURE else now
    reason = NEW if newest is None else state.value
    StatusInterval.objects.create(model=model, kind=kind, reason=reason, began_at=began_at)


def _kind_of(state: ModelState, newest: StatusInterval | None) -> str | None:
    """Return the kind of the interval that should be open; None: the model is available."""
    if state in UP:
        return None
    if state in OFF:
        return Kind.OFF
    if newest is None:  # it has never answered
        return Kind.OFF
    is_open = newest.ended_at is None
    if is_open and newest.reason == NEW:
        return newest.kind
    if state in UNCHANGED:
        return newest.kind if is_open else None
    return Kind.DOWN


def _last_seen(model: ServedModel) -> datetime | None:
    """Return when the hosts of a model were last looked at."""
    hosts = [row.host for row in model.replica_set.all()]
    return max((at for host in hosts for at in (host.seen_at, host.watched_at) if at), default=None)
