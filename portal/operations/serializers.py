"""Serializers of the API. Those named `…Now` describe values of modelregistry.overview, which sockets send too."""

from typing import Any, ClassVar

from django.utils.translation import gettext as _
from rest_framework import serializers

from modelregistry.engines.registry import engine_named
from modelregistry.models import (
    EngineTrial,
    Host,
    PlacementGap,
    Replica,
    ReplicaMove,
    ReplicaShortage,
    ServedModel,
    engine_choices,
    launcher_choices,
)
from modelregistry.overview import HostReach, ModelState
from portal.accounts.models import DirectoryState, Tenant
from portal.canary.labels import FINDINGS
from portal.canary.models import CanaryRun as CanaryRunRow
from portal.usage.models import LoopDay as LoopDayRow
from portal.web.rest.strict_fields import CharField, ChoiceField, KnownFields, ModelSerializer


class EngineField(ChoiceField):
    """An engine of the registry."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(engine_choices(), **kwargs)


class LauncherField(ChoiceField):
    """A launcher of an engine that has several, or none."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(launcher_choices(), **kwargs)


# --- live state


class FirstToken(serializers.Serializer[Any]):
    requests = serializers.IntegerField()
    half = serializers.FloatField(help_text="Seconds within which half of the requests got it.")
    slow = serializers.FloatField(help_text="Seconds within which 95 in 100 got it.")


class ReplicaNow(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    model = CharField()
    host = CharField()
    number = serializers.IntegerField()
    state = serializers.ChoiceField(Replica.State.choices)
    supervised = serializers.BooleanField(help_text="Whether a controller looked at its host within the last minute.")
    moved_to = CharField(
        help_text="The host on which it was placed since; this one is a remainder and counts for nothing. Or empty."
    )
    since = serializers.DateTimeField()
    launcher = CharField()
    version = CharField(help_text="Of the engine.")
    devices = serializers.ListField(child=serializers.IntegerField(), help_text="Empty: RAM.")
    slots = serializers.IntegerField(allow_null=True)
    pid = serializers.IntegerField(allow_null=True)
    restarts = serializers.IntegerField()
    retry_at = serializers.DateTimeField(allow_null=True)
    cause = CharField(
        help_text="Code of the known cause of a failure, or of why it is stopped instead of put to sleep; or empty."
    )
    detail = CharField(help_text="What happened; after a failure with the engine's last lines.")
    memory = serializers.IntegerField(allow_null=True, help_text="Bytes, measured.")
    predicted = serializers.IntegerField(allow_null=True, help_text="Bytes, as planned.")
    ram = serializers.IntegerField(allow_null=True, help_text="Bytes of RAM that one on GPUs holds beside, measured.")
    slept = CharField(
        help_text="The level at which it sleeps, holding the memory that is shown: level1 (its weights are in RAM) or"
        " level2. Empty: it is awake, or nothing is left of it while it sleeps."
    )
    running = serializers.IntegerField(allow_null=True)
    waiting = serializers.IntegerField(allow_null=True)
    tokens_per_second = serializers.FloatField(allow_null=True)
    cache_used = serializers.FloatField(allow_null=True, help_text="0 to 1.")
    rank = serializers.IntegerField(help_text="Of a replica over several hosts; rank 0 answers for all of them.")
    ranks = serializers.IntegerField(help_text="How many hosts the replica is split over, with such a part on each.")
    booked_by_others = serializers.IntegerField(
        help_text="Bytes of its host's GPUs, or else of its RAM, that other work on the cluster has booked."
    )


class ReplicaDetail(ReplicaNow):
    advice = CharField(
        help_text="What to do about a failure, or that its cause is not known: see `detail`. Empty: there is none."
    )


class ShortageNow(serializers.Serializer[Any]):
    wanted = serializers.IntegerField(help_text="Replicas that there are to be.")
    since = serializers.DateTimeField()
    cause = serializers.ChoiceField(ReplicaShortage.Cause.choices)
    host = CharField(help_text="Of those with its files the one with most room; empty: there is none.")
    free = serializers.IntegerField(allow_null=True, help_text="Bytes that are free there.")
    need = serializers.IntegerField(allow_null=True, help_text="Bytes that the replica takes; null: not known.")


class GapNow(serializers.Serializer[Any]):
    replicas = serializers.IntegerField(help_text="How many have no place.")
    hosts = serializers.IntegerField(help_text="Hosts that could take one, or a part of one, now.")
    needed = serializers.IntegerField(help_text="Hosts that each replica takes.")
    since = serializers.DateTimeField()
    cause = serializers.ChoiceField(PlacementGap.Cause.choices)


class ModelNow(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    name = CharField()
    aliases = serializers.ListField(child=CharField())
    task = serializers.ChoiceField(ServedModel.Task.choices)
    engine = EngineField()
    host = CharField(allow_null=True, help_text="Its own, else the one on which all its replicas are.")
    bound = serializers.BooleanField(
        help_text="It has a host of its own and runs only there; if not, the controller places it."
    )
    enabled = serializers.BooleanField()
    retires_on = serializers.DateField(allow_null=True)
    generation = serializers.IntegerField()
    pinned = serializers.BooleanField(help_text="It is never unloaded to make room for another model.")
    state = serializers.ChoiceField(ModelState.choices)
    wanted = serializers.IntegerField(help_text="Replicas that there should be.")
    most = serializers.IntegerField(help_text="Replicas that there may be while calls wait long.")
    ready = serializers.IntegerField()
    running = serializers.IntegerField(allow_null=True)
    waiting = serializers.IntegerField(allow_null=True)
    tokens_per_second = serializers.FloatField(allow_null=True)
    memory = serializers.IntegerField(allow_null=True, help_text="Bytes, measured.")
    predicted = serializers.IntegerField(allow_null=True, help_text="Bytes, as planned.")
    first_token = FirstToken(allow_null=True, help_text="Of the last 15 minutes.")
    replicas = ReplicaNow(many=True)
    nodes = serializers.IntegerField(help_text="Hosts over which each replica is split, with a rank on each.")
    shortage = ShortageNow(allow_null=True, help_text="Why there is not one replica more although calls wait long.")
    gap = GapNow(allow_null=True, help_text="Why replicas that there should be have no place.")


class DeviceNow(serializers.Serializer[Any]):
    index = serializers.IntegerField(help_text="-1: RAM.")
    name = CharField()
    kind = serializers.ChoiceField([("gpu", "GPU"), ("ram", "RAM")])
    total = serializers.IntegerField(help_text="Bytes, like all that follow.")
    used = serializers.IntegerField()
    free = serializers.IntegerField()
    fault = CharField(help_text="Why the numbers are old; empty: they are current.")
    ours = serializers.IntegerField(help_text="Weights, cache and overhead, measured.")
    weights = serializers.IntegerField()
    cache = serializers.IntegerField()
    overhead = serializers.IntegerField()
    others = serializers.IntegerField()
    predicted = serializers.IntegerField(help_text="Sum of what was planned for it.")
    utilisation = serializers.IntegerField(allow_null=True, help_text="Per cent of the last second; null: not known.")
    temperature = serializers.IntegerField(allow_null=True, help_text="°C; null: not known.")


class AgentNow(serializers.Serializer[Any]):
    """The agent of a host in the cluster, as it last described itself. Empty: not known."""

    version = CharField(help_text="Of Madoguchi.")
    python = CharField()
    boot = CharField(help_text="The kernel's id of the time since the machine was started.")
    fenced = serializers.BooleanField(
        allow_null=True,
        help_text="Whether it has a fence, which stops its engines when it is cut off; null: not known.",
    )


class BookedNow(serializers.Serializer[Any]):
    """How many bytes of a memory of a host in the cluster are booked in Ray."""

    device = serializers.IntegerField(help_text="As the index of a device; -1: RAM.")
    offered = serializers.IntegerField(help_text="What Ray may book there.")
    booked = serializers.IntegerField(help_text="For replicas.")
    others = serializers.IntegerField(help_text="By other work on the cluster.")


class HostNow(serializers.Serializer[Any]):
    id = serializers.IntegerField()
    name = CharField()
    address = CharField()
    maintenance = serializers.BooleanField(help_text="Its engines stop, and it takes no models.")
    clustered = serializers.BooleanField(
        help_text="It is reached through the cluster; else directly, as its own machine."
    )
    reach = serializers.ChoiceField(
        HostReach.choices,
        help_text="`silent`: it does not answer the controller, its engines may; `unwatched`: none looks at it.",
    )
    silent_since = serializers.DateTimeField(allow_null=True, help_text="Null: it answers.")
    agent = AgentNow(allow_null=True)
    seen_at = serializers.DateTimeField(allow_null=True, help_text="When it answered last.")
    supervised = serializers.BooleanField(help_text="Whether a controller looked at it within the last minute.")
    reported_at = serializers.DateTimeField(allow_null=True)
    devices = DeviceNow(many=True)
    strangers = serializers.ListField(
        child=serializers.DictField(), help_text="Processes of others that hold memory of a device."
    )
    engines = serializers.DictField(child=CharField(), help_text="Version by launcher.")
    bookings = BookedNow(many=True, help_text="In Ray; of its GPUs, and then of its RAM.")
    problems = serializers.ListField(child=serializers.DictField())


class ControllerNow(serializers.Serializer[Any]):
    """The process that supervises all hosts and places replicas; one of a site, elected."""

    alive = serializers.BooleanField(help_text="Whether it was heard of within the last minute and has not left.")
    term = serializers.IntegerField(help_text="One more with each election.")
    holder = CharField(help_text="Its machine, process and state directory.")
    since = serializers.DateTimeField(allow_null=True)
    seen_at = serializers.DateTimeField(allow_null=True)
    moves = serializers.IntegerField(help_text="Replicas moved to another host, ever.")


class Overview(serializers.Serializer[Any]):
    at = serializers.DateTimeField()
    controller = ControllerNow(allow_null=True, help_text="Null: there has never been one.")
    hosts = HostNow(many=True)
    models = ModelNow(many=True)


# --- models


class Texts(serializers.ListField):
    child = CharField()


class AliasNames(Texts):
    def get_attribute(self, instance: ServedModel) -> list[str]:
        return [alias.name for alias in instance.aliases.all()]


class TenantSlugs(serializers.SlugRelatedField[Tenant]):
    def __init__(self, **options: Any) -> None:
        super().__init__(slug_field="slug", queryset=Tenant.objects.all(), **options)


class Aliases(KnownFields):
    aliases = Texts(help_text="All of them. One that pointed to another model points to this one from then on.")


class Visibility(KnownFields):
    tenants = TenantSlugs(many=True, help_text="Short names. Empty: all tenants may use it.")


class Restart(KnownFields):
    seen = serializers.IntegerField(
        required=False,
        min_value=0,
        help_text="The model's `generation` as you saw it: nothing happens if another operator has restarted it since.",
    )


class Trial(ModelSerializer[EngineTrial]):
    """What a version of an engine did with the model on a host: a failed one is not tried again until it changes."""

    host = serializers.SlugRelatedField(slug_field="name", read_only=True)  # type: ignore[var-annotated]

    class Meta:
        model = EngineTrial
        fields: ClassVar = ["host", "launcher", "version", "state", "cause", "detail", "at"]


class Model(KnownFields, ModelSerializer[ServedModel]):
    """A model as it is to be served; `now` is its live state. `upstream_key` is never shown."""

    host = serializers.SlugRelatedField(
        slug_field="name",
        queryset=Host.objects.all(),
        allow_null=True,
        required=False,
        help_text="Name. Null: any host that has its files and where it fits.",
    )
    args = Texts(required=False)
    gpus = serializers.ListField(child=serializers.IntegerField(min_value=0), required=False)
    allowed_risks = serializers.ListField(child=serializers.ChoiceField(ServedModel.Risk.choices), required=False)
    sampling = serializers.DictField(
        child=serializers.DictField(),
        required=False,
        help_text="By parameter: `default` where a request does not set it, `least` and `most` that it may set.",
    )
    aliases = AliasNames(required=False)
    tenants = TenantSlugs(many=True, required=False)
    trials = Trial(many=True, read_only=True)
    unplanned = serializers.ListField(
        child=CharField(), read_only=True, help_text="Options among `args` whose memory is not planned."
    )
    args_checked = serializers.BooleanField(
        read_only=True,
        allow_null=True,
        help_text="Whether the engine’s own parser took `args`; false: it cannot be asked here, null: there are none.",
    )
    now = ModelNow(read_only=True)

    class Meta:
        model = ServedModel
        fields: ClassVar = [
            *("id", "name", "aliases", "tenants", "description_ja", "description_en", "task", "enabled", "retires_on"),
            *("declared_capabilities", "licence"),
            *(
                "engine",
                "launcher",
                "engine_version",
                "path",
                "args",
                "allowed_risks",
                "url",
                "upstream_model",
                "upstream_key",
                "host",
            ),
            *("replicas", "replicas_max", "context", "slots", "gpus", "tensor_parallel", "nodes", "overcommit"),
            *("idle_after", "hours", "pinned"),
            *("sleep_mode", "connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout"),
            *("loops", "loop_sensitivity", "sampling"),
            *("unplanned", "args_checked", "trials", "generation", "created_at", "now"),
        ]
        read_only_fields: ClassVar = ["generation", "created_at"]
        extra_kwargs: ClassVar = {"upstream_key": {"write_only": True}}


class Reading(serializers.Serializer[Any]):
    """Facts from the model's files, as its host's supervisor read them."""

    facts = serializers.DictField(allow_null=True)
    fault = CharField(help_text="Why they cannot be used, or empty.")
    at = serializers.DateTimeField(allow_null=True, help_text="Null: not read yet.")


class PastMove(serializers.Serializer[Any]):
    """A replica that was placed on another host than before, or that became one more or one fewer."""

    at = serializers.DateTimeField()
    model = CharField()
    number = serializers.IntegerField(help_text="Of its replica.")
    source = CharField(help_text="Its host before; empty: it is one more.")  # type: ignore[assignment]
    target = CharField(help_text="Empty: it is one fewer.")
    cause = serializers.ChoiceField(ReplicaMove.Cause.choices)


class HistoryFilter(serializers.Serializer[Any]):
    period = serializers.ChoiceField(
        ["day", "month"], default="day", help_text="24 hours by five minutes, or 30 days by the hour."
    )


class MeasuredFigure(serializers.Serializer[Any]):
    """What was measured of something in some minutes."""

    mean = serializers.FloatField()
    highest = serializers.FloatField()


class PastOfDevice(serializers.Serializer[Any]):
    """What a device of a host did from `at` on. Figures that were not known are null."""

    at = serializers.DateTimeField()
    device = serializers.IntegerField(help_text="The index of a GPU; -1: the RAM.")
    utilisation = MeasuredFigure(allow_null=True, help_text="Per cent.")
    memory = MeasuredFigure(allow_null=True, help_text="Bytes in use.")
    temperature = MeasuredFigure(allow_null=True, help_text="°C.")
    power = MeasuredFigure(allow_null=True, help_text="Watts.")


class PastOfModel(serializers.Serializer[Any]):
    """What a model did from `at` on. Figures that were not known are null."""

    at = serializers.DateTimeField()
    ready = MeasuredFigure(allow_null=True, help_text="Replicas that were ready.")
    waiting = MeasuredFigure(allow_null=True, help_text="Calls that waited in gateways and engines.")
    speed = MeasuredFigure(allow_null=True, help_text="Tokens per second of its engines.")


class PastEviction(serializers.Serializer[Any]):
    """A replica that was unloaded to make room for a model that was called, and what that cost."""

    at = serializers.DateTimeField()
    host = CharField()
    model = CharField(help_text="Unloaded.")
    number = serializers.IntegerField(help_text="Of its replica.")
    successor = CharField(help_text="Loaded instead.")
    calls = serializers.IntegerField(help_text="That waited for it, the most that were seen at a time; 0: not known.")
    waited_seconds = serializers.FloatField(help_text="For which they had waited when it was decided.")
    drain_seconds = serializers.FloatField(allow_null=True, help_text="Until running answers were finished.")
    load_seconds = serializers.FloatField(allow_null=True, help_text="From then until the other one answered.")


class LoopRate(serializers.Serializer[Any]):
    """How many answers fell into word loops, and the interval in which the true share lies in 95 of 100 cases."""

    answers = serializers.IntegerField(help_text="Finished or looped.")
    looped = serializers.IntegerField()
    known = serializers.BooleanField(help_text="Whether there are enough answers to say anything: 20.")
    share = serializers.FloatField(allow_null=True, help_text="0 to 1; null: no answers.")
    low = serializers.FloatField()
    high = serializers.FloatField()


class LoopDay(LoopRate):
    day = serializers.DateField(help_text="Of the site's calendar.")
    quantisation = CharField()
    launcher = CharField(help_text="Empty: the replica was gone.")
    version = CharField()
    temperature = serializers.ChoiceField(LoopDayRow.Temperature.choices)


class SamplingChange(serializers.Serializer[Any]):
    """The last time that the model's sampling was set, within 30 days, and whether word loops are rarer since."""

    day = serializers.DateField()
    verdict = serializers.ChoiceField(["helped", "worse", "no difference", "unknown"])
    before = LoopRate(help_text="Of the days before.")
    after = LoopRate(help_text="Of the days after.")


class Loops(serializers.Serializer[Any]):
    raised = serializers.BooleanField(help_text="Whether `recent` is surely above `usual`.")
    recent = LoopRate(help_text="Of the last 24 hours.")
    usual = LoopRate(help_text="Of the 28 days before.")
    change = SamplingChange(allow_null=True)
    days = LoopDay(many=True, help_text="Only where there were any answers.")


class CanaryFinding(serializers.Serializer[Any]):
    code = serializers.ChoiceField(sorted(FINDINGS))
    prompts = serializers.ListField(child=CharField(), help_text="Names of the prompts whose answers show it.")


class CanaryRun(serializers.Serializer[Any]):
    """The fixed prompts put to one replica."""

    id = serializers.IntegerField()
    host = CharField()
    number = serializers.IntegerField(help_text="Of the replica on its host.")
    launcher = CharField(help_text="Empty: an external engine.")
    version = CharField(help_text="Of the engine.")
    reason = serializers.ChoiceField(CanaryRunRow.Reason.choices)
    began_at = serializers.DateTimeField()
    ended_at = serializers.DateTimeField(allow_null=True)
    verdict = serializers.ChoiceField(CanaryRunRow.Verdict.choices)
    obstacle = serializers.ChoiceField(
        [*CanaryRunRow.Obstacle.choices, ("", "")], help_text="Why it was not done; else empty."
    )
    findings = CanaryFinding(many=True)
    changed = serializers.IntegerField(help_text="Answers that differ from the reference.")
    tokens_per_second = serializers.FloatField(allow_null=True)
    usual_tokens_per_second = serializers.FloatField(allow_null=True, help_text="Null: too few healthy runs before.")
    is_reference = serializers.BooleanField()


class Canary(serializers.Serializer[Any]):
    failing = serializers.BooleanField(help_text="Whether the last run of any replica failed.")
    requested = serializers.BooleanField(source="is_requested", help_text="Whether a run was requested and is to come.")
    runs = CanaryRun(many=True, help_text="The last ten, newest first.")


class Plan(KnownFields):
    """A model whose memory is to be predicted before it is registered."""

    engine = EngineField()
    launcher = LauncherField(required=False, default="")
    path = CharField()
    task = serializers.ChoiceField(ServedModel.Task.choices, required=False, default="chat")
    context = serializers.IntegerField(  # type: ignore[assignment]
        required=False, allow_null=True, default=None, min_value=16
    )
    slots = serializers.IntegerField(required=False, allow_null=True, default=None, min_value=1, max_value=1024)
    gpus = serializers.ListField(child=serializers.IntegerField(min_value=0), required=False, default=list)
    tensor_parallel = serializers.IntegerField(required=False, default=1, min_value=1, max_value=64)
    nodes = serializers.IntegerField(required=False, default=1, min_value=1, max_value=16)
    args = Texts(required=False, default=list)
    allowed_risks = serializers.ListField(
        child=serializers.ChoiceField(ServedModel.Risk.choices), required=False, default=list
    )

    host = serializers.SlugRelatedField(
        slug_field="name",
        queryset=Host.objects.select_related("report"),
        required=False,
        allow_null=True,
        default=None,
        help_text="Null: all that have reported.",
    )

    def validate_engine(self, engine: str) -> str:
        if engine_named(engine).external:
            raise serializers.ValidationError(_("An external engine takes no memory here."))
        return engine


class Prediction(serializers.Serializer[Any]):
    """Bytes on each of `devices` devices."""

    weights = serializers.IntegerField()
    cache = serializers.IntegerField()
    cache_least = serializers.IntegerField(help_text="The least with which the engine works.")
    overhead = serializers.IntegerField()
    total = serializers.IntegerField()
    rule_of_thumb = serializers.IntegerField(help_text="1.5 times the weights.")
    devices = serializers.IntegerField()
    context = serializers.IntegerField()  # type: ignore[assignment]
    sequences = serializers.IntegerField()
    batch = serializers.IntegerField(help_text="Tokens that vLLM computes at a time; 0: another engine.")
    parallel = serializers.IntegerField(help_text="Requests that vLLM works on at a time; 0: another engine.")
    host = serializers.IntegerField(help_text="Of a model on GPUs: bytes of the host's RAM beside them.")
    read = serializers.IntegerField(help_text="Bytes of files that pass through RAM while it loads.")
    droppable = serializers.IntegerField(help_text="Part of the total that the system can take back.")
    open = serializers.BooleanField(help_text="The size of its cache is not known: it gets the memory that is left.")
    basis = serializers.ChoiceField(["formula", "corrected", "measured"])


class Outlook(serializers.Serializer[Any]):
    host = CharField()
    fits = serializers.BooleanField(help_text="It could start there now.")
    room = serializers.BooleanField(help_text="There is memory for it, even if something else is missing.")
    launcher = CharField(help_text="Empty: the host has no engine for it.")
    devices = serializers.ListField(child=serializers.IntegerField(), help_text="Empty: RAM.")
    prediction = Prediction(allow_null=True, help_text="Corrected by what was measured.")
    why_not = CharField()
    to_go = serializers.ListField(
        child=CharField(),
        help_text="The fewest replicas without which it would fit; empty: a few are not enough.",
    )


class PredictionResult(serializers.Serializer[Any]):
    facts = serializers.DictField()
    prediction = Prediction(
        allow_null=True,
        help_text="On the first of `hosts`; by the formulas alone, in RAM, if none has reported; null: not"
        " known (`facts.missing`).",
    )
    hosts = Outlook(many=True)
    unplanned = serializers.ListField(child=CharField(), help_text="Options whose memory the predictions do not count.")


class Preset(serializers.Serializer[Any]):
    """A registration to begin with."""

    key = CharField()
    source = CharField(  # type: ignore[assignment]
        help_text="Where it is published."
    )
    engine = EngineField()
    task = serializers.ChoiceField(ServedModel.Task.choices)
    context = serializers.IntegerField()  # type: ignore[assignment]
    slots = serializers.IntegerField()
    args = Texts()
    description_ja = CharField()
    description_en = CharField()
    place = CharField(help_text="What has to be at the path.")
    memory = CharField()
    usage = CharField()


# --- replicas


class LogTail(serializers.Serializer[Any]):
    """The end of a log. A request makes the replica's host keep it up to date for 15 seconds."""

    text = CharField()
    at = serializers.DateTimeField(allow_null=True, help_text="Null: not read yet; ask again in a second.")


# --- the company directory


class SyncOutcome(serializers.Serializer[Any]):
    """How many people the last successful synchronisation changed."""

    people = serializers.IntegerField()
    left = serializers.IntegerField()
    returned = serializers.IntegerField()
    changed = serializers.IntegerField()
    name_taken = serializers.ListField(
        child=CharField(), help_text="Not changed, because a local account has the name."
    )
    unclear = serializers.ListField(
        child=CharField(), default=list, help_text="Not changed, because their entries have no usable name or id."
    )
    kept_operator = CharField(default="", help_text="No longer in the operators' group, but kept as the last operator.")
    missing_groups = serializers.ListField(
        child=CharField(), default=list, help_text="Not found; what depends on them was left unchanged."
    )
    moved_groups = serializers.ListField(
        child=serializers.ListField(child=CharField()),
        default=list,
        help_text="The name in the settings, and where the group is now.",
    )


class Directory(serializers.Serializer[Any]):
    """The synchronisation with the company directory."""

    configured = serializers.BooleanField()
    overdue = serializers.BooleanField(help_text="It should be synchronised every hour, and has not been recently.")
    tried_at = serializers.DateTimeField(allow_null=True, help_text="Null: never.")
    succeeded_at = serializers.DateTimeField(allow_null=True)
    problem = serializers.ChoiceField(DirectoryState.Problem.choices, allow_blank=True)
    detail = CharField()
    outcome = SyncOutcome(allow_null=True)
    active = serializers.IntegerField(help_text="People from the directory who have an account here.")
    inactive = serializers.IntegerField(help_text="Those who left it.")


class SyncRequest(KnownFields):
    force = serializers.BooleanField(
        required=False, default=False, help_text="Even if most people would lose their access."
    )


# --- filters of lists


class ModelFilter(serializers.Serializer[Any]):
    name = CharField(required=False, help_text="Or an alias.")
    state = serializers.ChoiceField(ModelState.choices, required=False)
    host = CharField(required=False)
    task = serializers.ChoiceField(ServedModel.Task.choices, required=False)


class ReplicaFilter(serializers.Serializer[Any]):
    model = CharField(required=False)
    state = serializers.ChoiceField(Replica.State.choices, required=False)
    host = CharField(required=False)


class HostChange(KnownFields):
    address = CharField(
        required=False,
        max_length=100,
        help_text="Where its engines listen; they move to a new one.",
    )
    maintenance = serializers.BooleanField(
        required=False, help_text="Its engines finish running requests and stop, and it takes no models."
    )


class HostFilter(serializers.Serializer[Any]):
    supervised = serializers.BooleanField(required=False, allow_null=True, default=None)
