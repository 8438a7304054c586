"""Quotas, requests for more and what is left, in the API. Who may do what: see `administration`."""

from collections.abc import Sequence
from typing import Any

from django.db.models import Q, QuerySet
from django.http import Http404
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal.accounts import permissions
from portal.accounts.api_permissions import SignedIn
from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.accounts.timezones import zone_of
from portal.quotas import administration, cautions
from portal.quotas import serializers as shapes
from portal.quotas.models import Quota, QuotaRequest
from portal.quotas.status import Allowance, allowances, allowances_of_key, allowances_of_member, allowances_of_tenant
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated


class Quotas(GenericViewSet[Quota]):
    subject = "quotas"
    permission_classes = [SignedIn]
    queryset = Quota.objects.none()
    serializer_class = shapes.Quota
    pagination_class = ListPagination
    lookup_value_converter = "int"

    def get_queryset(self) -> QuerySet[Quota]:
        return visible_quotas(current_user(self.request))

    @extend_schema(
        summary=_("Quotas that bind you, and those of tenants that you administer"),
        parameters=[shapes.QuotaFilter],
        responses={200: shapes.Quota(many=True)},
    )
    def list(self, request: Request) -> Response:
        wanted = validated(shapes.QuotaFilter, request.query_params, user=current_user(request))
        rows = self.get_queryset()
        if tenant := wanted.pop("tenant", None):
            rows = rows.filter(Q(tenant=tenant) | Q(key__tenant=tenant))
        page = self.paginate_queryset(rows.filter(**wanted).order_by("pk")) or []
        return self.get_paginated_response([shapes.Quota(quota).data for quota in page])

    @extend_schema(summary=_("One quota"), responses={200: shapes.Quota})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(shapes.Quota(self.get_object()).data)

    @extend_schema(summary=_("Give a quota"), request=shapes.NewQuota, responses={201: shapes.SavedQuota})
    def create(self, request: Request) -> Response:
        """Replace the quota that there is for the same, if there is one. Admins give up to what the tenant has."""
        values = validated(shapes.NewQuota, request.data, user=current_user(request))
        to, what = shapes.quota_target(values), shapes.quota_kind(values)
        return Response(save_quota(current_user(request), to, what, values["amount"]), status.HTTP_201_CREATED)

    @extend_schema(summary=_("Change a quota"), request=shapes.ChangedQuota, responses={200: shapes.SavedQuota})
    def partial_update(self, request: Request, pk: int) -> Response:
        quota = self.get_object()
        amount = validated(shapes.ChangedQuota, request.data)["amount"]
        to, what = administration.quota_target(quota), administration.quota_kind(quota)
        return Response(save_quota(current_user(request), to, what, amount))

    @extend_schema(summary=_("Take a quota away"), responses={204: None})
    def destroy(self, request: Request, pk: int) -> Response:
        """Let the default apply from then on, if there is one."""
        administration.remove_quota(current_user(request), self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)


def save_quota(by: User, to: administration.QuotaTarget, what: administration.QuotaKind, amount: int) -> dict[str, Any]:
    """Set the quota and return its shape, with what pages would have asked about before."""
    administration.check_quota(by, to, what, amount)
    found = cautions.find_cautions(to, what, amount)
    quota = administration.set_quota(by, to, what, amount)
    return {**shapes.Quota(quota).data, "cautions": [one.code for one in found]}


class Requests(GenericViewSet[QuotaRequest]):
    subject = "quotas"
    permission_classes = [SignedIn]
    queryset = QuotaRequest.objects.none()
    serializer_class = shapes.Request
    pagination_class = ListPagination
    lookup_value_converter = "int"

    def get_queryset(self) -> QuerySet[QuotaRequest]:
        return visible_requests(current_user(self.request))

    @extend_schema(
        summary=_("Quota requests: yours, and those of tenants that you administer"),
        parameters=[shapes.RequestFilter],
        responses={200: shapes.Request(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return the latest first."""
        wanted = validated(shapes.RequestFilter, request.query_params, user=current_user(request))
        waiting = wanted.pop("waiting")
        rows = self.get_queryset().filter(**wanted)
        if waiting is not None:
            mine = Q(pk__in=administration.waiting_for(current_user(request)).values("pk"))
            rows = rows.filter(mine if waiting else ~mine)
        page = self.paginate_queryset(rows.order_by("-asked_at", "-pk")) or []
        return self.get_paginated_response(show_requests(current_user(request), page))

    @extend_schema(summary=_("One quota request"), responses={200: shapes.Request})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(show_request(current_user(request), self.get_object()))

    @extend_schema(summary=_("Request more"), request=shapes.NewRequest, responses={201: shapes.Request})
    def create(self, request: Request) -> Response:
        """Notify those who may grant it."""
        values = validated(shapes.NewRequest, request.data, user=current_user(request))
        to, what = shapes.quota_target(values), shapes.quota_kind(values)
        quota_request = administration.create_request(
            current_user(request), to, what, values["amount"], values["reason"]
        )
        return Response(show_request(current_user(request), quota_request), status.HTTP_201_CREATED)

    @extend_schema(summary=_("Change a request"), request=shapes.ChangedRequest, responses={200: shapes.Request})
    def partial_update(self, request: Request, pk: int) -> Response:
        """Change one's own request, as long as it is open."""
        quota_request = self.get_object()
        values = validated(shapes.ChangedRequest, request.data)
        changed = administration.change_request(
            current_user(request), quota_request, values["amount"], values.get("reason", quota_request.reason)
        )
        return Response(show_request(current_user(request), changed))

    @extend_schema(summary=_("Grant a request"), request=shapes.Grant, responses={200: shapes.GrantedRequest})
    @action(detail=True, methods=["post"])
    def grant(self, request: Request, pk: int) -> Response:
        """Give what was requested or another amount. A request of one's own cannot be granted."""
        quota_request, by = self.get_object(), current_user(request)
        answer = validated(shapes.Grant, request.data)
        amount = quota_request.amount if answer["amount"] is None else answer["amount"]
        administration.check_grant(by, quota_request, amount)
        found = cautions.find_grant_cautions(quota_request, amount)
        granted = administration.grant_request(by, quota_request, amount, answer["note"])
        return Response({**show_request(by, granted), "cautions": [one.code for one in found]})

    @extend_schema(summary=_("Refuse a request"), request=shapes.QuotaRefusal, responses={200: shapes.Request})
    @action(detail=True, methods=["post"])
    def refuse(self, request: Request, pk: int) -> Response:
        quota_request, by = self.get_object(), current_user(request)
        note = validated(shapes.QuotaRefusal, request.data)["note"]
        return Response(show_request(by, administration.refuse_request(by, quota_request, note)))

    @extend_schema(summary=_("Withdraw a request"), request=None, responses={200: shapes.Request})
    @action(detail=True, methods=["post"])
    def withdraw(self, request: Request, pk: int) -> Response:
        """Withdraw one's own request, as long as it is open."""
        by = current_user(request)
        return Response(show_request(by, administration.withdraw_request(by, self.get_object())))


def show_requests(user: User, rows: Sequence[QuotaRequest]) -> list[dict[str, Any]]:
    """Return the shapes of these requests, with the amounts that apply now. Two queries.

    Who made a request keeps seeing it, but no longer what applies in a tenant that they have left.
    """
    tenants = permissions.visible_tenants(user).filter(pk__in={row.tenant_id for row in rows})
    visible = set(tenants.values_list("pk", flat=True))
    current = administration.current_amounts([row for row in rows if row.tenant_id in visible])
    return [shapes.Request(row, context={"current": current}).data for row in rows]


def show_request(user: User, row: QuotaRequest) -> dict[str, Any]:
    return show_requests(user, [row])[0]


class AllowancesView(APIView):
    subject = "quotas"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="allowances",
        summary=_("What is left of quotas"),
        parameters=[shapes.AllowanceFilter],
        responses={200: shapes.Allowance(many=True)},
    )
    def get(self, request: Request) -> Response:
        """Return yours, unless a tenant or a key is named. What running requests reserve is not subtracted yet."""
        wanted = validated(shapes.AllowanceFilter, request.query_params, user=current_user(request))
        return Response([shapes.Allowance(one).data for one in left(current_user(request), wanted)])


def left(user: User, wanted: dict[str, Any]) -> list[Allowance]:
    """Raise Http404 for what is not this person's to know."""
    now, tenant, member = timezone.now(), wanted.get("tenant"), wanted.get("user")
    if "key" in wanted:
        return allowances_of_key(wanted["key"], now)
    if tenant is None:
        return allowances(user, zone_of(user), now)
    if member != user and not permissions.administered_tenants(user).filter(pk=tenant.pk).exists():
        raise Http404
    if member is None:
        return allowances_of_tenant(tenant, now)
    if not member.memberships.filter(tenant=tenant).exists():
        raise Http404
    return allowances_of_member(tenant, member, now)


def visible_quotas(user: User) -> QuerySet[Quota]:
    """Return those that bind this person or their keys, and all of the tenants that they administer.

    For operators all.
    """
    rows = Quota.objects.select_related("tenant", "user", "key", "model")
    if permissions.may_operate(user):
        return rows
    keys = shapes.limitable_keys(user).values("pk")
    administered = Q(tenant__in=permissions.administered_tenants(user))
    shared = Q(tenant__in=permissions.visible_tenants(user), user=None)
    return rows.filter(Q(user=user) | Q(key__in=keys) | administered | shared | Q(default_for=Quota.DefaultFor.TENANT))


def visible_requests(user: User) -> QuerySet[QuotaRequest]:
    """Return those that this person made or that are for them, and all of the tenants that they administer."""
    rows = QuotaRequest.objects.select_related("tenant", "user", "key", "model", "asked_by", "decided_by")
    if permissions.may_operate(user):
        return rows
    keys = shapes.limitable_keys(user).values("pk")
    theirs = Q(tenant__in=permissions.administered_tenants(user))
    return rows.filter(Q(asked_by=user) | Q(user=user) | Q(key__in=keys) | theirs)
