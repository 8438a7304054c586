"""Pages of usage: people see their own, administrators their tenant's, operators all of it."""

from datetime import datetime
from itertools import groupby
from operator import itemgetter
from typing import Any

from django.contrib.auth.decorators import login_required
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext as _
from django.utils.translation import pgettext
from django.views.decorators.http import require_safe

from portal.accounts.models import User
from portal.accounts.timezones import zone_of
from portal.usage import chart, live, periods, report, scopes
from portal.usage.costs import UsageCosts, read_costs
from portal.usage.models import UsageRecord
from portal.usage.query import DEFAULT_PERIOD, UsageQuery, build_query
from portal.web import table_export
from portal.web.sorting import choose_sort
from portal.web.templatetags.formatting import slot_of

# Rows of the table by time and model on the page, of 900 for 90 days and ten models. The table behind the chart and the
# exports have the rest: 900 rows in the page took 150 ms.
SHOWN = 30
# Rows of a table by people or keys; the exports have all of them.
MAX_GROUPS = 100


@login_required
@require_safe
def usage(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    if "from" in request.GET:
        return redirect(chosen_days(request))
    query = parse_query(request)
    scope, period, group = query.scope, query.period, choose_group(request, query)
    sort = request.GET.get("sort", "")
    sort = choose_sort(sort, report.SORTS, report.SORTS[0])
    series = report.read_series(scope, period, query.zone)
    before = report.read_tokens_before(scope, period)
    groups, left_out = (
        (report.group_by_model(series, before, sort), 0)
        if group == "model"
        else report.read_groups(scope, period, group, MAX_GROUPS, sort)
    )
    failures = report.list_failures(series, report.count_rejections(scope, period, query.zone))
    totals, reasons, latest = series.totals, report.explain_failures(failures), series.rows[::-1]
    shown = take_slots(latest, SHOWN)
    rejected = sum(reason.requests for reason in reasons if reason.name not in totals.failures)
    costs = read_costs(scope, period)
    context = {
        "costs": costs,
        "cost_rows": costs.by_tenant_and_month[:MAX_GROUPS] if costs else [],
        "yen": sum_yen(costs, group),
        "zone": query.zone,
        "scope": scope,
        "scopes": scopes.scope_choices(request.user),
        "focus": report.label_focus(query.focus),
        "period": period,
        "periods": periods.NAMES.items(),
        "other_period": "" if period.name in periods.NAMES else label_period(period),
        "group": group,
        "sort": sort,
        "rejected": rejected,
        "unit": series.unit,
        "rows": shown,
        "older": len(latest) - len(shown),
        "totals": totals,
        "sums": totals.numbers,
        "people": report.count_people(scope, period) if query.counts_people else None,
        "change": report.percent_change(totals.numbers["total_tokens"], sum(before.values())),
        "groups": groups[:MAX_GROUPS],
        "left_out": left_out + len(groups[MAX_GROUPS:]),
        "reasons": reasons,
        "loops": report.list_loops(series),
        "failed_requests": sum(reason.requests for reason in reasons),
        "all_requests": totals["requests"] + rejected,
        "charts": build_charts(request, query, series, failures),
    }
    return render(request, "usage/usage.html", context)


def sum_yen(costs: UsageCosts | None, group: str) -> dict[Any, int]:
    """Return the internal yen of each row of the table by model or tenant, by its "value"; none for other groups."""
    if costs is None or not costs.has_internal or group not in ("model", "tenant"):
        return {}
    return costs.sum_by(lambda row: row.model if group == "model" else row.tenant)


def build_charts(
    request: HttpRequest, query: UsageQuery, series: report.UsageSeries, failures: list[tuple[report.Slot, str, int]]
) -> dict[str, chart.Chart]:
    """Return the charts that have anything to show, by name."""
    links = [] if series.unit == "hour" else [link_slot(request, slot, series.unit) for slot in series.slots]
    slots, unit = series.slots, series.unit
    charts = {"tokens": chart.token_chart(series.rows, slots, unit, links=links)}
    first = {slot: sums.first_tokens for slot, sums in series.by_slot.items()}
    if any(first.values()):
        times = {
            _("half of the answers"): {slot: seconds[0] for slot, seconds in first.items() if seconds},
            _("95 in 100 answers"): {slot: seconds[1] for slot, seconds in first.items() if seconds},
        }
        charts["first"] = chart.line_chart(times, slots, unit, name="first-tokens", measure="seconds", links=links)
    if query.counts_people and (people := report.count_people_by_slot(query.scope, query.period)):
        counted = ((slot, "", number) for slot, number in people.items())
        charts["people"] = chart.stacked_chart(counted, slots, unit, name="people", measure="people", links=links)
    if failures:
        labels = {reason.name: reason.title for reason in report.explain_failures(failures)}
        charts["failures"] = chart.stacked_chart(
            failures, slots, unit, name="without-answer", measure="requests", labels=labels, links=links
        )
    return charts


def chosen_days(request: HttpRequest) -> str:
    """Return the address of the days from ?from= to ?to=; either may be left out, and in whichever order."""
    query, today = request.GET.copy(), timezone.localdate().isoformat()
    first, last = sorted((query.pop("from")[-1] or query.get("to") or today, query.pop("to", [""])[-1] or today))
    query["period"] = f"{first}..{last}" if first != last else first
    return f"{request.path}?{query.urlencode()}"


def label_period(period: periods.Period) -> str:
    """Return what people call a day, month, fiscal year or any days that are not one of `periods.NAMES`."""
    first, last = (date_format(day, pgettext("day with year", "j M Y")) for day in (period.first, period.last))
    if ".." in period.name:
        return f"{first} – {last}"
    if period.unit == "hour":
        return first
    return slot_of(period.first, "year" if period.name.startswith("FY") else "month")


def link_slot(request: HttpRequest, slot: report.Slot, unit: str) -> str:
    """Return the address of the same page for this slot alone."""
    query = request.GET.copy()
    query["period"] = periods.name_of_slot(slot, unit)
    return f"?{query.urlencode()}"


def take_slots(rows: report.Rows, most: int) -> report.Rows:
    """Return the first rows, of whole slots (days, …): at most `most`, or those of the first slot if it has more."""
    taken: report.Rows = []
    for _slot, of_slot in groupby(rows, key=itemgetter("slot")):
        more = [*taken, *of_slot]
        if taken and len(more) > most:
            break
        taken = more
    return taken


@login_required
@require_safe
def live_view(request: HttpRequest) -> HttpResponse:
    """Return the page of the last five minutes; its script keeps it up to date over a socket."""
    assert isinstance(request.user, User)
    scope = scopes.find_scope(request.user, request.GET.get("of", scopes.ME))
    zone, snapshot = zone_of(request.user), live.LiveUsageReader()(1)
    view = live.usage_view(snapshot, scope.owner)
    slots = tuple(slot.astimezone(zone) for slot in view.slots)
    context = {
        "zone": zone,
        "scope": scope,
        "scopes": scopes.scope_choices(request.user),
        "now": snapshot.at,
        "view": view,
        "last": [
            {**row, "at": row["at"].astimezone(zone), "word": UsageRecord.Status(row["status"]).label}
            for row in view.last
        ],
        "charts": {
            "tokens": live_chart("live-tokens", "tokens/s", slots, view.tokens),
            "requests": live_chart("live-requests", "requests", slots, view.requests),
        },
        "requests": sum(view.requests),
        "speed": view.tokens[-1],
        "statuses": {str(name): str(word) for name, word in UsageRecord.Status.choices},
    }
    return render(request, "usage/live.html", context)


def live_chart(
    name: str, measure: chart.Measure, slots: tuple[datetime, ...], values: tuple[float, ...]
) -> chart.Chart:
    series = chart.Series(label="", values=values, shade=1)
    return chart.Chart(name=name, kind="bars", measure=measure, unit="second", slots=slots, series=(series,))


@login_required
@require_safe
def export(request: HttpRequest) -> HttpResponseBase:
    """Return all of a table as a file.

    By day (or hour, month, fiscal year) and model, by what ?by= names, or in full (?by=detail).
    """
    try:
        query = read_query(request, request.GET.get("period", DEFAULT_PERIOD))
    except KeyError as error:  # a page shows which period it is of; a file of another one would be taken for this
        raise BadRequest("There is no such period.") from error
    by, group = request.GET.get("by"), choose_group(request, query)
    columns: tuple[str, ...]
    if by == "detail":
        columns = report.DETAIL_EXPORT
        rows: Any = report.read_details(query.scope, query.period)
    elif by and group != "model":
        grouped, _none = report.read_groups(query.scope, query.period, group)
        # People by their user names as well, which differ for two people of the same name.
        users = dict(User.objects.values_list("pk", "username")) if group == "user" else {}
        columns = (group, *(("username",) if group == "user" else ()), *report.NUMBERS)
        rows = ({group: row["name"], **username_column(row, users), **number_columns(row)} for row in grouped)
    else:
        series = report.read_series(query.scope, query.period, query.zone)
        if by:
            columns = ("model", *report.NUMBERS)
            rows = ({"model": row["name"], **number_columns(row)} for row in report.group_by_model(series, {}))
        else:
            columns = (series.unit, "model", *report.NUMBERS)
            rows = (
                {series.unit: row["slot"].isoformat(), "model": row["model"], **number_columns(row)}
                for row in series.rows
            )
    kind = "detail" if by == "detail" else f"by-{group}" if by else "over-time"
    return table_export.export_response(request, file_name(query, kind), rows, columns)


@login_required
@require_safe
def export_costs(request: HttpRequest) -> HttpResponseBase:
    """Return the amounts by tenant, month and model as a file: exact ones, which are rounded only on pages.

    Raises Http404 where the page shows none.
    """
    try:
        query = read_query(request, request.GET.get("period", DEFAULT_PERIOD))
    except KeyError as error:
        raise BadRequest("There is no such period.") from error
    found = read_costs(query.scope, query.period)
    if found is None:
        raise Http404
    return table_export.export_response(request, file_name(query, "costs"), found.export_rows, found.export_columns)


def file_name(query: UsageQuery, kind: str) -> str:
    """Return a name that differs for each table and scope, so that no file replaces another in a folder."""
    return f"usage-{query.scope.name.replace(':', '-')}-{kind}-{query.period.first}-{query.period.last}"


def username_column(row: dict[str, Any], users: dict[int, str]) -> dict[str, str]:
    """Return the column of a file by people; none without `users`."""
    return {"username": users.get(int(row["id"]), "") if row["id"].isdecimal() else ""} if users else {}


def number_columns(row: dict[str, Any]) -> dict[str, int]:
    return {name: row[name] for name in report.NUMBERS}


def parse_query(request: HttpRequest) -> UsageQuery:
    """Return what the address asks for; an unknown period means the default. Raises Http404 as `build_query` does."""
    try:
        return read_query(request, request.GET.get("period", DEFAULT_PERIOD))
    except KeyError:
        return read_query(request, DEFAULT_PERIOD)


def read_query(request: HttpRequest, period: str) -> UsageQuery:
    """Return what the address asks for, of this period. Raises KeyError for an unknown one, or as `build_query`."""
    assert isinstance(request.user, User)
    focus = scopes.Focus(
        **{name: request.GET.get(name, "").replace("\0", "") for name in ("model", "user", "key", "end_user")}
    )
    return build_query(request.user, request.GET.get("of", scopes.ME), focus, period, timezone.now())


def choose_group(request: HttpRequest, query: UsageQuery) -> str:
    """Return what the address groups by, or the first group that the scope has."""
    group = request.GET.get("by", "model")
    return group if group in query.scope.groups else next(iter(query.scope.groups), "model")
