"""What is known of the backups that were made, on whichever host."""

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _


class BackupRun(models.Model):
    """A run of `manage.py backup`. The last KEPT are kept."""

    KEPT = 100

    began_at = models.DateTimeField(_("began"))
    ended_at = models.DateTimeField(_("ended"))
    host = models.CharField(_("host"), max_length=100)
    path = models.CharField(_("directory"), max_length=500)
    size = models.PositiveBigIntegerField(_("size"), default=0)  # bytes
    encryption = models.CharField(_("encryption"), max_length=10, blank=True)
    error = models.CharField(_("error"), max_length=500, blank=True)  # empty: it succeeded

    class Meta:
        verbose_name = _("backup")
        verbose_name_plural = _("backups")
        ordering: ClassVar = ["-began_at", "-pk"]
        indexes: ClassVar = [models.Index(fields=["began_at"], name="backup_by_time")]

    def __str__(self) -> str:
        return f"{self.began_at:%Y-%m-%d %H:%M} {self.path}"
