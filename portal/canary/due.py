"""Which replicas the canary is to ask now, and why. Decided purely from the rows of the database and the time."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from django.conf import settings

from modelregistry.models import FileReport, Replica, ServedModel
from modelregistry.routes import offered_models
from portal.canary.models import CanaryRequest, CanaryRun

Reason, Verdict = CanaryRun.Reason, CanaryRun.Verdict

RETRY = timedelta(minutes=15)  # after a run that was not done
AT_ONCE = (CanaryRun.Obstacle.GATEWAY, CanaryRun.Obstacle.INTERRUPTED)
SILENT = timedelta(minutes=15)  # a run without an answer for so long was interrupted: one may take 10 minutes
# A time this far ahead was written by a clock that was wrong.
AHEAD = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryTarget:
    """A replica as it is now. `files`: as FileReport.stamp, "" if not known."""

    model_id: int
    model: str
    replica_id: int
    host: str
    number: int
    run_id: str
    launcher: str
    version: str
    files: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    target: CanaryTarget
    reason: CanaryRun.Reason


def targets(model: str = "") -> list[CanaryTarget]:
    """Return the replicas that answer now of all offered chat models, or of one. One query."""
    rows = Replica.objects.filter(
        state=Replica.State.READY, model__in=offered_models().filter(task=ServedModel.Task.CHAT)
    )
    rows = rows.filter(model__name=model) if model else rows
    stamps = dict(FileReport.objects.values_list("model_id", "stamp"))
    return [
        CanaryTarget(
            model_id=row.model_id,
            model=row.model.name,
            replica_id=row.pk,
            host=row.host.name,
            number=row.index,
            run_id=row.run_id,
            launcher=row.launcher,
            version=row.version,
            files=stamps.get(row.model_id, ""),
        )
        for row in rows.select_related("model", "host")
    ]


def find_due(now: datetime) -> list[Due]:
    """Return the replicas to ask now, those that operators wait for first. Three queries, and two for each replica."""
    requests = dict(CanaryRequest.objects.values_list("model_id", "at"))
    night = nightfall(now)
    found: list[Due] = []
    for target in targets():
        runs = CanaryRun.objects.filter(model=target.model_id, host=target.host, number=target.number)
        last = runs.exclude(verdict__in=(Verdict.NOT_DONE, Verdict.RUNNING)).first()
        reason = find_reason(target, last, night=night, now=now, requested=requests.get(target.model_id))
        if reason is not None and (reason is Reason.REQUEST or not is_resting(runs.first(), now)):
            found.append(Due(target=target, reason=reason))
    return sorted(found, key=lambda due: due.reason is not Reason.REQUEST)


def find_reason(
    target: CanaryTarget, last: CanaryRun | None, *, night: datetime | None, now: datetime, requested: datetime | None
) -> CanaryRun.Reason | None:
    """Return why to ask the replica, of which `last` is the last run that was done. `night`: as `nightfall`.

    Without nights only operators have it asked.
    """
    if requested is not None and (last is None or not requested <= last.began_at <= now + AHEAD):
        return Reason.REQUEST
    if night is None:
        return None
    if last is None:
        return Reason.FIRST
    if (last.launcher, last.version) != (target.launcher, target.version):
        return Reason.ENGINE
    if last.files != target.files and last.files and target.files:
        return Reason.FILES
    if last.run_id != target.run_id:
        return Reason.START
    if not night <= last.began_at <= now + AHEAD:
        return Reason.NIGHTLY
    return None


def nightfall(now: datetime) -> datetime | None:
    """Return the last moment at which a nightly run became due; None: there are none (CANARY_HOUR)."""
    if settings.CANARY_HOUR is None:
        return None
    local = now.astimezone(ZoneInfo(settings.TIME_ZONE))
    today = local.replace(hour=settings.CANARY_HOUR, minute=0, second=0, microsecond=0)
    return today if today <= local else today - timedelta(days=1)


def is_resting(latest: CanaryRun | None, now: datetime) -> bool:
    """Return whether the latest run was not done a moment ago. One without a gateway, another host may do at once."""
    if latest is None or latest.verdict != Verdict.NOT_DONE:
        return False
    return latest.obstacle not in AT_ONCE and abs(now - latest.began_at) < RETRY


def running_now(now: datetime) -> CanaryRun | None:
    """Return the run that is going on now, perhaps on another host, if there is one."""
    rows = CanaryRun.objects.filter(verdict=Verdict.RUNNING, seen_at__range=(now - SILENT, now + SILENT))
    return rows.select_related("model").first()
