from argparse import ArgumentParser
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError

from modelregistry.models import Host, ServedModel

# Fields that can be given, by their option's name.
FIELDS = {
    "engine": "engine",
    "launcher": "launcher",
    "task": "task",
    "path": "path",
    "url": "url",
    "description_ja": "description_ja",
    "description_en": "description_en",
    "replicas": "replicas",
    "context": "context",
    "slots": "slots",
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
    help = "Registers a model to be served and prints its name."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="what clients call it")
        parser.add_argument("--engine", choices=ServedModel.Engine.values)
        parser.add_argument("--launcher", choices=[value for value in ServedModel.Launcher.values if value])
        parser.add_argument("--path", help="GGUF file (llama.cpp) or model directory (vllm)")
        parser.add_argument("--url", help="of an external engine, without /v1")
        parser.add_argument("--task", choices=ServedModel.Task.values)
        parser.add_argument("--description-ja")
        parser.add_argument("--description-en")
        parser.add_argument("--replicas", type=int)
        parser.add_argument("--context", type=int, help="tokens per request; default: the model's own")
        parser.add_argument("--slots", type=int, help="requests at a time")
        parser.add_argument("--idle-after", type=int, help="seconds without a request until it sleeps; default: never")
        parser.add_argument("--connect-timeout", type=float, help="seconds to reach an engine; default: the server's")
        parser.add_argument("--first-byte-timeout", type=float, help="seconds until an engine begins to answer")
        parser.add_argument("--idle-timeout", type=float, help="seconds between two pieces of an answer")
        parser.add_argument("--total-timeout", type=float, help="seconds that a call may take in all")
        parser.add_argument("--host", help="which host serves it; default: the first that can")
        parser.add_argument("--upstream-model", help="what an external engine calls it")
        parser.add_argument("--upstream-key", help="what an external engine wants to be shown")
        parser.add_argument("--arg", action="append", help="one more argument for the engine, as --arg=--dtype=half")
        parser.add_argument("--update", action="store_true", help="change the given settings of a registered model")

    def handle(self, *args: Any, **options: Any) -> str:
        model = self._model(options)
        for option, field in FIELDS.items():
            if options[option] is not None:
                setattr(model, field, options[option])
        if options["host"]:
            model.host = _host(options["host"])
        try:
            model.full_clean()
        except ValidationError as error:
            raise CommandError(_sentence(error)) from error
        model.save()
        return model.name

    def _model(self, options: dict[str, Any]) -> ServedModel:
        known = ServedModel.objects.filter(name=options["name"]).first()
        if options["update"]:
            if known is None:
                raise CommandError(f"There is no model {options['name']} to update.")
            return known
        if known:
            raise CommandError(f"There is a model {known.name} already; --update changes it.")
        if not options["engine"]:
            raise CommandError(f"Say --engine, one of: {', '.join(ServedModel.Engine.values)}.")
        return ServedModel(name=options["name"])


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
    return "\n".join(
        f"{options.get(field, field)}: {message}"
        for field, messages in error.message_dict.items()
        for message in messages
    )
