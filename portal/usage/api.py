"""Usage in the API: what the usage page tells, of the same scopes and periods. CSV is at `/usage/export/`."""

from dataclasses import dataclass
from typing import Any
from zoneinfo import ZoneInfo

from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal.accounts.api_permissions import People
from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.keys.models import ApiKey
from portal.usage import periods, report, scopes
from portal.usage import serializers as shapes
from portal.usage.models import UsageDay
from portal.web.rest.list_pages import Pages
from portal.web.rest.validation import validated

NOBODY = "0"  # no row has this number


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """`scope` is what `focus` leaves of it."""

    scope: scopes.Scope
    focus: scopes.Focus
    period: periods.Period
    zone: ZoneInfo

    @property
    def span(self) -> dict[str, Any]:
        return {"of": self.scope.name, "first": self.period.first, "last": self.period.last}


def asked(user: User, wanted: dict[str, Any]) -> Asked:
    """Raise Http404 for what is not this person's, ValidationError for what is no period."""
    numbers = {"user": number_of_user(wanted["user"]), "key": number_of_key(wanted["key"])}
    focus = scopes.Focus(model=wanted["model"], end_user=wanted["end_user"], **numbers)
    scope, zone = scopes.narrowed(scopes.find_scope(user, wanted["of"]), focus), zone_of(user)
    try:
        period = periods.parse_period(wanted["period"], timezone.now(), zone)
    except KeyError as error:
        raise shapes.no_such_period() from error
    return Asked(scope=scope, focus=focus, period=period, zone=zone)


def number_of_user(username: str) -> str:
    if username in ("", scopes.SERVICE):
        return username
    found = User.objects.filter(username__iexact=username).values_list("pk", flat=True).first()
    return str(found or NOBODY)


def number_of_key(prefix: str) -> str:
    if not prefix:
        return ""
    return str(ApiKey.objects.filter(prefix=prefix).values_list("pk", flat=True).first() or NOBODY)


class UsageView(APIView):
    subject = "usage"
    permission_classes = [People]

    @extend_schema(
        operation_id="usage",
        summary=_("Usage of a period in all"),
        parameters=[shapes.UsageFilter],
        responses={200: shapes.Totals},
    )
    def get(self, request: Request) -> Response:
        of = asked(current_user(request), validated(shapes.UsageFilter, request.query_params))
        return Response(shapes.Totals({**of.span, **totals(of)}).data)


def totals(of: Asked) -> dict[str, Any]:
    series = report.series(of.scope, of.period, of.zone)
    then = sum(report.then_by_model(of.scope, of.period).values())
    sums, first = series.totals, series.totals.first_tokens
    alone = of.scope.personal or of.focus.user or of.focus.key
    return {
        **sums.numbers,
        "people": None if alone else report.people(of.scope, of.period),
        "tokens_per_second": sums.speed,
        "first_tokens": {"half": first[0], "most": first[1]} if first else None,
        "before": then,
        "change": report.change(sums.numbers["total_tokens"], then),
        "without_answer": report.why(report.troubles(series, report.rejections(of.scope, of.period, of.zone))),
    }


class UsageSeriesView(APIView):
    subject = "usage"
    permission_classes = [People]

    @extend_schema(
        operation_id="usage_series",
        summary=_("Usage over time, by model"),
        parameters=[shapes.UsageFilter],
        responses={200: shapes.UsageSeries},
    )
    def get(self, request: Request) -> Response:
        """Return a day is told by hours, a longer period by days, months or fiscal years."""
        of = asked(current_user(request), validated(shapes.UsageFilter, request.query_params))
        series = report.series(of.scope, of.period, of.zone)
        rows = [{**row, "slot": row["slot"].isoformat()} for row in series.rows]
        return Response(shapes.UsageSeries({**of.span, "unit": series.unit, "rows": rows}).data)


class UsageGroups(GenericViewSet[UsageDay]):
    subject = "usage"
    permission_classes = [People]
    queryset = UsageDay.objects.none()
    serializer_class = shapes.Group
    pagination_class = Pages

    @extend_schema(
        operation_id="usage_groups",
        summary=_("Usage by model, key, person, tenant or end user"),
        parameters=[shapes.GroupFilter],
        responses={200: shapes.Group(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return the most tokens first."""
        wanted = validated(shapes.GroupFilter, request.query_params)
        of, by = asked(current_user(request), wanted), wanted["by"]
        if by not in of.scope.groups:
            raise shapes.no_such_group()
        if by == "model":
            series = report.series(of.scope, of.period, of.zone)
            rows = report.by_model(series, report.then_by_model(of.scope, of.period))
        else:
            rows, _left_out = report.grouped(of.scope, of.period, by)
        page: list[Any] = self.paginate_queryset(rows) or []
        return self.get_paginated_response([shapes.Group(row).data for row in called(by, page)])


def called(by: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """With names in place of the numbers of people and keys. One query at most."""
    numbers = [int(row["id"]) for row in rows if row["id"].isdecimal()]
    known: dict[str, str] = {}
    if by == "user":
        known = {str(one.pk): one.username for one in User.objects.in_bulk(numbers).values()}
        known[scopes.SERVICE] = scopes.SERVICE
    elif by == "key":
        known = {str(one.pk): one.prefix for one in ApiKey.objects.in_bulk(numbers).values()}
    else:
        return rows
    return [{**row, "id": known.get(row["id"], "")} for row in rows]


class UsageScopesView(APIView):
    subject = "usage"
    permission_classes = [People]

    @extend_schema(
        operation_id="usage_scopes",
        summary=_("Whose usage you may look at"),
        responses={200: shapes.ScopeChoice(many=True)},
    )
    def get(self, request: Request) -> Response:
        """What the parameter `of` takes."""
        return Response(
            [{"of": name, "name": str(label)} for name, label in scopes.scope_choices(current_user(request))]
        )
