"""Usage in the API: what the usage page shows, for the same scopes and periods. CSV is at `/usage/export/`."""

from typing import Any

from django.http import Http404
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal.accounts.api_permissions import SignedIn
from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.keys.models import ApiKey
from portal.usage import calls, report, scopes
from portal.usage import serializers as shapes
from portal.usage.cause_texts import describe_cause
from portal.usage.causes import CallTimeline
from portal.usage.models import UsageDay
from portal.usage.query import UsageQuery, build_query
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated

NO_ROW = "0"  # no row has this number
LATEST = 50  # requests that are listed
REJECTED = "rejected"  # in place of a status


def parse_query(user: User, parameters: dict[str, Any]) -> UsageQuery:
    """Return what the parameters ask for.

    Raises Http404 for what this person may not see, ValidationError for an unknown period.
    """
    numbers = {"user": find_user_number(parameters["user"]), "key": find_key_number(parameters["key"])}
    focus = scopes.Focus(model=parameters["model"], end_user=parameters["end_user"], **numbers)
    try:
        return build_query(user, parameters["of"], focus, parameters["period"], timezone.now())
    except KeyError as error:
        raise shapes.no_such_period() from error


def describe_span(query: UsageQuery) -> dict[str, Any]:
    return {"of": query.scope.name, "first": query.period.first, "last": query.period.last}


def find_user_number(username: str) -> str:
    if username in ("", scopes.SERVICE):
        return username
    found = User.objects.filter(username__iexact=username).values_list("pk", flat=True).first()
    return str(found or NO_ROW)


def find_key_number(prefix: str) -> str:
    if not prefix:
        return ""
    return str(ApiKey.objects.filter(prefix=prefix).values_list("pk", flat=True).first() or NO_ROW)


class UsageTotalsView(APIView):
    subject = "usage"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="usage",
        summary=_("Total usage of a period"),
        parameters=[shapes.UsageFilter],
        responses={200: shapes.Totals},
    )
    def get(self, request: Request) -> Response:
        query = parse_query(current_user(request), validated(shapes.UsageFilter, request.query_params))
        return Response(shapes.Totals({**describe_span(query), **read_totals(query)}).data)


def read_totals(query: UsageQuery) -> dict[str, Any]:
    series = report.read_series(query.scope, query.period, query.zone)
    before = sum(report.read_tokens_before(query.scope, query.period).values())
    sums, first = series.totals, series.totals.first_tokens
    rejected = report.count_rejections(query.scope, query.period, query.zone)
    return {
        **sums.numbers,
        "people": report.count_people(query.scope, query.period) if query.counts_people else None,
        "tokens_per_second": sums.speed,
        "first_tokens": {"half": first[0], "most": first[1]} if first else None,
        "before": before,
        "change": report.percent_change(sums.numbers["total_tokens"], before),
        "without_answer": report.explain_failures(report.list_failures(series, rejected)),
    }


class UsageSeriesView(APIView):
    subject = "usage"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="usage_series",
        summary=_("Usage over time, by model"),
        parameters=[shapes.UsageFilter],
        responses={200: shapes.UsageSeries},
    )
    def get(self, request: Request) -> Response:
        """Return usage over time: a day by hours, a longer period by days, months or fiscal years."""
        query = parse_query(current_user(request), validated(shapes.UsageFilter, request.query_params))
        series = report.read_series(query.scope, query.period, query.zone)
        rows = [{**row, "slot": row["slot"].isoformat()} for row in series.rows]
        return Response(shapes.UsageSeries({**describe_span(query), "unit": series.unit, "rows": rows}).data)


class UsageGroups(GenericViewSet[UsageDay]):
    subject = "usage"
    permission_classes = [SignedIn]
    queryset = UsageDay.objects.none()
    serializer_class = shapes.Group
    pagination_class = ListPagination

    @extend_schema(
        operation_id="usage_groups",
        summary=_("Usage by model, key, person, tenant or end user"),
        parameters=[shapes.GroupFilter],
        responses={200: shapes.Group(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return usage by the values of one field, most tokens first."""
        parameters = validated(shapes.GroupFilter, request.query_params)
        query, by = parse_query(current_user(request), parameters), parameters["by"]
        if by not in query.scope.groups:
            raise shapes.no_such_group()
        if by == "model":
            series = report.read_series(query.scope, query.period, query.zone)
            rows = report.group_by_model(series, report.read_tokens_before(query.scope, query.period))
        else:
            rows, _left_out = report.read_groups(query.scope, query.period, by)
        page: list[Any] = self.paginate_queryset(rows) or []
        return self.get_paginated_response([shapes.Group(row).data for row in name_rows(by, page)])


def name_rows(by: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the rows with names in place of the numbers of people and keys. One query at most."""
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


class RequestsView(APIView):
    subject = "usage"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="requests",
        summary=_("Latest requests, with their timelines"),
        parameters=[shapes.RequestFilter],
        responses={200: shapes.RequestTimeline(many=True)},
    )
    def get(self, request: Request) -> Response:
        """Return the latest 50, also those that were rejected. All of them as a file: `/requests/export/`."""
        wanted = validated(shapes.RequestFilter, request.query_params)
        found = calls.latest_calls(scopes.find_scope(current_user(request), wanted["of"]), LATEST)
        prefixes = dict(ApiKey.objects.filter(pk__in={call.key for call in found}).values_list("pk", "prefix"))
        return Response([shapes.RequestTimeline(describe_call(call, prefixes)).data for call in found])


class RequestView(APIView):
    subject = "usage"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="request",
        summary=_("Why one request was slow or refused"),
        responses={200: shapes.ExplainedRequest},
    )
    def get(self, request: Request, request_id: str) -> Response:
        """Return its timeline and causes. Of rejected ones the first few of each minute are kept for a week."""
        call = calls.find_call(request_id, current_user(request))
        if call is None:
            raise Http404
        return Response(shapes.ExplainedRequest(explain_with_words(call)).data)


def describe_call(call: CallTimeline, prefixes: dict[int, str]) -> dict[str, Any]:
    """Return the call as shapes.RequestTimeline has it."""
    names = [str(name) for name in shapes.RequestTimeline().fields]
    facts: dict[str, Any] = {name: getattr(call, name) for name in names if name not in ("arrived", "key")}
    more = {"arrived": calls.arrival_of(call), "key": prefixes.get(call.key, "")}
    return {**facts, **more, "status": call.status or REJECTED}


def explain_with_words(call: CallTimeline) -> dict[str, Any]:
    """Return the call as shapes.ExplainedRequest has it, in the language of this thread."""
    prefixes = dict(ApiKey.objects.filter(pk=call.key).values_list("pk", "prefix"))
    causes = []
    for cause in calls.explain_call(call).causes:
        text = describe_cause(cause)
        figures = {name: value for name, value in cause.figures.items() if value != ""}
        words = {"sentence": " ".join(filter(None, (text.sentence, text.detail))), "advice": text.advice}
        causes.append({"code": cause.code, "effect": cause.effect, "figures": figures, **words})
    return {**describe_call(call, prefixes), "causes": causes}


class UsageScopesView(APIView):
    subject = "usage"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="usage_scopes",
        summary=_("Whose usage you may look at"),
        responses={200: shapes.ScopeChoice(many=True)},
    )
    def get(self, request: Request) -> Response:
        """Return the values that the parameter `of` may have."""
        return Response(
            [{"of": name, "name": str(label)} for name, label in scopes.scope_choices(current_user(request))]
        )
