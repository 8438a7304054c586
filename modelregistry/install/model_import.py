"""Brings models from a shared folder onto this machine: finds them, copies one whole or not at all.

A copy is made in a hidden folder beside its place and appears by one rename, so nothing half-made is ever taken for a
model. What was copied before a break is kept and gone on with: a journal holds how far each file was safely on disk,
and the SHA-256 of that much of the source. At the end every file is read back and compared. No Django.
"""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from modelregistry.files.regular import open_regular_file

DEPTH = 4  # folders below the one that was named
MOST = 2000  # entries of a folder that are looked at, and files of a model
PIECE = 16 * 2**20  # bytes read at a time
SAVED_EVERY = 256 * 2**20  # bytes after which a break costs nothing: flushing to disk takes its time
SPARE = 2 * 10**9  # bytes that stay free: logs and perhaps the database share the disk
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it

# What makes a folder one model, as a whole, or what is taken for one.
_MARKS = frozenset({"config.json", "params.json", "adapter_config.json", "model_index.json"})
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_BLOB = re.compile(r"[0-9a-f]{64}")  # a file of Hugging Face's cache is called by its SHA-256


class CannotImport(Exception):
    """A sentence for the operator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Something that may be a model. `path`: as an engine is given it; `name`: of the folder that it would get here."""

    engine: str
    path: Path
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    file: str
    done: int  # bytes of all files
    total: int


ReportProgress = Callable[[Progress], None]


# --- Finding


def find_models(root: Path) -> list[Found]:
    """What lies at a path or in the folders below it, by path. Hidden entries are left out. Raises CannotImport."""
    try:
        if root.is_dir():
            return list(_in_folder(root, root.name, DEPTH))
        if root.suffix == ".gguf" and root.exists():
            return [Found(engine="llama.cpp", path=root, name=_stem(root))]
    except OSError as error:
        raise CannotImport(f"{error.filename or root} cannot be read: {error.strerror}.") from error
    if not root.exists():
        raise CannotImport(f"{root} does not exist.")
    raise CannotImport(f"{root} is neither a folder nor a GGUF file.")


def _in_folder(folder: Path, name: str, depth: int) -> Iterator[Found]:
    names = sorted(entry for entry in os.listdir(folder) if not entry.startswith("."))[:MOST]
    if snapshot := _snapshot(folder, names):
        yield from _in_folder(snapshot, folder.name.rpartition("--")[2] or folder.name, depth)
        return
    model = not _MARKS.isdisjoint(names) or any(entry.endswith(_WEIGHTS) for entry in names)
    if model:
        yield Found(engine="vllm", path=folder, name=name)
    for first in _first_parts(entry for entry in names if entry.endswith(".gguf")):
        yield Found(engine="llama.cpp", path=folder / first, name=_stem(folder / first))
    if not model and depth:
        for entry in names:
            if (folder / entry).is_dir() and os.access(folder / entry, os.R_OK | os.X_OK):
                yield from _in_folder(folder / entry, entry, depth - 1)


def _snapshot(folder: Path, names: list[str]) -> Path | None:
    """The newest of a folder of Hugging Face's cache."""
    if not {"snapshots", "blobs"} <= set(names):
        return None
    found = sorted(
        (one for one in (folder / "snapshots").iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime
    )
    return found[-1] if found else None


def _first_parts(names: Iterator[str]) -> list[str]:
    """One name for each GGUF model: the first of its parts that is there. Projectors are parts for a model."""
    found: dict[str, str] = {}
    for name in sorted(names):
        if not name.startswith("mmproj"):
            found.setdefault(_PART.sub("", name), name)
    return list(found.values())


def _stem(path: Path) -> str:
    return _PART.sub("", path.name).removesuffix(".gguf")


def files_of(found: Found) -> dict[str, Path]:
    """The files of a model by their paths within its folder; links are followed to files. Raises CannotImport."""
    try:
        files = _parts(found.path) if found.engine == "llama.cpp" else dict(_all_files(found.path, "", DEPTH))
    except OSError as error:
        raise CannotImport(f"{error.filename or found.path} cannot be read: {error.strerror}.") from error
    if len(files) > MOST:
        raise CannotImport(f"{found.path} holds more than {MOST} files, which no model has.")
    return files


def _parts(first: Path) -> dict[str, Path]:
    if not (part := _PART.search(first.name)):
        return {first.name: first}
    pattern = re.compile(re.escape(first.name[: part.start()]) + rf"-\d{{5}}-of-{part[2]}\.gguf")
    return {one.name: one for one in sorted(first.parent.iterdir()) if pattern.fullmatch(one.name)}


def _all_files(folder: Path, below: str, depth: int) -> Iterator[tuple[str, Path]]:
    for entry in sorted(os.listdir(folder))[: MOST + 1]:
        path = folder / entry
        if entry.startswith(".") or entry == SUMS:
            continue
        if path.is_file():
            yield below + entry, path
        elif path.is_dir() and not path.is_symlink() and depth:
            yield from _all_files(path, f"{below}{entry}/", depth - 1)
        elif path.is_symlink() and not path.exists():
            raise CannotImport(
                f"{path} is a link that leads nowhere ({os.readlink(path)}): the copy would not be whole."
            )


# --- Copying


def copy_model(found: Found, models: Path, *, name: str = "", tell: ReportProgress = lambda progress: None) -> Path:
    """Copies a model into a folder of its own below `models`; the path that its engine is to be given.

    Goes on with what an earlier try left. Blocks for as long as it takes. Raises CannotImport.
    """
    name = name or found.name
    if not _NAME.fullmatch(name):
        raise CannotImport(f"“{name}” is no name for a folder: use letters, digits and . _ + - (--as NAME).")
    target = models / name
    files = files_of(found)
    if not files:
        raise CannotImport(f"{found.path} holds no files.")
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _alone(models / f".{name}.lock"):
            if target.exists():
                raise CannotImport(f"{target} is there already: remove it, or give another name (--as NAME).")
            workspace = models / f".{name}.part"
            workspace.mkdir(exist_ok=True)
            _Copy(workspace, files, tell).run()
            workspace.rename(target)
            _flush(models)
    except OSError as error:
        raise CannotImport(
            f"{error.filename or target}: {error.strerror}. Run it again, and it goes on where it was."
        ) from error
    return target / found.path.name if found.engine == "llama.cpp" else target


class _Copy:
    """One run. `known`: of each file, size and time of its source, and how far it is on disk: bytes, their SHA-256."""

    def __init__(self, workspace: Path, files: Mapping[str, Path], tell: ReportProgress) -> None:
        self.workspace = workspace
        self.files = files
        self.tell = tell
        self.journal = workspace / ".journal"
        self.known = _read(self.journal)
        self.sizes = {name: path.stat().st_size for name, path in files.items()}
        self.total = sum(self.sizes.values())

    def run(self) -> None:
        self._see_that_there_is_room()
        self._forget_what_is_no_part()
        before, sums = 0, {}
        for name, source in self.files.items():
            sums[name] = self._one(name, source, before)
            before += self.sizes[name]
        for name, expected in sums.items():
            self._compare(name, expected)
        (self.workspace / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
        self.journal.unlink(missing_ok=True)
        _flush(self.workspace)

    def _see_that_there_is_room(self) -> None:
        there = sum(min(_size(self.workspace / name), size) for name, size in self.sizes.items())
        free, need = shutil.disk_usage(self.workspace).free, self.total - there + SPARE
        if free < need:
            raise CannotImport(
                f"{self.workspace.parent} has {free / 1e9:.1f} GB free; this takes {(self.total - there) / 1e9:.1f} GB,"
                f" and {SPARE / 1e9:.0f} GB must stay free."
            )

    def _forget_what_is_no_part(self) -> None:
        """The source may have been another one at an earlier try."""
        for path in self.workspace.rglob("*"):
            name = str(path.relative_to(self.workspace))
            if not path.is_dir() and path != self.journal and name not in self.files:
                path.unlink()

    def _one(self, name: str, source: Path, before: int) -> str:
        """Copies what is missing of a file; the SHA-256 of the source."""
        target = self.workspace / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_regular_file(source) as reading, target.open("ab+") as writing:
            seen = os.fstat(reading.fileno())
            identity = [seen.st_size, seen.st_mtime_ns]
            digest, done = self._kept(name, writing, identity)
            writing.truncate(done)
            reading.seek(done)
            writing.seek(done)
            saved = done
            while piece := reading.read(PIECE):
                writing.write(piece)
                digest.update(piece)
                done += len(piece)
                self.tell(Progress(file=name, done=before + done, total=self.total))
                if done - saved >= SAVED_EVERY:
                    self._save(name, writing, identity, done, digest.hexdigest())
                    saved = done
            after = os.fstat(reading.fileno())
            if [after.st_size, after.st_mtime_ns] != identity or done != seen.st_size:
                raise CannotImport(f"{source} changed while it was copied: run it again when it is complete.")
            self._save(name, writing, identity, done, digest.hexdigest())
        told = source.resolve().name
        if _BLOB.fullmatch(told) and told != digest.hexdigest():
            raise CannotImport(f"{source} is damaged: its SHA-256 is not the one that it is called by. Fetch it again.")
        return str(digest.hexdigest())

    def _kept(self, name: str, file: BinaryIO, identity: list[int]) -> tuple[Any, int]:
        """The digest and the length of what an earlier try brought, if it is of this source and still as it was."""
        known = self.known.get(name)
        digest = hashlib.sha256()
        if not isinstance(known, dict) or known.get("source") != identity:
            return digest, 0
        left = length = int(known.get("length", 0))
        file.seek(0)
        while left and (piece := file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        return (digest, length) if not left and digest.hexdigest() == known.get("sha256") else (hashlib.sha256(), 0)

    def _save(self, name: str, file: BinaryIO, identity: list[int], length: int, digest: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        self.known[name] = {"source": identity, "length": length, "sha256": digest}
        draft = self.journal.with_name(".journal.new")
        draft.write_text(json.dumps(self.known))
        draft.replace(self.journal)

    def _compare(self, name: str, expected: str) -> None:
        path = self.workspace / name
        digest = hashlib.sha256()
        with path.open("rb") as file:
            # From the disk, not from what the kernel still remembers of it.
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while piece := file.read(PIECE):
                digest.update(piece)
        if digest.hexdigest() != expected:
            path.unlink()
            raise CannotImport(
                f"{name} came out of the disk otherwise than it was written: check the disk, run it again."
            )


def _read(journal: Path) -> dict[str, Any]:
    try:
        known = json.loads(journal.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotImport("Another process is importing a model of this name now.") from None
        yield  # the lock ends with the open file, however the process ends
