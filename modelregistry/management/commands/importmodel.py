import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry import fit, validation
from modelregistry.files import model_files
from modelregistry.files.metadata import ModelMetadata, UnreadableModel
from modelregistry.install import model_import
from modelregistry.install.model_import import CannotImport, Found, Progress
from modelregistry.models import Host, ServedModel
from modelregistry.terminal import format_table

HEAD = ["PATH", "ENGINE", "WHAT", "SIZE", "WHOLE", "FITS HERE"]
TELL_EVERY = 5.0  # seconds between two lines of progress


class Command(BaseCommand):
    help = (
        "Lists the models in a folder: what each is, whether it is whole and whether it would fit on this host. Given "
        "one of them, copies it into this host's models folder, goes on where an earlier try was broken off, compares "
        "checksums, and prints the path to register."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", type=Path, help="a model directory, a GGUF file, or a folder of such")
        parser.add_argument("--list", action="store_true", help="only list, also if it is one model")
        parser.add_argument("--as", dest="name", default="", help="name of the folder that it gets; default: its own")
        parser.add_argument(
            "--to", type=Path, default=settings.MODELS, metavar="DIR", help="default: MADOGUCHI_MODELS (%(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> str:
        path = options["path"].absolute()
        try:
            found = model_import.find_models(path)
            if not found:
                raise CommandError(f"There is no model in {path}.")
            # Not the only one of a folder: who wants to see what lies there does not want 100 GB copied.
            one = next((each for each in found if each.path == path), None)
            if options["list"] or one is None:
                return "\n".join(_lines(found))
            return str(self._import(one, options["to"].absolute(), options["name"]))
        except CannotImport as error:
            raise CommandError(str(error)) from error

    def _import(self, one: Found, models: Path, name: str) -> Path:
        if fault := _read(one)[1]:
            raise CommandError(f"{fault}\nIt is not copied: it is no whole model.")
        told = 0.0

        def tell(progress: Progress) -> None:
            nonlocal told
            if time.monotonic() - told >= TELL_EVERY or progress.done == progress.total:
                told = time.monotonic()
                share = progress.done / max(progress.total, 1)
                sizes = f"{progress.done / 1e9:.1f} of {progress.total / 1e9:.1f} GB"
                print(f"{share:4.0%}  {sizes}  {progress.file}", file=sys.stderr, flush=True)

        return model_import.copy_model(one, models, name=name, tell=tell)


def _lines(found: list[Found]) -> list[str]:
    rows, notes = [], []
    for one in found:
        facts, fault = _read(one)
        rows.append([str(one.path), one.engine, _what(facts), _size(one), "no" if fault else "yes", _fits(one, facts)])
        notes += [f"  ! {fault}"] if fault else []
        if facts and facts.risks:
            notes.append(
                f"  ! {one.path}: to be allowed when it is registered: --allow {' --allow '.join(facts.risks)}"
            )
    return [*format_table(HEAD, rows), *notes]


def _read(one: Found) -> tuple[ModelMetadata | None, str]:
    """What its files tell, or why they are no whole model."""
    try:
        return model_files.read_model(one.engine, str(one.path), ServedModel.Risk.values), ""
    except UnreadableModel as error:
        return None, validation.explain(error)


def _what(facts: ModelMetadata | None) -> str:
    if facts is None:
        return "-"
    size = f"{facts.parameters / 1e9:.1f}B" if facts.parameters else ""
    return " ".join(filter(None, [facts.architecture, size, facts.quantisation, facts.task]))


def _size(one: Found) -> str:
    try:
        return f"{sum(path.stat().st_size for path in model_import.files_of(one).values()) / 1e9:.1f} GB"
    except (CannotImport, OSError):
        return "-"


def _fits(one: Found, facts: ModelMetadata | None) -> str:
    """By what this host reported last."""
    if facts is None:
        return "-"
    here = Host.objects.filter(name=settings.HOST_NAME)
    model = ServedModel(
        name="x",
        engine=one.engine,
        path=str(one.path),
        task=facts.task or "chat",
        allowed_risks=ServedModel.Risk.values,
    )
    found = fit.fit_on_hosts(fit.spec_of(model), facts, fit.hosts().filter(pk__in=here))
    if not found:
        return "not known: no supervisor has reported here"
    if found[0].room:
        return "yes"
    return "no" if found[0].prediction else "not known"
