"""Copies the files of a model into a draft of its folder, which its caller gives its name when all of it is there.

What was copied before a break is kept and gone on with: a journal holds how far each file was safely on disk, and the
SHA-256 of that much of its source. At the end every file is read back and compared. A file may come from a disk here
(`LocalSource`) or over the network (`modelregistry.transfer.download`). No Django.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from modelregistry.files.regular import open_regular_file

PIECE = 16 * 2**20  # bytes read at a time
SAVED_EVERY = 256 * 2**20  # bytes after which a break costs nothing: flushing to disk takes its time
SPARE = 2 * 10**9  # bytes that stay free: logs and perhaps the database share the disk
SUMS = "SHA256SUMS"  # as `sha256sum -c` reads it
JOURNAL = ".journal"

_BLOB = re.compile(r"[0-9a-f]{64}")  # a file of Hugging Face's cache is called by its SHA-256
# After these the same command may well go through.
_PASSING = frozenset(
    [
        *(errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET, errno.ENOTCONN),
    ]
)


class CannotImport(Exception):
    """A sentence for the operator. `code`: the reason, for programs; `path`: what it is about, if that is one path."""

    def __init__(self, sentence: str, *, code: str, path: Path | None = None) -> None:
        super().__init__(sentence)
        self.code = code
        self.path = path


class CopyInterrupted(CannotImport):
    """The source does not answer any more, or the copy is to stop; what came before is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    file: str
    done: int  # bytes of all files
    total: int


ReportProgress = Callable[[Progress], None]  # may raise CopyInterrupted


class OpenedSource(Protocol):
    """A file that is being read."""

    @property
    def identities(self) -> Sequence[Sequence[Any]]:
        """Return what changes with its content, in JSON; the last is kept, to compare with any of them later."""

    def seek(self, offset: int, /) -> object: ...

    def read(self, length: int, /) -> bytes:
        """Return what comes next, at most so much; nothing at its end. Raises OSError or CopyInterrupted."""

    def check(self, done: int, digest: str) -> None:
        """Raise CannotImport if it is not what it was, or not what it should be. `digest`: of all of it."""


class CopySource(Protocol):
    """A file that is to be copied."""

    @property
    def size(self) -> int: ...

    def open(self) -> AbstractContextManager[OpenedSource]:
        """Open it. Raises OSError or CannotImport."""

    def confirm(self, digest: str) -> None:
        """Raise CannotImport if its SHA-256 is another one; asked when all files have been copied."""


# --- From a disk here


def is_within(path: Path, places: Iterable[Path]) -> bool:
    return any(path.is_relative_to(place) for place in places)


def link_out(path: Path, target: Path, places: Sequence[Path]) -> CannotImport:
    """Return the refusal of a link that leads out of what was named."""
    return CannotImport(
        f"{path} is a link out of {places[0]}, to {target}, which is not followed: put the file itself there, or name "
        "a folder that holds both.",
        code="link-out",
        path=path,
    )


def open_within(source: Path, places: Sequence[Path]) -> BinaryIO:
    """Open a file that a link may lead to, and look where it is: links may have changed since they were looked at."""
    file = open_regular_file(source)
    target = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
    if not is_within(target, places):
        file.close()
        raise link_out(source, target, places)
    return file


class LocalSource:
    """A file on a disk of this machine. `places`: where links may lead."""

    def __init__(self, path: Path, places: Sequence[Path]) -> None:
        self.path = path
        self.places = places
        self.size = path.stat().st_size

    @contextmanager
    def open(self) -> Iterator["_OpenedFile"]:
        """Open it."""
        with open_within(self.path, self.places) as file:
            yield _OpenedFile(self.path, file)

    def confirm(self, digest: str) -> None:
        """Accept it: what it should be is known only of files of Hugging Face's cache, and was checked."""


class _OpenedFile:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        self.file = file
        self.identities = [self._identity()]

    def seek(self, offset: int, /) -> object:
        return self.file.seek(offset)

    def read(self, length: int, /) -> bytes:
        return self.file.read(length)

    def _identity(self) -> list[int]:
        seen = os.fstat(self.file.fileno())
        return [seen.st_size, seen.st_mtime_ns]

    def check(self, done: int, digest: str) -> None:
        if self._identity() != self.identities[0] or done != self.identities[0][0]:
            sentence = f"{self.path} changed while it was copied: run it again when it is complete."
            raise CannotImport(sentence, code="changed", path=self.path)
        blob = self.path.resolve().name
        if _BLOB.fullmatch(blob) and blob != digest:
            sentence = f"{self.path} is damaged: its SHA-256 is not the one that it is called by. Fetch it again."
            raise CannotImport(sentence, code="damaged", path=self.path)


# --- Copying


class FolderCopy:
    """One run. `known`: of each file, the identity of its source, and how far it is on disk: bytes, their SHA-256."""

    def __init__(
        self,
        workspace: Path,
        files: Mapping[str, CopySource],
        report: ReportProgress,
        *,
        piece: int = 0,
        spare: int | None = None,
    ) -> None:
        self.workspace = workspace
        self.files = files
        self.report = report
        self.piece = piece or PIECE
        self.spare = SPARE if spare is None else spare
        self.journal = workspace / JOURNAL
        self.known = _read(self.journal)
        self.sizes = {name: source.size for name, source in files.items()}
        self.total = sum(self.sizes.values())

    def run(self) -> dict[str, str]:
        """Copy what is missing, check all of it, and return the SHA-256 of each file. Raises OSError, CannotImport."""
        self._see_that_there_is_room()
        self._forget_what_is_no_part()
        before, sums = 0, {}
        for name, source in self.files.items():
            sums[name] = self._copy_file(name, source, before)
            before += self.sizes[name]
        for name, digest in sums.items():
            with self._forgetting(name):
                self.files[name].confirm(digest)
        for name, expected in sums.items():
            self._compare(name, expected)
        write_sums(self.workspace / SUMS, sums)
        self.journal.unlink(missing_ok=True)
        flush(self.workspace)
        return sums

    def _see_that_there_is_room(self) -> None:
        there = sum(min(_size(self.workspace / name), size) for name, size in self.sizes.items())
        free, need = shutil.disk_usage(self.workspace).free, self.total - there + self.spare
        if free < need:
            raise CannotImport(
                f"{self.workspace.parent} has {free / 1e9:.1f} GB free; this takes {(self.total - there) / 1e9:.1f} GB,"
                f" and {self.spare / 1e9:.0f} GB must stay free.",
                code="no-room",
                path=self.workspace.parent,
            )

    def _forget_what_is_no_part(self) -> None:
        """Remove files of an earlier try, whose source may have been another one."""
        folders = {str(folder) for name in self.files for folder in Path(name).parents}
        for path in sorted(self.workspace.rglob("*"), reverse=True):  # what lies in a folder comes before it
            name = str(path.relative_to(self.workspace))
            if path.is_symlink() or not path.is_dir():
                if path.is_symlink() or (path != self.journal and name not in self.files):
                    path.unlink()
            elif name not in folders:
                path.rmdir()

    def _copy_file(self, name: str, source: CopySource, before: int) -> str:
        """Copy what is missing of a file; the SHA-256 of the source."""
        target = self.workspace / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with source.open() as reading, target.open("ab+") as writing:
            digest, done = self._read_kept(name, writing, reading.identities)
            identity = reading.identities[-1]
            writing.truncate(done)
            reading.seek(done)
            writing.seek(done)
            saved = done
            try:
                while piece := reading.read(self.piece):
                    writing.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    self.report(Progress(file=name, done=before + done, total=self.total))
                    if done - saved >= SAVED_EVERY:
                        self._save(name, writing, identity, done, digest.hexdigest())
                        self._see_that_there_is_room()  # others write as well
                        saved = done
            except CopyInterrupted:
                self._save(name, writing, identity, done, digest.hexdigest())
                raise
            with self._forgetting(name):
                reading.check(done, digest.hexdigest())
            self._save(name, writing, identity, done, digest.hexdigest())
        return str(digest.hexdigest())

    @contextmanager
    def _forgetting(self, name: str) -> Iterator[None]:
        """Begin a file again the next time if it is found to be wrong: a source may be mended under its identity."""
        try:
            yield
        except CannotImport:
            self.known.pop(name, None)
            self._write_journal()
            raise

    def _read_kept(self, name: str, file: BinaryIO, identities: Sequence[Sequence[Any]]) -> tuple[Any, int]:
        """Return the digest and the length of what an earlier try brought.

        If it is of this source and still as it was.
        """
        known = self.known.get(name)
        digest = hashlib.sha256()
        if not isinstance(known, dict) or known.get("source") not in [list(one) for one in identities]:
            return digest, 0
        left = length = int(known.get("length", 0))
        file.seek(0)
        while left and (piece := file.read(min(PIECE, left))):
            digest.update(piece)
            left -= len(piece)
        return (digest, length) if not left and digest.hexdigest() == known.get("sha256") else (hashlib.sha256(), 0)

    def _save(self, name: str, file: BinaryIO, identity: Sequence[Any], length: int, digest: str) -> None:
        file.flush()
        os.fsync(file.fileno())
        self.known[name] = {"source": list(identity), "length": length, "sha256": digest}
        self._write_journal()

    def _write_journal(self) -> None:
        draft = self.journal.with_name(".journal.new")
        draft.write_text(json.dumps(self.known))
        draft.replace(self.journal)

    def _compare(self, name: str, expected: str) -> None:
        path = self.workspace / name
        if digest_of(path, from_disk=True) != expected:
            path.unlink()
            raise CannotImport(
                f"{name} came out of the disk otherwise than it was written: check the disk, run it again.",
                code="damaged-copy",
                path=path,
            )


def digest_of(path: Path, *, from_disk: bool = False) -> str:
    """Return the SHA-256 of a regular file. `from_disk`: and not from what the kernel still remembers of it."""
    digest = hashlib.sha256()
    with open_regular_file(path) as file:
        if from_disk:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()


def write_sums(path: Path, sums: Mapping[str, str]) -> None:
    """Write checksums as `sha256sum -c` reads them, all of them or none."""
    draft = path.with_name(f".{path.name}.new")
    draft.write_text("".join(f"{digest}  {name}\n" for name, digest in sums.items()))
    draft.replace(path)


def read_sums(path: Path) -> dict[str, str]:
    """Return the checksums that `write_sums` wrote; none where there is no such file."""
    try:
        with open_regular_file(path) as file:
            lines = file.read(2**20).decode(errors="replace").splitlines()
    except OSError:
        return {}
    found = (line.partition("  ") for line in lines)
    return {name: digest for digest, _, name in found if _BLOB.fullmatch(digest)}


def _read(journal: Path) -> dict[str, Any]:
    try:
        known = json.loads(journal.read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def flush(folder: Path) -> None:
    """Write a folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def drafting(models: Path, name: str) -> Iterator[Path]:
    """Provide the draft of the folder `name`, to this process alone. What an earlier try left is in it.

    Raises CannotImport for another process that has it now, and for any OSError.
    """
    try:
        models.mkdir(parents=True, exist_ok=True)
        with _lock(models / f".{name}.lock"):
            workspace = models / f".{name}.part"
            if workspace.is_symlink():
                sentence = f"{workspace} is a link, which no import made: remove it."
                raise CannotImport(sentence, code="linked-workspace", path=workspace)
            workspace.mkdir(exist_ok=True)
            yield workspace
    except OSError as error:
        path, passing = Path(error.filename or models / name), error.errno in _PASSING
        again = " Run it again, and it goes on where it was." if passing else ""
        code = "interrupted" if passing else "not-written"
        raise CannotImport(f"{path}: {error.strerror or error}.{again}", code=code, path=path) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    # Never through a link: it would empty or make a file elsewhere.
    with open(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotImport("Another process is importing a model of this name now.", code="busy") from None
        yield  # the lock ends with the open file, however the process ends
