"""What was used (UsageRecord, and sums of it, written from the ledger) and how many calls were rejected."""

from typing import ClassVar

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

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

    class StoppedBy(models.TextChoices):
        """What ended a call (`apiproxy.dataplane.stops`)."""

        STOP = "stop", _("the model had finished")
        LENGTH = "length", _("the longest answer that was allowed")
        TOOL_CALLS = "tool_calls", _("a tool call")
        CONTENT_FILTER = "content_filter", _("a content filter")
        LOOP = "loop", _("a word loop")
        CLIENT = "client", _("the caller, who disconnected")
        DEADLINE = "deadline", _("the time limit")
        ENGINE_DIED = "engine_died", _("the engine, which stopped or died")
        ENGINE_ERROR = "engine_error", _("an error of the engine")
        ENGINE_BUSY = "engine_busy", _("the engine, which accepted no more")
        ENGINE_REFUSED = "engine_refused", _("the engine, which refused the request")
        CONTEXT = "context", _("the model’s context length")
        TOO_LARGE = "too_large", _("the size of the answer")
        SHUTDOWN = "shutdown", _("the gateway, which was being stopped")
        RESTART = "restart", _("a restart of the gateway")
        GATEWAY = "gateway", _("an error of the gateway")
        OTHER = "other", _("something else")

    request_id = models.CharField(_("request ID"), max_length=40, unique=True)
    key = models.ForeignKey(
        ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False, verbose_name=_("API key")
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        models.DO_NOTHING,
        db_constraint=False,
        null=True,
        related_name="+",
        db_index=False,
        verbose_name=_("user"),
    )
    tenant = models.ForeignKey(
        Tenant,
        models.DO_NOTHING,
        db_constraint=False,
        related_name="+",
        db_index=False,
        verbose_name=_("tenant"),
    )
    model = models.CharField(_("model"), max_length=100)
    replica_id = models.BigIntegerField(_("replica"), null=True)
    endpoint = models.CharField(_("endpoint"), max_length=40)
    started_at = models.DateTimeField(_("began"))
    first_token_ms = models.PositiveIntegerField(_("first token after (ms)"), null=True)
    duration_ms = models.PositiveIntegerField(_("duration (ms)"))
    prompt_tokens = models.PositiveIntegerField(_("tokens in"), default=0)
    cached_tokens = models.PositiveIntegerField(_("cached tokens in"), default=0)
    completion_tokens = models.PositiveIntegerField(_("tokens out"), default=0)
    reasoning_tokens = models.PositiveIntegerField(_("reasoning tokens"), default=0)
    status = models.CharField(_("result"), max_length=12, choices=Status)
    estimated = models.BooleanField(_("tokens estimated"), default=False)
    end_user = models.CharField(_("end user"), max_length=64, blank=True)
    # Gateways of version 1.0 write rows without these.
    # Of the completion those that repeat others, and those that an ended answer could still have had.
    looped_tokens = models.PositiveIntegerField(_("repeated tokens"), default=0, db_default=0)
    saved_tokens = models.PositiveIntegerField(_("tokens saved"), default=0, db_default=0)
    # As the engine got it; null: none.
    temperature = models.PositiveSmallIntegerField(_("temperature (hundredths)"), null=True)
    # Word loops were looked for to its end.
    watched = models.BooleanField(_("watched for word loops"), default=False, db_default=False)
    # The timeline: milliseconds before `started_at`, and how the call went. Null and "": not known, or older gateways.
    queued_ms = models.PositiveIntegerField(_("waited (ms)"), null=True)  # until it was its turn
    loading_ms = models.PositiveIntegerField(_("model loaded after (ms)"), null=True)  # until its model was loaded
    # From when its engine had it to the answer's first byte.
    prefill_ms = models.PositiveIntegerField(_("prompt read after (ms)"), null=True)
    retries = models.PositiveSmallIntegerField(_("further tries"), null=True)  # sent to another replica
    stopped_by = models.CharField(
        _("ended by"), max_length=16, blank=True, default="", db_default="", choices=StoppedBy
    )
    # What runs it, and its version.
    engine = models.CharField(_("engine"), max_length=80, blank=True, default="", db_default="")
    # A code of `client_classes`; "": not known, or of an older version.
    client_class = models.CharField(
        pgettext_lazy("of a call", "program"), max_length=12, blank=True, default="", db_default=""
    )

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


class UsageBacklog(models.Model):
    """Usage that has waited on the disk of a gateway's worker for long although the database answers.

    The worker reports it again and again while it lasts: what has an old `reported_at` is over.
    """

    worker = models.CharField(max_length=255, primary_key=True, help_text="Host and process.")
    size = models.PositiveBigIntegerField(help_text="Bytes.")
    since = models.DateTimeField()
    reported_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.worker}: {self.size}"


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
    `watched` are the answers that count for the rate of loops (see `loop_rates`).
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
    watched = models.PositiveBigIntegerField(default=0, db_default=0)
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


class UsageClientDay(models.Model):
    """How often a key was used on a day of its tenant's calendar with programs of a class (see `client_classes`)."""

    day = models.DateField()
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, null=True, related_name="+", db_index=False
    )
    key = models.ForeignKey(ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    client_class = models.CharField(max_length=12, blank=True)
    requests = models.PositiveBigIntegerField(default=0)
    answers = models.PositiveBigIntegerField(default=0, help_text="Of these, as far as they were answered to the end.")

    class Meta:
        verbose_name = _("programs of a day")
        verbose_name_plural = _("programs by day")
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["key", "day", "client_class"], name="one_count_of_a_class_per_day"),
        ]
        indexes: ClassVar = [models.Index(fields=["day", "user"], name="usage_client_day_by_day")]

    def __str__(self) -> str:
        return f"{self.day} {self.key_id} {self.client_class}"


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


class RefusedRequest(models.Model):
    """A call that the gateway refused: one of the last, some of each key and minute, so that people can look up why.

    What it asked for is not stored, but for the model. All refused calls are counted in RejectionHour.
    """

    request_id = models.CharField(max_length=40, unique=True)
    at = models.DateTimeField()
    key = models.ForeignKey(ApiKey, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, models.DO_NOTHING, db_constraint=False, null=True, related_name="+", db_index=False
    )
    tenant = models.ForeignKey(Tenant, models.DO_NOTHING, db_constraint=False, related_name="+", db_index=False)
    model = models.CharField(max_length=100, blank=True)
    endpoint = models.CharField(max_length=40, blank=True)
    code = models.CharField(max_length=40)
    reason = models.CharField(max_length=40)  # finer than the code
    scope = models.CharField(max_length=10, blank=True)  # of the limit that was reached
    window = models.CharField(max_length=10, blank=True)
    retry_after = models.PositiveIntegerField(null=True)  # seconds
    waited_ms = models.PositiveIntegerField(null=True)

    class Meta:
        verbose_name = _("refused request")
        verbose_name_plural = _("refused requests")
        indexes: ClassVar = [
            models.Index(fields=["at"], name="refused_by_time"),
            models.Index(fields=["user", "at"], name="refused_by_user"),
            models.Index(fields=["tenant", "at"], name="refused_by_tenant"),
        ]

    def __str__(self) -> str:
        return self.request_id


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
    failed = models.PositiveBigIntegerField(default=0, db_default=0)  # not looked at to their end, by a fault of ours

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
