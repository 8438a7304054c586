"""Courses and seminars as the API shows and takes them."""

from datetime import datetime
from typing import Any

from django.utils.translation import gettext_lazy as _
from rest_framework import serializers

from modelregistry.one_line import check_one_line
from portal.lessons import models as rows
from portal.lessons import seminars
from portal.lessons.courses import NAMES
from portal.lessons.models import MOST_PEOPLE
from portal.quotas.administration import MAX_AMOUNT
from portal.web.rest import scopes
from portal.web.rest.strict_fields import CharField, ChoiceField, DateTimeField, KnownFields

COURSES = [(name, name) for name in NAMES]
LAST_YEAR = 9000  # later ones have no day in zones to the east


def check_year(value: datetime) -> None:
    """Raise ValidationError for a time that is no seminar's."""
    if not 2000 <= value.year <= LAST_YEAR:
        raise serializers.ValidationError(_("Choose a time within the next years."))


def check_minute(value: datetime) -> None:
    """Raise ValidationError for a time with seconds, which the page could not show."""
    if value.second or value.microsecond:
        raise serializers.ValidationError(_("Give a time without seconds."), code="seconds")


class CourseStep(serializers.Serializer[Any]):
    code = serializers.CharField()
    title = serializers.CharField(help_text="In the language that the request accepts.")
    optional = serializers.BooleanField(help_text="Not needed to finish the course.")
    done_at = serializers.DateTimeField(allow_null=True, help_text="Null: not done.")


class Course(serializers.Serializer[Any]):
    name = serializers.CharField()
    title = serializers.CharField(help_text="In the language that the request accepts.")
    minutes = serializers.IntegerField()
    is_finished = serializers.BooleanField()
    next = serializers.CharField(allow_null=True, help_text="The code of the step to do next.")
    steps = CourseStep(many=True)


class StepCount(serializers.Serializer[Any]):
    code = serializers.CharField()
    people = serializers.IntegerField(
        allow_null=True, help_text="To the nearest five. Null: fewer than five have, or have not."
    )


class CourseCounts(serializers.Serializer[Any]):
    name = serializers.CharField()
    members = serializers.IntegerField(help_text="Active members of the tenant.")
    finished = serializers.IntegerField(
        allow_null=True, help_text="To the nearest five. Null: fewer than five have, or have not."
    )
    steps = StepCount(many=True)


class Seminar(serializers.ModelSerializer[rows.Seminar]):
    tenant = serializers.CharField(source="tenant.slug")
    name = serializers.CharField(source="__str__", help_text="The title or, without one, that of the course.")

    class Meta:
        model = rows.Seminar
        fields = (
            *("id", "tenant", "is_company_wide", "name", "title", "course", "begins_at", "ends_at"),
            *("places", "tokens", "ended_at"),
        )


class SeminarWithCode(Seminar):
    code = serializers.SerializerMethodField(
        help_text="Who has it, and belongs to the tenant, may join. Null for a management key without `lessons:write`."
    )

    class Meta(Seminar.Meta):
        fields = (*Seminar.Meta.fields, "code")  # type: ignore[assignment]

    def get_code(self, seminar: rows.Seminar) -> str | None:
        key = self.context["request"].auth  # a management key; None: a session
        may_open = key is None or scopes.covers(key.scopes, "lessons:write")
        return seminars.code_of(seminar) if may_open else None


class SeminarFilter(KnownFields):
    is_over = serializers.BooleanField(required=False, allow_null=True, default=None)


class ChangedSeminar(KnownFields):
    """Times are whole minutes with their offset, such as `2026-12-01T09:00:00+09:00`."""

    title = CharField(
        required=False,
        allow_blank=True,
        max_length=80,
        validators=[check_one_line],
        help_text="Empty: the title of the course.",
    )
    course = ChoiceField(COURSES, required=False)
    begins_at = DateTimeField(required=False, validators=[check_year, check_minute])
    ends_at = DateTimeField(required=False, validators=[check_year, check_minute])
    places = serializers.IntegerField(required=False, min_value=1, max_value=MOST_PEOPLE)
    tokens = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=1,
        max_value=MAX_AMOUNT,  # as older versions took it: what is sent back unchanged is no change
        help_text="Per day and participant. Null: no limit, for up to 40 places.",
    )


class NewSeminar(ChangedSeminar):
    """Times are whole minutes with their offset, such as `2026-12-01T09:00:00+09:00`."""

    tenant = CharField(max_length=50, help_text="Short name.")
    is_company_wide = serializers.BooleanField(required=False, default=False)
    title = CharField(
        required=False,
        allow_blank=True,
        default="",
        max_length=80,
        validators=[check_one_line],
        help_text="Empty: the title of the course.",
    )
    course = ChoiceField(COURSES)
    begins_at = DateTimeField(validators=[check_year, check_minute])
    ends_at = DateTimeField(validators=[check_year, check_minute])
    places = serializers.IntegerField(required=False, default=seminars.USUAL_PLACES, min_value=1, max_value=MOST_PEOPLE)
    tokens = serializers.IntegerField(
        required=False,
        allow_null=True,
        default=seminars.USUAL_TOKENS,
        min_value=1,
        max_value=seminars.MOST_TOKENS,
        help_text="Per day and participant. Null: no limit, for up to 40 places.",
    )


class NamedPeople(KnownFields):
    people = serializers.ListField(child=CharField(max_length=254), min_length=1, max_length=MOST_PEOPLE)


class NamingResult(serializers.Serializer[Any]):
    invited = serializers.ListField(child=serializers.CharField(), help_text="User names, of those invited now.")
    let_back = serializers.ListField(
        child=serializers.CharField(), help_text="Those of them whose key was taken back: they may join again."
    )
    already = serializers.ListField(
        child=serializers.CharField(), help_text="User names, of those who were invited or take part before."
    )
    unknown = serializers.ListField(child=serializers.CharField(), help_text="Not among those who may join.")
    ambiguous = serializers.ListField(child=serializers.CharField(), help_text="Names of several people.")


class OnePerson(KnownFields):
    person = CharField(max_length=150, help_text="User name.")


class Withdrawal(serializers.Serializer[Any]):
    withdrawn = serializers.BooleanField()


class TakingBack(OnePerson):
    reason = CharField(
        required=False,
        allow_blank=True,
        default="",
        max_length=200,
        validators=[check_one_line],
        help_text="The participant is notified of it.",
    )


class SeminarToJoin(KnownFields):
    """Give one of them."""

    code = CharField(
        required=False,
        max_length=seminars.MOST_TYPED,
        help_text="Or the link to join, which ends with it. Capitals and hyphens do not matter.",
    )
    seminar = serializers.IntegerField(
        required=False, min_value=1, max_value=2**31 - 1, help_text="`id` of one that its organiser named you for."
    )

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if len(attrs) != 1:
            raise serializers.ValidationError({"code": [_("Give the code, or the number of the seminar.")]})
        return attrs


class JoinedSeminar(serializers.Serializer[Any]):
    seminar = Seminar()
    key = serializers.CharField(allow_null=True, help_text="The first 12 characters of its text, which identify it.")
    has_key = serializers.BooleanField(help_text="Whether that key works. One that you revoked can be replaced.")
    expires_at = serializers.DateTimeField(allow_null=True)
    text = serializers.CharField(allow_null=True, help_text="The key itself, shown once. Null: you have joined before.")


class Participant(serializers.Serializer[Any]):
    username = serializers.CharField()
    name = serializers.CharField()
    joined_at = serializers.DateTimeField()
    has_key = serializers.BooleanField(help_text="A key that works.")
    answered_at = serializers.DateTimeField(allow_null=True, help_text="The first answer.")
    done = serializers.ListField(child=serializers.CharField(), help_text="Codes of the course’s steps.")
