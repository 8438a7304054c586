"""Usage that could not be recorded: kept in a file of the spool, with its reason, until an operator fixes the cause.

See `manage.py setaside`. All gateways of a host share the file; a writer holds a lock on it. It is `refused.txt`: a
JSON object a line with `at`, `error`, `kind` ("open" or "close") and `usage`: its members, or the text of a line that
has none.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from apiproxy.dataplane import file_locks, usage_events

# Size of the file: some 100,000 lines. What comes after is counted and logged, but not kept.
MAX_BYTES = 64 * 1024 * 1024
# Characters kept of a line that cannot be read, and of what a database said.
MAX_TEXT = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRecord:
    """One usage that could not be recorded."""

    error: str
    usage: dict[str, Any] | str  # the members of a usage, or the text of a line that has none
    kind: str = "close"
    at: float = 0.0  # when it was set aside, Unix seconds

    @property
    def request_id(self) -> str:
        found = self.usage.get("request_id") if isinstance(self.usage, dict) else None
        return found if isinstance(found, str) else ""


class Quarantine:
    """The file of what was set aside. Blocks on the disk; raises OSError."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "refused.txt"
        # Not `.jsonl`, which are segments. Left behind by a replay that was killed; the next one goes on with it.
        self._replaying = directory / "refused.replaying"
        self._counted: tuple[tuple[int, ...], int] = ((), 0)

    def add(self, refused: Iterable[QuarantinedRecord]) -> int:
        """Append these records; return how many were kept."""
        kept = 0
        with self._open_locked() as file:
            size = os.fstat(file).st_size
            for one in refused:
                line = _encode_line(one)
                if size + len(line) > MAX_BYTES:
                    break
                os.write(file, line)
                size, kept = size + len(line), kept + 1
        return kept

    def __len__(self) -> int:
        """Return how many records wait for an operator. Reads the file only if it has changed."""
        seen = tuple(part for path in (self.path, self._replaying) for part in _file_state(path))
        if seen != self._counted[0]:
            self._counted = seen, sum(_count_lines(path) for path in (self.path, self._replaying))
        return self._counted[1]

    def __iter__(self) -> Iterator[QuarantinedRecord]:
        """Yield the records in the order in which they were set aside."""
        for path in (self._replaying, self.path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                yield from (_decode_line(line) for line in file if line.strip())

    def take(self) -> list[QuarantinedRecord]:
        """Return all records. They stay on the disk until `finish_replay`.

        What is set aside from now on is not among them.
        """
        with self._open_locked() as file:
            if not self._replaying.exists():
                self.path.replace(self._replaying)
            else:  # a replay was killed: what has come since is added to what it had
                with self._replaying.open("ab") as taken:
                    taken.write(self.path.read_bytes())
                os.ftruncate(file, 0)
        with self._replaying.open("rb") as lines:
            return [_decode_line(line) for line in lines if line.strip()]

    def finish_replay(self, left: Iterable[QuarantinedRecord] = ()) -> None:
        """Delete what `take` returned, except for these records."""
        self.add(left)
        self._replaying.unlink(missing_ok=True)

    def discard(self) -> Path:
        """Discard all records, except for a copy that nothing reads; return the copy's path."""
        self.take()
        kept = self.path.with_name(f"discarded-{time.time_ns()}.txt")
        self._replaying.rename(kept)
        return kept

    @contextlib.contextmanager
    def _open_locked(self) -> Iterator[int]:
        """Provide the file, to append to. Nothing else writes to it meanwhile."""
        lock = file_locks.acquire(self.path)
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.fchmod(file, 0o600)  # one of an older version was readable by others
                yield file
            finally:
                os.close(file)
        finally:
            os.close(lock)


def _encode_line(one: QuarantinedRecord) -> bytes:
    usage = one.usage if isinstance(one.usage, dict) else one.usage[:MAX_TEXT]
    error = one.error[:MAX_TEXT].encode(errors="replace").decode()
    row = {"at": one.at or time.time(), "error": error, "kind": one.kind, "usage": usage}
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number beyond 64 bits, half of a surrogate pair
        return orjson.dumps({**row, "usage": ascii(usage)[:MAX_TEXT]}, option=orjson.OPT_APPEND_NEWLINE)


def _decode_line(line: bytes) -> QuarantinedRecord:
    """Decode a line, also of an older version, which wrote neither time nor kind. A damaged line is kept as it is."""
    try:
        row = orjson.loads(line)
        error, usage, at, kind = row["error"], row["usage"], row.get("at", 0.0), row.get("kind", "close")
    except (ValueError, TypeError, LookupError, AttributeError):
        return QuarantinedRecord(error="cannot be read", usage=line.decode(errors="replace").rstrip("\n"))
    if not isinstance(usage, dict | str) or (isinstance(usage, dict) and usage_events.find_nested(usage)):
        usage = line.decode(errors="replace").rstrip("\n")
    return QuarantinedRecord(
        error=str(error), usage=usage, kind=str(kind), at=float(at) if type(at) in (int, float) else 0.0
    )


def _file_state(path: Path) -> tuple[int, int, int]:
    """Return facts about the file that change with its content."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _count_lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
