"""What the company wants served (written by operators) and what is running (written by supervisors).

Operators write Host, ServedModel and Alias, and request ModelCopy; gateways write WakeRequest and WakeCaller; pages
write LogSubscription. The site's controller writes everything else: of the site ControllerClaim, ReplicaPlacement,
ReplicaMove, ModelCopy and TaskRun, of each host HostReport, FileReport, Replica, LogTail, Measurement, EngineTrial and
EvictionRecord.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models, transaction
from django.utils import timezone
from django.utils.translation import get_language
from django.utils.translation import gettext_lazy as _

from modelregistry import addresses, validation
from modelregistry.awake_hours import LONGEST as LONGEST_HOURS
from modelregistry.awake_hours import AwakeHours, check_hours, parse_hours
from modelregistry.engines import arguments, parsers, programs
from modelregistry.engines.arguments import Options
from modelregistry.engines.base import Spec
from modelregistry.engines.registry import all_engines, engine_named
from modelregistry.failure_advice import ADVICE
from modelregistry.one_line import check_one_line
from modelregistry.reported_fields import MOST_STORED, ReportedCharField, ReportedJSONField, ReportedTextField
from modelregistry.sampling import check_sampling

if TYPE_CHECKING:
    from django_stubs_ext import StrOrPromise

# What a client writes in "model": no spaces, no quotes, may hold an organisation ("acme/llama-3.1-70b").
model_name = RegexValidator(
    r"^[A-Za-z0-9][A-Za-z0-9._:/-]*\Z",
    _("Use letters, digits and . _ : / - and begin with a letter or digit."),
)


# As the directories of installed engines are called: 0.32.0+cpu, 2026.10.11549.
engine_version = RegexValidator(
    r"^[0-9][A-Za-z0-9.+_-]*\Z", _("Give a version as installed, for example 0.32.0, or leave it empty.")
)


def seconds(value: float) -> None:
    """Validate a time-out: a tenth of a second to a day, as in the settings."""
    if not 0.1 <= value <= 86400:
        raise ValidationError(_("Give a time between 0.1 and 86400 seconds."), code="no-time-limit")


class TimeLimit(models.FloatField):  # type: ignore[type-arg]  # generic in its stubs only
    """A time-out in seconds; null: the default of the settings."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "null": True, "blank": True, "validators": [seconds]})


class ControllerClaim(models.Model):
    """Which process is the site's controller, in one row; see `controller.election`."""

    number = models.CharField(max_length=40, blank=True)
    term = models.PositiveBigIntegerField(default=0)
    holder = models.CharField(max_length=200, blank=True)
    seen_at = models.DateTimeField(null=True)
    since = models.DateTimeField(null=True)  # when it was elected
    # The holder of the term before, if that had not released its claim: it died, or was cut off. Empty again when
    # operators were notified.
    replaced = models.CharField(max_length=200, blank=True, default="", db_default="")
    moves = models.PositiveBigIntegerField(default=0, db_default=0)  # of replicas to another host, ever

    class Meta:
        verbose_name = _("claim of a controller")
        verbose_name_plural = _("claims of controllers")

    def __str__(self) -> str:
        return f"{self.term} {self.holder}"


class Host(models.Model):
    """A machine that runs engines. The controller creates the row, and writes `seen_at` while the machine answers.

    It writes `watched_at` as well while the machine is silent: it still looks whether its engines answer.
    """

    name = models.CharField(_("name"), max_length=100, unique=True, validators=[check_one_line])
    address = models.CharField(
        _("address"),
        max_length=100,
        default="127.0.0.1",
        validators=[addresses.validate],
        help_text=_("Where engines listen and gateways reach them: loopback, or the host's internal address."),
    )
    maintenance = models.BooleanField(
        _("maintenance"),
        default=False,
        help_text=_(
            "Its engines finish running requests and stop, and it takes no models. They start again when it ends."
        ),
    )
    seen_at = models.DateTimeField(_("supervisor last seen"), null=True, blank=True, editable=False)
    claim = models.CharField(max_length=40, blank=True, editable=False)  # of its supervisor, see `lease`
    holder = models.CharField(_("supervisor"), max_length=200, blank=True, editable=False)
    # Reached through the cluster. False: it is the controller's own machine, or was one.
    clustered = models.BooleanField(_("in the cluster"), default=False, db_default=False, editable=False)
    silent_since = models.DateTimeField(_("silent since"), null=True, blank=True, editable=False)
    watched_at = models.DateTimeField(null=True, blank=True, editable=False)
    agent = ReportedJSONField(null=True, editable=False)  # as `HostAgent.describe`, without times
    bookings = ReportedJSONField(null=True, editable=False)  # as `booker.HostBookings.stored`

    class Meta:
        verbose_name = _("host")
        verbose_name_plural = _("hosts")
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name


class HostReport(models.Model):
    """What a host's supervisor last saw of the machine itself. Sizes are in bytes."""

    host = models.OneToOneField(Host, models.CASCADE, primary_key=True, related_name="report")
    devices = ReportedJSONField(default=list)  # `gpus.Device`, each as an object
    strangers = ReportedJSONField(default=list)  # processes that hold memory of a device and are not ours
    engines = ReportedJSONField(default=dict)  # by launcher, the version that the host has
    installed = ReportedJSONField(
        default=dict
    )  # by launcher, the versions to which a model can be pinned, newest first
    stamps = ReportedJSONField(default=dict)  # by launcher and version, as in EngineTrial
    # By launcher, the version that a model gets which names none; "": a program that operators named.
    default_versions = ReportedJSONField(default=dict)
    problems = ReportedJSONField(default=list)  # {"code", "detail"}, for operators
    disks = ReportedJSONField(default=list, db_default=[])  # {"path", "total", "free"}, as `inspection.read_disks`
    at = models.DateTimeField(_("seen"))

    class Meta:
        verbose_name = _("state of a host")
        verbose_name_plural = _("states of hosts")

    def __str__(self) -> str:
        return f"{self.host_id} {self.at}"


def capability_list(value: object) -> None:
    """Refuse what is not a list of capabilities."""
    if not isinstance(value, list) or not all(one in ServedModel.Capability.values for one in value):
        sentence = _("Choose among: %(possible)s.")
        possible = ", ".join(ServedModel.Capability.values)
        raise ValidationError(sentence, code="not-capabilities", params={"possible": possible})


def engine_choices() -> list[tuple[str, "StrOrPromise"]]:
    """Return the engines that a model can be registered with."""
    return [(engine.name, _(engine.title)) for engine in all_engines()]


def launcher_choices() -> list[tuple[str, "StrOrPromise"]]:
    """Return the launchers of engines that have several."""
    several = [name for engine in all_engines() if len(engine.launchers()) > 1 for name in engine.launchers()]
    return [("", _("whichever the host has")), *((name, name) for name in several)]


class RegisteredChoice(models.CharField):  # type: ignore[type-arg]  # generic in its stubs only
    """One of what the registry of engines has.

    Choices never reach the database, so migrations keep those that they were written with (`in_migrations`): a new
    engine needs none.
    """

    def __init__(self, *args: Any, in_migrations: Sequence[tuple[str, str]] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.in_migrations = in_migrations

    def deconstruct(self) -> Any:
        name, _path, args, kwargs = super().deconstruct()
        if self.in_migrations:  # a field that migrations made has none
            kwargs["choices"] = list(self.in_migrations)
        return name, "django.db.models.CharField", args, kwargs


ENGINES_OF_0001 = (("vllm", "vLLM"), ("llama.cpp", "llama.cpp"), ("external", "external (a URL)"))
LAUNCHERS_OF_0001 = (
    ("", "whichever the host has"),
    *((name, name) for name in ("llama-server", "xllamacpp", "llama-cpp-python")),
)


class ServedModel(models.Model):
    """A model as operators want it served. Clients name it by `name` or by one of its aliases."""

    class Task(models.TextChoices):
        CHAT = "chat", _("chat")
        EMBEDDING = "embedding", _("embedding")
        RERANK = "rerank", _("rerank")
        TRANSCRIPTION = "transcription", _("transcription")

    class Loops(models.TextChoices):
        OFF = "off", _("not looked for")
        COUNT = "count", _("counted")
        STOP = "stop", _("the answer is ended")

    class LoopSensitivity(models.TextChoices):
        LOW = "low", _("low")
        NORMAL = "normal", _("normal")
        HIGH = "high", _("high")

    class Capability(models.TextChoices):
        """What a model can do beside its task."""

        VISION = "vision", _("reads images")
        TOOLS = "tools", _("calls tools")
        REASONING = "reasoning", _("thinks before it answers")
        JAPANESE = "japanese", _("made for Japanese")

    class SleepMode(models.TextChoices):
        STOP = "stop", _("it is stopped")
        LEVEL_1 = "level1", _("its engine lives on, its weights wait in RAM")
        LEVEL_2 = "level2", _("its engine lives on, its weights are read again")

    class Risk(models.TextChoices):
        """What a model's files and arguments may do only if an operator allows it by name."""

        PICKLE = "pickle", _("weights in Python’s pickle format, which can run any program when they are read")
        REMOTE_CODE = (
            "remote-code",
            _("program code that comes with the model (trust_remote_code), or that an argument names"),
        )
        OUTSIDE_ACCESS = (
            "outside-access",
            _("files of the host or places in the network that an argument opens to the engine or its users"),
        )

    name = models.CharField(_("name"), max_length=100, unique=True, validators=[model_name])
    description_ja = models.CharField(_("description in Japanese"), max_length=300, blank=True)
    description_en = models.CharField(_("description in English"), max_length=300, blank=True)
    declared_capabilities = models.JSONField(
        _("can also"),
        default=list,
        db_default=models.Value([], output_field=models.JSONField()),
        blank=True,
        validators=[capability_list],
        help_text=_('A list of "vision", "tools", "reasoning" and "japanese".'),
    )
    licence = models.CharField(
        _("licence"),
        max_length=100,
        blank=True,
        default="",
        db_default="",
        help_text=_("Empty: as the model's files say."),
    )
    engine = RegisteredChoice(_("engine"), max_length=20, choices=engine_choices, in_migrations=ENGINES_OF_0001)
    launcher = RegisteredChoice(
        _("launcher"),
        max_length=20,
        choices=launcher_choices,
        in_migrations=LAUNCHERS_OF_0001,
        blank=True,
        default="",
    )
    engine_version = models.CharField(
        _("engine version"),
        max_length=60,
        blank=True,
        validators=[engine_version],
        help_text=_("Empty: the newest one that has proven itself with this model."),
    )
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
        help_text=_(
            "Empty: the controller places it where its files are and it fits, and moves it when that host is lost. With"
            " a host: it runs only there."
        ),
    )
    replicas = models.PositiveSmallIntegerField(
        _("replicas"), default=1, validators=[MinValueValidator(1), MaxValueValidator(64)]
    )
    replicas_max = models.PositiveSmallIntegerField(
        _("replicas at most"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text=_(
            "While calls wait long, up to so many run where there is room for them, and fewer again when they are not "
            "needed. Empty: as many as above, always."
        ),
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
    gpus = models.JSONField(
        _("GPUs"),
        default=list,
        blank=True,
        help_text=_("A list of numbers, for example [0, 1]. Empty: where there is room."),
    )
    tensor_parallel = models.PositiveSmallIntegerField(
        _("split over GPUs"),
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text=_("How many GPUs one replica is spread over (tensor parallel)."),
    )
    nodes = models.PositiveSmallIntegerField(
        _("hosts per replica"),
        default=1,
        db_default=1,
        validators=[MinValueValidator(1), MaxValueValidator(16)],
        help_text=_(
            "Over how many hosts one replica is split, for a model that fits on none (vLLM only). Its GPUs are divided "
            "evenly among them, and it runs only while all of them do."
        ),
    )
    overcommit = models.BooleanField(
        _("start without enough memory"),
        default=False,
        help_text=_("Start it even if the plan says that it does not fit."),
    )
    allowed_risks = models.JSONField(
        _("allowed risks"),
        default=list,
        blank=True,
        help_text=_('A list of "pickle", "remote-code" and "outside-access".'),
    )
    idle_after = models.PositiveIntegerField(
        _("sleep after"),
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text=_("Seconds without a request. Empty: never."),
    )
    hours = models.CharField(
        _("kept awake"),
        max_length=LONGEST_HOURS,
        blank=True,
        default="",
        db_default="",
        validators=[check_hours],
        help_text=_(
            "Hours of the site, for example: Mon-Fri 08:00-20:00; Sat 09:00-12:00. It is loaded ten minutes before, "
            "and outside them it sleeps when nothing calls it. Empty: at all hours."
        ),
    )
    pinned = models.BooleanField(
        _("keeps its place"),
        default=False,
        db_default=False,
        help_text=_(
            "It is never unloaded to make room for another model. Without this, a model that callers wait for may take "
            "its place while others need it less; it is loaded again when it is called."
        ),
    )
    sleep_mode = models.CharField(
        _("when it sleeps"),
        max_length=6,
        choices=SleepMode,
        default=SleepMode.STOP,
        db_default=SleepMode.STOP,
        help_text=_(
            "Only a vLLM on GPUs can live on: it gives back its GPUs' memory and is awake again in seconds. Before it"
            " serves, it must answer a fixed question as it did at first; one that does not is started again."
        ),
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
    loops = models.CharField(
        _("word loops"),
        max_length=5,
        choices=Loops,
        default=Loops.COUNT,
        db_default=Loops.COUNT,
        help_text=_("What is done about an answer that repeats itself without end."),
    )
    loop_sensitivity = models.CharField(
        _("sensitivity to word loops"),
        max_length=6,
        choices=LoopSensitivity,
        default=LoopSensitivity.NORMAL,
        db_default=LoopSensitivity.NORMAL,
        help_text=_("How early a repetition counts as a loop."),
    )
    sampling = models.JSONField(
        _("sampling"),
        default=dict,
        db_default=models.Value({}, output_field=models.JSONField()),
        blank=True,
        help_text=_("By parameter, its default, least and most."),
    )
    args = models.JSONField(
        _("more arguments"), default=list, blank=True, help_text=_('A list, for example ["--dtype=half"].')
    )
    enabled = models.BooleanField(_("enabled"), default=True)
    retires_on = models.DateField(
        _("retires on"), null=True, blank=True, help_text=_("From this day on it is no longer served. Empty: never.")
    )
    generation = models.PositiveIntegerField(default=0, editable=False)  # of restarts that operators asked for
    created_at = models.DateTimeField(_("created"), auto_now_add=True)

    class Meta:
        verbose_name = _("model")
        verbose_name_plural = _("models")
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    @property
    def description(self) -> str:
        """The description in the language of the page, or in the other one if it has only that."""
        ja, en = self.description_ja, self.description_en
        return (ja or en) if (get_language() or "ja").startswith("ja") else (en or ja)

    @property
    def is_external(self) -> bool:
        """Whether its engine runs elsewhere."""
        return engine_named(self.engine).external

    @property
    def unplanned(self) -> list[str]:
        """The options among its arguments whose memory no plan counts."""
        return list(arguments.unplanned_options(validation.read_arguments(self.engine, self.launcher, self.args)))

    # What a model's files and engine are checked for. When none of it changes, they are not: a model whose files broke,
    # or whose arguments a newer engine refuses, can still be described, retired or stopped.
    CHECKED_FIELDS = (
        "engine",
        "launcher",
        "engine_version",
        "path",
        "host_id",
        "task",
        "context",
        "slots",
        "args",
        "allowed_risks",
        "tensor_parallel",
        "nodes",
    )

    def clean_fields(self, exclude: Any = None) -> None:
        super().clean_fields(exclude=exclude)
        if "sampling" not in (exclude or ()):
            try:
                check_sampling(self.sampling, engine_named(self.engine).sampling_members)
            except ValidationError as error:
                raise ValidationError({"sampling": error}) from error

    def clean(self) -> None:
        """Check what no field can alone: whether the engine has what it needs, and the files provide it.

        Files are read only for a model of this machine: other hosts' disks cannot be seen from here.
        """
        changed = self._needs_check()
        # Not within a transaction, which would keep all others from writing: see `load_parser_options`.
        may_run = not transaction.get_connection().in_atomic_block
        launcher, options = self._parser_options(may_run=may_run) if changed else ("", None)
        problems = validation.find_problems(
            self._registration(),
            look_at_path=self.is_on_this_host() and changed,
            look_at_args=changed,
            installed=self._versions() if self.engine_version and changed and self.is_on_this_host() else None,
            started_by=launcher,
            options=options,
        )
        taken = Alias.objects.filter(name=self.name).select_related("model").first()
        if taken:
            sentence = _("This name is an alias of %(model)s.")
            problems["name"] = ValidationError(sentence, code="name-of-an-alias", params={"model": taken.model})
        if self._state.adding and self.retires_on and self.retires_on <= timezone.localdate():
            sentence = _("This day is over or has begun: the model would never be served. Choose a later one.")
            problems["retires_on"] = ValidationError(sentence, code="retired-already")
        self._clean_hours(problems)
        if self.idle_after is not None and self.is_external:
            sentence = _("Madoguchi does not start or stop an external engine, so it does not sleep.")
            problems["idle_after"] = ValidationError(sentence, code="idle-of-an-external-engine")
        if self.replicas > 1 and self.is_external:
            sentence = _("Madoguchi does not start or stop an external engine, so it has no further replicas.")
            problems["replicas"] = ValidationError(sentence, code="replicas-of-an-external-engine")
        if self.pinned and self.is_external:
            sentence = _("Madoguchi does not start or stop an external engine, so it needs no place.")
            problems["pinned"] = ValidationError(sentence, code="pin-of-an-external-engine")
        self._clean_sleep(problems)
        self._clean_nodes(problems)
        self._clean_most_replicas(problems)
        if problems:
            raise ValidationError(problems)

    def _clean_hours(self, problems: dict[str, ValidationError]) -> None:
        """Write the hours as they are shown to everyone, whatever language or width they were typed in."""
        hours = self.awake_hours
        if hours is None:
            return
        if engine_named(self.engine).external:
            sentence = _("Madoguchi does not start or stop an external engine, so it has no hours.")
            problems["hours"] = ValidationError(sentence, code="hours-of-an-external-engine")
        self.hours = str(hours)

    def _clean_sleep(self, problems: dict[str, ValidationError]) -> None:
        """Refuse a sleep that its engine does not have, or after which it could not prove itself."""
        if self.sleep_mode == self.SleepMode.STOP:
            return
        engine = engine_named(self.engine).as_run_by(self.launcher)
        pinned = engine.program(Path(f"/engines/{engine.launcher}-{self.engine_version}/bin/python"))
        if self.sleep_mode not in engine.sleep_levels():
            sentence = _("Only vLLM can live on while it sleeps: a model of another engine is stopped.")
            problems["sleep_mode"] = ValidationError(sentence, code="sleep-unknown")
        elif self.task == self.Task.TRANSCRIPTION:
            sentence = _("A model that transcribes is stopped: no question would show whether it woke well.")
            problems["sleep_mode"] = ValidationError(sentence, code="sleep-no-sample")
        elif self.engine_version and (cause := engine.explain_no_sleep(pinned, self.engine_version)):
            problems["sleep_mode"] = ValidationError(ADVICE[cause], code=cause)

    @property
    def most_replicas(self) -> int:
        """How many replicas it may have, those included that run only while calls wait long."""
        return max(self.replicas, self.replicas_max or 0)

    def _clean_most_replicas(self, problems: dict[str, ValidationError]) -> None:
        """Refuse a number of replicas that grows where it cannot."""
        if self.replicas_max is None:
            return
        if self.replicas_max < self.replicas:
            sentence = _("At most this many is fewer than there always are.")
            problems["replicas_max"] = ValidationError(sentence, code="most-below-least")
        elif self.replicas_max > self.replicas and (self.is_external or (self.nodes or 1) > 1 or self.host_id):
            sentence = _(
                "Only the replicas of a model that Madoguchi places on any host, each on one, become more and fewer."
            )
            problems["replicas_max"] = ValidationError(sentence, code="most-not-placed")

    def _clean_nodes(self, problems: dict[str, ValidationError]) -> None:
        """Refuse what a model over several hosts cannot have."""
        if (self.nodes or 1) == 1:
            return
        if self.host_id is not None:
            sentence = _("A model over several hosts cannot be bound to one: leave the host empty.")
            problems["host"] = ValidationError(sentence, code="host-of-several")
        if self.sleep_mode != self.SleepMode.STOP:
            sentence = _("A model over several hosts is stopped when it sleeps.")
            problems["sleep_mode"] = ValidationError(sentence, code="sleep-over-hosts")

    def _registration(self) -> validation.Registration:
        return validation.Registration(
            engine=self.engine,
            launcher=self.launcher,
            engine_version=self.engine_version,
            task=self.task,
            path=self.path,
            url=self.url,
            args=self.args,
            context=self.context,
            slots=self.slots,
            gpus=self.gpus,
            tensor_parallel=self.tensor_parallel or 1,
            nodes=self.nodes or 1,
            allowed_risks=self.allowed_risks,
            connect_timeout=self.connect_timeout,
            first_byte_timeout=self.first_byte_timeout,
            idle_timeout=self.idle_timeout,
            total_timeout=self.total_timeout,
        )

    @property
    def args_checked(self) -> bool | None:
        """Whether the engine's own parser has checked its arguments; None: it has none. Reads a small file."""
        if not self.args or self.is_external:
            return None
        return self._parser_options(may_run=False)[1] is not None

    def load_parser_options(self) -> None:
        """Ask the engine's parser for its options, unless they are known: `clean` checks arguments by them.

        Blocks for up to two minutes, so call it before a transaction.
        """
        if self.args:
            self._parser_options(may_run=True)

    def _versions(self) -> list[str]:
        """Return the versions of its engine that are installed on this machine."""
        launcher = engine_named(self.engine).only_launcher or self.launcher
        return [one.version for one in programs.installed_versions(launcher, settings.CACHE)] if launcher else []

    def _parser_options(self, *, may_run: bool) -> tuple[str, Options | None]:
        """Return its launcher here and the options of that, as `parsers.options_of_host`; unknown for other hosts."""
        if self.is_external or not self.is_on_this_host():
            return self.launcher, None
        spec = Spec(
            engine=self.engine,
            name="",
            path=self.path,
            launcher=self.launcher,
            task=self.task,
            version=self.engine_version,
        )
        search_path = os.environ.get("PATH", os.defpath)
        return parsers.options_of_host(
            spec, settings.ENGINE_COMMANDS, settings.CACHE, search_path, asking=may_run and bool(self.args)
        )

    @property
    def awake_hours(self) -> AwakeHours | None:
        """The hours at which it is kept awake; None: all, also for a text that another version wrote."""
        try:
            return parse_hours(self.hours) if self.hours else None
        except ValidationError:
            return None

    @property
    def shown_hours(self) -> str:
        """The hours at which it is kept awake, in the language of the page; "": at all."""
        hours = self.awake_hours
        if hours is None:
            return ""
        return hours.in_japanese() if get_language() == "ja" else str(hours)

    def is_on_this_host(self) -> bool:
        """Return whether its files can be seen from here, as far as is known."""
        if self.host is not None:
            return self.host.name == settings.HOST_NAME
        return Path(self.path).exists() or not Host.objects.filter(clustered=True).exists()

    def _needs_check(self) -> bool:
        stored = ServedModel.objects.filter(pk=self.pk).values(*self.CHECKED_FIELDS).first() if self.pk else None
        return stored != {field: getattr(self, field) for field in self.CHECKED_FIELDS}


class Alias(models.Model):
    """Another name of a model ("default"), which can lead to another model later without clients noticing."""

    name = models.CharField(_("alias"), max_length=100, unique=True, validators=[model_name])
    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="aliases", verbose_name=_("model"))

    class Meta:
        verbose_name = _("alias")
        verbose_name_plural = _("aliases")
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if ServedModel.objects.filter(name=self.name).exists():
            taken = ValidationError(_("There is a model of this name."), code="name-of-a-model")
            raise ValidationError({"name": taken})


class FileReport(models.Model):
    """What the files of a model say, as its host's supervisor read them."""

    model = models.OneToOneField(ServedModel, models.CASCADE, primary_key=True, related_name="file_report")
    facts = ReportedJSONField(null=True)  # as `ModelMetadata.stored`
    fault = ReportedTextField(blank=True, most=MOST_STORED)  # why the files cannot be used, or ""
    # Changes when the files do (`file_watch.digest_of`). Supervisors of version 1.0 write rows without it.
    stamp = ReportedCharField(max_length=32, blank=True, default="", db_default="")
    at = models.DateTimeField()

    class Meta:
        verbose_name = _("file report of a model")
        verbose_name_plural = _("file reports of models")

    def __str__(self) -> str:
        return f"{self.model_id} {self.at}"


class Replica(models.Model):
    """One running (or wanted) engine of a model, as its host's supervisor sees it. Only the supervisor writes it."""

    class State(models.TextChoices):
        STARTING = "starting", _("starting")
        READY = "ready", _("ready")
        JOINED = "joined", _("part of a ready replica")  # a rank over several hosts that does not answer itself
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
    # Longer than our own engines need: an external engine's URL and key are here as well.
    url = ReportedCharField(_("URL"), max_length=500, blank=True)
    api_key = ReportedCharField(max_length=300, blank=True)
    launcher = ReportedCharField(_("started by"), max_length=20, blank=True)
    slots = models.PositiveSmallIntegerField(_("parallel requests"), null=True, blank=True)
    pid = models.PositiveIntegerField(_("process"), null=True, blank=True)
    run_id = ReportedCharField(max_length=40, blank=True)
    version = ReportedCharField(_("engine version"), max_length=60, blank=True)
    devices = ReportedJSONField(default=list)  # indices of `gpus.Device`; empty: RAM
    predicted = ReportedJSONField(null=True)  # as `memory.Prediction`
    memory_bytes = models.BigIntegerField(_("memory"), null=True, blank=True)
    # Bytes of RAM, also for an engine on GPUs, that the kernel can neither drop nor read again.
    memory_fixed = models.BigIntegerField(null=True, blank=True)
    memory_by_device = ReportedJSONField(default=dict)  # bytes by device index (as text), what all its processes hold
    # What it does now: {"at", "running", "waiting", "tokens_per_second", "cache_used"}, each null when not known.
    live = ReportedJSONField(null=True)
    restarts = models.PositiveIntegerField(_("restarts"), default=0)
    load_seconds = models.FloatField(null=True, blank=True)  # from its last start until it answered
    retry_at = models.DateTimeField(_("next try"), null=True, blank=True)
    detail = ReportedTextField(_("detail"), blank=True, most=MOST_STORED)
    # A code of `failure_advice`, if the cause of a failure is a known one.
    cause = ReportedCharField(max_length=40, blank=True)
    slept = models.CharField(max_length=6, blank=True, db_default="")  # the SleepMode in which its engine sleeps now
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


class EngineTrial(models.Model):
    """What a version of an engine did with a model on a host, when it was tried. Written by the host's supervisor."""

    class State(models.TextChoices):
        PROVEN = "proven", _("proven")
        FAILED = "failed", _("failed")

    host = models.ForeignKey(Host, models.CASCADE, related_name="trials", verbose_name=_("host"))
    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="trials", verbose_name=_("model"))
    launcher = ReportedCharField(_("started by"), max_length=20)
    version = ReportedCharField(_("engine version"), max_length=60)
    # Of the installation; a version that failed is tried again only with another stamp.
    stamp = ReportedCharField(max_length=60)
    state = models.CharField(_("state"), max_length=10, choices=State)
    answer = ReportedJSONField(null=True)  # to the fixed question, by which later versions are judged
    cause = ReportedCharField(max_length=40, blank=True)  # a code of `failure_advice`, or ""
    detail = ReportedTextField(_("detail"), blank=True, most=MOST_STORED)
    at = models.DateTimeField(_("time"))

    class Meta:
        verbose_name = _("trial of an engine version")
        verbose_name_plural = _("trials of engine versions")
        ordering: ClassVar = ["host__name", "launcher", "-at"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["host", "model", "launcher", "version"], name="one_trial_per_version")
        ]

    def __str__(self) -> str:
        return f"{self.model} {self.launcher} {self.version}: {self.state}"


class ReplicaPlacement(models.Model):
    """On which host a replica runs whose model has no host of its own. Written by the controller."""

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="placements", verbose_name=_("model"))
    number = models.PositiveSmallIntegerField(_("number"))
    host = models.ForeignKey(Host, models.CASCADE, related_name="placements", verbose_name=_("host"))
    # Where it ran before, and serves until it is ready on `host`.
    former = models.ForeignKey(Host, models.SET_NULL, null=True, related_name="+")
    at = models.DateTimeField(_("since"))

    class Meta:
        verbose_name = _("placement of a replica")
        verbose_name_plural = _("placements of replicas")
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "number"], name="one_placement_per_replica")]

    def __str__(self) -> str:
        return f"{self.model_id} #{self.number} on {self.host_id}"


class ReplicaMove(models.Model):
    """A replica was placed on another host than before, or became one more or one fewer.

    Written by the controller, which keeps the last ones.
    """

    class Cause(models.TextChoices):
        SILENT = "silent", _("its host was silent")
        MAINTENANCE = "maintenance", _("its host went into maintenance")
        NO_PLACE = "no-place", _("it could not run on its host")
        # Of a model whose replicas become more and fewer: one that was placed comes from no host, one that left goes to
        # none.
        BUSY = "busy", _("one more, as calls waited long")
        QUIET = "quiet", _("one fewer, as calls wait no longer")
        USELESS = "useless", _("one fewer, as it could not run there")

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="moves", verbose_name=_("model"))
    number = models.PositiveSmallIntegerField(_("number"))
    source = models.CharField(_("from"), max_length=100)  # names of hosts: one that is gone is often removed
    target = models.CharField(_("to"), max_length=100)
    cause = models.CharField(_("because"), max_length=12, choices=Cause)
    at = models.DateTimeField(_("time"))
    notified_at = models.DateTimeField(null=True)  # when operators were notified of it

    class Meta:
        verbose_name = _("move of a replica")
        verbose_name_plural = _("moves of replicas")
        ordering: ClassVar = ["-at", "-pk"]

    def __str__(self) -> str:
        return f"{self.model_id} #{self.number} {self.source} -> {self.target}"


class ReplicaShortage(models.Model):
    """A model's calls wait so long that it is to have one replica more, and there is no place for it now.

    Written by the controller, which deletes it when there is a place, or calls wait no longer.
    """

    class Cause(models.TextChoices):
        NO_HOST = "no-host", _("no host takes models now")
        NO_FILES = "no-files", _("no host that takes models has its files")
        NO_ROOM = "no-room", _("no host that has its files has room for it")
        USELESS = "useless", _("the last one could not run where it was placed")

    model = models.OneToOneField(
        ServedModel, models.CASCADE, primary_key=True, related_name="shortage", verbose_name=_("model")
    )
    wanted = models.PositiveSmallIntegerField()  # how many replicas it is to have
    since = models.DateTimeField(_("since"))
    cause = models.CharField(_("because"), max_length=12, choices=Cause)
    # With NO_ROOM: the host on which most is free, these bytes, and what the replica takes; None: not known.
    host = models.CharField(max_length=100, blank=True)
    free = models.BigIntegerField(null=True)
    need = models.BigIntegerField(null=True)

    class Meta:
        verbose_name = _("shortage of a model")
        verbose_name_plural = _("shortages of models")

    def __str__(self) -> str:
        return f"{self.model_id}: {self.wanted} wanted, {self.cause}"


class PlacementGap(models.Model):
    """Replicas that a model is to have, and for which the controller finds no host, or too few of them.

    Written by the controller when it has lasted for some seconds; deleted when all have places.
    """

    class Cause(models.TextChoices):
        NO_HOST = "no-host", _("too few hosts answer and are not in maintenance")
        NO_FILES = "no-files", _("too few hosts have its files")
        APART = "apart", _("the hosts that have its files do not reach each other at their addresses")

    model = models.OneToOneField(
        ServedModel, models.CASCADE, primary_key=True, related_name="gap", verbose_name=_("model")
    )
    replicas = models.PositiveSmallIntegerField()  # how many have no place
    hosts = models.PositiveSmallIntegerField()  # how many could take one, or a part of one, now
    since = models.DateTimeField(_("since"))
    cause = models.CharField(_("because"), max_length=12, choices=Cause)

    class Meta:
        verbose_name = _("replicas without a place")
        verbose_name_plural = _("replicas without a place")

    def __str__(self) -> str:
        return f"{self.model_id}: {self.replicas} without a place, {self.cause}"


class ModelCopy(models.Model):
    """Files of a model that are brought to a host. Requested by operators, carried out by the controller."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        RUNNING = "running", _("copying")
        DONE = "done", _("complete")
        FAILED = "failed", _("failed")
        STOPPING = "stopping", _("stopping")

    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="copies", verbose_name=_("model"))
    host = models.ForeignKey(Host, models.CASCADE, related_name="copies", verbose_name=_("host"))
    number = models.CharField(max_length=40)  # random, another one with each request
    # A host's name, or the absolute path of a folder that the host has as well; "": whichever host has the files.
    source = models.CharField(max_length=1000, blank=True)
    limit = models.PositiveBigIntegerField(default=0)  # bytes in a second; 0: as fast as it goes
    state = models.CharField(_("state"), max_length=10, choices=State, default=State.WAITING)
    done = models.BigIntegerField(default=0)  # bytes
    total = models.BigIntegerField(default=0)
    cause = ReportedCharField(max_length=40, blank=True)  # why it failed, or waits, as a code
    detail = ReportedTextField(_("detail"), blank=True, most=MOST_STORED)
    requested_at = models.DateTimeField(_("requested at"))
    changed_at = models.DateTimeField(_("since"), auto_now=True)

    class Meta:
        verbose_name = _("copy of a model’s files")
        verbose_name_plural = _("copies of models’ files")
        constraints: ClassVar = [models.UniqueConstraint(fields=["model", "host"], name="one_copy_per_host")]

    def __str__(self) -> str:
        return f"{self.model_id} to {self.host_id}: {self.state}"


class WakeRequest(models.Model):
    """Clients call a sleeping model. Written by gateways (coalesced), read and deleted by the supervisor.

    `at` is renewed every few seconds while calls wait.
    """

    model = models.OneToOneField(ServedModel, models.CASCADE, primary_key=True, related_name="wake_request")
    at = models.DateTimeField()
    since = models.DateTimeField(null=True)  # the first of these calls; gateways of version 1.0 leave it out
    calls = models.PositiveIntegerField(default=0, db_default=0)  # that wait at the gateway which wrote last
    interactive_at = models.DateTimeField(null=True)  # as `at`, by calls that are not of a batch

    class Meta:
        verbose_name = _("request to wake a model")
        verbose_name_plural = _("requests to wake models")

    def __str__(self) -> str:
        return f"{self.model_id} {self.at}"


class WakeCaller(models.Model):
    """For whose calls a model was loaded within the last minute, which bounds how many one caller has loaded.

    Written by gateways, who delete what is older. `at` is renewed with the request to wake the model.
    """

    scope = models.CharField(max_length=4)  # "user", "key"
    owner = models.BigIntegerField()  # the id of that
    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="+")
    at = models.DateTimeField(db_index=True)

    class Meta:
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "owner", "model"], name="wake_caller_counted_once")
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.owner}: {self.model_id} {self.at}"


class EvictionRecord(models.Model):
    """A replica was unloaded to make room for a model that callers waited for, and what that cost.

    Written by the host's supervisor, which keeps the last ones of its host.
    """

    host = models.ForeignKey(Host, models.CASCADE, related_name="evictions", verbose_name=_("host"))
    model = models.ForeignKey(ServedModel, models.CASCADE, related_name="evictions", verbose_name=_("unloaded"))
    index = models.PositiveSmallIntegerField(default=0)  # of the replica
    successor = models.ForeignKey(ServedModel, models.CASCADE, related_name="rooms_made", verbose_name=_("loaded"))
    at = models.DateTimeField(_("time"))
    waited_seconds = models.FloatField()  # how long calls had waited when it was decided
    drain_seconds = models.FloatField(null=True)  # until its running answers had finished; null: not over, or not known
    load_seconds = models.FloatField(null=True)  # from then until the other one answered
    calls = models.PositiveIntegerField(default=0)  # that waited for it, the most that were seen

    class Meta:
        verbose_name = _("eviction")
        verbose_name_plural = _("evictions")
        ordering: ClassVar = ["-at", "-pk"]

    def __str__(self) -> str:
        return f"{self.model_id} for {self.successor_id} {self.at}"


class LogSubscription(models.Model):
    """A page shows this replica's log until then. Written and renewed by pages, read by the supervisor."""

    replica = models.OneToOneField(Replica, models.CASCADE, primary_key=True, related_name="log_subscription")
    until = models.DateTimeField()

    class Meta:
        verbose_name = _("subscription to a log")
        verbose_name_plural = _("subscriptions to logs")

    def __str__(self) -> str:
        return f"{self.replica_id} {self.until}"


class LogTail(models.Model):
    """The last lines that a replica's engine wrote, kept up to date only while a page shows them (LogSubscription)."""

    replica = models.OneToOneField(Replica, models.CASCADE, primary_key=True, related_name="log_tail")
    text = ReportedTextField(blank=True)
    at = models.DateTimeField()

    class Meta:
        verbose_name = _("end of a log")
        verbose_name_plural = _("ends of logs")

    def __str__(self) -> str:
        return f"{self.replica_id} {self.at}"


class Measurement(models.Model):
    """What a replica that became ready was measured to take, beside what was predicted: corrects later predictions.

    One row for each fingerprint on a kind of device with an engine version; the latest measurement stays. Bytes.
    """

    fingerprint = ReportedCharField(max_length=64)  # of the model's files and of all that changes its memory
    launcher = ReportedCharField(max_length=20)
    version = ReportedCharField(max_length=60)
    device = ReportedCharField(max_length=100)  # a GPU's name, or "RAM"
    weights = models.BigIntegerField()
    cache = models.BigIntegerField()
    overhead = models.BigIntegerField()
    measured = models.BigIntegerField()
    at = models.DateTimeField()

    class Meta:
        verbose_name = _("measured memory")
        verbose_name_plural = _("measured memory")
        constraints: ClassVar = [
            models.UniqueConstraint(
                fields=["fingerprint", "launcher", "version", "device"], name="one_measurement_per_start"
            )
        ]

    def __str__(self) -> str:
        return f"{self.launcher} {self.version} {self.measured}"


class TaskRun(models.Model):
    """The last run of a periodic task (see `tasks`): the host that claims it runs it, others see that it is done."""

    name = models.CharField(max_length=60, primary_key=True)
    claimed_at = models.DateTimeField(null=True)
    claimed_by = models.CharField(max_length=100, blank=True)  # the name of the host
    ended_at = models.DateTimeField(null=True)
    succeeded = models.BooleanField(null=True)
    output = models.CharField(max_length=500, blank=True)  # its end

    def __str__(self) -> str:
        return self.name
