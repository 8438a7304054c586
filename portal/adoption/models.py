"""How people begin to use models, and whether they go on: a row for each person, made from what is recorded anyway."""

from datetime import date
from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

COMPANY = 0  # in place of a tenant's number


class AdoptionJourney(models.Model):
    """A person's first steps and active days in a tenant, or in the company as a whole.

    Written by `journeys.update_journeys` alone. No page shows rows, only counts of them (`summary`).
    """

    user = models.ForeignKey(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    scope = models.BigIntegerField(help_text="A tenant’s number, or 0 for the company.")
    arrived_on = models.DateField()
    signed_in_at = models.DateTimeField(null=True)  # first; of the company's row only
    key_on = models.DateField(null=True)  # the first key, also the playground's
    answered_on = models.DateField(null=True)
    channel = models.CharField(max_length=12, blank=True)  # of the first answer, one of `channels.CHANNELS`
    days = models.TextField(blank=True)  # a number in hexadecimal: bit n is set if day n after the arrival was active

    class Meta:
        verbose_name = _("first steps")
        verbose_name_plural = _("first steps")
        constraints: ClassVar = [models.UniqueConstraint(fields=["user", "scope"], name="one_journey_per_scope")]

    def __str__(self) -> str:
        return f"{self.scope} {self.arrived_on}"

    @property
    def active(self) -> int:
        """The days as a number."""
        return int(self.days, 16) if self.days else 0

    def is_active_between(self, first: date, end: date) -> bool:
        """Return whether any day from `first` to the day before `end` was active."""
        low, high = (first - self.arrived_on).days, (end - self.arrived_on).days
        return high > 0 and bool((self.active >> max(low, 0)) & ((1 << (high - max(low, 0))) - 1))


class AdoptionSummary(models.Model):
    """The counts of a scope as its page shows them: those that must not be shown are not in it."""

    scope = models.BigIntegerField(unique=True, help_text="A tenant’s number, or 0 for the company.")
    counts = models.JSONField(default=dict)
    as_of = models.DateField()  # a Monday: nothing from this day on is counted

    class Meta:
        verbose_name = _("spread of use")
        verbose_name_plural = _("spread of use")

    def __str__(self) -> str:
        return f"{self.scope} {self.as_of}"


class AdoptionRun(models.Model):
    """When the rows above were last made. One row."""

    updated_at = models.DateTimeField()
    rebuilt_at = models.DateTimeField(help_text="When all days were last read, not only the latest.")

    def __str__(self) -> str:
        return str(self.updated_at)


class AdoptionTip(models.Model):
    """The last tip that a person was sent."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, models.CASCADE, related_name="+")
    kind = models.CharField(max_length=40)
    at = models.DateTimeField()

    class Meta:
        verbose_name = _("tip")
        verbose_name_plural = _("tips")

    def __str__(self) -> str:
        return f"{self.user_id} {self.kind}"
