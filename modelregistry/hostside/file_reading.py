"""What the files of models say, read again whenever they change. Blocks on the disk, for seconds if that is slow."""

import hashlib
import logging
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from modelregistry.engines.base import Spec
from modelregistry.files import model_files
from modelregistry.files.unreadable import UnreadableModel
from modelregistry.hostside.faults import describe_exception
from modelregistry.hostside.surface import FileFacts, FilesRead, WatchedFiles

log = logging.getLogger(__name__)


def read_changed(watched: Iterable[WatchedFiles]) -> list[FilesRead]:
    """Read the files of those models whose files changed since they were seen."""
    found = []
    for one in watched:
        seen = stamp_of(one.spec)
        if seen != one.seen:
            facts = replace(_read(one.spec), stamp=digest_of(Path(one.spec.path)))
            found.append(FilesRead(model=one.model, seen=seen, facts=facts))
    return found


def stamp_of(spec: Spec) -> str:
    """Return a text that changes when the files do, or the risks that an operator allows."""
    return _digest((spec.engine, spec.path, spec.allowed_risks, tuple(_state_of(Path(spec.path)))))


def digest_of(path: Path) -> str:
    """Return a text that changes when the files do: their names, sizes and times, not what is in them."""
    return _digest(tuple(_state_of(path)))


def _digest(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:32]


def _state_of(path: Path) -> Iterable[tuple[str, int, int]]:
    try:
        entries = sorted(os.scandir(path), key=lambda entry: entry.name) if path.is_dir() else []
        for each in (path, *entries):
            found = os.stat(each)
            yield os.fspath(each), found.st_size, found.st_mtime_ns
    except OSError as error:
        yield str(error), 0, 0


def _read(spec: Spec) -> FileFacts:
    try:
        facts = model_files.read_model(spec.engine, spec.path, spec.allowed_risks)
    except UnreadableModel as fault:
        return FileFacts(facts=None, fault=str(fault))
    except Exception as error:  # the files of other models are still read
        log.exception("%s: its files cannot be read", spec.name)
        return FileFacts(facts=None, fault=describe_exception(error))
    return FileFacts(facts=facts, fault="")
