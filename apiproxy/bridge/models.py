"""Tables from which gateways learn that their catalogue is old, and in what."""

from django.db import models


class CatalogueRevision(models.Model):
    """One row. Receivers in `bridge.apps` add one to it in the transaction that changes what a catalogue holds."""

    number = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return str(self.number)


class CatalogueChange(models.Model):
    """What a revision changed, so that a gateway with 100,000 keys loads one of them. The oldest are deleted."""

    class Kind(models.TextChoices):
        KEY = "key"
        USER = "user"
        TENANT = "tenant"
        MODELS = "models"
        ALL = "all"

    revision = models.BigIntegerField(primary_key=True)
    kind = models.CharField(max_length=6, choices=Kind)
    object_id = models.BigIntegerField(
        help_text="Of the key, user or tenant; 0 for models and for all, which are always loaded together."
    )

    def __str__(self) -> str:
        return f"{self.revision}: {self.kind} {self.object_id}"


class ReportedMachine(models.Model):
    """A machine, and the version that runs there. What runs reports both again and again."""

    name = models.CharField(max_length=255, primary_key=True)
    version = models.CharField(max_length=60)
    reported_at = models.DateTimeField()  # by the database's clock

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"{self.name}: {self.version}"


class GatewayMachine(ReportedMachine):
    """A machine whose gateways answer."""


class ControllerMachine(ReportedMachine):
    """A machine with a controller, elected or not."""
