"""What the company wants served (ServedModel, written by operators) and what is running (Replica, by supervisors)."""

from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from modelregistry import registering

# What a client writes in "model": no spaces, no quotes, may hold an organisation ("acme/llama-3.1-70b").
model_name = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._:/-]*$",
    _("Use letters, digits and . _ : / - and begin with a letter or digit."),
)


def seconds(value: float) -> None:
    """A validator of time-outs: a tenth of a second to a day, as of the settings."""
    if not 0.1 <= value <= 86400:
        raise ValidationError(_("Give a time between 0.1 and 86400 seconds."))


class TimeLimit(models.FloatField):  # type: ignore[type-arg]  # generic in its stubs only
    """Seconds; null: the default of the settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "null": True, "blank": True, "validators": [seconds]})


class Host(models.Model):
    """A machine that runs engines. Its supervisor makes the row and writes `seen_at`."""

    name = models.CharField(_("name"), max_length=100, unique=True)
    address = models.CharField(
        _("address"),
        max_length=100,
        default="127.0.0.1",
        help_text=_("Where engines listen and gateways reach them: loopback, or the host's internal address."),
    )
    seen_at = models.DateTimeField(_("supervisor last seen"), null=True, blank=True, editable=False)

    class Meta:
        verbose_name = _("host")
        verbose_name_plural = _("hosts")
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class ServedModel(models.Model):
    """A model as operators want it served. Clients name it by `name`."""

    class Engine(models.TextChoices):
        VLLM = "vllm", "vLLM"
        LLAMA_CPP = "llama.cpp", "llama.cpp"
        EXTERNAL = "external", _("external (a URL)")

    class Launcher(models.TextChoices):
        AUTO = "", _("whichever the host has")
        LLAMA_SERVER = "llama-server", "llama-server"
        XLLAMACPP = "xllamacpp", "xllamacpp"
        LLAMA_CPP_PYTHON = "llama-cpp-python", "llama-cpp-python"

    class Task(models.TextChoices):
        CHAT = "chat", _("chat")
        EMBEDDING = "embedding", _("embedding")
        RERANK = "rerank", _("rerank")
        TRANSCRIPTION = "transcription", _("transcription")

    name = models.CharField(_("name"), max_length=100, unique=True, validators=[model_name])
    description = models.CharField(_("description"), max_length=300, blank=True)
    engine = models.CharField(_("engine"), max_length=20, choices=Engine)
    launcher = models.CharField(_("launcher"), max_length=20, choices=Launcher, blank=True, default=Launcher.AUTO)
    task = models.CharField(_("task"), max_length=20, choices=Task, default=Task.CHAT)
    path = models.CharField(_("path"), max_length=1000, blank=True, help_text=_("GGUF file or model directory."))
    url = models.CharField(
        _("URL"), max_length=500, blank=True, help_text=_("Of an external engine, up to but without /v1.")
    )
    upstream_key = models.CharField(_("key of the external engine"), max_length=300, blank=True)
    upstream_model = models.CharField(
        _("name at the engine"),
        max_length=200,
        blank=True,
        help_text=_("If the external engine knows it by another name."),
    )
    host = models.ForeignKey(
        Host,
        models.PROTECT,
        null=True,
        blank=True,
        related_name="models",
        verbose_name=_("host"),
        help_text=_("Empty: the host whose supervisor finds it first."),
    )
    replicas = models.PositiveSmallIntegerField(
        _("replicas"), default=1, validators=[MinValueValidator(1), MaxValueValidator(64)]
    )
    context = models.PositiveIntegerField(
        _("context per request"),
        null=True,
        blank=True,
        validators=[MinValueValidator(16)],
        help_text=_("Tokens. Empty: the model's own."),
    )
    slots = models.PositiveSmallIntegerField(
        _("parallel requests"), null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(1024)]
    )
    idle_after = models.PositiveIntegerField(
        _("sleep after"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Seconds without a request. Empty: never."),
    )
    connect_timeout = TimeLimit(_("time to connect"), help_text=_("Seconds to reach an engine. Empty: the server's."))
    first_byte_timeout = TimeLimit(
        _("time to the first byte"), help_text=_("Seconds until an engine begins to answer. Empty: the server's.")
    )
    idle_timeout = TimeLimit(
        _("time between bytes"), help_text=_("Seconds between two pieces of an answer. Empty: the server's.")
    )
    total_timeout = TimeLimit(
        _("time in all"), help_text=_("Seconds that a call may take from its beginning. Empty: the server's.")
    )
    args = models.JSONField(
        _("more arguments"), default=list, blank=True, help_text=_('A list, for example ["--dtype=half"].')
    )
    enabled = models.BooleanField(_("enabled"), default=True)
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("model")
        verbose_name_plural = _("models")
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        """What fields alone cannot tell: does the engine have what it needs, and is the file there?

        A path is looked at only for a model of this machine: other hosts' disks cannot be seen from here.
        """
        problems = registering.problems(
            engine=self.engine,
            launcher=self.launcher,
            task=self.task,
            path=self.path,
            url=self.url,
            args=self.args,
            connect_timeout=self.connect_timeout,
            first_byte_timeout=self.first_byte_timeout,
            idle_timeout=self.idle_timeout,
            total_timeout=self.total_timeout,
            look_at_path=self.host is None or self.host.name == settings.HOST_NAME,
        )
        if problems:
            raise ValidationError(problems)


class Replica(models.Model):
    """One running (or wanted) engine of a model, as its host's supervisor sees it. Nobody else writes here."""

    class State(models.TextChoices):
        STARTING = "starting", _("starting")
        READY = "ready", _("ready")
        UNHEALTHY = "unhealthy", _("not answering")
        DRAINING = "draining", _("draining")
        STOPPED = "stopped", _("stopped")
        ASLEEP = "asleep", _("asleep")
        BACKOFF = "backoff", _("waiting to restart")
        FAILED = "failed", _("failed")

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="replica_set", verbose_name=_("model"))
    host = models.ForeignKey(Host, models.CASCADE, related_name="replica_set", verbose_name=_("host"))
    index = models.PositiveSmallIntegerField(_("number"), default=0)
    state = models.CharField(_("state"), max_length=20, choices=State, default=State.STOPPED)
    # Longer than engines of our own need: an external engine's URL and key stand here as well.
    url = models.CharField(max_length=500, blank=True)
    api_key = models.CharField(max_length=300, blank=True)
    launcher = models.CharField(_("started by"), max_length=20, blank=True)
    slots = models.PositiveSmallIntegerField(_("parallel requests"), null=True, blank=True)
    pid = models.PositiveIntegerField(_("process"), null=True, blank=True)
    run_id = models.CharField(max_length=40, blank=True)
    memory_bytes = models.BigIntegerField(_("memory"), null=True, blank=True)
    restarts = models.PositiveIntegerField(_("restarts"), default=0)
    retry_at = models.DateTimeField(null=True, blank=True)
    detail = models.TextField(_("detail"), blank=True)
    changed_at = models.DateTimeField(_("since"), auto_now=True)

    class Meta:
        verbose_name = _("replica")
        verbose_name_plural = _("replicas")
        ordering: ClassVar = ["model__name", "host__name", "index"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["model", "host", "index"], name="one_replica_per_number")
        ]

    def __str__(self) -> str:
        return f"{self.model} #{self.index}"


class Wish(models.Model):
    """Somebody called a sleeping model. Written by gateways (coalesced), read and cleared by the supervisor."""

    model = models.OneToOneField(ServedModel, models.CASCADE, primary_key=True, related_name="wish")
    at = models.DateTimeField()

    class Meta:
        verbose_name = _("wish for a sleeping model")
        verbose_name_plural = _("wishes for sleeping models")

    def __str__(self) -> str:
        return f"{self.model_id} {self.at}"
