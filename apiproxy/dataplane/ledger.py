"""Usage events: first an append-only spool on disk, then the database in batches.

The promise: a finished answer is recorded exactly once, whatever dies. Its event is in the spool before its last bytes
go to the client; the drain moves the spool to the database, where the request id is unique and conflicts are ignored,
so moving twice is safe. A stream is opened in the spool at its first byte, and opened again now and then with what was
counted since; if its gateway dies, the next one records it as interrupted.

What may fail:

- database: the spool grows (about 600 bytes a request) and is moved when the database is back;
- disk (full, read-only): the spool keeps events in memory, `accepting` turns false, and the gateway takes no new work
  until there is room again; finished answers are lost only if the gateway is killed during that time;
- content: a line that contains nothing that can be recorded (damaged, of another version, a value that no database
  takes) and a row that the database refuses are set aside (see `quarantine`); all others go on;
- power: the spool is written, not synced, per event; the drain syncs it, so a power cut can lose the last second.

A segment is reserved on the disk as a whole and mapped: an event is copied to memory that the kernel keeps when the
process is killed, without a system call (10 % of a call's CPU, and each time the interpreter's lock is lost to another
thread). So room can only run out between two segments; on a disk that breaks the process ends (SIGBUS) and is
restarted. Bytes to which no event has been written yet read as NUL.
"""

import contextlib
import logging
import mmap
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from apiproxy.dataplane import usage_events
from apiproxy.dataplane.file_locks import acquire, try_to_acquire
from apiproxy.dataplane.quarantine import Quarantine, QuarantinedRecord
from apiproxy.dataplane.usage_events import BadLine, Usage

log = logging.getLogger("madoguchi.ledger")

# Size of a segment: about 850 events. Segments that were moved are deleted.
SEGMENT_BYTES = 512 * 1024
# Rows of one database transaction: about 40 ms on SQLite, during which no other process can write.
BATCH = 2000


Record = Callable[[Sequence[Usage]], None]


class RecordRefused(Exception):
    """The database is there but will not take these rows, now or later."""


class DatabaseUnavailable(Exception):
    """The database did not answer; the same rows may be recorded later."""


class Spool:
    """The append side, for the event loop: never waits for the database.

    Segments are `<owner>-<number>.jsonl`; the owner holds a lock on `<owner>.lock` for as long as it lives.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.directory = directory
        self.owner = uuid.uuid4().hex[:12]
        self._lock = acquire(directory / f"{self.owner}.lock")
        self._number = 0
        self._unwritten: list[bytes] = []
        self._retired: list[int] = []  # files of full segments, to be synced and closed
        self._file = -1
        self._memory: mmap.mmap | None = None  # None: there has been no room for a first segment yet
        self._size = SEGMENT_BYTES
        self.line_count = 0  # lines, ever
        self.byte_count = 0  # of all lines, ever, also of those for which there is no room yet
        self._begin_segment()

    @property
    def accepting(self) -> bool:
        """Whether there was room for all events: if not, no new work should be taken."""
        return not self._unwritten and self._memory is not None

    def open_call(self, usage: Usage) -> None:
        """Write that a call is under way, any number of times; `usage` is what to record if it is interrupted now."""
        self._append(usage_events.encode_line("open", usage))

    def close_call(self, usage: Usage) -> None:
        """Write that a request has ended."""
        self._append(usage_events.encode_line("close", usage))

    def retry(self) -> None:
        """Write what could not be written before, if it can be now."""
        if self._memory is None:
            self._begin_segment()
        while self._unwritten and self._write(self._unwritten[0]):
            del self._unwritten[0]

    def close(self) -> None:
        """Release the spool: the next gateway to drain the directory takes what is left."""
        self.retry()
        self._retire_segment()
        self.sync()
        os.close(self._lock)

    def sync(self) -> None:
        """Block until what was written before is on the disk. For one thread; events may be written meanwhile."""
        current = self._file  # closed only here
        if current >= 0:
            os.fdatasync(current)
        while self._retired:
            os.fdatasync(self._retired[0])
            os.close(self._retired.pop(0))

    def _append(self, line: bytes) -> None:
        self.byte_count += len(line)
        if self._unwritten or not self._write(line):
            self._unwritten.append(line)

    def _write(self, line: bytes) -> bool:
        """Append a whole line or nothing."""
        end = self._size + len(line)
        if end > SEGMENT_BYTES:
            if not self._begin_segment():
                return False
            end = len(line)
        assert self._memory is not None
        self._memory[self._size : end] = line
        self._size = end
        self.line_count += 1
        return True

    def _begin_segment(self) -> bool:
        """Continue in a new segment. Return False if there is no room for one."""
        try:
            following = self._reserve_segment()
        except OSError:
            return False
        self._retire_segment()
        (self._file, self._memory), self._size = following, 0
        return True

    def _retire_segment(self) -> None:
        if self._memory is None:
            return
        self._memory.close()
        with contextlib.suppress(OSError):
            os.ftruncate(self._file, self._size)  # only to give room back
        self._retired.append(self._file)
        self._file, self._memory = -1, None

    def _reserve_segment(self) -> tuple[int, mmap.mmap]:
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


class UsageDrain:
    """Moves segments into the database. Blocks; run it in one thread, never in two at once."""

    def __init__(self, directory: Path, record: Record, *, own: str = "") -> None:
        """Prepare to drain the directory.

        `record` writes a batch and ignores repeats; it raises RecordRefused or DatabaseUnavailable.
        `own`: our spool's owner.
        """
        self._directory = directory
        self.record = record
        self._own = own
        self._read: dict[str, int] = {}  # bytes of each segment that are in the database
        self._open: dict[str, tuple[str, Usage]] = {}  # streams that have not ended: request id -> (segment, usage)
        self._unfinished: dict[str, set[str]] = {}  # segment -> those of its streams
        self.set_aside = Quarantine(directory)
        self.refused_count = 0  # lines and rows that could not be recorded, ever
        # Bytes of our own lines that are dealt with, ever: the rest of the spool's `byte_count` is the backlog.
        self.byte_count = 0

    def run(self) -> int:
        """Move everything that is there; return the number of rows. Raises DatabaseUnavailable; call again later.

        Raises OSError for a file that cannot be read, after all others were moved.
        """
        moved, unreadable = 0, None
        for owner in self._owners():
            try:
                moved += self._drain_owner(owner)
            except OSError as error:
                unreadable = error
        if unreadable is not None:
            raise unreadable
        return moved

    def _drain_owner(self, owner: str) -> int:
        if owner == self._own:
            moved = self._move_segments(owner)
            self._remove_moved(self._segments(owner))
            return moved
        with self._claim_dead(owner) as dead:  # a living gateway drains its own
            return self._move_segments(owner) + self._record_interrupted(owner) if dead else 0

    def _owners(self) -> list[str]:
        """List the owners of segments and of locks: one killed before its first segment has left only a lock."""
        segments = {path.name.partition("-")[0] for path in self._directory.glob("*.jsonl")}
        return sorted(segments | {path.stem for path in self._directory.glob("*.lock")})

    def _segments(self, owner: str) -> list[Path]:
        return sorted(self._directory.glob(f"{owner}-*.jsonl"))

    @contextlib.contextmanager
    def _claim_dead(self, owner: str) -> Iterator[bool]:
        """Provide whether the owner is dead; its spool is then ours alone.

        It holds its lock until it dies, however it dies.
        """
        descriptor = try_to_acquire(self._directory / f"{owner}.lock")
        if descriptor is None:
            yield False
            return
        try:
            yield True
        finally:
            os.close(descriptor)

    def _move_segments(self, owner: str) -> int:
        return sum(self._move_segment(path) for path in self._segments(owner))

    def _move_segment(self, path: Path) -> int:
        moved, own = 0, path.name.startswith(f"{self._own}-")
        lines = read_lines(path, self._read.get(path.name, 0), living=own).splitlines(keepends=True)
        for start in range(0, len(lines), BATCH):
            batch = lines[start : start + BATCH]
            refused: list[QuarantinedRecord] = []
            closed = self._sort_lines(path.name, batch, refused)
            refused += record_rows(self.record, closed)
            self._set_aside(refused)
            moved += len(closed)
            for usage in closed:
                self._forget(usage.request_id)
            size = sum(map(len, batch))
            self._read[path.name] = self._read.get(path.name, 0) + size
            self.byte_count += size if own else 0
        return moved

    def _sort_lines(self, segment: str, lines: list[bytes], refused: list[QuarantinedRecord]) -> list[Usage]:
        """Return the usages that have ended.

        Remembers those that have begun; adds what cannot be read to `refused`.
        """
        closed: list[Usage] = []
        for line in lines:
            try:
                kind, usage = usage_events.decode_line(line)
            except BadLine as error:
                refused.append(quarantine_line(line, error))
                continue
            if kind == "close":
                closed.append(usage)
            else:
                self._forget(usage.request_id)
                self._open[usage.request_id] = (segment, usage)
                self._unfinished.setdefault(segment, set()).add(usage.request_id)
        return closed

    def _set_aside(self, refused: list[QuarantinedRecord]) -> None:
        """Put what cannot be recorded where an operator finds it, so that it does not hold up all others."""
        if not refused:
            return
        kept = self.set_aside.add(refused)
        self.refused_count += len(refused)
        log.error("usage of %d calls cannot be recorded and is set aside: %s", len(refused), refused[0].error)
        if kept < len(refused):
            log.error("usage of %d calls is lost: %s is full", len(refused) - kept, self.set_aside.path)

    def _forget(self, request_id: str) -> None:
        segment, _ = self._open.pop(request_id, ("", None))
        self._unfinished.get(segment, set()).discard(request_id)

    def _record_interrupted(self, owner: str) -> int:
        """Record a dead gateway's open streams as interrupted, and delete its files; return how many there were."""
        segments = self._segments(owner)
        names = {path.name for path in segments}
        interrupted = [usage for segment, usage in self._open.values() if segment in names]
        for start in range(0, len(interrupted), BATCH):
            self._set_aside(record_rows(self.record, interrupted[start : start + BATCH]))
        for usage in interrupted:
            self._forget(usage.request_id)
        for path in segments:
            self._delete_segment(path)
        (self._directory / f"{owner}.lock").unlink(missing_ok=True)
        return len(interrupted)

    def _remove_moved(self, segments: list[Path]) -> None:
        """Delete the segments whose events are all in the database, except the one that is being written."""
        for path in segments[:-1]:
            if not self._unfinished.get(path.name) and not read_lines(path, self._read.get(path.name, 0)):
                self._delete_segment(path)

    def _delete_segment(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        self._read.pop(path.name, None)
        self._unfinished.pop(path.name, None)


def record_rows(record: Record, rows: Sequence[Usage]) -> list[QuarantinedRecord]:
    """Record the rows; return those that the database refuses, found by halving. Raises DatabaseUnavailable."""
    if not rows:
        return []
    try:
        record(rows)
    except RecordRefused as error:
        if len(rows) == 1:
            return [QuarantinedRecord(error=str(error), usage=vars(rows[0]))]
        middle = len(rows) // 2
        return record_rows(record, rows[:middle]) + record_rows(record, rows[middle:])
    return []


def replay(set_aside: Quarantine, record: Record) -> tuple[int, int]:
    """Record what was set aside, as far as it can be now. Return how many were recorded, and how many were not.

    Raises DatabaseUnavailable; nothing is lost then: the next replay takes them up again.
    """
    taken, left = set_aside.take(), []
    usages: list[tuple[str, Usage]] = []
    for one in taken:
        try:
            usages.append(parse_record(one))
        except BadLine as error:
            left.append(replace(one, error=str(error)))
    # A call's end ("close") is recorded before its beginning ("open"), which then changes nothing.
    rows = [usage for _, usage in sorted(usages, key=lambda pair: pair[0])]
    for start in range(0, len(rows), BATCH):
        left += record_rows(record, rows[start : start + BATCH])
    set_aside.finish_replay(left)
    return len(taken) - len(left), len(left)


def parse_record(one: QuarantinedRecord) -> tuple[str, Usage]:
    """Return kind and usage of what was set aside. Raises BadLine."""
    if isinstance(one.usage, str):
        return usage_events.decode_line(one.usage.encode())
    return one.kind, usage_events.parse_usage(one.usage)


def quarantine_line(line: bytes, why: BadLine) -> QuarantinedRecord:
    try:
        kind, facts = usage_events.decode_members(line)
    except BadLine:
        return QuarantinedRecord(error=str(why), usage=line.decode(errors="replace").rstrip("\n"))
    return QuarantinedRecord(error=str(why), usage=facts, kind=kind)


def read_lines(path: Path, start: int, *, living: bool = True) -> bytes:
    """Return whole lines of a segment from a byte on.

    The last event may just be being copied, or was torn by the gateway's death: then there is a NUL in it, or it has no
    end. In a dead gateway's segment, a NUL before the last events is damage, and what follows is read as well.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    if not living:
        return data[: data.rfind(b"\n") + 1]
    end = data.find(b"\0")
    return data[: data.rfind(b"\n", 0, len(data) if end < 0 else end) + 1]
