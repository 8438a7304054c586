"""The spool and its drain, with real files; the database is a list."""

import concurrent.futures
import errno
import json
import os
from pathlib import Path

import pytest

from apiproxy import ledger, locks
from apiproxy.ledger import DatabaseAway, Drain, RecordRefused, Spool, Usage
from tests.waiting import until


def usage(request_id: str, **more) -> Usage:
    facts = {
        "request_id": request_id,
        "key": 1,
        "user": None,
        "tenant": 1,
        "model": "m",
        "replica": 1,
        "endpoint": "/v1/chat/completions",
        "started": 1.5,
        "first_token_ms": 3,
        "duration_ms": 9,
        "prompt_tokens": 7,
        "cached_tokens": 0,
        "completion_tokens": 5,
        "reasoning_tokens": 0,
        "status": "finished",
        "estimated": False,
        "end_user": "山田",
    }
    return Usage(**{**facts, **more})


class Database:
    def __init__(self) -> None:
        self.rows: dict[str, Usage] = {}
        self.away = False
        self.refuses: set[str] = set()

    def record(self, rows) -> None:
        if self.away:
            raise DatabaseAway("gone")
        if any(row.request_id in self.refuses for row in rows):
            raise RecordRefused("bad row")
        for row in rows:
            self.rows.setdefault(row.request_id, row)


@pytest.fixture
def database() -> Database:
    return Database()


def files(directory) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_what_was_closed_reaches_the_database_once(tmp_path, database):
    spool = Spool(tmp_path)
    drain = Drain(tmp_path, database.record, own=spool.owner)
    spool.close(usage("a"))
    spool.close(usage("b"))
    assert drain.run() == 2
    assert drain.run() == 0
    assert database.rows == {"a": usage("a"), "b": usage("b")}
    assert drain.backlog() == 0


def test_an_open_stream_is_not_recorded_while_its_gateway_lives(tmp_path, database):
    spool = Spool(tmp_path)
    spool.open(usage("a", status="interrupted"))
    Drain(tmp_path, database.record, own=spool.owner).run()
    Drain(tmp_path, database.record, own="another gateway").run()
    assert database.rows == {}


def test_a_dead_gateways_spool_is_moved_and_its_open_streams_were_interrupted(tmp_path, database):
    dead = Spool(tmp_path)
    dead.open(usage("finished", status="interrupted"))
    dead.open(usage("cut", status="interrupted"))
    dead.close(usage("finished"))
    dead.shut()  # the kernel drops the lock of a killed process just so
    Drain(tmp_path, database.record).run()
    assert {name: row.status for name, row in database.rows.items()} == {"finished": "finished", "cut": "interrupted"}
    assert files(tmp_path) == []


def test_the_lock_of_one_that_died_before_its_first_segment_is_removed(tmp_path, database):
    (tmp_path / "dead.lock").touch()
    living = Spool(tmp_path)
    (segment,) = tmp_path.glob(f"{living.owner}-*")
    segment.unlink()  # as when it is just being made
    Drain(tmp_path, database.record).run()
    assert files(tmp_path) == [f"{living.owner}.lock"]


def test_a_lock_that_was_removed_while_one_waited_for_it_is_taken_anew(tmp_path):
    path = tmp_path / "owner.lock"
    drains = locks.take(path)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        born = pool.submit(locks.take, path)
        until(lambda: len(waiting_for(path)) == 1)
        path.unlink()
        os.close(drains)
        descriptor = born.result(10)
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert locks.try_to_take(path) is None
    os.close(descriptor)


def waiting_for(path) -> list[str]:
    """Lines of the kernel's table: who waits for a lock on this file."""
    inode = f":{path.stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line and inode in line]


def test_a_dead_ones_spool_is_drained_by_one_at_a_time(tmp_path, database):
    """Workers that start together find the same dead ones."""
    dead = Spool(tmp_path)
    dead.close(usage("a"))
    dead.shut()
    others: list[int] = []

    def meanwhile(rows) -> None:
        others.append(Drain(tmp_path, database.record).run())
        database.record(rows)

    assert Drain(tmp_path, meanwhile).run() == 1
    assert others == [0]
    assert files(tmp_path) == []


def test_a_line_torn_by_a_crash_harms_no_other(tmp_path, database):
    dead = Spool(tmp_path)
    dead.close(usage("a"))
    dead.shut()
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"close":{"request_id":"b"')
    Drain(tmp_path, database.record).run()
    assert list(database.rows) == ["a"]


def test_a_line_that_cannot_be_read_is_set_aside(tmp_path, database):
    dead = Spool(tmp_path)
    dead.close(usage("a"))
    dead.shut()
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(b"\xffnonsense\n" + segment.read_bytes() + b'{"close":{"request_id":"old"}}\n')
    Drain(tmp_path, database.record).run()
    assert list(database.rows) == ["a"]
    assert (tmp_path / "refused.txt").read_text().count("\n") == 2


def test_the_spool_waits_for_a_database_that_is_away(tmp_path, database):
    spool = Spool(tmp_path)
    drain = Drain(tmp_path, database.record, own=spool.owner)
    database.away = True
    spool.close(usage("a"))
    for _ in range(3):
        with pytest.raises(DatabaseAway):
            drain.run()
    database.away = False
    assert drain.run() == 1


def test_one_row_that_the_database_refuses_holds_up_no_other(tmp_path, database):
    spool = Spool(tmp_path)
    database.refuses = {"b"}
    for name in "abc":
        spool.close(usage(name))
    Drain(tmp_path, database.record, own=spool.owner).run()
    assert sorted(database.rows) == ["a", "c"]
    assert "bad row" in (tmp_path / "refused.txt").read_text()


def test_segments_are_removed_when_everything_in_them_is_recorded(tmp_path, database, monkeypatch):
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 1000)
    spool = Spool(tmp_path)
    drain = Drain(tmp_path, database.record, own=spool.owner)
    spool.open(usage("long", status="interrupted"))
    for number in range(20):
        spool.close(usage(f"r{number}"))
    drain.run()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2  # the one with the open stream, and the one being written
    spool.close(usage("long"))
    drain.run()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert len(database.rows) == 21


def test_a_full_disk_stops_new_work_and_loses_nothing(tmp_path, database, monkeypatch):
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 500)
    spool = Spool(tmp_path)
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    spool.close(usage("a"))
    assert spool.accepting
    spool.close(usage("b"))
    spool.close(usage("c"))
    assert not spool.accepting
    spool.retry()
    assert not spool.accepting
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    spool.retry()
    assert spool.accepting
    Drain(tmp_path, database.record, own=spool.owner).run()
    assert list(database.rows) == ["a", "b", "c"]


def test_a_gateway_that_starts_on_a_full_disk_takes_work_when_there_is_room(tmp_path, database, monkeypatch):
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    spool = Spool(tmp_path)
    assert not spool.accepting
    spool.sync()
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    spool.retry()
    assert spool.accepting
    spool.close(usage("a"))
    Drain(tmp_path, database.record, own=spool.owner).run()
    assert list(database.rows) == ["a"]


def test_an_event_that_is_being_copied_is_read_when_it_is_whole(tmp_path, database):
    spool = Spool(tmp_path)
    spool.close(usage("a"))
    spool.close(usage("b"))
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("r+b") as file:
        whole = file.read().rstrip(b"\0")
        middle = len(whole) - 100
        file.seek(middle)
        file.write(b"\0")
        file.flush()
        drain = Drain(tmp_path, database.record, own=spool.owner)
        drain.run()
        assert list(database.rows) == ["a"]
        assert drain.backlog() == 0
        file.seek(middle)
        file.write(whole[middle : middle + 1])
    assert drain.backlog() > 0
    drain.run()
    assert list(database.rows) == ["a", "b"]


def full(descriptor: int, start: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_lines_of_a_gateway_that_did_not_tell_where_calls_came_from_are_moved(tmp_path):
    facts = {name: value for name, value in vars(usage("old")).items() if name not in ("address", "client")}
    (tmp_path / "0123456789ab-000000.jsonl").write_text(json.dumps({"close": facts}) + "\n")
    moved: list[Usage] = []
    assert Drain(tmp_path, moved.extend).run() == 1
    assert (moved[0].request_id, moved[0].address, moved[0].client) == ("old", "", "")
