"""One's own notices in the API."""

from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet

from portal.accounts.api_permissions import SignedIn
from portal.accounts.permissions import current_user
from portal.notifications import inbox
from portal.notifications import serializers as shapes
from portal.notifications.models import Notice
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated


class Notices(GenericViewSet[Notice]):
    subject = "notices"
    permission_classes = [SignedIn]
    queryset = Notice.objects.none()
    serializer_class = shapes.Notice
    pagination_class = ListPagination
    lookup_value_converter = "int"

    def get_queryset(self) -> QuerySet[Notice]:
        return inbox.notifications_of(current_user(self.request))

    @extend_schema(
        summary=_("Your notices"), parameters=[shapes.NoticeFilter], responses={200: shapes.Notice(many=True)}
    )
    def list(self, request: Request) -> Response:
        """Return the caller's notices, latest first."""
        wanted = validated(shapes.NoticeFilter, request.query_params)
        rows = self.get_queryset()
        if wanted["unread"] is not None:
            rows = rows.filter(read_at__isnull=wanted["unread"])
        if kind := wanted.get("kind"):
            rows = rows.filter(kind=kind)
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response([shapes.Notice(row).data for row in page])

    @extend_schema(summary=_("One notice"), responses={200: shapes.Notice})
    def retrieve(self, request: Request, pk: int) -> Response:
        return Response(shapes.Notice(self.get_object()).data)

    @extend_schema(summary=_("Mark a notice as read"), request=None, responses={200: shapes.Notice})
    @action(detail=True, methods=["post"])
    def read(self, request: Request, pk: int) -> Response:
        notice = self.get_object()
        inbox.mark_read(self.get_queryset().filter(pk=notice.pk), timezone.now())
        return Response(shapes.Notice(self.get_object()).data)

    @extend_schema(
        operation_id="notices_read_all",
        summary=_("Mark all notices as read"),
        request=None,
        responses={200: shapes.ReadCount},
    )
    @action(detail=False, methods=["post"], url_path="read")
    def read_all(self, request: Request) -> Response:
        unread = self.get_queryset().filter(read_at=None)
        count = unread.count()
        inbox.mark_read(unread, timezone.now())
        return Response({"read": count})
