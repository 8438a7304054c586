"""What gateways report of their queues. Rows are written by `queue_reports` alone."""

from typing import ClassVar

from django.db import models


class QueueReport(models.Model):
    """Who waits in one worker, as it last reported. Without any content of calls."""

    worker = models.CharField(primary_key=True, max_length=120, help_text="Host and process.")
    at = models.DateTimeField(help_text="By the database's clock.")
    snapshot = models.JSONField(help_text="As apiproxy.dataplane.queue_snapshot.")

    def __str__(self) -> str:
        return f"{self.worker} {self.at}"


class FairnessMinute(models.Model):
    """What callers of a model and class were served in a minute in which calls waited in a worker."""

    worker = models.CharField(max_length=120)
    number = models.BigIntegerField(db_index=True, help_text="Unix minutes.")
    model = models.CharField(max_length=100)
    call_class = models.CharField(max_length=12)
    contended = models.PositiveSmallIntegerField(help_text="Seconds in which calls waited.")
    flows = models.JSONField(help_text="Of each caller: its name, seconds that it waited, weighted tokens.")

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["worker", "number", "model", "call_class"], name="one_fairness_minute_per_worker"
            )
        ]

    def __str__(self) -> str:
        return f"{self.worker} {self.number} {self.model} {self.call_class}"
