"""The API of people: who a key belongs to, a person's settings, tenants and their members."""

from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import ModelSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal.accounts import membership, permissions
from portal.accounts import serializers as shapes
from portal.accounts.api_permissions import Operators, SignedIn
from portal.accounts.models import Membership, Tenant
from portal.accounts.permissions import current_user
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated
from portal.web.row_locks import lock_row


class MeView(APIView):
    subject = ""
    permission_classes = [SignedIn]

    @extend_schema(operation_id="me", summary=_("Who you are, and what this key may do"), responses={200: shapes.Me})
    def get(self, request: Request) -> Response:
        """Return the person of this key, their tenants, and what the key may do. Every management key may ask."""
        person = current_user(request)
        person.places = person.memberships.select_related("tenant").order_by("tenant__slug")  # type: ignore[attr-defined]
        person.key = request.auth  # type: ignore[attr-defined]
        return Response(shapes.Me(person).data)


class SettingsView(APIView):
    subject = "notices"
    permission_classes = [SignedIn]

    @extend_schema(operation_id="settings", summary=_("Your settings"), responses={200: shapes.Settings})
    def get(self, request: Request) -> Response:
        return Response(shapes.Settings(current_user(request)).data)

    @extend_schema(
        operation_id="settings_change",
        summary=_("Change your settings"),
        request=shapes.Settings(partial=True),
        responses={200: shapes.Settings},
    )
    def patch(self, request: Request) -> Response:
        """Change what is sent."""
        serializer = shapes.Settings(current_user(request), data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        serializer.save()
        return Response(serializer.data)


class Tenants(GenericViewSet[Tenant]):
    subject = "tenants"
    queryset = Tenant.objects.none()
    serializer_class = shapes.TenantNow
    pagination_class = ListPagination
    lookup_field = "slug"
    lookup_value_converter = "slug"

    def get_permissions(self) -> list[Any]:
        """Let only operators create and change tenants."""
        return [SignedIn() if self.action in ("list", "retrieve") else Operators()]

    def get_queryset(self) -> QuerySet[Tenant]:
        return permissions.visible_tenants(current_user(self.request)).order_by("slug")

    @extend_schema(
        summary=_("Your tenants; for operators all"),
        parameters=[shapes.TenantFilter],
        responses={200: shapes.TenantNow(many=True)},
    )
    def list(self, request: Request) -> Response:
        wanted = validated(shapes.TenantFilter, request.query_params)
        rows = self.get_queryset()
        if name := wanted.get("name"):
            rows = rows.filter(Q(name__icontains=name) | Q(slug__icontains=name))
        if wanted["is_active"] is not None:
            rows = rows.filter(is_active=wanted["is_active"])
        if wanted["administered"] is not None:
            administered = Q(pk__in=permissions.administered_tenants(current_user(request)).values("pk"))
            rows = rows.filter(administered if wanted["administered"] else ~administered)
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response(shapes.TenantNow(page, many=True).data)

    @extend_schema(summary=_("One tenant"), responses={200: shapes.TenantNow})
    def retrieve(self, request: Request, slug: str) -> Response:
        return Response(shapes.TenantNow(self.get_object()).data)

    @extend_schema(summary=_("Create a tenant"), request=shapes.NewTenant, responses={201: shapes.TenantNow})
    def create(self, request: Request) -> Response:
        return _save_tenant(shapes.NewTenant(data=request.data), status.HTTP_201_CREATED)

    @extend_schema(summary=_("Change a tenant"), request=shapes.ChangedTenant, responses={200: shapes.TenantNow})
    def partial_update(self, request: Request, slug: str) -> Response:
        """Change what is sent. With `is_active` false every key of the tenant stops within 2 seconds."""
        with transaction.atomic():
            lock_row(Tenant, self.get_object().pk)
            row = self.get_object()  # once more: what another operator has changed meanwhile stays
            return _save_tenant(shapes.ChangedTenant(row, data=request.data, partial=True), status.HTTP_200_OK)


class Members(GenericViewSet[Membership]):
    """Members of a tenant, for its admins and operators. Everyone else gets 404."""

    subject = "tenants"
    permission_classes = [SignedIn]
    queryset = Membership.objects.none()
    serializer_class = shapes.Member
    pagination_class = ListPagination

    @extend_schema(
        summary=_("Members of a tenant"),
        parameters=[shapes.MemberFilter],
        responses={200: shapes.Member(many=True)},
    )
    def list(self, request: Request, slug: str) -> Response:
        wanted = validated(shapes.MemberFilter, request.query_params)
        rows = membership.members_of(self._tenant(slug), wanted.pop("name", "")).filter(**wanted)
        page = self.paginate_queryset(rows.order_by("user__username")) or []
        return self.get_paginated_response([shapes.Member(row).data for row in page])

    @extend_schema(summary=_("One member"), responses={200: shapes.Member})
    def retrieve(self, request: Request, slug: str, username: str) -> Response:
        return Response(shapes.Member(self._member(slug, username)).data)

    @extend_schema(summary=_("Add a member"), request=shapes.NewMember, responses={201: shapes.Member})
    def create(self, request: Request, slug: str) -> Response:
        """Add a person by hand: the company directory leaves this membership alone."""
        tenant = self._tenant(slug)
        values = validated(shapes.NewMember, request.data)
        row = membership.add_member(current_user(request), tenant, values["user"], values["role"])
        return Response(shapes.Member(row).data, status.HTTP_201_CREATED)

    @extend_schema(summary=_("Change a member"), request=shapes.ChangedMember, responses={200: shapes.Member})
    def partial_update(self, request: Request, slug: str, username: str) -> Response:
        """Change the role of a member who was added by hand, or whether any member is a champion."""
        row, by = self._member(slug, username), current_user(request)
        values = validated(shapes.ChangedMember, request.data)
        with transaction.atomic():
            if "role" in values:
                row = membership.change_role(by, row, values["role"])
            if values["is_champion"] is not None:
                row = membership.appoint_champion(by, row, values["is_champion"])
        return Response(shapes.Member(row).data)

    @extend_schema(summary=_("Remove a member"), responses={204: None})
    def destroy(self, request: Request, slug: str, username: str) -> Response:
        """Remove a member who was added by hand. Their keys of the tenant stop within 2 seconds."""
        membership.remove_member(current_user(request), self._member(slug, username))
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _tenant(self, slug: str) -> Tenant:
        tenant, may_administer = permissions.tenant_for(current_user(self.request), slug)
        if not may_administer:
            raise Http404
        return tenant

    def _member(self, slug: str, username: str) -> Membership:
        return get_object_or_404(membership.members_of(self._tenant(slug)), user__username__iexact=username)


def _save_tenant(serializer: ModelSerializer[Tenant], code: int) -> Response:
    serializer.is_valid(raise_exception=True)
    return Response(shapes.TenantNow(serializer.save()).data, code)
