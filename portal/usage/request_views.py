"""Pages of single requests: found by their ids, with their timeline and why they were slow or refused."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from operator import itemgetter
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from modelregistry.models import Replica
from portal.accounts.permissions import current_user, may_operate
from portal.accounts.timezones import zone_of
from portal.keys.models import ApiKey
from portal.usage import scopes
from portal.usage.calls import arrival_of, explain_call, find_call, latest_calls
from portal.usage.cause_texts import describe_cause
from portal.usage.causes import CallTimeline, measure_generation
from portal.usage.models import UsageRecord
from portal.web import table_export

SHOWN = 30  # requests of the list
MOST_EXPORTED = 20_000  # requests of a file
CHUNK = 2000  # of them read at a time

STAGES: dict[str, Promise] = {
    "queued": _("waiting for its turn"),
    "loading": _("loading the model"),
    "lost": _("trying other engines"),
    "prefill": _("reading the prompt"),
    "generating": _("writing the answer"),
    "working": _("working on the answer"),
}
COLUMNS = (
    *("request_id", "arrived", "key", "model", "endpoint", "status", "stopped_by", "queued_ms", "loading_ms"),
    *("prefill_ms", "generating_ms", "first_token_ms", "duration_ms", "retries", "replica", "engine"),
    *("prompt_tokens", "completion_tokens"),
)
RECORDED = (
    *("started_at", "key_id", "replica_id"),
    *(name for name in COLUMNS if name not in ("arrived", "key", "generating_ms", "replica")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineStage:
    """A part of a call's time, as it is drawn. `x` and `width` in per cent of the whole."""

    name: str
    label: Promise
    ms: int
    x: float
    width: float


def stages_of(call: CallTimeline) -> list[TimelineStage]:
    """Return the parts of the call's time in their order, without empty ones."""
    generating = call.generating_ms
    parts: dict[str, int] = {"queued": call.queued_ms or 0, "loading": call.loading_ms or 0}
    if generating is None:
        parts["working"] = call.duration_ms
    else:
        first = call.first_token_ms or 0
        parts |= {"lost": call.lost_ms, "prefill": first - call.lost_ms, "generating": generating}
    whole, at, found = sum(parts.values()), 0, []
    for name, ms in parts.items():
        if ms:
            x, width = round(100 * at / whole, 2), round(100 * ms / whole, 2)
            found.append(TimelineStage(name=name, label=STAGES[name], ms=ms, x=x, width=width))
        at += ms
    return found


@login_required
@never_cache
@require_safe
def request_page(request: HttpRequest, request_id: str) -> HttpResponse:
    """Return the page of one request, the same 404 for one of other people and for one that is not known."""
    user = current_user(request)
    call = find_call(request_id, user)
    if call is None:
        raise Http404
    explained = explain_call(call)
    stages = stages_of(call)
    context = {
        "zone": zone_of(user),
        "call": call,
        "arrived": arrival_of(call),
        "usual": explained.around.usual,
        "causes": [describe_cause(cause) for cause in explained.causes],
        "stages": stages,
        "whole": sum(stage.ms for stage in stages),
        "status": UsageRecord.Status(call.status).label if call.status else "",
        "stopped_by": name_stop(call.stopped_by),
        "key": ApiKey.objects.filter(pk=call.key).select_related("user", "tenant").first(),
        "is_own": call.user == user.pk,
        "replica": find_replica(call) if may_operate(user) else None,
    }
    return render(request, "usage/request.html", context)


def find_replica(call: CallTimeline) -> Replica | None:
    return Replica.objects.filter(pk=call.replica).select_related("host", "model").first() if call.replica else None


def name_stop(stopped_by: str) -> str:
    known = dict(UsageRecord.StoppedBy.choices)
    return str(known.get(stopped_by, known["other"])) if stopped_by else ""


@login_required
@never_cache
@require_safe
def requests_page(request: HttpRequest) -> HttpResponse:
    """Return the latest requests of a scope, and find one by its id (?id=)."""
    user = current_user(request)
    wanted = request.GET.get("id", "").strip()
    if wanted and find_call(wanted, user) is not None:
        return redirect("request", wanted)
    scope = scopes.find_scope(user, request.GET.get("of", scopes.ME))
    calls = latest_calls(scope, SHOWN)
    context = {
        "zone": zone_of(user),
        "scope": scope,
        "scopes": scopes.scope_choices(user),
        "wanted": wanted,
        "calls": [{"call": call, "arrived": arrival_of(call), "ended": describe_end(call)} for call in calls],
        "keys": ApiKey.objects.select_related("user", "tenant").in_bulk({call.key for call in calls}),
    }
    return render(request, "usage/requests.html", context)


def describe_end(call: CallTimeline) -> str:
    """Return how it ended, in a word or two."""
    return str(UsageRecord.Status(call.status).label if call.status else _("rejected"))


@login_required
@require_safe
def export(request: HttpRequest) -> HttpResponseBase:
    """Return the latest requests of a scope as a file."""
    scope = scopes.find_scope(current_user(request), request.GET.get("of", scopes.ME))
    return table_export.export_response(
        request, f"requests-{scope.name.replace(':', '-')}", request_rows(scope), COLUMNS
    )


in_order = itemgetter(*COLUMNS)


def request_rows(scope: scopes.UsageScope) -> Iterator[dict[str, Any]]:
    """Yield a row of COLUMNS for each of the latest requests."""
    prefixes = dict(ApiKey.objects.values_list("pk", "prefix"))
    records = scope.records.order_by("-started_at")[:MOST_EXPORTED]
    # Without an object for each, which takes as long as all else.
    for record in records.values(*RECORDED).iterator(chunk_size=CHUNK):
        waited = (record["queued_ms"] or 0) + (record["loading_ms"] or 0)
        record["arrived"] = record.pop("started_at") - timedelta(milliseconds=waited)
        record["key"] = prefixes.get(record.pop("key_id"), "")
        record["generating_ms"] = measure_generation(
            record["first_token_ms"], record["prefill_ms"], record["queued_ms"], record["duration_ms"]
        )
        record["replica"] = record.pop("replica_id")
        yield dict(zip(COLUMNS, in_order(record), strict=True))
