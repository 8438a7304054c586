"""What people have done of the courses, who wants none, and seminars in which they take one together."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line
from portal.accounts.models import Tenant
from portal.keys.models import ApiKey
from portal.lessons.courses import all_courses
from portal.quotas.models import Quota

MOST_PEOPLE = 300  # of a seminar


class StepDone(models.Model):
    """That a person has done a step of the courses. Kept for good: what it was recognised by is pruned some day.

    `step` is one of `courses.CODES`. For the person alone; a seminar's organiser sees its participants'.
    """

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    step = models.CharField(max_length=20)
    at = models.DateTimeField(help_text="When it was done, or else when that was seen.")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "step"], name="one_row_per_step_done")]

    def __str__(self) -> str:
        return f"{self.user_id} {self.step}"


class CoursesDeclined(models.Model):
    """That a person does not want to be shown the courses on the home page."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, primary_key=True, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.user_id} {self.at}"


class Seminar(models.Model):
    """A course that people of a tenant take together. `tokens`: of each participant's key per day; None: no limit.

    Without a `title` it is called as its course, in the reader's language. Of the code only a digest and the random
    number it is derived from are stored, see `seminars`.
    """

    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="+", verbose_name=_("tenant"))
    is_company_wide = models.BooleanField(
        _("for the whole company"),
        default=False,
        help_text=_("Any signed-in person may join, and is a member of the tenant until the seminar is over."),
    )
    title = models.CharField(_("title"), max_length=80, blank=True, validators=[check_one_line])
    course = models.CharField(_("course"), max_length=20)
    begins_at = models.DateTimeField(_("begins"))
    ends_at = models.DateTimeField(_("ends"))
    tokens = models.PositiveBigIntegerField(_("tokens per day and participant"), null=True, blank=True)
    places = models.PositiveSmallIntegerField(_("places"), default=MOST_PEOPLE)
    nonce = models.CharField(max_length=32, editable=False)
    code_digest = models.CharField(max_length=64, unique=True, editable=False)
    opened_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.SET_NULL, null=True, related_name="+", verbose_name=_("opened by")
    )
    ended_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = _("seminar")
        verbose_name_plural = _("seminars")
        indexes: ClassVar = [models.Index(fields=["ended_at", "ends_at"], name="seminars_by_end")]

    def __str__(self) -> str:
        return self.title or all_courses()[self.course].title


class SeminarParticipant(models.Model):
    """A person who joined a seminar, which they were shown that its organiser sees their progress in.

    `key`: the last one, of which those before it are predecessors.
    """

    seminar = models.ForeignKey(Seminar, models.CASCADE, related_name="participants")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    key = models.OneToOneField(ApiKey, models.SET_NULL, null=True, related_name="+")
    joined_at = models.DateTimeField(default=timezone.now)
    taken_back_at = models.DateTimeField(null=True)  # by the organiser: it gets no successor
    added_to_tenant = models.BooleanField(default=False)  # by joining, and so until the end: see `guests`
    limit = models.ForeignKey(Quota, models.SET_NULL, null=True, related_name="+")  # of a guest, see `guests`

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["seminar", "user"], name="one_participant_per_person")]

    def __str__(self) -> str:
        return f"{self.seminar_id} {self.user_id}"


class SeminarInvitation(models.Model):
    """A person that the organiser named: they see the seminar on the home page and join it without the code."""

    seminar = models.ForeignKey(Seminar, models.CASCADE, related_name="invitations")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["seminar", "user"], name="one_invitation_per_person")]

    def __str__(self) -> str:
        return f"{self.seminar_id} {self.user_id}"
