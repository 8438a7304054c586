"""Usage as the ledger recorded it: one's own, a tenant's for who administers it, everything for operators."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views.decorators.http import require_safe

from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.usage import chart, live, periods, report, scopes
from portal.usage.models import UsageRecord
from portal.web import table_export
from portal.web.templatetags.formatting import slot_of

DEFAULT = "this-month"
# Rows of the table by time and model that are seen at once, of 900 with 90 days and ten models. The table behind
# the chart has the rest, and the exports have all: 900 rows in the page took 150 ms.
SHOWN = 30
# Rows of a table by people or keys; all of them are in the exports.
MOST = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What an address asks for. `scope` is what `focus` leaves of it."""

    scope: scopes.Scope
    focus: scopes.Focus
    period: periods.Period
    group: str
    zone: ZoneInfo

    @property
    def crowd(self) -> bool:
        """Whether there may be more than one person in it."""
        return not self.scope.personal and not self.focus.user and not self.focus.key


@login_required
@require_safe
def usage(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    of = asked(request)
    scope, period = of.scope, of.period
    series = report.series(scope, period, of.zone)
    then = report.then_by_model(scope, period)
    groups, left_out = (
        (report.by_model(series, then), 0) if of.group == "model" else report.grouped(scope, period, of.group, MOST)
    )
    troubles = report.troubles(series, report.rejections(scope, period, of.zone))
    totals, reasons, latest = series.totals, report.why(troubles), series.rows[::-1]
    recent = newest(latest, SHOWN)
    context = {
        "zone": of.zone,
        "scope": scope,
        "scopes": scopes.scope_choices(request.user),
        "focused": report.focused(of.focus),
        "period": period,
        "periods": periods.NAMES.items(),
        "particular": "" if period.name in periods.NAMES else name_of(period),
        "group": of.group,
        "unit": series.unit,
        "rows": recent,
        "older": len(latest) - len(recent),
        "totals": totals,
        "sums": totals.numbers,
        "people": report.people(scope, period) if of.crowd else None,
        "change": report.change(totals.numbers["total_tokens"], sum(then.values())),
        "groups": groups[:MOST],
        "left_out": left_out + len(groups[MOST:]),
        "reasons": reasons,
        "unanswered": sum(reason.requests for reason in reasons),
        "made": totals["requests"] + sum(reason.requests for reason in reasons if reason.name not in totals.troubles),
        "charts": charts(request, of, series, troubles),
    }
    return render(request, "usage/usage.html", context)


def charts(
    request: HttpRequest, of: Asked, series: report.Series, troubles: list[tuple[report.Slot, str, int]]
) -> dict[str, chart.Chart]:
    """By name: those that have anything to show."""
    links = [] if series.unit == "hour" else [link(request, slot, series.unit) for slot in series.slots]
    slots, unit = series.slots, series.unit
    found = {"tokens": chart.chart(series.rows, slots, unit, links=links)}
    first = {slot: sums.first_tokens for slot, sums in series.by_slot.items()}
    if any(first.values()):
        times = {
            _("half of the answers"): {slot: told[0] for slot, told in first.items() if told},
            _("95 in 100 answers"): {slot: told[1] for slot, told in first.items() if told},
        }
        found["first"] = chart.lines(times, slots, unit, name="first-tokens", measure="seconds", links=links)
    if of.crowd and (people := report.people_by_slot(of.scope, of.period)):
        counted = ((slot, "", number) for slot, number in people.items())
        found["people"] = chart.stacked(counted, slots, unit, name="people", measure="people", links=links)
    if troubles:
        labels = {reason.name: reason.title for reason in report.why(troubles)}
        found["troubles"] = chart.stacked(
            troubles, slots, unit, name="without-answer", measure="requests", labels=labels, links=links
        )
    return found


def name_of(period: periods.Period) -> str:
    """How people call a day, month or fiscal year that has no word."""
    if period.unit == "hour":
        return date_format(period.first, pgettext("day with year", "j M Y"))
    return slot_of(period.first, "year" if period.name.startswith("FY") else "month")


def link(request: HttpRequest, slot: report.Slot, unit: str) -> str:
    """Return the same page for this slot alone."""
    query = request.GET.copy()
    query["period"] = periods.name_of(slot, unit)
    return f"?{query.urlencode()}"


def newest(rows: report.Rows, most: int) -> report.Rows:
    """Of rows, the newest first, those of whole slots (days, …) that are `most` together, or of one that has more."""
    shown: report.Rows = []
    for _slot, its in groupby(rows, key=itemgetter("slot")):
        more = [*shown, *its]
        if shown and len(more) > most:
            break
        shown = more
    return shown


@login_required
@require_safe
def live_view(request: HttpRequest) -> HttpResponse:
    """Return the last five minutes as they are now; the page's script keeps them up to date over a socket."""
    assert isinstance(request.user, User)
    scope = scopes.find_scope(request.user, request.GET.get("of", scopes.ME))
    zone, frame = zone_of(request.user), live.Reader()(1)
    seen = live.usage_view(frame, scope.owner)
    slots = [slot.astimezone(zone) for slot in seen.slots]
    values: dict[chart.Measure, Sequence[float]] = {"tokens/s": seen.tokens, "requests": seen.requests}
    context = {
        "zone": zone,
        "scope": scope,
        "scopes": scopes.scope_choices(request.user),
        "now": frame.at,
        "seen": seen,
        "last": [
            {**row, "at": row["at"].astimezone(zone), "word": UsageRecord.Status(row["status"]).label}
            for row in seen.last
        ],
        "charts": {
            measure.partition("/")[0]: chart.Chart(
                name=f"live-{measure.partition('/')[0]}",
                kind="bars",
                measure=measure,
                unit="second",
                slots=tuple(slots),
                series=(chart.Series(label="", values=tuple(told), shade=1),),
            )
            for measure, told in values.items()
        },
        "requests": sum(seen.requests),
        "speed": seen.tokens[-1],
        "statuses": {str(name): str(word) for name, word in UsageRecord.Status.choices},
    }
    return render(request, "usage/live.html", context)


@login_required
@require_safe
def export(request: HttpRequest) -> HttpResponseBase:
    """Return all of a table as a file: by day (or hour, month, fiscal year) and model, by what ?by= says, or in full
    (?by=detail)."""
    of = asked(request)
    by = request.GET.get("by")
    if by == "detail":
        rows: Any = report.details(of.scope, of.period)
    elif by and of.group != "model":
        grouped, _none = report.grouped(of.scope, of.period, of.group)
        # People by their user names as well: of two of the same name only these differ.
        users = dict(User.objects.values_list("pk", "username")) if of.group == "user" else {}
        rows = ({of.group: row["name"], **username(row, users), **numbers(row)} for row in grouped)
    else:
        series = report.series(of.scope, of.period, of.zone)
        if by:
            rows = ({"model": row["name"], **numbers(row)} for row in report.by_model(series, {}))
        else:
            rows = (
                {series.unit: row["slot"].isoformat(), "model": row["model"], **numbers(row)} for row in series.rows
            )
    return table_export.export_response(request, file_name(of, by), rows)


def file_name(of: Asked, by: str | None) -> str:
    """Return another one for each table and each scope, or one file of a folder would take the place of another."""
    kind = "detail" if by == "detail" else f"by-{of.group}" if by else "over-time"
    return f"usage-{of.scope.name.replace(':', '-')}-{kind}-{of.period.first}-{of.period.last}"


def username(row: dict[str, Any], users: dict[int, str]) -> dict[str, str]:
    """Return the column of a file by people; none without `users`."""
    return {"username": users.get(int(row["id"]), "") if row["id"].isdecimal() else ""} if users else {}


def numbers(row: dict[str, Any]) -> dict[str, int]:
    return {name: row[name] for name in report.NUMBERS}


def asked(request: HttpRequest) -> Asked:
    """Raise Http404 for what is not this person's. Other nonsense means the default."""
    assert isinstance(request.user, User)
    focus = scopes.Focus(
        **{name: request.GET.get(name, "").replace("\0", "") for name in ("model", "user", "key", "end_user")}
    )
    scope = scopes.narrowed(scopes.find_scope(request.user, request.GET.get("of", scopes.ME)), focus)
    zone, now = zone_of(request.user), timezone.now()
    try:
        period = periods.parse_period(request.GET.get("period", DEFAULT), now, zone)
    except KeyError:
        period = periods.parse_period(DEFAULT, now, zone)
    group = request.GET.get("by", "model")
    return Asked(
        scope=scope,
        focus=focus,
        period=period,
        zone=zone,
        group=group if group in scope.groups else next(iter(scope.groups), "model"),
    )
