from argparse import ArgumentParser, ArgumentTypeError, BooleanOptionalAction
from collections.abc import Iterable
from datetime import date, datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.utils.translation import gettext

from modelregistry import validation
from modelregistry.engines.presets import PRESETS, Preset
from modelregistry.files import model_files
from modelregistry.fit import HostFit, estimate
from modelregistry.memory.estimate import Prediction
from modelregistry.models import Alias, Host, ServedModel
from modelregistry.terminal import clean, clean_lines

NONE = "none"  # said for a value that is to be taken away

# Fields that can be given, by their option's name.
FIELDS = {
    "engine": "engine",
    "launcher": "launcher",
    "engine_version": "engine_version",
    "task": "task",
    "path": "path",
    "url": "url",
    "description_ja": "description_ja",
    "description_en": "description_en",
    "replicas": "replicas",
    "context": "context",
    "slots": "slots",
    "overcommit": "overcommit",
    "tensor_parallel": "tensor_parallel",
    "idle_after": "idle_after",
    "connect_timeout": "connect_timeout",
    "first_byte_timeout": "first_byte_timeout",
    "idle_timeout": "idle_timeout",
    "total_timeout": "total_timeout",
    "upstream_model": "upstream_model",
    "upstream_key": "upstream_key",
    "arg": "args",
}


class Command(BaseCommand):
    help = "Registers a model to be served and prints its name. --presets shows what is known of some models."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", nargs="?", help="what clients call it")
        parser.add_argument("--presets", action="store_true", help="shows the presets and registers nothing")
        parser.add_argument("--preset", choices=sorted(PRESETS), help="begin with what this model needs")
        parser.add_argument("--engine", choices=ServedModel.Engine.values)
        parser.add_argument("--launcher", choices=[value for value in ServedModel.Launcher.values if value])
        parser.add_argument(
            "--engine-version", metavar="V", help="pins it to an installed version; '' = the newest proven one"
        )
        parser.add_argument("--path", help="GGUF file (llama.cpp) or model directory (vllm)")
        parser.add_argument("--url", help="of an external engine, without /v1")
        parser.add_argument("--task", choices=ServedModel.Task.values)
        parser.add_argument("--alias", action="append", help="one more name of it; `manage.py alias` moves one")
        parser.add_argument("--description-ja")
        parser.add_argument("--description-en")
        parser.add_argument("--retires-on", type=_day, metavar="YYYY-MM-DD", help="no longer served from that day on")
        parser.add_argument("--replicas", type=int)
        parser.add_argument("--context", type=int, help="tokens per request; default: the model's own")
        parser.add_argument("--slots", type=int, help="requests at a time")
        parser.add_argument("--gpus", type=_numbers, metavar="0,1", help="on which GPUs; default: where there is room")
        parser.add_argument("--tensor-parallel", type=int, metavar="N", help="spread one replica over so many GPUs")
        parser.add_argument("--overcommit", action=BooleanOptionalAction, help="start it even if it does not fit")
        parser.add_argument(
            "--allow", action="append", choices=[*ServedModel.Risk.values, NONE], help="a risk that is taken for it"
        )
        parser.add_argument("--idle-after", type=int, help="seconds without a request until it sleeps; default: never")
        parser.add_argument("--connect-timeout", type=float, help="seconds to reach an engine; default: the server's")
        parser.add_argument("--first-byte-timeout", type=float, help="seconds until an engine begins to answer")
        parser.add_argument("--idle-timeout", type=float, help="seconds between two pieces of an answer")
        parser.add_argument("--total-timeout", type=float, help="seconds that a call may take in all")
        parser.add_argument("--host", help="which host serves it; default: where its files are and it fits")
        parser.add_argument("--upstream-model", help="what an external engine calls it")
        parser.add_argument("--upstream-key", help="what an external engine wants to be shown")
        parser.add_argument("--arg", action="append", help="one more argument for the engine, as --arg=--dtype=half")
        parser.add_argument(
            "--dry-run", action="store_true", help="says what it would take and where it fits, and changes nothing"
        )
        parser.add_argument("--update", action="store_true", help="change the given settings of a registered model")

    def handle(self, *args: Any, **options: Any) -> str:
        if options["presets"]:
            return "\n\n".join(map(_shown, PRESETS.values()))
        if options["name"] is None:
            raise CommandError("Say the name by which clients will call it.")
        preset = PRESETS[options["preset"]] if options["preset"] else None
        draft = self._model(options, preset)
        _set(draft, options, preset)
        draft.load_parser_options()
        with transaction.atomic():
            model = self._model(options, preset)
            _set(model, options, preset)
            try:
                model.full_clean()
            except ValidationError as error:
                raise CommandError(_sentence(error)) from error
            if preset:
                _compare(model, preset)
            if options["dry_run"]:
                return _foreseen(model)
            model.save()
            for name in options["alias"] or ():
                _name(model, name)
        if model.args_checked is False:
            self.stderr.write(gettext(validation.NOT_CHECKED))
        if preset:
            self.stderr.write(f"{gettext(preset.memory)}\n{gettext(preset.usage)}")
        return model.name

    def _model(self, options: dict[str, Any], preset: Preset | None) -> ServedModel:
        known = ServedModel.objects.filter(name=options["name"]).first()
        if options["update"]:
            if known is None:
                raise CommandError(f"There is no model {options['name']} to update.")
            return known
        if known:
            raise CommandError(f"There is a model {known.name} already; --update changes it.")
        if not options["engine"] and not preset:
            raise CommandError(f"Say --engine, one of: {', '.join(ServedModel.Engine.values)}; or a --preset.")
        return ServedModel(name=options["name"])


def _set(model: ServedModel, options: dict[str, Any], preset: Preset | None) -> None:
    """The preset's values, and over them what was said."""
    given = {field: options[option] for option, field in FIELDS.items() if options[option] is not None}
    values = (preset.fields() if preset else {}) | given
    if preset and options["arg"]:
        values["args"] = [*preset.args, *options["arg"]]  # engines take the last one of two
    for field, value in values.items():
        setattr(model, field, value)
    if options["host"]:
        model.host = _host(options["host"])
    if options["gpus"] is not None:
        model.gpus = options["gpus"]
    if options["allow"]:
        model.allowed_risks = sorted(set(options["allow"]) - {NONE})
    if options["retires_on"]:
        model.retires_on = None if options["retires_on"] == NONE else options["retires_on"]


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


def _name(model: ServedModel, name: str) -> None:
    """One more name of it. Raises CommandError for one that is taken."""
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


def _day(text: str) -> date | str:
    if text == NONE:
        return NONE
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a date like 2027-03-31, nor {NONE}") from None


def _numbers(text: str) -> list[int]:
    try:
        return [] if text == NONE else [int(number) for number in text.split(",")]
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list like 0,1, nor {NONE}") from None


def _foreseen(model: ServedModel) -> str:
    """What it would take on each host, and whether there is room: as the page and the API answer."""
    found = estimate(model)
    if found is None:
        return "Nothing can be said: its files are on another host, or the engine runs elsewhere."
    lines = [_outlook(one) for one in found.hosts]
    if not lines:
        lines = ["No host has reported its memory yet, so nobody can say whether it fits."]
        lines += [f"  {_sum(found.prediction)}"] if found.prediction else []
    if found.unplanned:
        said = gettext("Not planned: %(options)s. Its memory comes on top of the plan.")
        lines.append(said % {"options": ", ".join(found.unplanned)})
    return "\n".join(lines)


def _outlook(one: HostFit) -> str:
    where = f"GPU {', '.join(map(str, one.devices))}" if one.devices else "RAM"
    need = one.prediction
    parts = [f"{one.host}: fits on {where}" if one.fits else f"{one.host}: does not fit"]
    if need:
        parts.append(_sum(need))
    return "\n".join([", ".join(parts), *(f"  {line}" for line in one.why_not.splitlines())])


def _sum(need: Prediction) -> str:
    sizes = (need.weights, need.cache, need.overhead, need.total)
    text = "weights {:.1f} + cache {:.1f} + engine {:.1f} = {:.1f} GB".format(*(size / 1e9 for size in sizes))
    if need.devices > 1:
        text += f" on each of {need.devices} GPUs"
    if need.host:
        text += f", and {need.host / 1e9:.1f} GB of RAM"
    return text


def _shown(preset: Preset) -> str:
    lines: Iterable[tuple[str, str]] = [
        ("for", preset.source),
        ("engine", " ".join([preset.engine, f"--context {preset.context}", f"--slots {preset.slots}", *preset.args])),
        ("path", gettext(preset.place)),
        ("memory", gettext(preset.memory)),
        ("use", gettext(preset.usage)),
    ]
    return "\n".join([preset.key, *(f"  {name:8}{text}" for name, text in lines)])


def _host(name: str) -> Host:
    try:
        return Host.objects.get(name=name)
    except Host.DoesNotExist:
        known = ", ".join(Host.objects.values_list("name", flat=True)) or "none yet"
        raise CommandError(
            f"There is no host {name} (known: {known}); its first `manage.py supervise` makes it known."
        ) from None


def _sentence(error: ValidationError) -> str:
    """`--context: Ensure that …`; several of them on a line each."""
    options = {field: "--" + option.replace("_", "-") for option, field in FIELDS.items()}
    options |= {"allowed_risks": "--allow", "gpus": "--gpus", "retires_on": "--retires-on"}
    return "\n".join(
        f"{options.get(field, field)}: {clean_lines(message)}"
        for field, messages in error.message_dict.items()
        for message in messages
    )
