"""Brings models from a shared folder onto this machine: finds them, copies one whole or not at all.

A copy is made in a hidden folder beside its place (`copying`) and appears by one rename, so nothing half-made is ever
taken for a model.

People who fill the share are not trusted with this machine: a link is followed only within what the operator named (and
from a snapshot of Hugging Face's cache into its blobs), so that nothing else is read or copied under a model's name.
No Django.
"""

import os
import re
import stat
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

from modelregistry.engines.registry import engine_for
from modelregistry.files.metadata import CHECKPOINT, GGUF
from modelregistry.files.regular import open_regular_file
from modelregistry.install import copying
from modelregistry.install.copying import (
    SUMS,
    CannotImport,
    FolderCopy,
    LocalSource,
    ReportProgress,
    is_within,
    link_out,
)
from modelregistry.terminal import is_printable

DEPTH = 4  # folders below the one that was named in which models are looked for
MOST_FOLDERS = 20_000  # that are looked at: some seconds, also where an operator names /
KERNELS = frozenset(map(Path, ["/proc", "/sys", "/dev"]))  # what the kernel makes up is no place of models
MOST_NOTES = 20  # about what could not be looked at
WITHIN = 16  # folders within a model
MAX_ENTRIES = 2000  # entries of a folder that are looked at, and of a model

# What makes a folder one model, as a whole, or what is taken for one.
_MARKS = frozenset({"config.json", "params.json", "adapter_config.json", "model_index.json"})
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_PROJECTOR = re.compile(r"[-_.]?mmproj[-_.]?", re.IGNORECASE)  # what lets a model see or hear, beside its own files
_ALIKE = 4  # letters that a projector's name shares with its model's, at least
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")  # with room for what we put around it


class DanglingLink(CannotImport):
    """A link without its file. What the files as a whole look like may explain more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that may be a model.

    `path`: as an engine is given it; `name`: of the folder that it would get here; `places`: the folders, with all
    links followed, beyond which none of its links may lead.
    """

    form: str  # CHECKPOINT or GGUF
    path: Path
    name: str
    places: tuple[Path, ...]

    @property
    def engine(self) -> str:
        """The engine that usually serves this form."""
        return engine_for(self.form).name


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """`models`: by path. `notes`: sentences about what was not looked at."""

    models: list[Found]
    notes: list[str]


# --- Finding


def find_models(root: Path) -> Listing:
    """Find models at a path and in the folders below it. Hidden entries are left out. Raises CannotImport."""
    try:
        if root.is_dir():
            return _Search(root).run()
        if root.suffix == ".gguf" and root.exists():
            places = _allowed_places(root.parent.resolve())
            return Listing(models=[Found(form=GGUF, path=root, name=_stem(root), places=places)], notes=[])
    except OSError as error:
        raise _unreadable(error, root) from error
    if not os.path.lexists(root):
        raise CannotImport(f"{root} does not exist.", code="missing", path=root)
    raise CannotImport(f"{root} is neither a folder nor a GGUF file.", code="no-model", path=root)


def _allowed_places(root: Path) -> tuple[Path, ...]:
    """Return where links may lead: within what was named; from a snapshot of Hugging Face's cache also to its blobs."""
    caches = [one.parent for one in (root, *root.parents) if one.name == "snapshots"]
    return (root, *(cache / "blobs" for cache in caches[:1]))


def _unreadable(error: OSError, path: Path) -> CannotImport:
    path = Path(error.filename or path)
    return CannotImport(f"{path} cannot be read: {error.strerror}.", code="unreadable", path=path)


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    name: str  # of the model, if it is one
    depth: int  # below the one that was named


class _Search:
    """Looks through the folders below one, the nearest first, each once; what cannot be read is noted, not the end."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.places = _allowed_places(root.resolve())
        self.models: list[Found] = []
        self.notes: list[str] = []
        self.seen: set[tuple[int, int]] = set()  # device and inode: links lead to the same folder twice, or round
        self.deeper = False

    def run(self) -> Listing:
        waiting = deque([_Folder(self.root, _name_of(self.root), 0)])
        while waiting and len(self.seen) < MOST_FOLDERS:
            folder = waiting.popleft()
            try:
                waiting += self._scan(folder)
            except OSError as error:
                if folder.path == self.root:
                    raise
                self.notes.append(str(_unreadable(error, folder.path)))
        return Listing(models=sorted(self.models, key=lambda one: str(one.path)), notes=self._all_notes(bool(waiting)))

    def _all_notes(self, unfinished: bool) -> list[str]:
        notes = self.notes[:MOST_NOTES]
        if more := len(self.notes) - len(notes):
            notes.append(f"{more} more could not be looked at.")
        if unfinished:
            notes.append(f"Searched the first {MOST_FOLDERS} folders below {self.root}: name one further down.")
        elif self.deeper:
            notes.append(f"Searched {DEPTH} folders deep: for what lies deeper, name a folder further down.")
        return notes

    def _scan(self, folder: _Folder) -> list[_Folder]:
        """Take what lies in a folder, and return the folders in it that are still to be looked at."""
        state = folder.path.stat()
        if (state.st_dev, state.st_ino) in self.seen:
            return []
        self.seen.add((state.st_dev, state.st_ino))
        names = self._names(folder.path)
        if {"snapshots", "blobs"} <= set(names) and (snapshot := self._snapshot(folder.path)):
            return [_Folder(snapshot, _cached_name(folder.path), folder.depth)]
        is_model = not _MARKS.isdisjoint(names) or any(name.endswith(_WEIGHTS) for name in names)
        if is_model:
            self.models.append(Found(form=CHECKPOINT, path=folder.path, name=folder.name, places=self.places))
        for first in _first_parts(names):
            path = folder.path / first
            self.models.append(Found(form=GGUF, path=path, name=_stem(path), places=self.places))
        if is_model:
            return []
        inner = [folder.path / name for name in names if self._is_folder(folder.path / name)]
        self.deeper |= bool(inner) and folder.depth == DEPTH
        return [_Folder(path, path.name, folder.depth + 1) for path in inner if folder.depth < DEPTH]

    def _names(self, folder: Path) -> list[str]:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        if len(names) > MAX_ENTRIES:
            self.notes.append(f"{folder} holds {len(names)} entries; the first {MAX_ENTRIES} were looked at.")
        return names[:MAX_ENTRIES]

    def _is_folder(self, path: Path) -> bool:
        """Return whether it is a folder that may be looked into."""
        if path in KERNELS:
            return False
        try:
            if not path.is_dir():
                return False
            target = path.resolve() if path.is_symlink() else None
        except OSError as error:
            self.notes.append(str(_unreadable(error, path)))
            return False
        if target and not is_within(target, self.places):
            self.notes.append(f"{path} is a link out of {self.root}, to {target}: name that folder to see it.")
            return False
        return True

    def _snapshot(self, cache: Path) -> Path | None:
        """Return the snapshot of a folder of Hugging Face's cache that `main` names, else the newest.

        A whole one comes before others.
        """
        found = [one for one in (cache / "snapshots").iterdir() if one.is_dir()]
        found.sort(key=lambda one: (one.name == _main_revision(cache), one.stat().st_mtime), reverse=True)
        whole = next((one for one in found if _looks_whole(one)), None)
        if whole and whole != found[0]:
            self.notes.append(f"{found[0]} is not whole; {whole.name} is taken instead.")
        return whole or next(iter(found), None)


def _main_revision(cache: Path) -> str:
    """Return the revision that `main` was when the model was fetched."""
    try:
        with open_regular_file(cache / "refs" / "main") as file:
            return file.read(100).decode(errors="replace").strip()
    except OSError:
        return ""


def _looks_whole(snapshot: Path) -> bool:
    """Return weights, or a folder that may hold them, and no link without its file: what a broken download leaves."""
    entries = list(snapshot.iterdir())
    weights = any(one.suffix in (*_WEIGHTS, ".gguf") or one.is_dir() for one in entries)
    return weights and all(one.exists() for one in entries)


def _name_of(folder: Path) -> str:
    """Return a snapshot is called by its commit: the model's name is that of the cache's folder."""
    return _cached_name(folder.parent.parent) if folder.parent.name == "snapshots" else folder.name


def _cached_name(cache: Path) -> str:
    return cache.name.rpartition("--")[2] or cache.name


def _first_parts(names: Iterable[str]) -> list[str]:
    """Return one name for each GGUF model: the first of its parts that is there.

    Projectors only where they are alone.
    """
    files = sorted(name for name in names if name.endswith(".gguf"))
    found: dict[str, str] = {}
    for name in [name for name in files if not _PROJECTOR.search(name)] or files:
        found.setdefault(_PART.sub("", name), name)
    return list(found.values())


def _stem(path: Path) -> str:
    return _PART.sub("", path.name).removesuffix(".gguf")


# --- What a model consists of


def files_of(found: Found) -> dict[str, Path]:
    """Return the files of a model by their paths within its folder; links are followed to files. Raises CannotImport.

    Nothing is left out without a word but hidden entries (.git, .cache): what cannot be copied makes it raise.
    """
    contents = _Contents(found)
    try:
        if found.form == GGUF:
            contents.add_gguf()
        else:
            contents.add_folder()
    except OSError as error:
        raise _unreadable(error, found.path) from error
    if contents.faults:
        raise min(contents.faults, key=lambda fault: isinstance(fault, DanglingLink))
    return contents.files


def projectors_of(found: Found) -> list[str]:
    """Return the names of files beside a GGUF model that let it see or hear: for --mmproj. Raises OSError."""
    if found.form != GGUF or _PROJECTOR.search(found.path.name):
        return []
    names = sorted(name for name in os.listdir(found.path.parent) if name.endswith(".gguf") and name[0] != ".")
    models = {_PART.sub("", name).removesuffix(".gguf") for name in names if not _PROJECTOR.search(name)}
    return [name for name in names if _PROJECTOR.search(name) and _stem(found.path) in _models_of(name, models)]


def _models_of(projector: str, models: set[str]) -> set[str]:
    """Return those whose names are most like its own; all where it is called by none ("mmproj-F16.gguf")."""
    name = _PROJECTOR.sub("", projector.removesuffix(".gguf"))
    alike = {model: _letters_in_common(name.lower(), model.lower()) for model in models}
    most = max(alike.values(), default=0)
    return {model for model, letters in alike.items() if letters == most} if most >= _ALIKE else models


def _letters_in_common(one: str, other: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


@dataclass(slots=True)
class _Contents:
    """What was found of a model, and what of it cannot be copied."""

    found: Found
    files: dict[str, Path] = field(default_factory=dict)
    faults: list[CannotImport] = field(default_factory=list)
    looked: int = 0

    def add_gguf(self) -> None:
        """Add all parts of it, and its projectors."""
        first = self.found.path
        names = [first.name]
        if part := _PART.search(first.name):
            pattern = re.compile(re.escape(first.name[: part.start()]) + rf"-\d{{5}}-of-{part[2]}\.gguf")
            names = sorted(name for name in os.listdir(first.parent) if pattern.fullmatch(name))
        for name in [*names, *projectors_of(self.found)]:
            self._count()
            self._add(name, first.parent / name)

    def add_folder(self) -> None:
        way: tuple[Path, ...] = (self.found.path.resolve(),)
        folders = [("", self.found.path, way)]
        while folders:
            below, folder, way = folders.pop()
            for entry in sorted(os.listdir(folder)):
                self._count()
                name, path = below + entry, folder / entry
                if entry.startswith(".") or name == SUMS or not self._add(name, path):
                    continue
                target = path.resolve()
                if target in way:
                    sentence = f"{path} is a link to a folder that it lies in: remove it first."
                    self.faults.append(CannotImport(sentence, code="circle", path=path))
                elif len(way) > WITHIN:
                    sentence = f"{path} lies more than {WITHIN} folders deep, as nothing of a model does."
                    raise CannotImport(sentence, code="too-deep", path=path)
                else:
                    folders.append((name + "/", path, (*way, target)))

    def _count(self) -> None:
        self.looked += 1
        if self.looked > MAX_ENTRIES:
            sentence = f"{self.found.path} holds more than {MAX_ENTRIES} files, which no model has."
            raise CannotImport(sentence, code="too-many-files", path=self.found.path)

    def _add(self, name: str, path: Path) -> bool:
        """Take a file, or note why it cannot be taken; True: it is a folder that is to be looked into."""
        if not is_printable(name):
            sentence = f"{path} has characters in its name that cannot be printed: rename it first."
            self.faults.append(CannotImport(sentence, code="unprintable-name", path=path))
            return False
        try:
            target = Path(os.path.realpath(path, strict=True))
        except OSError as error:
            if not path.is_symlink():
                raise
            where = f"{path} is a link that leads nowhere ({os.readlink(path)}: {error.strerror})"
            sentence = f"{where}: the copy would not be whole."
            self.faults.append(DanglingLink(sentence, code="dangling-link", path=path))
            return False
        if not is_within(target, self.found.places):
            self.faults.append(link_out(path, target, self.found.places))
            return False
        kind = target.stat().st_mode
        if stat.S_ISREG(kind):
            self.files[name] = path
        elif not stat.S_ISDIR(kind):
            sentence = f"{path} is neither a file nor a folder: remove it first."
            self.faults.append(CannotImport(sentence, code="special-file", path=path))
        return stat.S_ISDIR(kind)


# --- Copying


def copy_model(found: Found, models: Path, *, name: str = "", report: ReportProgress = lambda progress: None) -> Path:
    """Copy a model into a folder of its own below `models`; the path that its engine is to be given.

    Goes on with what an earlier try left. Blocks for as long as it takes. Raises CannotImport.
    """
    name = name or found.name
    if not _NAME.fullmatch(name):
        sentence = f"“{name}” is no name for a folder: use up to 200 letters, digits and . _ + - (--as NAME)."
        raise CannotImport(sentence, code="bad-name")
    if found.form == CHECKPOINT and models.resolve().is_relative_to(found.path.resolve()):
        sentence = f"{models} lies within the model itself: give another folder (--to DIR)."
        raise CannotImport(sentence, code="within-itself", path=models)
    target = models / name
    files = files_of(found)
    if not files:
        raise CannotImport(f"{found.path} holds no files.", code="no-files", path=found.path)
    if os.path.lexists(target):
        sentence = f"{target} is there already: remove it, or give another name (--as NAME)."
        raise CannotImport(sentence, code="exists", path=target)
    with copying.drafting(models, name) as workspace:
        FolderCopy(workspace, {each: LocalSource(path, found.places) for each, path in files.items()}, report).run()
        workspace.rename(target)
        copying.flush(models)
    return target / found.path.name if found.form == GGUF else target
