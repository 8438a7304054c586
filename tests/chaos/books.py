"""What an installation's database says, SQLite or PostgreSQL, and whether it agrees with what callers noted."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.discrepancy import Discrepancy
from tests.chaos.load import Call

REPLICAS = """select m.name as model, r.state, r.pid, r.run_id, r.restarts, r.detail
              from modelregistry_replica r join modelregistry_servedmodel m on m.id = r.model_id"""
USAGE = """select request_id, model, end_user, status, estimated, prompt_tokens, completion_tokens
           from usage_usagerecord"""
SEEN = "select seen_at from modelregistry_host where seen_at is not null order by seen_at desc limit 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """`url` is a PostgreSQL's; without one it is the SQLite file in `var`."""

    var: Path
    url: str = ""

    def replicas(self) -> list[dict[str, Any]]:
        return self._rows(REPLICAS)

    def usage(self) -> list[dict[str, Any]]:
        return self._rows(USAGE)

    def supervisor_seen(self) -> float:
        """Unix seconds at which a supervisor last said that it lives."""
        rows = self._rows(SEEN)
        seen = rows[0]["seen_at"] if rows else datetime.fromtimestamp(0, UTC)
        moment = datetime.fromisoformat(seen) if isinstance(seen, str) else seen
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()

    def _rows(self, query: str) -> list[dict[str, Any]]:
        if self.url:
            with psycopg.connect(self.url, row_factory=dict_row) as connection:
                return connection.execute(query).fetchall()
        with contextlib.closing(sqlite3.connect(self.var / "madoguchi.sqlite3", timeout=30)) as database:
            database.row_factory = sqlite3.Row
            return [dict(row) for row in database.execute(query)]


def unmetered(calls: Sequence[Call], rows: Sequence[Mapping[str, Any]]) -> set[str]:
    """Request ids of finished answers that have no row."""
    return {call.request_id for call in calls if call.outcome == "finished"} - {row["request_id"] for row in rows}


def disagreements(calls: Sequence[Call], rows: Sequence[Mapping[str, Any]]) -> list[Discrepancy]:
    """Return what is wrong: of a true ledger there is nothing.

    A finished answer has one row, with the tokens that its caller was given; a call that did not finish has one at
    most; no other call has any.
    """
    missing = sorted(unmetered(calls, rows))
    wrong = [Discrepancy("no-row", f"a finished answer without a row: {request_id}") for request_id in missing]
    for what in ("request_id", "end_user"):
        counts = Counter(row[what] for row in rows)
        twice = [(name, count) for name, count in counts.items() if count > 1]
        wrong += [Discrepancy("several-rows", f"{count} rows of {what} {name}") for name, count in twice]
    by_name = {call.name: call for call in calls}
    for row in rows:
        call = by_name.get(row["end_user"])
        if call is None:
            wrong.append(Discrepancy("no-call", f"a row of nobody's call: {dict(row)}"))
        else:
            wrong += _differences(call, row)
    return wrong


def _differences(call: Call, row: Mapping[str, Any]) -> Iterator[Discrepancy]:
    if call.request_id and call.request_id != row["request_id"]:
        text = f"{call.name} was told {call.request_id}, its row is {row['request_id']}"
        yield Discrepancy("another-id", text)
    if call.model != row["model"]:
        yield Discrepancy("another-model", f"{call.name} asked {call.model}, its row says {row['model']}")
    if call.outcome == "finished":
        told = (True, False, call.usage["prompt_tokens"], call.usage["completion_tokens"])
        whole = row["status"] in ("finished", "looped")  # small models do loop
        written = (whole, bool(row["estimated"]), row["prompt_tokens"], row["completion_tokens"])
        if told != written:
            text = f"{call.name} ({call.kind} of {call.model}) was told {told}, its row says {written}"
            yield Discrepancy("other-usage", text)
    if call.outcome == "refused" and row["status"] in ("finished", "looped"):
        yield Discrepancy("refused", f"{call.name} was refused ({call.why}), its row says it finished")
