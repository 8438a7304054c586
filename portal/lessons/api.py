"""Courses and seminars in the API: one's own progress, a tenant's as counts, and seminars for their organisers."""

from typing import Any

from django.http import Http404
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from drf_spectacular.utils import extend_schema
from rest_framework import status
from rest_framework.decorators import action
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet

from portal.accounts import permissions
from portal.accounts.api_permissions import SignedIn
from portal.accounts.permissions import current_user
from portal.lessons import invitations, progress, seminars
from portal.lessons import serializers as shapes
from portal.lessons.models import Seminar
from portal.lessons.progress import CourseProgress
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.validation import validated


class CoursesView(APIView):
    subject = "lessons"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="courses",
        summary=gettext_lazy("Courses, and how far you are"),
        responses={200: shapes.Course(many=True)},
    )
    def get(self, request: Request) -> Response:
        return Response([describe_course(one) for one in progress.read_progress(current_user(request))])


class TenantCoursesView(APIView):
    """How many members of a tenant have done which steps. For its admins and operators; everyone else gets 404."""

    subject = "lessons"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="tenant_courses",
        summary=gettext_lazy("How far the members of a tenant are, as counts"),
        responses={200: shapes.CourseCounts(many=True)},
    )
    def get(self, request: Request, slug: str) -> Response:
        """Return who is how far only as numbers, as of last night. Null: fewer than five have, or have not."""
        tenant, may_administer = permissions.tenant_for(current_user(request), slug)
        if not may_administer:
            raise Http404
        return Response([dict(shapes.CourseCounts(one).data) for one in progress.count_members(tenant, timezone.now())])


class Seminars(GenericViewSet[Seminar]):
    """Seminars that you organise: of tenants that you administer; for operators all."""

    subject = "lessons"
    permission_classes = [SignedIn]
    queryset = Seminar.objects.none()
    serializer_class = shapes.Seminar
    pagination_class = ListPagination
    lookup_value_converter = "int"

    def get_queryset(self) -> Any:
        return seminars.organised_by(current_user(self.request)).order_by("-begins_at", "-pk")

    @extend_schema(
        summary=gettext_lazy("Seminars that you organise"),
        parameters=[shapes.SeminarFilter],
        responses={200: shapes.Seminar(many=True)},
    )
    def list(self, request: Request) -> Response:
        """Return the last to begin first."""
        rows = self.get_queryset()
        is_over = validated(shapes.SeminarFilter, request.query_params)["is_over"]
        if is_over is not None:
            rows = rows.exclude(ended_at=None) if is_over else rows.filter(ended_at=None)
        page = self.paginate_queryset(rows) or []
        return self.get_paginated_response(shapes.Seminar(page, many=True).data)

    @extend_schema(summary=gettext_lazy("One seminar, with its code"), responses={200: shapes.SeminarWithCode})
    def retrieve(self, request: Request, pk: int) -> Response:
        """Return it. Its code is null for a management key that may only read."""
        return Response(shapes.SeminarWithCode(self.get_object(), context={"request": request}).data)

    @extend_schema(
        summary=gettext_lazy("Open a seminar"),
        request=shapes.NewSeminar,
        responses={201: shapes.SeminarWithCode},
    )
    def create(self, request: Request) -> Response:
        """Open a seminar of a tenant that you administer; operators also for the whole company."""
        by = current_user(request)
        values = validated(shapes.NewSeminar, request.data)
        tenant = seminars.tenants_to_open_for(by).filter(slug=values.pop("tenant")).first()
        if tenant is None:
            raise ValidationError({"tenant": [_("You do not administer this tenant.")]})
        seminar = seminars.open_seminar(by, Seminar(tenant=tenant, **values), timezone.now())
        return Response(shapes.SeminarWithCode(seminar, context={"request": request}).data, status.HTTP_201_CREATED)

    @extend_schema(
        summary=gettext_lazy("Change a seminar"),
        request=shapes.ChangedSeminar,
        responses={200: shapes.SeminarWithCode},
    )
    def partial_update(self, request: Request, pk: int) -> Response:
        """Change what is sent. Keys of those who have joined follow; people are notified of new hours."""
        values = validated(shapes.ChangedSeminar, request.data)
        row = seminars.change_seminar(current_user(request), self.get_object(), timezone.now(), **values)
        return Response(shapes.SeminarWithCode(row, context={"request": request}).data)

    @action(["post"], detail=True)
    @extend_schema(summary=gettext_lazy("End a seminar"), request=None, responses={200: shapes.SeminarWithCode})
    def end(self, request: Request, pk: int) -> Response:
        """End it before its time: its keys stop within 2 seconds. Ending twice changes nothing."""
        seminars.end_seminar(self.get_object(), timezone.now())
        return self.retrieve(request, pk)

    @action(["get"], detail=True, pagination_class=None)
    @extend_schema(
        summary=gettext_lazy("How far the participants are"),
        responses={200: shapes.Participant(many=True)},
        filters=False,
    )
    def progress(self, request: Request, pk: int) -> Response:
        """Return what participants agreed to show when they joined: no texts, only which steps and when."""
        rows = seminars.read_participants(self.get_object())
        return Response([describe_participant(row) for row in rows])

    @action(["post"], detail=True)
    @extend_schema(
        summary=gettext_lazy("Invite people by name"),
        request=shapes.NamedPeople,
        responses={200: shapes.NamingResult},
    )
    def people(self, request: Request, pk: int) -> Response:
        """Invite people by user name, mail address or whole name. They are notified and need no code."""
        by, seminar = current_user(request), self.get_object()
        found = invitations.find_people(seminar, validated(shapes.NamedPeople, request.data)["people"])
        new = invitations.name_people(by, seminar, found.people)
        unknown, ambiguous = list(found.unknown), list(found.ambiguous)
        invited = [one.get_username() for one in new]
        return Response({"invited": invited, "unknown": unknown, "ambiguous": ambiguous})


def describe_course(mine: CourseProgress) -> dict[str, Any]:
    return dict(
        shapes.Course(
            {
                "name": mine.course.name,
                "title": mine.course.title,
                "minutes": mine.course.minutes,
                "is_finished": mine.is_finished,
                "next": mine.next.code if mine.next else None,
                "steps": [
                    {
                        "code": one.step.code,
                        "title": one.step.text.title,
                        "optional": one.step.optional,
                        "done_at": one.done_at,
                    }
                    for one in mine.steps
                ],
            }
        ).data
    )


def describe_participant(row: seminars.ParticipantRow) -> dict[str, Any]:
    return dict(
        shapes.Participant(
            {
                "username": row.person.get_username(),
                "name": str(row.person),
                "joined_at": row.joined_at,
                "has_key": row.has_key,
                "answered_at": row.answered_at,
                "done": [state.step.code for state in row.progress.steps if state.done_at],
            }
        ).data
    )
