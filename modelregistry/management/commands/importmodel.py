import logging
import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry import fit, validation
from modelregistry.files import model_files
from modelregistry.files.metadata import ModelMetadata
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.install import model_import
from modelregistry.install.copying import CannotImport, Progress
from modelregistry.install.model_import import DanglingLink, Found, Listing
from modelregistry.models import Host, ServedModel
from modelregistry.terminal import clean, clean_lines, format_table

logger = logging.getLogger(__name__)

HEAD = ["PATH", "ENGINE", "WHAT", "SIZE", "COMPLETE", "FITS HERE"]
SHOW_EVERY = 5.0  # seconds between two lines of progress


class Command(BaseCommand):
    help = (
        "Lists the models in a folder: what each is, whether it is complete and whether it would fit on this host. "
        "Given one of them, copies it into this host's models folder, continues an interrupted copy, compares "
        "checksums, and prints the path to register."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("path", type=_path, help="a model directory, a GGUF file, or a folder with several")
        parser.add_argument("--list", action="store_true", help="only list, also if it is one model")
        parser.add_argument("--as", dest="name", default="", help="name of the folder that it gets; default: its own")
        parser.add_argument(
            "--to", type=_path, default=settings.MODELS, metavar="DIR", help="default: MADOGUCHI_MODELS (%(default)s)"
        )

    def handle(self, *args: Any, **options: Any) -> str:
        path = options["path"].absolute()
        try:
            listing = model_import.find_models(path)
            # Not the only model of a folder: an operator who lists a folder does not want 100 GB copied.
            one = next((each for each in listing.models if each.path == path), None)
            if options["list"] or one is None:
                return "\n".join(_lines(path, listing))
            return str(self._import(one, options["to"].absolute(), options["name"]))
        except CannotImport as error:
            raise CommandError(clean_lines(str(error))) from error
        except KeyboardInterrupt:
            raise CommandError("Interrupted. Run it again to continue.", returncode=130) from None

    def _import(self, one: Found, models: Path, name: str) -> Path:
        if fault := _inspect(one).fault:
            raise CannotImport(f"{fault}\nIt is not copied.", code="not-whole", path=one.path)
        shown_at = 0.0

        def show(progress: Progress) -> None:
            nonlocal shown_at
            if time.monotonic() - shown_at >= SHOW_EVERY or progress.done == progress.total:
                shown_at = time.monotonic()
                share = progress.done / max(progress.total, 1)
                sizes = f"{progress.done / 1e9:.1f} of {progress.total / 1e9:.1f} GB"
                print(f"{share:4.0%}  {sizes}  {progress.file}", file=sys.stderr, flush=True)

        made = model_import.copy_model(one, models, name=name, report=show)
        for projector in model_import.projectors_of(one):
            print(f"It came with {projector}: --arg=--mmproj --arg={made.parent / projector}", file=sys.stderr)
        return made


def _path(text: str) -> Path:
    if not text or "\0" in text:
        raise ArgumentTypeError("a path is needed")
    return Path(text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspected:
    """The metadata of a model's files, or why they are no complete model. `size`: of all, in bytes; None: not known."""

    facts: ModelMetadata | None = None
    fault: str = ""
    size: int | None = None


def _lines(path: Path, listing: Listing) -> Iterator[str]:
    if not listing.models:
        sentence = "\n".join([f"There is no model in {path}.", *listing.notes])
        raise CannotImport(sentence, code="no-model", path=path)
    rows, notes = [], []
    for one in listing.models:
        row, about = _row(one)
        rows.append(row)
        notes += [note if str(one.path) in note else f"{one.path}: {note}" for note in about]
    yield from format_table(HEAD, rows)
    yield from (f"  ! {clean(note)}" for note in [*notes, *listing.notes])


def _row(one: Found) -> tuple[list[str], list[str]]:
    """Return the row of a model, and notes about it. Whatever its files hold, the others are listed as well."""
    try:
        found = _inspect(one)
        fits, reasons = _fit(one, found.facts)
        projectors = model_import.projectors_of(one)
    except Exception as error:
        logger.debug("%s cannot be judged", one.path, exc_info=True)
        return [str(one.path), one.engine, "-", "-", "no", "-"], [f"it cannot be judged ({error!r})."]
    notes = [found.fault] if found.fault else reasons
    if found.facts and found.facts.risks:
        notes.append(f"to be allowed when it is registered: --allow {' --allow '.join(found.facts.risks)}")
    if found.facts:
        notes += [f"{name} comes with it (--arg=--mmproj)" for name in projectors]
    size = "-" if found.size is None else f"{found.size / 1e9:.1f} GB"
    complete = "no" if found.fault else "yes"
    return [str(one.path), one.engine, _describe(found.facts), size, complete, fits], notes


def _inspect(one: Found) -> Inspected:
    """Inspect a model's files; its links are followed before any file is read."""
    fault = ""
    size = None
    try:
        size = sum(path.stat().st_size for path in model_import.files_of(one).values())
    except DanglingLink as error:
        fault = str(error)  # reading the files may say more
    except CannotImport as error:
        return Inspected(fault=str(error))
    except OSError as error:
        return Inspected(fault=f"{error.filename or one.path} cannot be read: {error.strerror}.")
    try:
        facts = model_files.read_model(one.engine, str(one.path), ServedModel.Risk.values)
    except UnreadableModel as error:
        return Inspected(fault=validation.explain_unreadable(error), size=size)
    return Inspected(fault=fault, size=size) if fault else Inspected(facts=facts, size=size)


def _describe(facts: ModelMetadata | None) -> str:
    if facts is None:
        return "-"
    size = f"{facts.parameters / 1e9:.1f}B" if facts.parameters else ""
    return " ".join(filter(None, [facts.architecture, size, facts.quantisation, facts.task]))


def _fit(one: Found, facts: ModelMetadata | None) -> tuple[str, list[str]]:
    """Return whether it fits, by what this host reported last, and why not."""
    if facts is None:
        return "-", []
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
        return "not known: no supervisor has reported here", []
    if found[0].room and found[0].unavailable:
        return "not now", [found[0].unavailable]
    if found[0].room:
        return "yes", []
    return "no" if found[0].prediction else "not known", found[0].why_not.splitlines()
