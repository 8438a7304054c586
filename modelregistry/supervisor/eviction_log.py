"""What was unloaded for which model and what that cost, until all of it is known and written."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from modelregistry.hostside.replicas import ReplicaKey

GIVEN_UP = 3600.0  # seconds after which a model that was to come is not waited for any more
MOST_OPEN = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedEviction:
    """As `EvictionRecord`. `key`: of what was unloaded; `successor`: the model that got its place."""

    key: ReplicaKey
    successor: int
    at: datetime
    waited_seconds: float
    drain_seconds: float | None = None
    load_seconds: float | None = None
    calls: int = 0


@dataclass(slots=True)
class _Entry:
    facts: LoggedEviction
    began: float
    stopped: float | None = None
    written: LoggedEviction | None = None
    row_id: int | None = None


class EvictionLog:
    """The evictions of one host that are under way or not written yet. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def begin(self, facts: LoggedEviction, now: float) -> None:
        self._entries.append(_Entry(facts, now))
        del self._entries[:-MOST_OPEN]

    def call_off(self, key: ReplicaKey) -> None:
        """Forget what was decided about a replica that stays after all."""
        self._entries = [entry for entry in self._entries if entry.facts.key != key or entry.stopped is not None]

    def on_stopped(self, key: ReplicaKey, now: float) -> None:
        for entry in self._entries:
            if entry.facts.key == key and entry.stopped is None:
                entry.stopped = now
                entry.facts = replace(entry.facts, drain_seconds=now - entry.began)

    def on_ready(self, model: int, now: float, calls: int) -> None:
        """Note that a model is there, for which so many calls waited."""
        for entry in self._entries:
            facts = entry.facts
            if facts.successor == model and entry.stopped is not None and facts.load_seconds is None:
                seconds = now - entry.stopped
                entry.facts = replace(facts, load_seconds=seconds, calls=max(calls, facts.calls))

    def unwritten(self) -> Iterator[tuple[LoggedEviction, int | None]]:
        """Yield what is to be written, with its row if it has one."""
        for entry in list(self._entries):
            if entry.facts != entry.written:
                yield entry.facts, entry.row_id

    def note_written(self, facts: LoggedEviction, row_id: int | None, now: float) -> None:
        """Note that this is in the database. `row_id` None: it cannot be, as a model is gone."""
        for entry in list(self._entries):
            if (entry.facts.key, entry.facts.at) != (facts.key, facts.at):
                continue
            entry.written, entry.row_id = facts, row_id
            known = entry.facts == facts and facts.load_seconds is not None
            if row_id is None or known or now - entry.began > GIVEN_UP:
                self._entries.remove(entry)
