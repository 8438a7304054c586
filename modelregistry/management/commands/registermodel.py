from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.translation import gettext

from modelregistry import sampling, validation
from modelregistry.engines.presets import PRESETS, Preset
from modelregistry.engines.registry import ENGINES
from modelregistry.files import model_files
from modelregistry.fit import HostFit, estimate
from modelregistry.management.commands.hosts import find_host
from modelregistry.memory.estimate import Prediction
from modelregistry.models import Alias, ServedModel, launcher_choices
from modelregistry.plain_numbers import decimal_number, read_whole, whole_number
from modelregistry.terminal import clean, clean_lines

NONE = "none"  # given for a value that is to be removed

# Fields that can be given, by their option's name.
FIELDS = {
    name: name
    for name in (
        *("engine", "launcher", "engine_version", "task", "path", "url", "description_ja", "description_en"),
        *("replicas", "replicas_max", "context", "slots", "overcommit", "tensor_parallel", "nodes", "idle_after"),
        "hours",
        *("connect_timeout", "first_byte_timeout", "idle_timeout", "total_timeout", "upstream_model", "upstream_key"),
        *("loops", "loop_sensitivity", "licence"),
    )
} | {"arg": "args", "pin": "pinned", "sleep": "sleep_mode"}

NULLABLE = ("context", "slots", "idle_after", "replicas_max")  # fields of numbers that may be removed

# Options that may be given several times, and their fields; NONE empties them.
LISTS = {"allow": "allowed_risks", "can": "declared_capabilities"}


class Command(BaseCommand):
    help = "Registers a model to be served and prints its name. --presets shows settings for some models."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", help="what clients call it")
        parser.add_argument("--presets", action="store_true", help="show the presets and register nothing")
        parser.add_argument("--preset", choices=sorted(PRESETS), help="start from the settings that this model needs")
        parser.add_argument("--engine", choices=list(ENGINES))
        parser.add_argument("--launcher", choices=[value for value, _ in launcher_choices() if value])
        parser.add_argument(
            "--engine-version", metavar="V", help="pin it to an installed version; '' = the newest proven one"
        )
        parser.add_argument("--path", help="GGUF file (llama.cpp) or model directory (vllm)")
        parser.add_argument("--url", help="of an external engine, without /v1")
        parser.add_argument("--task", choices=ServedModel.Task.values)
        parser.add_argument("--alias", action="append", help="one more name of it; `manage.py alias` moves one")
        parser.add_argument("--description-ja")
        parser.add_argument("--description-en")
        parser.add_argument("--retires-on", type=_parse_day, metavar="YYYY-MM-DD", help="not served from that day on")
        parser.add_argument("--replicas", type=whole_number)
        parser.add_argument(
            "--replicas-max",
            type=_parse_count,
            metavar="N",
            help=f"up to so many while calls wait long and there is room; default and {NONE}: no more than --replicas",
        )
        parser.add_argument(
            "--context", type=_parse_count, help=f"tokens per request; default and {NONE}: the model's own"
        )
        parser.add_argument("--slots", type=_parse_count, help=f"requests at a time; {NONE}: as the engine sets it")
        parser.add_argument("--gpus", type=_parse_numbers, metavar="0,1", help="GPUs; default: where there is room")
        parser.add_argument(
            "--tensor-parallel", type=whole_number, metavar="N", help="split one replica over so many GPUs"
        )
        parser.add_argument(
            "--nodes", type=whole_number, metavar="N", help="split one replica over so many hosts (vllm only)"
        )
        parser.add_argument("--overcommit", action=BooleanOptionalAction, help="start it even if it does not fit")
        parser.add_argument(
            "--allow", action="append", choices=[*ServedModel.Risk.values, NONE], help="a risk to allow"
        )
        parser.add_argument(
            "--idle-after",
            type=_parse_count,
            help=f"seconds without a request until it sleeps; default and {NONE}: never",
        )
        parser.add_argument(
            "--hours",
            metavar="'Mon-Fri 08:00-20:00'",
            help="keep it awake then, and let it sleep else; '' = at all hours",
        )
        parser.add_argument(
            "--pin",
            action=BooleanOptionalAction,
            help="never unload it to make room for another model that is called; default: it may give its place",
        )
        parser.add_argument(
            "--sleep",
            choices=ServedModel.SleepMode.values,
            help="what becomes of a vLLM that sleeps: it is stopped (default), or it lives on with its weights in RAM "
            "(level1) or reads them again (level2)",
        )
        for name, what in (
            ("connect", "to reach an engine; default: the server's"),
            ("first-byte", "until an engine begins to answer"),
            ("idle", "between two parts of an answer"),
            ("total", "that a request may take in all"),
        ):
            parser.add_argument(f"--{name}-timeout", type=decimal_number, help=f"seconds {what}")
        parser.add_argument(
            "--loops", choices=ServedModel.Loops.values, help="what is done about word loops; default: they are counted"
        )
        parser.add_argument("--licence", help="as the catalogue shows it; default: as the model's files say")
        parser.add_argument(
            "--can",
            action="append",
            choices=[*ServedModel.Capability.values, NONE],
            help="what it can do beside its task and its arguments do not show; for the catalogue and code samples",
        )
        parser.add_argument("--loop-sensitivity", choices=ServedModel.LoopSensitivity.values)
        parser.add_argument(
            "--sampling",
            action="append",
            type=_parse_sampling,
            metavar="P=DEFAULT:LEAST..MOST",
            help="a parameter where clients do not set it, and its bounds, as temperature=0.6:0.3..1, top_p=0.9 or "
            f"temperature=..1; P={NONE} removes it, {NONE} removes all",
        )
        parser.add_argument("--host", help="which host serves it; default: where its files are and it fits")
        parser.add_argument("--upstream-model", help="what an external engine calls it")
        parser.add_argument("--upstream-key", help="the key that an external engine requires")
        parser.add_argument("--arg", action="append", help="one more argument for the engine, as --arg=--dtype=half")
        parser.add_argument(
            "--dry-run", action="store_true", help="show what it would take and where it fits, and change nothing"
        )
        parser.add_argument("--update", action="store_true", help="change the given settings of a registered model")

    def handle(self, *args: Any, **options: Any) -> str:
        if options["presets"]:
            return "\n\n".join(map(_describe_preset, PRESETS.values()))
        if options["name"] is None:
            raise CommandError("Give the name by which clients will call it.")
        preset = PRESETS[options["preset"]] if options["preset"] else None
        # The engine's parser may take minutes: before the transaction, which keeps all others from writing.
        self._draft(options, preset).load_parser_options()
        with transaction.atomic():
            model = self._draft(options, preset)
            _validate(model, preset)
            if options["dry_run"]:
                return _describe_estimate(model)
            model.save()
            for name in options["alias"] or ():
                _add_alias(model, name)
        self._show_advice(model, preset)
        return model.name

    def _draft(self, options: dict[str, Any], preset: Preset | None) -> ServedModel:
        """Return the model, new or as stored, with the given settings. Raises CommandError."""
        model = self._find_or_create(options, preset)
        _set_fields(model, options, preset)
        return model

    def _show_advice(self, model: ServedModel, preset: Preset | None) -> None:
        if model.args_checked is False:
            self.stderr.write(gettext(validation.NOT_CHECKED))
        if preset:
            self.stderr.write(f"{gettext(preset.memory)}\n{gettext(preset.usage)}")

    def _find_or_create(self, options: dict[str, Any], preset: Preset | None) -> ServedModel:
        known = ServedModel.objects.filter(name=options["name"]).first()
        if options["update"]:
            if known is None:
                raise CommandError(f"There is no model {options['name']} to update.")
            return known
        if known:
            raise CommandError(f"There is a model {known.name} already; --update changes it.")
        if not options["engine"] and not preset:
            raise CommandError(f"Give --engine, one of: {', '.join(ENGINES)}; or a --preset.")
        return ServedModel(name=options["name"])


def _set_fields(model: ServedModel, options: dict[str, Any], preset: Preset | None) -> None:
    """Set the preset's values, and then those of the options."""
    given = {field: options[option] for option, field in FIELDS.items() if options[option] is not None}
    values = (preset.fields() if preset else {}) | given
    if preset and options["arg"]:
        values["args"] = [*preset.args, *options["arg"]]  # engines take the last one of two
    values |= {field: sorted(set(options[option]) - {NONE}) for option, field in LISTS.items() if options[option]}
    for field, value in values.items():
        setattr(model, field, None if value == NONE and field in NULLABLE else value)
    if options["host"]:
        model.host = find_host(options["host"])
    if options["gpus"] is not None:
        model.gpus = options["gpus"]
    if options["sampling"]:
        model.sampling = _apply_sampling(model.sampling, options["sampling"])
    if options["retires_on"]:
        model.retires_on = None if options["retires_on"] == NONE else options["retires_on"]


def _validate(model: ServedModel, preset: Preset | None) -> None:
    """Raise CommandError with a sentence for each option that cannot be right."""
    try:
        model.full_clean()
    except ValidationError as error:
        raise CommandError(_describe_problems(error)) from error
    if preset:
        _compare(model, preset)


def _compare(model: ServedModel, preset: Preset) -> None:
    """Raise CommandError if the files, where they can be seen, are of another kind of model."""
    if not model.is_on_this_host():
        return
    facts = model_files.read_model(model.engine, model.path, model.allowed_risks)
    if not preset.is_of(facts):
        raise CommandError(
            f"--preset: {preset.key} is for {preset.source} ({preset.architecture}); {model.path} holds "
            f"another model ({clean(facts.architecture)})."
        )


def _add_alias(model: ServedModel, name: str) -> None:
    """Give the model one more name. Raises CommandError for one that is taken."""
    taken = Alias.objects.filter(name=name).select_related("model").first()
    if taken and taken.model == model:
        return
    if taken:
        raise CommandError(
            f"--alias: {name} is an alias of {taken.model}; `manage.py alias {name} {model}` moves it here."
        )
    alias = Alias(name=name, model=model)
    try:
        alias.full_clean()
    except ValidationError as error:
        raise CommandError("\n".join(f"--alias: {message}" for message in error.messages)) from error
    alias.save()


def _parse_count(text: str) -> int | str:
    try:
        return NONE if text == NONE else read_whole(text)
    except ValueError as error:
        raise ArgumentTypeError(f"{error}, nor {NONE}") from None


def _parse_day(text: str) -> date | str:
    if text == NONE:
        return NONE
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a date like 2027-03-31, nor {NONE}") from None


def _parse_sampling(text: str) -> tuple[str, dict[str, float] | None]:
    return (NONE, None) if text == NONE else sampling.parse_option(text)


def _apply_sampling(stored: dict[str, Any], given: Iterable[tuple[str, dict[str, float] | None]]) -> dict[str, Any]:
    """Return the stored parameters with the given ones in their place."""
    result = dict(stored)
    for name, settings in given:
        if name == NONE:
            result.clear()
        elif settings is None:
            result.pop(name, None)
        else:
            result[name] = settings
    return result


def _parse_numbers(text: str) -> list[int]:
    try:
        return [] if text == NONE else [read_whole(number) for number in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list like 0,1, nor {NONE}") from None


def _describe_estimate(model: ServedModel) -> str:
    """Return what the model would take on each host, and whether there is room, as the page and the API answer."""
    found = estimate(model)
    if found is None:
        return "Its memory cannot be predicted: its files are on another host, or the engine runs elsewhere."
    lines = [_describe_fit(one) for one in found.hosts]
    if found.nodes > 1:
        lines.append(f"It needs {found.nodes} hosts at a time that can start such a part; now {found.fitting} can.")
    if not lines:
        lines = ["No host has reported its memory yet, so it is not known whether it fits."]
        lines += [f"  {_describe_memory(found.prediction)}"] if found.prediction else []
    if found.unplanned:
        note = gettext("Not planned: %(options)s. Its memory comes on top of the plan.")
        lines.append(note % {"options": ", ".join(found.unplanned)})
    return "\n".join(lines)


def _describe_fit(one: HostFit) -> str:
    where = f"GPU {', '.join(map(str, one.devices))}" if one.devices else "RAM"
    need = one.prediction
    parts = [f"{one.host}: fits on {where}" if one.fits else f"{one.host}: does not fit"]
    if need:
        parts.append(_describe_memory(need))
    return "\n".join([", ".join(parts), *(f"  {line}" for line in one.why_not.splitlines())])


def _describe_memory(need: Prediction) -> str:
    sizes = (need.weights, need.cache, need.overhead, need.total)
    text = "weights {:.1f} + cache {:.1f} + engine {:.1f} = {:.1f} GB".format(*(size / 1e9 for size in sizes))
    if need.devices > 1:
        text += f" on each of {need.devices} GPUs"
    if need.host:
        text += f", and {need.host / 1e9:.1f} GB of RAM"
    return text


def _describe_preset(preset: Preset) -> str:
    lines: Iterable[tuple[str, str]] = [
        ("for", preset.source),
        ("engine", " ".join([preset.engine, f"--context {preset.context}", f"--slots {preset.slots}", *preset.args])),
        ("path", gettext(preset.place)),
        ("memory", gettext(preset.memory)),
        ("use", gettext(preset.usage)),
    ]
    return "\n".join([preset.key, *(f"  {name:8}{text}" for name, text in lines)])


def _describe_problems(error: ValidationError) -> str:
    """Return `--context: Ensure that …`, each problem on a line of its own."""
    options = {field: "--" + option.replace("_", "-") for option, field in FIELDS.items()}
    options |= {"allowed_risks": "--allow", "gpus": "--gpus", "retires_on": "--retires-on", "sampling": "--sampling"}
    return "\n".join(
        f"{options.get(field, field)}: {clean_lines(message)}"
        for field, messages in error.message_dict.items()
        for message in messages
    )
