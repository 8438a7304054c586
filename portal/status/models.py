"""When models did not answer. Only `recording` writes it."""

from typing import ClassVar

from django.db import models
from django.utils.translation import gettext_lazy as _

from modelregistry.models import ServedModel


class StatusInterval(models.Model):
    """A time in which a model did not answer, was not meant to, or in which nothing was watched (then without model).

    What is in no interval was available.
    """

    class Kind(models.TextChoices):
        DOWN = "down", _("did not answer")
        OFF = "off", _("not offered")
        UNWATCHED = "unwatched", _("not watched")

    class Notified(models.TextChoices):
        """What operators were notified of; see `notices`."""

        NOT = "", "nothing"
        DOWN = "down", "that it is down"
        UP = "up", "that it is over"

    model = models.ForeignKey(ServedModel, models.CASCADE, null=True, related_name="+", verbose_name=_("model"))
    kind = models.CharField(_("kind"), max_length=10, choices=Kind)
    reason = models.CharField(max_length=20, blank=True)  # a value of modelregistry.overview.ModelState
    began_at = models.DateTimeField(_("began"))
    ended_at = models.DateTimeField(_("ended"), null=True, db_index=True)

    notified = models.CharField(max_length=4, blank=True, default="", choices=Notified)

    class Meta:
        ordering: ClassVar = ["-began_at", "-pk"]
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["model"], condition=models.Q(ended_at=None), name="one_open_interval_per_model"
            )
        ]

    def __str__(self) -> str:
        return f"{self.model_id} {self.kind} {self.began_at}"


class StatusWatch(models.Model):
    """Since when models are watched, and when that was last confirmed. One row."""

    since = models.DateTimeField()
    last_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.since} - {self.last_at}"
