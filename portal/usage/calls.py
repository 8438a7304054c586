"""Calls by their request ids: their timelines, who may see them, and what was around them.

`visible_calls` alone decides who sees which; what a person may not see is to them as if it did not exist.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from statistics import median
from typing import Any, TypeVar

from django.db.models import Model, Q, QuerySet

from portal.accounts import permissions
from portal.accounts.models import User
from portal.keys.models import ApiKey
from portal.usage.causes import FEW, CallTimeline, Cause, Surroundings, UsualFigures, explain
from portal.usage.models import RefusedRequest, UsageRecord
from portal.usage.scopes import UsageScope

USUAL_DAYS = timedelta(days=3)
SAMPLE = 300  # complete answers of a model whose medians are usual
LONGEST = timedelta(minutes=15)  # calls that began earlier than this before another are not looked for beside it
MOST_AROUND = 3000  # calls that are looked at, the latest first
MAX_ID = 40  # characters

T = TypeVar("T", bound=Model)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedCall:
    """A call with the causes of what became of it."""

    call: CallTimeline
    around: Surroundings
    causes: list[Cause]


def visible_calls(user: User, rows: QuerySet[T]) -> QuerySet[T]:
    """Return those of these rows that a person may see: their own, of tenants that they administer, operators all."""
    if permissions.may_operate(user):
        return rows
    return rows.filter(Q(user=user) | Q(tenant__in=permissions.administered_tenants(user)))


def find_call(request_id: str, user: User | None = None) -> CallTimeline | None:
    """Return the call of this id if it is known and the person may see it. `user` None: a command. Two queries."""
    wanted = request_id.strip()
    if not wanted or len(wanted) > MAX_ID or not (wanted.isascii() and wanted.isprintable()):
        return None  # no id of ours, and perhaps no text that a database takes
    for rows, read in (
        (UsageRecord.objects.all(), timeline_of_record),
        (RefusedRequest.objects.all(), timeline_of_refusal),
    ):
        visible: Any = rows if user is None else visible_calls(user, rows)
        row = visible.filter(request_id=wanted).first()
        if row is not None:
            return read(row)
    return None


def timeline_of_record(row: UsageRecord) -> CallTimeline:
    return CallTimeline(
        request_id=row.request_id,
        began=row.started_at,
        key=row.key_id,
        user=row.user_id,
        tenant=row.tenant_id,
        model=row.model,
        endpoint=row.endpoint,
        status=row.status,
        stopped_by=row.stopped_by,
        queued_ms=row.queued_ms,
        loading_ms=row.loading_ms,
        prefill_ms=row.prefill_ms,
        first_token_ms=row.first_token_ms,
        duration_ms=row.duration_ms,
        retries=row.retries,
        replica=row.replica_id,
        engine=row.engine,
        prompt_tokens=row.prompt_tokens,
        cached_tokens=row.cached_tokens,
        completion_tokens=row.completion_tokens,
        looped_tokens=row.looped_tokens,
        estimated=row.estimated,
        end_user=row.end_user,
    )


def timeline_of_refusal(row: RefusedRequest) -> CallTimeline:
    return CallTimeline(
        request_id=row.request_id,
        began=row.at,
        key=row.key_id,
        user=row.user_id,
        tenant=row.tenant_id,
        model=row.model,
        endpoint=row.endpoint,
        status="",
        queued_ms=row.waited_ms,
        code=row.code,
        reason=row.reason,
        scope=row.scope,
        window=row.window,
        retry_after=row.retry_after,
    )


def latest_calls(scope: UsageScope, most: int) -> list[CallTimeline]:
    """Return the latest calls of the scope, recorded and refused, the last that arrived first. Two queries."""
    recorded = map(timeline_of_record, scope.records.order_by("-started_at")[:most])
    refused = map(timeline_of_refusal, scope.refused.order_by("-at")[:most])
    latest = sorted([*recorded, *refused], key=attrgetter("began"), reverse=True)[:most]
    return sorted(latest, key=arrival_of, reverse=True)  # some waited, and began or were refused after later ones


def arrival_of(call: CallTimeline) -> datetime:
    """Return when the gateway got the call."""
    return call.began - timedelta(milliseconds=call.waited_ms)


def explain_call(call: CallTimeline) -> ExplainedCall:
    """Return the call with its causes. Three queries at most."""
    around = read_surroundings(call) if call.status else Surroundings()
    return ExplainedCall(call=call, around=around, causes=explain(call, around))


def read_surroundings(call: CallTimeline) -> Surroundings:
    arrived = arrival_of(call)
    ended = call.began + timedelta(milliseconds=call.duration_ms)
    rows = UsageRecord.objects.filter(model=call.model, started_at__gt=arrived - LONGEST, started_at__lt=ended)
    near = rows.exclude(request_id=call.request_id).order_by("-started_at")
    own = others = beside = 0
    for key, user, replica, began, duration in near.values_list(
        "key_id", "user_id", "replica_id", "started_at", "duration_ms"
    )[:MOST_AROUND]:
        end = began + timedelta(milliseconds=duration)
        if end <= arrived:
            continue
        if began < call.began and call.waited_ms:
            is_own = user == call.user if call.user is not None else key == call.key
            own, others = own + is_own, others + (not is_own)
        beside += replica == call.replica and end > call.began
    is_batch = ApiKey.objects.filter(pk=call.key, key_class=ApiKey.Class.BATCH).exists()
    return Surroundings(
        usual=read_usual(call.model, call.began), own=own, others=others, beside=beside, is_batch=is_batch
    )


def read_usual(model: str, before: datetime) -> UsualFigures:
    """Return the medians of the model's last complete answers before this time."""
    rows = UsageRecord.objects.filter(model=model, started_at__lt=before, started_at__gte=before - USUAL_DAYS)
    rows = rows.filter(status__in=(UsageRecord.Status.FINISHED, UsageRecord.Status.LOOPED)).order_by("-started_at")
    calls = [timeline_of_record(row) for row in rows[:SAMPLE]]
    if len(calls) < FEW:
        return UsualFigures(calls=len(calls))
    return UsualFigures(
        calls=len(calls),
        queued_ms=_median([call.queued_ms for call in calls]),
        start_ms=_median([call.start_ms for call in calls if call.generating_ms is not None]),
        speed=_median([call.speed for call in calls]),
        prompt_tokens=_median([call.prompt_tokens for call in calls]),
        completion_tokens=_median([call.completion_tokens for call in calls]),
    )


def _median(values: list[Any]) -> float | None:
    known = [value for value in values if value is not None]
    return float(median(known)) if len(known) >= FEW else None
