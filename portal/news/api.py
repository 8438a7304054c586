"""Announcements in the API: for all to read, for operators to write."""

from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from portal.accounts.api_permissions import Operators, SignedIn
from portal.accounts.models import Tenant
from portal.accounts.permissions import current_user, may_operate
from portal.news import announcements
from portal.news import serializers as shapes
from portal.news.models import Announcement
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated


class Announcements(GenericViewSet[Announcement]):
    subject = "news"
    queryset = Announcement.objects.none()
    serializer_class = shapes.Announcement
    pagination_class = ListPagination
    lookup_value_converter = "int"

    def get_permissions(self) -> list[Any]:
        """Let only operators write."""
        return [SignedIn() if self.action in ("list", "retrieve") else Operators()]

    def get_queryset(self) -> QuerySet[Announcement]:
        rows = announcements.visible_announcements(current_user(self.request), timezone.now())
        return rows.prefetch_related("tenants")

    @extend_schema(
        summary=gettext_lazy("News and maintenance"),
        parameters=[shapes.AnnouncementFilter],
        responses={200: shapes.Announcement(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return what was announced to you, the latest first; operators get what is not shown yet as well."""
        wanted = validated(shapes.AnnouncementFilter, request.query_params)
        rows = self.get_queryset()
        if level := wanted.get("level"):
            rows = rows.filter(level=level)
        if wanted["current"] is not None:
            current = announcements.current_announcements(timezone.now()).values("pk")
            rows = rows.filter(pk__in=current) if wanted["current"] else rows.exclude(pk__in=current)
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response([self._describe(row) for row in page])

    @extend_schema(summary=gettext_lazy("One announcement"), responses={200: shapes.Announcement})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(self._describe(self.get_object()))

    @extend_schema(
        summary=gettext_lazy("Announce something"),
        request=shapes.NewAnnouncement,
        responses={201: shapes.Announcement},
    )
    def create(self, request: Request) -> Response:
        """Announce news or maintenance; its banner is shown at once if it is current."""
        values = validated(shapes.NewAnnouncement, request.data)
        tenants = find_tenants(values.pop("tenants"))
        return Response(self._save(Announcement(**values), *tenants), status.HTTP_201_CREATED)

    @extend_schema(
        summary=gettext_lazy("Change an announcement"),
        request=shapes.NewAnnouncement(partial=True),
        responses={200: shapes.Announcement},
    )
    def partial_update(self, request: Request, pk: int) -> Response:
        """Change what is sent."""
        sent = shapes.NewAnnouncement(data=request.data, partial=True)
        sent.is_valid(raise_exception=True)
        values = dict(sent.validated_data)
        slugs = values.pop("tenants", None)
        with transaction.atomic():
            announcements.lock_announcements()  # before the row is read
            row = self.get_object()
            tenants = list(row.tenants.all()) if slugs is None else find_tenants(slugs)
            for name, value in values.items():
                setattr(row, name, value)
            return Response(self._save(row, *tenants))

    @extend_schema(summary=gettext_lazy("Delete an announcement"), responses={204: None})
    def destroy(self, request: Request, pk: int) -> Response:
        self.get_object().delete()
        return Response(status=status.HTTP_204_NO_CONTENT)

    def _save(self, row: Announcement, *tenants: Tenant) -> dict[str, Any]:
        with transaction.atomic():
            announcements.lock_announcements()
            announcements.check_announcement(row, tenants)
            announcements.save_announcement(row, tenants)
        return self._describe(Announcement.objects.prefetch_related("tenants").get(pk=row.pk))

    def _describe(self, row: Announcement) -> dict[str, Any]:
        now, by = timezone.now(), current_user(self.request)
        row.is_current = row.shown_from <= now < row.ends_at  # type: ignore[attr-defined]
        slugs = sorted(tenant.slug for tenant in row.tenants.all()) if may_operate(by) else None
        row.tenant_slugs = slugs  # type: ignore[attr-defined]
        return dict(shapes.Announcement(row).data)


def find_tenants(slugs: list[str]) -> list[Tenant]:
    """Return the tenants of these short names. Raises ValidationError for one that does not exist."""
    found = {tenant.slug: tenant for tenant in Tenant.objects.filter(slug__in=slugs)}
    if not found.keys() >= set(slugs):
        raise ValidationError({"tenants": [_("There is no such tenant.")]})
    return list(found.values())
