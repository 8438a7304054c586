"""Usage as the ledger recorded it: one's own, a tenant's for who administers it, everything for operators."""

import csv
from datetime import timedelta
from typing import Any
from zoneinfo import ZoneInfo

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from portal.accounts.models import User
from portal.console.clock import zone_of
from portal.metering import periods, report, scopes
from portal.metering.chart import chart

DEFAULT = "this-month"
# The table of 90 days and several models would be pages long; what is older is there, folded.
SHOWN = timedelta(days=14)
# Rows of a table by people or keys; all of them are in the exports.
MOST = 100


@login_required
@require_GET
def usage(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    scope, period, group, zone = asked(request)
    series = report.series(scope, period, zone)
    latest = series.rows[::-1]
    recent = latest if series.unit != "day" else [row for row in latest if row["slot"] > period.last - SHOWN]
    groups = report.grouped(period.of(scope.days), group) if group != "model" else by_model(series.rows)
    totals, then = report.totals(period.of(scope.days)), report.compared(scope, period)
    context = {
        "zone": zone,
        "scope": scope,
        "scopes": scopes.choices(request.user),
        "period": period,
        "periods": periods.NAMES.items(),
        "group": group,
        "unit": series.unit,
        "rows": recent,
        "older": latest[len(recent) :],
        "totals": totals,
        "change": report.change(totals.sums["total_tokens"], then.sums["total_tokens"]),
        "first_tokens": report.first_tokens(scope, period, zone),
        "groups": groups[:MOST],
        "left_out": len(groups[MOST:]),
        "chart": chart(series.rows, series.slots, series.unit),
    }
    return render(request, "metering/usage.html", context)


@login_required
@require_GET
def export(request: HttpRequest) -> HttpResponse:
    """All of a table as a file: by day (or hour, or month) and model, or by what ?by= says."""
    assert isinstance(request.user, User)
    scope, period, group, zone = asked(request)
    if "by" in request.GET:
        rows = [{group: row["name"], **numbers(row)} for row in report.grouped(period.of(scope.days), group)]
    else:
        series = report.series(scope, period, zone)
        rows = [{series.unit: row["slot"].isoformat(), "model": row["model"], **numbers(row)} for row in series.rows]
    name = f"usage-{period.first}-{period.last}"
    if request.GET.get("format") == "json":
        response: HttpResponse = JsonResponse(rows, safe=False, json_dumps_params={"ensure_ascii": False})
        response["content-disposition"] = f'attachment; filename="{name}.json"'
        return response
    response = HttpResponse(content_type="text/csv; charset=utf-8")
    response["content-disposition"] = f'attachment; filename="{name}.csv"'
    response.write("\ufeff")  # without it Excel takes Japanese for another encoding
    writer = csv.DictWriter(response, list(rows[0]) if rows else [], lineterminator="\r\n")
    writer.writeheader()
    writer.writerows({column: harmless(value) for column, value in row.items()} for row in rows)
    return response


def asked(request: HttpRequest) -> tuple[scopes.Scope, periods.Period, str, ZoneInfo]:
    """What the address asks for: of whom (Http404 if that is not theirs), when, by what, and in which zone.

    Nonsense means the default.
    """
    assert isinstance(request.user, User)
    scope = scopes.find(request.user, request.GET.get("of", scopes.ME))
    zone = zone_of(request.user)
    name, group = request.GET.get("period", DEFAULT), request.GET.get("by", "model")
    period = periods.period(name if name in periods.NAMES else DEFAULT, timezone.now(), zone)
    return scope, period, group if group in scope.groups else "model", zone


def numbers(row: dict[str, Any]) -> dict[str, int]:
    return {name: row[name] for name in report.NUMBERS}


def by_model(rows: report.Rows) -> report.Rows:
    """The rows of all slots together, the most used model first."""
    sums: dict[str, dict[str, Any]] = {}
    for row in rows:
        known = sums.setdefault(row["model"], {"name": row["model"], **dict.fromkeys(report.NUMBERS, 0)})
        for name in report.NUMBERS:
            known[name] += row[name]
    return sorted(sums.values(), key=lambda row: (-row["total_tokens"], row["name"]))


def harmless(value: object) -> object:
    """A text that a spreadsheet would take for a formula: names of end users come from clients."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
