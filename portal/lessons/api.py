"""Courses and seminars in the API: one's own progress, a tenant's as counts, and seminars for their organisers."""

from datetime import datetime
from typing import Any

from django.http import Http404
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.debug import sensitive_variables
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
from portal.accounts.models import User
from portal.accounts.permissions import current_user
from portal.lessons import code_throttle, invitations, progress, seminars
from portal.lessons import serializers as shapes
from portal.lessons.models import Seminar, SeminarParticipant
from portal.lessons.progress import CourseProgress
from portal.web.rest.list_pages import ListPagination
from portal.web.rest.throttling import TooManyRequests
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
        """Return who is how far only as numbers, as of last night, in multiples of five."""
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
        """Change what is sent. Keys of those who have joined follow; people are notified of new hours.

        The beginning stays once a person has joined.
        """
        values = validated(shapes.ChangedSeminar, request.data)
        row = seminars.change_seminar(current_user(request), self.get_object(), timezone.now(), **values)
        return Response(shapes.SeminarWithCode(row, context={"request": request}).data)

    @extend_schema(summary=gettext_lazy("End a seminar"), request=None, responses={200: shapes.SeminarWithCode})
    @action(["post"], detail=True)
    def end(self, request: Request, pk: int) -> Response:
        """End it before its time: its keys stop within 2 seconds. Ending twice changes nothing."""
        seminars.end_seminar(self.get_object(), timezone.now())
        return self.retrieve(request, pk)

    @extend_schema(
        summary=gettext_lazy("How far the participants are"),
        responses={200: shapes.Participant(many=True)},
        filters=False,
    )
    @action(["get"], detail=True, pagination_class=None)
    def progress(self, request: Request, pk: int) -> Response:
        """Return what participants agreed to show when they joined: no texts, only which steps and when.

        What they did from joining until 30 minutes after the end. The list is empty from 7 days after that on.
        """
        seminar = self.get_object()
        rows = seminars.read_participants(seminar) if seminars.shows_names(seminar, timezone.now()) else []
        return Response([describe_participant(row) for row in rows])

    @extend_schema(
        summary=gettext_lazy("Invite people by name"),
        request=shapes.NamedPeople,
        responses={200: shapes.NamingResult},
    )
    @action(["post"], detail=True)
    def people(self, request: Request, pk: int) -> Response:
        """Invite people by user name, mail address or whole name. They are notified and need no code.

        Whose key was taken back may join again, with a new key.
        """
        by, seminar = current_user(request), self.get_object()
        found = invitations.find_people(seminar, validated(shapes.NamedPeople, request.data)["people"])
        naming = invitations.name_people(by, seminar, found.people)
        people = {"invited": naming.invited, "let_back": naming.let_back, "already": naming.already}
        by_name = {what: [one.get_username() for one in some] for what, some in people.items()}
        return Response({**by_name, "unknown": list(found.unknown), "ambiguous": list(found.ambiguous)})

    @extend_schema(
        summary=gettext_lazy("Withdraw an invitation"), request=shapes.OnePerson, responses={200: shapes.Withdrawal}
    )
    @action(["post"], detail=True)
    def withdraw(self, request: Request, pk: int) -> Response:
        """Take a person off the list who has not joined. `withdrawn` is false for who was not on it."""
        seminar = self.get_object()
        person = validated(shapes.OnePerson, request.data)["person"]
        invited = seminar.invitations.select_related("user").filter(user__username=person).first()
        if invited is not None:
            invitations.withdraw_name(current_user(request), seminar, invited.user)
        return Response({"withdrawn": invited is not None})

    @extend_schema(
        summary=gettext_lazy("Take a participant’s key back"),
        request=shapes.TakingBack,
        responses={200: shapes.Participant},
    )
    @action(["post"], detail=True, url_path="take-back")
    def take_back(self, request: Request, pk: int) -> Response:
        """Revoke a participant's keys of this seminar for good. The person is notified of the reason.

        They get another key only if they are invited again.

        A person who is a member of the tenant only through the seminar leaves it, and with it the playground. Refused
        once the seminar is over.
        """
        seminar = self.get_object()
        values = validated(shapes.TakingBack, request.data)
        if seminar.ended_at is not None:  # also where there is nothing more to take back
            raise seminars.SeminarRefused(_("The seminar is over."), code="over")
        rows = SeminarParticipant.objects.select_related("user", "seminar__tenant", "key__tenant", "key__user")
        participant = rows.filter(seminar=seminar, user__username=values["person"]).first()
        if participant is None:
            raise ValidationError({"person": [_("This person does not take part.")]})
        if participant.taken_back_at is None:
            seminars.take_back_key(current_user(request), participant, values["reason"])
        [row] = seminars.read_participants(participant.seminar, pk=participant.pk)
        return Response(describe_participant(row))


class JoinSeminarView(APIView):
    """Joining makes an API key, so it is among what may create keys."""

    subject = "keys"
    permission_classes = [SignedIn]

    @extend_schema(
        operation_id="seminars_join",
        summary=gettext_lazy("Join a seminar"),
        request=shapes.SeminarToJoin,
        responses={200: shapes.JoinedSeminar, 201: shapes.JoinedSeminar},
    )
    @sensitive_variables("text")
    def post(self, request: Request) -> Response:
        """Join by the code, or by number where the organiser named you. Return the key with its text, this once.

        Its organiser then sees your name, and which steps of the course you do and when, from joining until 30 minutes
        after the end, and no texts; 7 days later only how many people did. Who joins again gets 200 and no text, and
        409 if the organiser took the key back.
        """
        user, now = current_user(request), timezone.now()
        wanted = validated(shapes.SeminarToJoin, request.data)
        if "code" in wanted:
            participant, text = join_by_code(request, user, wanted["code"], now)
        else:
            seminar = seminars.seminars_known_to(user, now).filter(pk=wanted["seminar"]).first()
            if seminar is None:
                raise ValidationError({"seminar": [_("You are not invited to a seminar of this number.")]})
            participant, text = seminars.join_as_named(user, seminar, now)
        key = participant.key
        joined = {
            "seminar": participant.seminar,
            "key": key.prefix if key else None,
            "has_key": key is not None and key.state == "active",
            "expires_at": key.expires_at if key else None,
            "text": text or None,
        }
        code = status.HTTP_201_CREATED if text else status.HTTP_200_OK
        return Response(shapes.JoinedSeminar(joined).data, code)


def join_by_code(request: Request, user: User, code: str, now: datetime) -> tuple[SeminarParticipant, str]:
    """Join as `seminars.join_seminar`. Raises TooManyRequests after many wrong codes."""
    if wait := code_throttle.seconds_to_wait(request, user):
        raise TooManyRequests(wait, code_throttle.sentence(wait))
    try:
        return seminars.join_seminar(user, code, now)
    except seminars.SeminarRefused as refusal:
        if refusal.code == "unknown-code":
            code_throttle.count_wrong_code(request, user)
        raise


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
