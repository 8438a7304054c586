"""Usage that could not be recorded: kept in a file of the spool, with its reason, until an operator has mended what was
wrong (`manage.py setaside`).

All gateways of a host share the file; who writes holds a lock on it. It is `refused.txt`: a JSON object a line with
`at`, `error`, `kind` ("open" or "close") and `usage`: its members, or the text of a line that says none.
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

# Of the file: some 100,000 lines. What comes after is counted and told, but not kept.
MAX_LISTED = 64 * 1024 * 1024
# Characters kept of a line that cannot be read, and of what a database said.
TEXT = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class QuarantinedRecord:
    """`usage`: the members of a usage, or a line that says none. `at`: when it was set aside, Unix seconds."""

    error: str
    usage: dict[str, Any] | str
    kind: str = "close"
    at: float = 0.0

    @property
    def request_id(self) -> str:
        told = self.usage.get("request_id") if isinstance(self.usage, dict) else None
        return told if isinstance(told, str) else ""


class Quarantine:
    """Blocks on the disk; raises OSError."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "refused.txt"
        # Not `.jsonl`, which are segments. Left behind by a replay that was killed; the next one goes on with it.
        self._taken = directory / "refused.replaying"
        self._counted: tuple[tuple[int, ...], int] = ((), 0)

    def add(self, refused: Iterable[QuarantinedRecord]) -> int:
        """Append them; returns how many were kept."""
        kept = 0
        with self._held() as file:
            size = os.fstat(file).st_size
            for one in refused:
                line = _line(one)
                if size + len(line) > MAX_LISTED:
                    break
                os.write(file, line)
                size, kept = size + len(line), kept + 1
        return kept

    def __len__(self) -> int:
        """Return how many wait for a mend. Reads the file only if it has changed."""
        seen = tuple(part for path in (self.path, self._taken) for part in _seen(path))
        if seen != self._counted[0]:
            self._counted = seen, sum(_lines(path) for path in (self.path, self._taken))
        return self._counted[1]

    def __iter__(self) -> Iterator[QuarantinedRecord]:
        """In the order in which they were set aside."""
        for path in (self._taken, self.path):
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                yield from (_refused(line) for line in file if line.strip())

    def take(self) -> list[QuarantinedRecord]:
        """Return all of them. They stay on the disk until `done`; what is set aside from now on is not among them."""
        with self._held() as file:
            if not self._taken.exists():
                self.path.replace(self._taken)
            else:  # a replay was killed: what has come since is added to what it had
                with self._taken.open("ab") as taken:
                    taken.write(self.path.read_bytes())
                os.ftruncate(file, 0)
        with self._taken.open("rb") as lines:
            return [_refused(line) for line in lines if line.strip()]

    def done(self, left: Iterable[QuarantinedRecord] = ()) -> None:
        """Those that `take` gave are dealt with, but for these."""
        self.add(left)
        self._taken.unlink(missing_ok=True)

    def discard(self) -> Path:
        """Give them up, but for a copy that nothing reads; where that is."""
        self.take()
        kept = self.path.with_name(f"discarded-{time.time_ns()}.txt")
        self._taken.rename(kept)
        return kept

    @contextlib.contextmanager
    def _held(self) -> Iterator[int]:
        """Provide the file, to append to. Only we write to it meanwhile."""
        lock = file_locks.take(self.path)
        try:
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                os.fchmod(file, 0o600)  # one of an older version was readable by others
                yield file
            finally:
                os.close(file)
        finally:
            os.close(lock)


def _line(one: QuarantinedRecord) -> bytes:
    usage = one.usage if isinstance(one.usage, dict) else one.usage[:TEXT]
    error = one.error[:TEXT].encode(errors="replace").decode()
    row = {"at": one.at or time.time(), "error": error, "kind": one.kind, "usage": usage}
    try:
        return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:  # a number beyond 64 bits, half of a surrogate pair
        return orjson.dumps({**row, "usage": ascii(usage)[:TEXT]}, option=orjson.OPT_APPEND_NEWLINE)


def _refused(line: bytes) -> QuarantinedRecord:
    """Of an older version too, which wrote neither time nor kind. A line that was damaged is kept as it is."""
    try:
        row = orjson.loads(line)
        error, usage, at, kind = row["error"], row["usage"], row.get("at", 0.0), row.get("kind", "close")
    except (ValueError, TypeError, LookupError, AttributeError):
        return QuarantinedRecord(error="cannot be read", usage=line.decode(errors="replace").rstrip("\n"))
    if not isinstance(usage, dict | str) or (isinstance(usage, dict) and usage_events.exceeds_depth(usage)):
        usage = line.decode(errors="replace").rstrip("\n")
    return QuarantinedRecord(
        error=str(error), usage=usage, kind=str(kind), at=float(at) if type(at) in (int, float) else 0.0
    )


def _seen(path: Path) -> tuple[int, int, int]:
    """What changes with its content."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return found.st_ino, found.st_size, found.st_mtime_ns


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
