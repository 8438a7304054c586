"""The metadata in the files of this host's models, read once and again whenever the files change."""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from modelregistry.files import model_files
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.hostside.surface import FileFacts
from modelregistry.supervisor.faults import describe_exception
from modelregistry.supervisor.repository import DesiredModel

log = logging.getLogger(__name__)

FileStamp = tuple[object, ...]


class FileWatch:
    """Remembers which state of the files was read. `read_changed` blocks on the disk, for seconds if that is slow."""

    def __init__(self) -> None:
        self.read: dict[int, FileStamp] = {}

    def read_changed(self, desired_models: Iterable[tuple[int, DesiredModel]]) -> dict[int, FileFacts]:
        """Return the facts of the files that changed since the last call, by the model's id."""
        found = {}
        for model, desired in desired_models:
            stamp = stamp_of(desired)
            if not desired.external and self.read.get(model) != stamp:
                found[model] = replace(_read(desired), stamp=digest_of(Path(desired.spec.path)))
                self.read[model] = stamp
        return found


def stamp_of(desired: DesiredModel) -> FileStamp:
    """Return a value that changes when the files do, or the risks that an operator allows."""
    spec = desired.spec
    return spec.engine, spec.path, spec.allowed_risks, tuple(_state_of(Path(spec.path)))


def digest_of(path: Path) -> str:
    """Return a text that changes when the files do: their names, sizes and times, not what is in them."""
    return hashlib.sha256(repr(tuple(_state_of(path))).encode()).hexdigest()[:32]


def _state_of(path: Path) -> Iterable[tuple[str, int, int]]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else []
        for each in (path, *entries):
            found = os.stat(each)
            yield os.fspath(each), found.st_size, found.st_mtime_ns
    except OSError as error:
        yield str(error), 0, 0


def _read(desired: DesiredModel) -> FileFacts:
    spec = desired.spec
    try:
        facts = model_files.read_model(spec.engine, spec.path, spec.allowed_risks)
    except UnreadableModel as fault:
        return FileFacts(facts=None, fault=str(fault))
    except Exception as error:  # the files of other models are still read
        log.exception("%s: its files cannot be read", spec.name)
        return FileFacts(facts=None, fault=describe_exception(error))
    return FileFacts(facts=facts.stored(), fault="")
