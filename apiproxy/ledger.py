"""Usage events: an append-only spool on disk first, the database in batches after.

The promise: a finished answer is recorded exactly once, whatever dies. Its event is in the spool before its last bytes
go to the client; the drain moves the spool to the database, where the request id is unique and conflicts are
ignored, so moving twice is safe. A stream is opened in the spool at its first byte; if its gateway dies, the next
one records it as interrupted.

What may be away:
- database: the spool grows (about 300 bytes a request) and is moved when the database is back;
- disk (full, read-only): `append` keeps events in memory, `accepting` turns false, and the gateway takes no new work
  until there is room again; finished answers are lost only if the gateway is killed during that time;
- power: the spool is written, not synced, per event; `drain` syncs it, so a power cut can lose the last second.

A segment is reserved on the disk as a whole and mapped: an event is copied to where the kernel keeps it when the
process is killed, without asking the kernel (10 % of a call's CPU, and each time the interpreter's lock is lost to
another thread). So room can only run out between two segments; on a disk that breaks the process ends (SIGBUS) and is
started again. What no event has been written to yet reads as NUL.
"""

import contextlib
import json
import mmap
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from apiproxy.locks import take, try_to_take

# Of a segment: about 1,500 events. Moved ones are removed.
SEGMENT_BYTES = 512 * 1024
# Rows of one database transaction: about 40 ms on SQLite, during which nobody else can write.
BATCH = 2000


@dataclass(kw_only=True)  # frozen or with slots, it takes 4 µs more to make and to write down
class Usage:
    """One request that reached an engine. `started` in Unix seconds, times in milliseconds. Never changed.

    `address` and `client` are not recorded: of a key's last call they become what its owner sees of it. Lines of an
    older gateway have none.
    """

    request_id: str
    key: int
    user: int | None
    tenant: int
    model: str
    replica: int | None
    endpoint: str
    started: float
    first_token_ms: int | None
    duration_ms: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    status: str
    estimated: bool
    end_user: str
    address: str = ""
    client: str = ""


Record = Callable[[Sequence[Usage]], None]


class RecordRefused(Exception):
    """The database is there but will not take these rows, now or later."""


class DatabaseAway(Exception):
    """The database did not answer; the same rows may be recorded later."""


class Spool:
    """The append side, for the event loop: never waits for the database.

    Segments are `<owner>-<number>.jsonl`; the owner holds a lock on `<owner>.lock` for as long as it lives.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self.owner = uuid.uuid4().hex[:12]
        self._lock = take(directory / f"{self.owner}.lock")
        self._number = 0
        self._unwritten: list[bytes] = []
        self._retired: list[int] = []  # files of full segments, to be synced and closed
        self._file = -1
        self._memory: mmap.mmap | None = None  # None: there has been no room for a first segment yet
        self._size = SEGMENT_BYTES
        self.written = 0  # lines, ever
        self._begin()

    @property
    def accepting(self) -> bool:
        """Whether there was room for all events: if not, no new work should be taken."""
        return not self._unwritten and self._memory is not None

    def open(self, usage: Usage) -> None:
        """A stream begins; `usage` is what would be recorded if it were interrupted now."""
        self._append({"open": vars(usage)})

    def close(self, usage: Usage) -> None:
        """A request has ended."""
        self._append({"close": vars(usage)})

    def retry(self) -> None:
        """Writes what could not be written before, if it can be now."""
        if self._memory is None:
            self._begin()
        while self._unwritten and self._write(self._unwritten[0]):
            del self._unwritten[0]

    def shut(self) -> None:
        """Ends this owner: whoever drains the directory next takes what is left."""
        self.retry()
        self._retire()
        self.sync()
        os.close(self._lock)

    def sync(self) -> None:
        """Blocks until what was written before is on the disk. For one thread; events may be written meanwhile."""
        current = self._file  # closed by nobody but us, here
        if current >= 0:
            os.fdatasync(current)
        while self._retired:
            os.fdatasync(self._retired[0])
            os.close(self._retired.pop(0))

    def _append(self, event: dict[str, dict[str, Any]]) -> None:
        line = orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE)
        if self._unwritten or not self._write(line):
            self._unwritten.append(line)

    def _write(self, line: bytes) -> bool:
        """Appends a whole line or nothing."""
        end = self._size + len(line)
        if end > SEGMENT_BYTES:
            if not self._begin():
                return False
            end = len(line)
        assert self._memory is not None
        self._memory[self._size : end] = line
        self._size = end
        self.written += 1
        return True

    def _begin(self) -> bool:
        """The next segment; False if there is no room for one."""
        try:
            following = self._segment()
        except OSError:
            return False
        self._retire()
        (self._file, self._memory), self._size = following, 0
        return True

    def _retire(self) -> None:
        if self._memory is None:
            return
        self._memory.close()
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._size)  # only to give room back
        self._retired.append(self._file)
        self._file, self._memory = -1, None

    def _segment(self) -> tuple[int, mmap.mmap]:
        path = self.directory / f"{self.owner}-{self._number:06d}.jsonl"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, SEGMENT_BYTES)
            memory = mmap.mmap(descriptor, SEGMENT_BYTES)
        except OSError:
            os.close(descriptor)
            path.unlink()
            raise
        self._number += 1
        return descriptor, memory


class Drain:
    """Moves segments into the database. Blocks; run it in one thread, never in two at once."""

    def __init__(self, directory: Path, record: Record, *, own: str = "") -> None:
        """`record` writes a batch, repeats ignored; raises RecordRefused or DatabaseAway. `own`: our spool's owner."""
        self._directory = directory
        self._record = record
        self._own = own
        self._read: dict[str, int] = {}  # bytes of each segment that are in the database
        self._open: dict[str, tuple[str, Usage]] = {}  # streams without an end so far: request id -> (segment, usage)
        self._unfinished: dict[str, set[str]] = {}  # segment -> those of its streams
        self.refused = 0  # usages that the database would not take, ever

    def run(self) -> int:
        """Moves everything that is there; returns the number of rows. Raises DatabaseAway; call again later."""
        moved = 0
        for owner in self._owners():
            if owner == self._own:
                moved += self._move(owner)
                self._tidy(self._segments(owner))
            else:
                with self._claim(owner) as dead:
                    if dead:  # the living drain their own
                        moved += self._move(owner) + self._bury(owner)
        return moved

    def backlog(self) -> int:
        """Bytes of our own that are not in the database yet. Those of the dead go with the next run."""
        return sum(len(events(path, self._read.get(path.name, 0))) for path in self._segments(self._own))

    def _owners(self) -> list[str]:
        """Of segments, and of locks: one that was killed before its first segment has left a lock alone."""
        segments = {path.name.partition("-")[0] for path in self._directory.glob("*.jsonl")}
        return sorted(segments | {path.stem for path in self._directory.glob("*.lock")})

    def _segments(self, owner: str) -> list[Path]:
        return sorted(self._directory.glob(f"{owner}-*.jsonl"))

    @contextlib.contextmanager
    def _claim(self, owner: str) -> Iterator[bool]:
        """Whether the owner is dead: it holds its lock until it dies, however it dies. Its spool is ours alone then."""
        descriptor = try_to_take(self._directory / f"{owner}.lock")
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            os.close(descriptor)

    def _move(self, owner: str) -> int:
        return sum(self._segment(path) for path in self._segments(owner))

    def _segment(self, path: Path) -> int:
        moved = 0
        lines = events(path, self._read.get(path.name, 0)).splitlines(keepends=True)
        for start in range(0, len(lines), BATCH):
            batch = lines[start : start + BATCH]
            closed = self._sort(path.name, batch)
            self._write(closed)
            moved += len(closed)
            for usage in closed:
                self._forget(usage.request_id)
            self._read[path.name] = self._read.get(path.name, 0) + sum(map(len, batch))
        return moved

    def _sort(self, segment: str, lines: list[bytes]) -> list[Usage]:
        closed: list[Usage] = []
        for line in lines:
            try:
                ((kind, facts),) = orjson.loads(line).items()
                usage = Usage(**facts)
            except (ValueError, TypeError, AttributeError) as error:
                self._set_aside(str(error), line.decode(errors="replace"))
                continue
            if kind == "close":
                closed.append(usage)
            else:
                self._open[usage.request_id] = (segment, usage)
                self._unfinished.setdefault(segment, set()).add(usage.request_id)
        return closed

    def _write(self, rows: list[Usage]) -> None:
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            try:
                self._record(batch)
            except RecordRefused:
                self._write_each(batch)

    def _write_each(self, rows: list[Usage]) -> None:
        for row in rows:
            try:
                self._record([row])
            except RecordRefused as error:
                self._set_aside(str(error), vars(row))

    def _set_aside(self, why: str, what: Any) -> None:
        """One bad row must not hold up all others: it goes where an operator finds it."""
        self.refused += 1
        with (self._directory / "refused.txt").open("a") as file:
            file.write(json.dumps({"error": why, "usage": what}, ensure_ascii=False) + "\n")

    def _forget(self, request_id: str) -> None:
        segment, _ = self._open.pop(request_id, ("", None))
        self._unfinished.get(segment, set()).discard(request_id)

    def _bury(self, owner: str) -> int:
        """A dead gateway's open streams were interrupted; then nothing of it is left to keep."""
        segments = self._segments(owner)
        names = {path.name for path in segments}
        interrupted = [usage for segment, usage in self._open.values() if segment in names]
        self._write(interrupted)
        for usage in interrupted:
            self._forget(usage.request_id)
        for path in segments:
            self._drop(path)
        (self._directory / f"{owner}.lock").unlink(missing_ok=True)
        return len(interrupted)

    def _tidy(self, segments: list[Path]) -> None:
        """Removes segments, but for the one being written, whose every event is in the database."""
        for path in segments[:-1]:
            if not self._unfinished.get(path.name) and not events(path, self._read.get(path.name, 0)):
                self._drop(path)

    def _drop(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._read.pop(path.name, None)
        self._unfinished.pop(path.name, None)


def events(path: Path, start: int) -> bytes:
    """Whole lines of a segment from a byte on.

    The last event may be being copied just now, or was torn by the gateway's death: then a NUL is left in it, or it has
    no end.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    end = data.find(b"\0")
    return data[: data.rfind(b"\n", 0, len(data) if end < 0 else end) + 1]
