"""Notices to people, in the portal and by mail."""

from typing import ClassVar

from django.conf import settings
from django.core.serializers.json import DjangoJSONEncoder
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


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
