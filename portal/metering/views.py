"""One's own usage, exactly as the ledger recorded it."""

import csv
import io
from datetime import timedelta
from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.views.decorators.http import require_GET

from portal.accounts.models import User
from portal.console.clock import zone_of
from portal.metering import periods
from portal.metering.chart import chart
from portal.metering.usage import by, visible_to

DEFAULT = "this-month"
# The table of 90 days and several models would be pages long; what is older is there, folded.
SHOWN = timedelta(days=14)
COLUMNS = ["day", "model", "requests", "prompt_tokens", "completion_tokens", "total_tokens", "estimated"]


@login_required
@require_GET
def usage(request: HttpRequest) -> HttpResponse:
    assert isinstance(request.user, User)
    zone = zone_of(request.user)
    name = request.GET.get("period", DEFAULT)
    period = periods.period(name if name in periods.NAMES else DEFAULT, timezone.now(), zone)
    rows = by(period.of(visible_to(request.user)), "day", "model")
    context = {
        "zone": zone,
        "period": period,
        "periods": periods.NAMES.items(),
        "rows": [row for row in rows[::-1] if row["day"] > period.last - SHOWN],
        "older": [row for row in rows[::-1] if row["day"] <= period.last - SHOWN],
        "total": summed(rows),
        "models": by_model(rows),
        "chart": chart(rows, period.days),
        "csv": as_csv(rows),
    }
    return render(request, "metering/usage.html", context)


def summed(rows: list[dict[str, Any]]) -> dict[str, int]:
    return {column: sum(row[column] for row in rows) for column in COLUMNS[2:]}


def by_model(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of all days together, the most used model first."""
    names = {row["model"] for row in rows}
    sums = [{"model": name, **summed([row for row in rows if row["model"] == name])} for name in names]
    return sorted(sums, key=lambda row: (-row["total_tokens"], row["model"]))


def as_csv(rows: list[dict[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
