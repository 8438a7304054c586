"""Operators' pages of what hosts and models did in the last 24 hours or 30 days."""

from typing import Any

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from modelregistry.database_clock import read_now
from modelregistry.models import Host, ServedModel
from portal.accounts.decorators import operator_required
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.operations.history import (
    PERIODS,
    HistoryPeriod,
    chart_devices,
    chart_model,
    read_device_rows,
    read_model_rows,
)


@operator_required
@require_safe
def show_host_history(request: HttpRequest, pk: int) -> HttpResponse:
    host = get_object_or_404(Host, pk=pk)
    now, period, zone = read_now(), find_period(request), zone_of(current_user(request))
    charts = chart_devices(read_device_rows(host.name, now, period), now, period, zone)
    return render(request, "operations/history.html", {"host": host, **_context(charts, period)})


@operator_required
@require_safe
def show_model_history(request: HttpRequest, name: str) -> HttpResponse:
    model = get_object_or_404(ServedModel, name=name)
    now, period, zone = read_now(), find_period(request), zone_of(current_user(request))
    charts = chart_model(read_model_rows(model.name, now, period), model.name, now, period, zone)
    return render(request, "operations/history.html", {"model": model, **_context(charts, period)})


def find_period(request: HttpRequest) -> HistoryPeriod:
    """Return the period that is asked for. Raises Http404."""
    found = PERIODS.get(request.GET.get("period", "day"))
    if found is None:
        raise Http404
    return found


def _context(charts: object, period: HistoryPeriod) -> dict[str, Any]:
    return {"charts": charts, "period": period, "periods": PERIODS.values()}
