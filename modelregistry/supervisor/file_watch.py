"""What the files of this host's models tell, read once and again whenever they change."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

from modelregistry.files import model_files
from modelregistry.files.metadata import UnreadableModel
from modelregistry.supervisor.faults import describe_exception
from modelregistry.supervisor.repository import DesiredModel, FileFacts

log = logging.getLogger(__name__)

FileStamp = tuple[object, ...]


class FileWatch:
    """Remembers which state of the files was read. `fresh` blocks on the disk, for seconds if that is slow."""

    def __init__(self) -> None:
        self.read: dict[int, FileStamp] = {}

    def fresh(self, orders: Iterable[tuple[int, DesiredModel]]) -> dict[int, FileFacts]:
        """By the model's id, of those whose files are not as they were at the last call."""
        found = {}
        for model, order in orders:
            stamp = stamp_of(order)
            if not order.external and self.read.get(model) != stamp:
                found[model] = _read(order)
                self.read[model] = stamp
        return found


def stamp_of(order: DesiredModel) -> FileStamp:
    """Change when the files do, or what an operator allows of them."""
    spec = order.spec
    return spec.engine, spec.path, spec.allowed_risks, tuple(_state_of(Path(spec.path)))


def _state_of(path: Path) -> Iterable[tuple[str, int, int]]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else []
        for each in (path, *entries):
            found = os.stat(each)
            yield os.fspath(each), found.st_size, found.st_mtime_ns
    except OSError as error:
        yield str(error), 0, 0


def _read(order: DesiredModel) -> FileFacts:
    spec = order.spec
    try:
        facts = model_files.read_model(spec.engine, spec.path, spec.allowed_risks)
    except UnreadableModel as fault:
        return FileFacts(facts=None, fault=str(fault))
    except Exception as error:  # the other models' files are to be read all the same
        log.exception("%s: its files cannot be read", spec.name)
        return FileFacts(facts=None, fault=describe_exception(error))
    return FileFacts(facts=facts.stored(), fault="")
