"""What was used (UsageRecord, and sums of it, written from the ledger) and how many calls were rejected."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from portal.accounts.models import Tenant
from portal.keys.models import ApiKey


class UsageRecord(models.Model):
    """One request that reached an engine. Rows are history: what they refer to may be deleted, so no constraints."""

    class Status(models.TextChoices):
        FINISHED = "finished", _("finished")
        LOOPED = "looped", _("in a word loop")
        ABORTED = "aborted", _("aborted by the client")
        INTERRUPTED = "interrupted", _("interrupted by a restart of the gateway")
        FAILED = "failed", _("failed in the engine")
        REFUSED = "refused", _("refused by the engine")

    request_id = models.CharField(max_length=40, unique=True)
    key = models.ForeignKey(ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, null=True, related_name="+", db_index=False
    )
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100)
    replica_id = models.BigIntegerField(null=True)
    endpoint = models.CharField(max_length=40)
    started_at = models.DateTimeField()
    first_token_ms = models.PositiveIntegerField(null=True)
    duration_ms = models.PositiveIntegerField()
    prompt_tokens = models.PositiveIntegerField(default=0)
    cached_tokens = models.PositiveIntegerField(default=0)
    completion_tokens = models.PositiveIntegerField(default=0)
    reasoning_tokens = models.PositiveIntegerField(default=0)
    status = models.CharField(max_length=12, choices=Status)
    estimated = models.BooleanField(default=False)
    end_user = models.CharField(max_length=64, blank=True)
    # Gateways of version 1.0 write rows without these.
    looped_tokens = models.PositiveIntegerField(default=0, db_default=0)  # of the completion, those that repeat others
    saved_tokens = models.PositiveIntegerField(default=0, db_default=0)  # that an ended answer could still have had
    temperature = models.PositiveSmallIntegerField(null=True)  # hundredths, as the engine got it; null: none

    class Meta:
        verbose_name = _("usage record")
        verbose_name_plural = _("usage records")
        indexes: ClassVar = [
            models.Index(fields=["tenant", "started_at"], name="usage_by_tenant"),
            models.Index(fields=["user", "started_at"], name="usage_by_user"),
            models.Index(fields=["key", "started_at"], name="usage_by_key"),
            models.Index(fields=["started_at"], name="usage_by_time"),
        ]

    def __str__(self) -> str:
        return self.request_id


class UsageSetAside(models.Model):
    """Usage that gateways of a host could not record. An operator resolves it there with `manage.py setaside`."""

    host = models.CharField(max_length=255, unique=True)
    lines = models.PositiveIntegerField()
    reported_at = models.DateTimeField(help_text="When this number of lines was first reported.")

    class Meta:
        verbose_name = _("usage set aside")
        verbose_name_plural = _("usage set aside")

    def __str__(self) -> str:
        return f"{self.host}: {self.lines}"


class Sums(models.Model):
    """The sums over a group of usage records.

    `generated_…` count only answers whose first token is known, so their quotient is the speed of generation.
    `ttft_bucket_…` are the histogram of the time to the first token; `rollups.TTFT_BOUNDS_MS` has its bounds.
    """

    requests = models.PositiveBigIntegerField(default=0)
    prompt_tokens = models.PositiveBigIntegerField(default=0)
    cached_tokens = models.PositiveBigIntegerField(default=0)
    completion_tokens = models.PositiveBigIntegerField(default=0)
    reasoning_tokens = models.PositiveBigIntegerField(default=0)
    estimated = models.PositiveBigIntegerField(default=0)
    aborted = models.PositiveBigIntegerField(default=0)
    interrupted = models.PositiveBigIntegerField(default=0)
    failed = models.PositiveBigIntegerField(default=0)
    refused = models.PositiveBigIntegerField(default=0)
    looped = models.PositiveBigIntegerField(default=0, db_default=0)
    looped_tokens = models.PositiveBigIntegerField(default=0, db_default=0)
    saved_tokens = models.PositiveBigIntegerField(default=0, db_default=0)
    generated_tokens = models.PositiveBigIntegerField(default=0)
    generated_ms = models.PositiveBigIntegerField(default=0)
    ttft_bucket_0 = models.PositiveIntegerField(default=0)
    ttft_bucket_1 = models.PositiveIntegerField(default=0)
    ttft_bucket_2 = models.PositiveIntegerField(default=0)
    ttft_bucket_3 = models.PositiveIntegerField(default=0)
    ttft_bucket_4 = models.PositiveIntegerField(default=0)
    ttft_bucket_5 = models.PositiveIntegerField(default=0)
    ttft_bucket_6 = models.PositiveIntegerField(default=0)
    ttft_bucket_7 = models.PositiveIntegerField(default=0)
    ttft_bucket_8 = models.PositiveIntegerField(default=0)
    ttft_bucket_9 = models.PositiveIntegerField(default=0)
    ttft_bucket_10 = models.PositiveIntegerField(default=0)
    ttft_bucket_11 = models.PositiveIntegerField(default=0)
    ttft_bucket_12 = models.PositiveIntegerField(default=0)
    ttft_bucket_13 = models.PositiveIntegerField(default=0)
    ttft_bucket_14 = models.PositiveIntegerField(default=0)
    ttft_bucket_15 = models.PositiveIntegerField(default=0)

    class Meta:
        abstract = True


class UsageDay(Sums):
    """A key's use of a model on a day of its tenant's calendar, by one of its end users ("": none was given)."""

    day = models.DateField()
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, null=True, related_name="+", db_index=False
    )
    key = models.ForeignKey(ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100)
    end_user = models.CharField(max_length=64, blank=True)

    class Meta:
        verbose_name = _("usage of a day")
        verbose_name_plural = _("usage by day")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key", "day", "model", "end_user"], name="one_sum_per_day"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["tenant", "day", "user"], name="usage_day_by_tenant"),
            models.Index(fields=["user", "day"], name="usage_day_by_user"),
            models.Index(fields=["day", "user"], name="usage_day_by_day"),
        ]

    def __str__(self) -> str:
        return f"{self.day} {self.key_id} {self.model}"


class UsageMonth(Sums):
    """The sum of the UsageDay rows of a month.

    Pages read the whole months of a long period from here: a twentieth of the rows.
    """

    month = models.DateField(help_text="Its first day.")
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, null=True, related_name="+", db_index=False
    )
    key = models.ForeignKey(ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100)
    end_user = models.CharField(max_length=64, blank=True)

    class Meta:
        verbose_name = _("usage of a month")
        verbose_name_plural = _("usage by month")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key", "month", "model", "end_user"], name="one_sum_per_month"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["tenant", "month", "user"], name="usage_month_by_tenant"),
            models.Index(fields=["user", "month"], name="usage_month_by_user"),
            models.Index(fields=["month", "user"], name="usage_month_by_month"),
        ]

    def __str__(self) -> str:
        return f"{self.month:%Y-%m} {self.key_id} {self.model}"


class UsageTenantDay(Sums):
    """A tenant's use of a model on a day of its calendar: the sum of its UsageDay rows, a hundredth as many."""

    day = models.DateField()
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100)

    class Meta:
        verbose_name = _("usage of a tenant’s day")
        verbose_name_plural = _("usage of tenants by day")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["tenant", "day", "model"], name="one_sum_per_tenant_and_day"),
        ]
        indexes: ClassVar = [models.Index(fields=["day"], name="usage_tenant_day_by_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.tenant_id} {self.model}"


class UsageHour(Sums):
    """A tenant's use of a model in an hour of UTC, or in a quarter of an hour if any zone needs it (see `hours`)."""

    hour = models.DateTimeField()
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100)

    class Meta:
        verbose_name = _("usage of an hour")
        verbose_name_plural = _("usage by hour")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["hour", "tenant", "model"], name="one_sum_per_hour"),
        ]
        indexes: ClassVar = [models.Index(fields=["tenant", "hour"], name="usage_hour_by_tenant")]

    def __str__(self) -> str:
        return f"{self.hour} {self.tenant_id} {self.model}"


class RejectionHour(models.Model):
    """How many calls of a key the gateway rejected in an hour (as in UsageHour) with an error `code`.

    `model`: the requested name if it is one of ours, else "". Rejected calls are not usage and have no records.
    """

    hour = models.DateTimeField()
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, null=True, related_name="+", db_index=False
    )
    key = models.ForeignKey(ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100, blank=True)
    code = models.CharField(max_length=40)
    requests = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = _("rejections of an hour")
        verbose_name_plural = _("rejections by hour")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key", "hour", "model", "code"], name="one_count_of_rejections"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["tenant", "hour"], name="rejections_by_tenant"),
            models.Index(fields=["user", "hour"], name="rejections_by_user"),
            models.Index(fields=["hour"], name="rejections_by_hour"),
        ]

    def __str__(self) -> str:
        return f"{self.hour} {self.key_id} {self.code}"


class LoopDay(models.Model):
    """Answers of a model on a day of the site's calendar: how many finished, and how many fell into word loops.

    By what matters for it: the quantisation of its files, the engine that answered and the temperature. "": not known,
    because the model or the replica was gone.
    """

    class Temperature(models.TextChoices):
        """Bands of temperature, as the engine got it."""

        NONE = "none", _("not given")
        ZERO = "0", "0"
        LOW = "0.3", _("up to 0.3")
        MIDDLE = "0.7", _("up to 0.7")
        HIGH = "1", _("up to 1")
        HIGHEST = "above", _("above 1")

    model = models.CharField(max_length=100)
    day = models.DateField()
    quantisation = models.CharField(max_length=60, blank=True)
    launcher = models.CharField(max_length=20, blank=True)
    version = models.CharField(max_length=60, blank=True)
    temperature = models.CharField(max_length=5, choices=Temperature)
    finished = models.PositiveBigIntegerField(default=0)
    looped = models.PositiveBigIntegerField(default=0)

    class Meta:
        verbose_name = _("word loops of a day")
        verbose_name_plural = _("word loops by day")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["model", "day", "quantisation", "launcher", "version", "temperature"], name="one_count_of_loops"
            ),
        ]
        indexes: ClassVar = [models.Index(fields=["day"], name="loop_day_by_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.model} {self.temperature}"
