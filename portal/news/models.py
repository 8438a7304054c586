"""What operators announce, and who has closed it."""

from typing import ClassVar

from django.conf import settings
from django.core.validators import MaxValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from modelregistry.one_line import check_one_line
from portal.accounts.models import Tenant
from portal.web.markdown import MAX_LENGTH

MOST_DAYS_AHEAD = 30


class Announcement(models.Model):
    """News, or planned maintenance, for everyone or for the people of some tenants. The texts are Markdown.

    `begins_at` and `ends_at`: of what is announced; a banner shows it from `days_ahead` before until its end.
    """

    class Level(models.TextChoices):
        INFO = "info", _("news")
        MAINTENANCE = "maintenance", _("maintenance")

    level = models.CharField(_("kind"), max_length=12, choices=Level, default=Level.INFO)
    title_ja = models.CharField(_("title in Japanese"), max_length=120, blank=True, validators=[check_one_line])
    title_en = models.CharField(_("title in English"), max_length=120, blank=True, validators=[check_one_line])
    text_ja = models.TextField(_("text in Japanese"), blank=True, max_length=MAX_LENGTH)
    text_en = models.TextField(_("text in English"), blank=True, max_length=MAX_LENGTH)
    begins_at = models.DateTimeField(_("begins"))
    ends_at = models.DateTimeField(_("ends"), db_index=True)
    days_ahead = models.PositiveSmallIntegerField(
        _("announced days ahead"), default=0, validators=[MaxValueValidator(MOST_DAYS_AHEAD)]
    )
    shown_from = models.DateTimeField(editable=False)  # `days_ahead` before `begins_at`
    tenants = models.ManyToManyField(Tenant, blank=True, related_name="+", verbose_name=_("only for these tenants"))
    for_everyone = models.BooleanField(_("for everyone"), default=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name = _("announcement")
        verbose_name_plural = _("announcements")
        ordering: ClassVar = ["-begins_at", "-pk"]

    def __str__(self) -> str:
        return self.title_ja or self.title_en


class ClosedBanner(models.Model):
    """That a person closed the banner of an announcement."""

    announcement = models.ForeignKey(Announcement, models.CASCADE, related_name="closed")
    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["announcement", "user"], name="banner_closed_once")]

    def __str__(self) -> str:
        return f"{self.announcement_id} {self.user_id}"
