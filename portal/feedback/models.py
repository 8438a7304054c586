"""What people say about answers: a thumb and perhaps a sentence, by the request's id. No prompt and no answer."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Tenant
from portal.use_cases.models import UseCase

MAX_COMMENT = 1000


class Feedback(models.Model):
    """A thumb for one request, of the person or service that made it; a second one replaces the first.

    `model` is "" until the request's usage is recorded, which may take a while without the database: then it counts
    nowhere, and is deleted if that usage never comes or belongs to another caller.
    """

    class Score(models.IntegerChoices):
        UP = 1, _("helpful")
        DOWN = -1, _("not helpful")

    request_id = models.CharField(_("request ID"), max_length=40)
    # Who gave it: a person's with all their keys are one, and a tenant's services. Keys may be deleted meanwhile.
    key_id = models.BigIntegerField(null=True)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.CASCADE, null=True, related_name="+", verbose_name=_("user")
    )
    tenant = models.ForeignKey(Tenant, models.CASCADE, related_name="+", verbose_name=_("tenant"))
    score = models.SmallIntegerField(_("score"), choices=Score)
    comment = models.CharField(_("comment"), max_length=MAX_COMMENT, blank=True)
    at = models.DateTimeField(_("time"), default=timezone.now)
    model = models.CharField(_("model"), max_length=100, blank=True)
    called_as = models.CharField(_("called as"), max_length=100, blank=True, help_text="The alias, as the caller says.")
    use_case = models.ForeignKey(UseCase, models.SET_NULL, null=True, related_name="+", verbose_name=_("use case"))
    use_case_version = models.PositiveIntegerField(_("version"), null=True)

    class Meta:
        verbose_name = _("feedback")
        verbose_name_plural = _("feedback")
        ordering: ClassVar = ["-at", "-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["request_id", "user"], condition=Q(user__isnull=False), name="one_feedback_of_a_person"
            ),
            models.UniqueConstraint(
                fields=["request_id", "tenant"], condition=Q(user__isnull=True), name="one_feedback_of_a_service"
            ),
        ]
        indexes: ClassVar = [
            models.Index(fields=["at"], name="feedback_by_time"),
            models.Index(fields=["tenant", "at"], name="feedback_by_tenant"),
            models.Index(fields=["user", "at"], name="feedback_by_user"),
            models.Index(fields=["at"], condition=Q(model=""), name="feedback_to_join"),
        ]

    def __str__(self) -> str:
        return f"{self.request_id} {self.score:+d}"
