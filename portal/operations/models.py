"""What gateways report of their queues (`queue_reports`), and troubles of hosts (the modules `*_notices`)."""

from typing import ClassVar

from django.db import models

from modelregistry.models import Host


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


class HostSilence(models.Model):
    """A time in which a host did not answer the controller, of which operators were notified.

    `ended_at`: since when it answers again; `over`: it has for long, so that the next silence is another one.
    """

    host = models.ForeignKey(Host, models.CASCADE, related_name="+")
    began_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    over = models.BooleanField(default=False)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["host"], condition=models.Q(over=False), name="one_silence_of_a_host_at_a_time"
            )
        ]

    def __str__(self) -> str:
        return f"{self.host_id} {self.began_at} - {self.ended_at}"


class BookingTrouble(models.Model):
    """Memory of a host that models need is booked in Ray by other work, or is not booked for them.

    `notified_at`: when operators were notified of it; `ended_at`: since when it is well again.
    """

    host = models.OneToOneField(Host, models.CASCADE, primary_key=True, related_name="+")
    began_at = models.DateTimeField()
    notified_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"{self.host_id} {self.began_at}"


class MachineTrouble(models.Model):
    """A full disk, a certificate that ends, faults of a GPU, or usage that waits: operators are notified once.

    `subject`: which one, as the facts of `machine_notices` name it. Times as in `BookingTrouble`. `notified_count`: of
    faults, how many there were when operators were last notified.
    """

    kind = models.CharField(max_length=30)
    subject = models.CharField(max_length=500)
    began_at = models.DateTimeField()
    notified_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    notified_count = models.PositiveIntegerField(default=0, db_default=0)

    class Meta:
        constraints: ClassVar = [models.UniqueConstraint(fields=["kind", "subject"], name="one_trouble_of_a_subject")]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject}"


class FigureBucket(models.Model):
    """What was measured in the `length` seconds from `began_at` on, see `figure_history`.

    Of each figure: how many measurements, their sum and the highest; none: it was not known.
    """

    length = models.PositiveSmallIntegerField(help_text="Seconds: 300 or 3600.")
    began_at = models.DateTimeField()

    class Meta:
        abstract = True


class DeviceBucket(FigureBucket):
    """Of a device of a host: in per cent, bytes, °C and watts."""

    host = models.CharField(max_length=100)
    device = models.SmallIntegerField(help_text="The index of a GPU; -1: the RAM.")
    utilisation_count = models.PositiveIntegerField(default=0)
    utilisation_sum = models.FloatField(default=0)
    utilisation_max = models.FloatField(default=0)
    memory_count = models.PositiveIntegerField(default=0)
    memory_sum = models.FloatField(default=0)
    memory_max = models.FloatField(default=0)
    temperature_count = models.PositiveIntegerField(default=0)
    temperature_sum = models.FloatField(default=0)
    temperature_max = models.FloatField(default=0)
    power_count = models.PositiveIntegerField(default=0)
    power_sum = models.FloatField(default=0)
    power_max = models.FloatField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["host", "length", "began_at", "device"], name="one_bucket_of_a_device_at_a_time"
            )
        ]
        indexes: ClassVar = [models.Index(fields=["length", "began_at"], name="device_bucket_by_age")]

    def __str__(self) -> str:
        return f"{self.host} {self.device} {self.began_at} {self.length}"


class ModelBucket(FigureBucket):
    """Of a model: replicas that are ready, calls that wait in gateways and engines, and tokens per second."""

    model = models.CharField(max_length=100)
    ready_count = models.PositiveIntegerField(default=0)
    ready_sum = models.FloatField(default=0)
    ready_max = models.FloatField(default=0)
    waiting_count = models.PositiveIntegerField(default=0)
    waiting_sum = models.FloatField(default=0)
    waiting_max = models.FloatField(default=0)
    speed_count = models.PositiveIntegerField(default=0)
    speed_sum = models.FloatField(default=0)
    speed_max = models.FloatField(default=0)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["model", "length", "began_at"], name="one_bucket_of_a_model_at_a_time")
        ]
        indexes: ClassVar = [models.Index(fields=["length", "began_at"], name="model_bucket_by_age")]

    def __str__(self) -> str:
        return f"{self.model} {self.began_at} {self.length}"
