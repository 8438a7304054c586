"""Write when the company's models did not answer, as it would have been watched since the first call."""

from datetime import date, datetime, time, timedelta

from modelregistry.models import ServedModel
from modelregistry.overview import ModelState
from portal.demo.plan import NEW as NEW_MODEL
from portal.demo.plan import NEW_ADDED
from portal.demo.traffic import INCIDENTS, TOKYO
from portal.status.models import StatusInterval, StatusWatch
from portal.status.recording import NEW

Kind = StatusInterval.Kind


def create_intervals(now: datetime, models: dict[str, ServedModel], days: int) -> None:
    """Create what `portal.status` would have recorded in these days: the incidents of the calls."""
    since = now - timedelta(days=days)
    # Saving has noted that the models answer since now.
    noted = StatusInterval.objects.filter(model__in=models.values(), reason=NEW, ended_at__isnull=False)
    noted.update(began_at=since, ended_at=since)
    _let_new_model_fail(models[NEW_MODEL], max(since, now - timedelta(days=NEW_ADDED)))
    today = now.astimezone(TOKYO).date()
    for ago, begin, end, name, _share in INCIDENTS:
        day = today - timedelta(days=ago)
        if ago < days:
            StatusInterval.objects.create(
                model=models[name] if name else None,
                kind=Kind.DOWN if name else Kind.UNWATCHED,
                reason=ModelState.FAILED.value if name else "",
                began_at=_time_of(day, begin),
                ended_at=_time_of(day, end),
            )
    StatusWatch.objects.create(since=since, last_at=now)


def _let_new_model_fail(model: ServedModel, since: datetime) -> None:
    """Let the model have answered when it was added, and never again; operators have been notified."""
    StatusInterval.objects.filter(model=model).delete()
    StatusInterval.objects.create(model=model, kind=Kind.OFF, reason=NEW, began_at=since, ended_at=since)
    StatusInterval.objects.create(
        model=model,
        kind=Kind.DOWN,
        reason=ModelState.FAILED.value,
        began_at=since,
        notified=StatusInterval.Notified.DOWN,
    )


def _time_of(day: date, hours: float) -> datetime:
    return datetime.combine(day, time(), TOKYO) + timedelta(hours=hours)
