"""Notices to people, in the portal and by mail."""

from typing import ClassVar

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line

LANGUAGES = [("ja", "日本語"), ("en", "English")]  # of a channel


class Notice(models.Model):
    """Something that a person should know: `kind` and `facts`, which become sentences in the reader's language.

    `ref` distinguishes notices of one kind: a person never gets the same one twice.
    """

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="notices", verbose_name=_("user"))
    kind = models.CharField(max_length=40)
    ref = models.CharField(max_length=100)
    facts = models.JSONField(default=dict, encoder=DjangoJSONEncoder)
    path = models.CharField(max_length=300, blank=True, help_text="Of the page about it.")
    at = models.DateTimeField(_("time"), default=timezone.now)
    read_at = models.DateTimeField(_("read"), null=True)
    mailed_at = models.DateTimeField(_("mailed"), null=True)

    class Meta:
        verbose_name = _("notice")
        verbose_name_plural = _("notices")
        ordering: ClassVar = ["-at", "-pk"]
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "kind", "ref"], name="told_once")]
        indexes: ClassVar = [models.Index(fields=["user", "read_at"], name="notices_by_reader")]

    def __str__(self) -> str:
        return f"{self.user} {self.kind} {self.ref}"


class Webhook(models.Model):
    """An address of a chat program to which notices for operators are posted. `url` is a secret."""

    class Style(models.TextChoices):
        SLACK = "slack", _("Slack, Mattermost, Rocket.Chat")
        TEAMS = "teams", _("Microsoft Teams")

    class Fault(models.TextChoices):
        TIMEOUT = "timeout", _("it did not answer in time")
        UNREACHABLE = "unreachable", _("it cannot be reached")
        REFUSED = "refused", _("it refused the message")
        REDIRECT = "redirect", _("it leads to another address, which is not followed")

    name = models.CharField(_("name"), max_length=60, unique=True, validators=[check_one_line])
    style = models.CharField(_("kind"), max_length=10, choices=Style, default=Style.TEAMS)
    url = models.CharField(_("address"), max_length=1000)
    language = models.CharField(_("language"), max_length=2, choices=LANGUAGES, default="ja")
    kinds = models.JSONField(_("notices"), default=list)
    is_active = models.BooleanField(_("active"), default=True)
    succeeded_at = models.DateTimeField(_("last success"), null=True, editable=False)
    failed_at = models.DateTimeField(_("last failure"), null=True, editable=False)
    fault = models.CharField(max_length=20, choices=Fault, blank=True, editable=False)
    status = models.PositiveSmallIntegerField(default=0, editable=False)  # of the answer; 0: none
    failures = models.PositiveIntegerField(default=0, editable=False)  # since the last success
    retry_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        verbose_name = _("webhook")
        verbose_name_plural = _("webhooks")
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class WebhookMessage(models.Model):
    """A notice that waits to be posted, or was."""

    webhook = models.ForeignKey(Webhook, models.CASCADE, related_name="messages")
    kind = models.CharField(max_length=40)
    ref = models.CharField(max_length=100)
    facts = models.JSONField(default=dict, encoder=DjangoJSONEncoder)
    path = models.CharField(max_length=300, blank=True)
    at = models.DateTimeField(db_index=True)
    delivered_at = models.DateTimeField(null=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["webhook", "kind", "ref"], name="posted_once_per_webhook")
        ]

    def __str__(self) -> str:
        return f"{self.webhook_id} {self.kind} {self.ref}"
