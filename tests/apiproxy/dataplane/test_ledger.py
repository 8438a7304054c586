"""The spool and its drain, with real files; the database is a list."""

import concurrent.futures
import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from apiproxy.dataplane import file_locks, ledger, quarantine, usage_events
from apiproxy.dataplane.ledger import DatabaseUnavailable, RecordRefused, Spool, UsageDrain, replay
from apiproxy.dataplane.quarantine import Quarantine, QuarantinedRecord
from apiproxy.dataplane.token_usage import MAX_TOKEN_COUNT
from apiproxy.dataplane.usage_events import Usage
from tests.apiproxy.usage_events import usage
from tests.waiting import until


class Database:
    def __init__(self) -> None:
        self.rows: dict[str, Usage] = {}
        self.away = False
        self.refuses: set[str] = set()

    def record(self, rows) -> None:
        if self.away:
            raise DatabaseUnavailable("gone")
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
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    spool.close_call(usage("a"))
    spool.close_call(usage("b"))
    assert drain.run() == 2
    assert drain.run() == 0
    assert database.rows == {"a": usage("a"), "b": usage("b")}
    assert spool.byte_count == drain.byte_count > 0


def test_an_open_stream_is_not_recorded_while_its_gateway_lives(tmp_path, database):
    spool = Spool(tmp_path)
    spool.open_call(usage("a", status="interrupted"))
    UsageDrain(tmp_path, database.record, own=spool.owner).run()
    UsageDrain(tmp_path, database.record, own="another gateway").run()
    assert database.rows == {}


def test_a_dead_gateways_spool_is_moved_and_its_open_streams_were_interrupted(tmp_path, database):
    dead = Spool(tmp_path)
    dead.open_call(usage("finished", status="interrupted"))
    dead.open_call(usage("cut", status="interrupted"))
    dead.close_call(usage("finished"))
    dead.close()  # the kernel drops the lock of a killed process just so
    UsageDrain(tmp_path, database.record).run()
    assert {name: row.status for name, row in database.rows.items()} == {"finished": "finished", "cut": "interrupted"}
    assert files(tmp_path) == []


def test_the_lock_of_one_that_died_before_its_first_segment_is_removed(tmp_path, database):
    (tmp_path / "dead.lock").touch()
    living = Spool(tmp_path)
    (segment,) = tmp_path.glob(f"{living.owner}-*")
    segment.unlink()  # as when it is just being made
    UsageDrain(tmp_path, database.record).run()
    assert files(tmp_path) == [f"{living.owner}.lock"]


def test_a_lock_file_that_was_deleted_during_the_wait_is_locked_again(tmp_path):
    path = tmp_path / "owner.lock"
    drains = file_locks.acquire(path)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        born = pool.submit(file_locks.acquire, path)
        until(lambda: len(waiting_for(path)) == 1)
        path.unlink()
        os.close(drains)
        descriptor = born.result(10)
    assert os.path.samestat(os.fstat(descriptor), path.stat())
    assert file_locks.try_to_acquire(path) is None
    os.close(descriptor)


def waiting_for(path) -> list[str]:
    """Return lines of the kernel's table: who waits for a lock on this file."""
    inode = f":{path.stat().st_ino} "
    return [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line and inode in line]


def test_a_dead_ones_spool_is_drained_by_one_at_a_time(tmp_path, database):
    """Workers that start together find the same dead ones."""
    dead = Spool(tmp_path)
    dead.close_call(usage("a"))
    dead.close()
    others: list[int] = []

    def meanwhile(rows) -> None:
        others.append(UsageDrain(tmp_path, database.record).run())
        database.record(rows)

    assert UsageDrain(tmp_path, meanwhile).run() == 1
    assert others == [0]
    assert files(tmp_path) == []


def test_a_line_torn_by_a_crash_harms_no_other(tmp_path, database):
    dead = Spool(tmp_path)
    dead.close_call(usage("a"))
    dead.close()
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("ab") as file:
        file.write(b'{"close":{"request_id":"b"')
    UsageDrain(tmp_path, database.record).run()
    assert list(database.rows) == ["a"]


def test_a_line_that_cannot_be_read_is_set_aside(tmp_path, database):
    dead = Spool(tmp_path)
    dead.close_call(usage("a"))
    dead.close()
    (segment,) = tmp_path.glob("*.jsonl")
    segment.write_bytes(b"\xffnonsense\n" + segment.read_bytes() + b'{"close":{"request_id":"old"}}\n')
    UsageDrain(tmp_path, database.record).run()
    assert list(database.rows) == ["a"]
    assert (tmp_path / "refused.txt").read_text().count("\n") == 2


def test_the_spool_waits_for_a_database_that_is_away(tmp_path, database):
    spool = Spool(tmp_path)
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    database.away = True
    spool.close_call(usage("a"))
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            drain.run()
    database.away = False
    assert drain.run() == 1


def test_one_row_that_the_database_refuses_holds_up_no_other(tmp_path, database):
    spool = Spool(tmp_path)
    database.refuses = {"b"}
    for name in "abc":
        spool.close_call(usage(name))
    UsageDrain(tmp_path, database.record, own=spool.owner).run()
    assert sorted(database.rows) == ["a", "c"]
    assert "bad row" in (tmp_path / "refused.txt").read_text()


def test_segments_are_removed_when_everything_in_them_is_recorded(tmp_path, database, monkeypatch):
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 1000)
    spool = Spool(tmp_path)
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    spool.open_call(usage("long", status="interrupted"))
    for number in range(20):
        spool.close_call(usage(f"r{number}"))
    drain.run()
    assert len(list(tmp_path.glob("*.jsonl"))) == 2  # the one with the open stream, and the one being written
    spool.close_call(usage("long"))
    drain.run()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1
    assert len(database.rows) == 21


def test_a_full_disk_stops_new_work_and_loses_nothing(tmp_path, database, monkeypatch):
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 700)
    spool = Spool(tmp_path)
    reserve = os.posix_fallocate
    monkeypatch.setattr(os, "posix_fallocate", full)
    spool.close_call(usage("a"))
    assert spool.accepting
    spool.close_call(usage("b"))
    spool.close_call(usage("c"))
    assert not spool.accepting
    spool.retry()
    assert not spool.accepting
    monkeypatch.setattr(os, "posix_fallocate", reserve)
    spool.retry()
    assert spool.accepting
    UsageDrain(tmp_path, database.record, own=spool.owner).run()
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
    spool.close_call(usage("a"))
    UsageDrain(tmp_path, database.record, own=spool.owner).run()
    assert list(database.rows) == ["a"]


def test_an_event_that_is_being_copied_is_read_when_it_is_whole(tmp_path, database):
    spool = Spool(tmp_path)
    spool.close_call(usage("a"))
    spool.close_call(usage("b"))
    (segment,) = tmp_path.glob("*.jsonl")
    with segment.open("r+b") as file:
        whole = file.read().rstrip(b"\0")
        middle = len(whole) - 100
        file.seek(middle)
        file.write(b"\0")
        file.flush()
        drain = UsageDrain(tmp_path, database.record, own=spool.owner)
        drain.run()
        assert list(database.rows) == ["a"]
        file.seek(middle)
        file.write(whole[middle : middle + 1])
    assert spool.byte_count > drain.byte_count
    drain.run()
    assert spool.byte_count == drain.byte_count
    assert list(database.rows) == ["a", "b"]


def full(descriptor: int, start: int, length: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_lines_of_a_gateway_that_did_not_record_where_calls_came_from_are_moved(tmp_path):
    facts = {name: value for name, value in vars(usage("old")).items() if name not in ("address", "client")}
    (tmp_path / "0123456789ab-000000.jsonl").write_text(json.dumps({"close": facts}) + "\n")
    moved: list[Usage] = []
    assert UsageDrain(tmp_path, moved.extend).run() == 1
    assert (moved[0].request_id, moved[0].address, moved[0].client) == ("old", "", "")


# --- what cannot be recorded


BAD = {
    "prompt_tokens": ["many", -1, 2**30, 10**18, 1.5, None, True, []],
    "started": ["now", float("inf"), -1, 1e18, None],
    "duration_ms": [2**31, "9"],
    "key": [0, 2**63, "1", None],
    "replica": [2**63, -1],
    "first_token_ms": [2**31, -1],
    "request_id": ["x" * 41, "nul\0", 7],
    "end_user": ["x" * 65, None],
    "model": ["m" * 101],
    "status": ["well", None, ["finished"]],
    "estimated": [1, "no"],
    "address": [7],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_m7_a_value_that_no_database_takes_is_set_aside_and_holds_up_no_other(tmp_path, database, name, value):
    spool = Spool(tmp_path)
    spool.close_call(usage("a"))
    spool.close_call(usage("bad", **{name: value}) if name != "request_id" else usage(value))
    spool.close_call(usage("z"))
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    drain.run()
    assert list(database.rows) == ["a", "z"]
    (refused,) = drain.set_aside
    assert name in refused.error
    assert (len(drain.set_aside), drain.refused_count) == (1, 1)
    assert spool.byte_count == drain.byte_count


@given(
    name=st.sampled_from(sorted(usage_events.NAMES)),
    value=st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=101) | st.just([]) | st.just({}),
)
@example(name="prompt_tokens", value=MAX_TOKEN_COUNT)
@example(name="duration_ms", value=2**31)
@example(name="status", value=[])
def test_m7_the_quick_look_at_a_line_takes_what_the_thorough_one_takes(name, value):
    facts = {**vars(usage("a")), name: value}
    try:
        usage_events.parse_usage(facts)
    except usage_events.BadLine:
        taken = False
    else:
        taken = True
    # Older lines, whose numbers may be written otherwise or which have fewer members, are for the thorough one alone.
    assert usage_events.is_valid(facts) == (taken and not (name == "started" and type(value) is int))


def test_m7_lines_of_any_kind_are_set_aside(tmp_path, database):
    facts = vars(usage("a"))
    odd = [
        b"",
        b"null",
        b"[]",
        b"7",
        b"{}",
        b'{"close":7}',
        b'{"close":{},"open":{}}',
        json.dumps({"reopen": facts}).encode(),
        json.dumps({"close": {**facts, "audio_tokens": 7}}).encode(),  # of a newer version
        json.dumps({"close": {name: facts[name] for name in list(facts)[1:]}}).encode(),
        b"\xff\xfe",
        b"[" * 5000,
        json.dumps({"close": {**facts, "user": "DEEP"}}).replace('"DEEP"', "[" * 990 + "]" * 990).encode(),
    ]
    (tmp_path / "0123456789ab-000000.jsonl").write_bytes(
        b"\n".join([*odd, json.dumps({"close": facts}).encode()]) + b"\n"
    )
    drain = UsageDrain(tmp_path, database.record)
    drain.run()
    assert list(database.rows) == ["a"]
    assert len(drain.set_aside) == len(odd)
    assert files(tmp_path) == ["refused.txt"]


@given(st.data())
@hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_m7_whatever_bit_flips_all_other_lines_are_recorded(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("spool")
    lines = [json.dumps({"close": vars(usage(name))}).encode() + b"\n" for name in ("one", "two", "three")]
    damaged = bytearray(lines[1])
    damaged[data.draw(st.integers(0, len(damaged) - 2))] ^= 1 << data.draw(st.integers(0, 7))
    (directory / "0123456789ab-000000.jsonl").write_bytes(lines[0] + damaged + lines[2])
    database = Database()
    drain = UsageDrain(directory, database.record)
    drain.run()
    assert {"one", "three"} <= database.rows.keys()
    assert len(database.rows) + (1 if len(drain.set_aside) else 0) >= 3
    assert not list(directory.glob("*.jsonl"))


def test_m7_what_the_database_refuses_is_found_by_halves(tmp_path, database):
    spool = Spool(tmp_path)
    database.refuses = {"r700", "r701"}
    for number in range(1000):
        spool.close_call(usage(f"r{number}"))
    asked: list[int] = []

    def record(rows) -> None:
        asked.append(len(rows))
        database.record(rows)

    drain = UsageDrain(tmp_path, record, own=spool.owner)
    drain.run()
    assert len(database.rows) == 998
    assert {one.request_id for one in drain.set_aside} == database.refuses
    assert len(asked) < 45


def test_m7_damage_in_a_dead_ones_segment_costs_only_what_it_hit(tmp_path, database):
    """After a power cut a page of the file may be empty."""
    lines = [json.dumps({"close": vars(usage(f"r{n}"))}).encode() + b"\n" for n in range(40)]
    whole = bytearray(b"".join(lines))
    whole[4096:8192] = bytes(4096)
    (tmp_path / "0123456789ab-000000.jsonl").write_bytes(whole + bytes(500))
    drain = UsageDrain(tmp_path, database.record)
    drain.run()
    assert {"r0", "r39"} <= database.rows.keys()
    assert 40 - len(database.rows) < 4096 // len(lines[0]) + 3
    assert len(drain.set_aside) >= 1


def test_m7_a_file_that_cannot_be_read_holds_up_no_other(tmp_path, database):
    (tmp_path / "000000000000-000000.jsonl").mkdir()
    spool = Spool(tmp_path)
    spool.close_call(usage("a"))
    with pytest.raises(OSError, match="directory"):
        UsageDrain(tmp_path, database.record, own=spool.owner).run()
    assert list(database.rows) == ["a"]


def test_m7_an_event_of_any_size_or_kind_is_written(tmp_path, database):
    spool = Spool(tmp_path)
    spool.close_call(usage("long", client="x" * ledger.SEGMENT_BYTES))
    spool.close_call(usage("huge", prompt_tokens=10**400))
    spool.close_call(usage("odd", end_user="\ud800"))
    spool.close_call(usage("a"))
    assert spool.accepting
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    drain.run()
    assert list(database.rows) == ["a"]
    assert len(drain.set_aside) == 3


# --- and another try


def test_m7_what_was_set_aside_is_recorded_after_a_mend(tmp_path, database):
    spool = Spool(tmp_path)
    database.refuses = {"b", "c"}
    for name in "abcd":
        spool.close_call(usage(name))
    spool.close_call(usage("e", prompt_tokens=-1))
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    drain.run()
    database.refuses = {"c"}
    assert replay(Quarantine(tmp_path), database.record) == (1, 2)
    assert database.rows["b"] == usage("b")
    assert [one.request_id for one in drain.set_aside] == ["e", "c"]
    assert len(drain.set_aside) == 2


def test_m7_how_a_call_ended_comes_before_how_it_began(tmp_path, database):
    aside = Quarantine(tmp_path)
    aside.add(QuarantinedRecord(error="", kind=kind, usage=vars(usage("a", status=status))) for kind, status in KINDS)
    assert replay(aside, database.record) == (2, 0)
    assert database.rows["a"].status == "finished"


KINDS = [("open", "interrupted"), ("close", "finished")]


def test_m7_a_replay_without_a_database_or_that_is_killed_loses_nothing(tmp_path, database):
    aside = Quarantine(tmp_path)
    aside.add([QuarantinedRecord(error="", usage=vars(usage("a")))])
    database.away = True
    with pytest.raises(DatabaseUnavailable):
        replay(aside, database.record)
    aside.add([QuarantinedRecord(error="", usage=vars(usage("b")))])
    assert len(aside) == 2
    database.away = False
    assert replay(Quarantine(tmp_path), database.record) == (2, 0)
    assert sorted(database.rows) == ["a", "b"]
    assert len(aside) == 0


def test_m7_the_file_of_an_older_version_can_be_replayed(tmp_path, database):
    older = [{"error": "bad row", "usage": vars(usage("a"))}, {"error": "no JSON", "usage": "nonsense\n"}]
    deep = json.dumps({"error": "bad row", "usage": {"user": "DEEP"}}).replace('"DEEP"', "[" * 990 + "]" * 990)
    lines = [*map(json.dumps, older), deep, "damaged"]
    (tmp_path / "refused.txt").write_text("".join(f"{line}\n" for line in lines))
    assert replay(Quarantine(tmp_path), database.record) == (1, 3)
    assert list(database.rows) == ["a"]


# What gateways of before the timeline do not write.
TIMELINE = frozenset({"queued_ms", "loading_ms", "prefill_ms", "retries", "stopped_by", "engine"})


def test_what_gateways_wrote_before_the_timeline_was_kept_is_recorded_without_it(tmp_path, database):
    def facts(name: str, **more) -> dict:
        return {name: value for name, value in vars(usage(name, **more)).items() if name not in TIMELINE}

    cut = {"open": facts("cut", status="interrupted")}
    closed = [{"close": facts("a")}, {"close": vars(usage("b", queued_ms=5, stopped_by="stop"))}]
    lines = b"".join(json.dumps(event).encode() + b"\n" for event in (cut, *closed))
    (tmp_path / "000000000000-000000.jsonl").write_bytes(lines)
    aside = Quarantine(tmp_path)
    aside.add([QuarantinedRecord(error="bad row", usage=facts("c"))])
    UsageDrain(tmp_path, database.record).run()
    assert replay(aside, database.record) == (1, 0)
    found = {name: (row.queued_ms, row.stopped_by) for name, row in database.rows.items()}
    assert found == {"cut": (None, ""), "a": (None, ""), "b": (5, "stop"), "c": (None, "")}


def test_m7_the_file_is_bounded_and_private(tmp_path, monkeypatch):
    (tmp_path / "refused.txt").touch(0o644)
    monkeypatch.setattr(quarantine, "MAX_BYTES", 2000)
    aside = Quarantine(tmp_path)
    kept = aside.add(QuarantinedRecord(error="e" * 10_000, usage="x" * 500) for _ in range(3))
    assert kept == 0
    kept = aside.add(QuarantinedRecord(error="e", usage="x" * 500) for _ in range(30))
    assert 0 < kept < 5
    assert (tmp_path / "refused.txt").stat().st_size < 2000
    assert (tmp_path / "refused.txt").stat().st_mode & 0o777 == 0o600


# --- streams under way


def test_m8_of_a_stream_that_was_killed_the_last_count_is_recorded(tmp_path, database, monkeypatch):
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 1000)
    dead = Spool(tmp_path)
    for made in (0, 10, 200):
        dead.open_call(usage("cut", status="interrupted", completion_tokens=made))
        dead.close_call(usage(f"other{made}"))
    dead.close()
    drain = UsageDrain(tmp_path, database.record)
    drain.run()
    assert (database.rows["cut"].status, database.rows["cut"].completion_tokens) == ("interrupted", 200)
    assert files(tmp_path) == []


def test_m8_a_stream_that_is_counted_again_does_not_keep_old_segments(tmp_path, database, monkeypatch):
    monkeypatch.setattr(ledger, "SEGMENT_BYTES", 1000)
    spool = Spool(tmp_path)
    drain = UsageDrain(tmp_path, database.record, own=spool.owner)
    for made in range(50):
        spool.open_call(usage("long", status="interrupted", completion_tokens=made))
        drain.run()
        assert len(list(tmp_path.glob("*.jsonl"))) <= 2
    spool.close_call(usage("long"))
    drain.run()
    assert database.rows["long"].status == "finished"


def test_t5_the_open_streams_of_the_living_are_left_alone_when_a_dead_one_is_buried(tmp_path, database):
    """Ours, which the same drain remembers, and those of a fellow worker, whose segments lie beside."""
    mine, fellow, dead = Spool(tmp_path), Spool(tmp_path), Spool(tmp_path)
    drain = UsageDrain(tmp_path, database.record, own=mine.owner)
    mine.open_call(usage("mine", status="interrupted"))
    fellow.open_call(usage("fellow's", status="interrupted"))
    dead.open_call(usage("cut", status="interrupted"))
    drain.run()
    assert database.rows == {}
    dead.close()
    for _ in range(2):
        drain.run()
        assert list(database.rows) == ["cut"]
    mine.close_call(usage("mine"))
    drain.run()
    fellow.close_call(usage("fellow's"))
    fellow.close()
    drain.run()
    assert {name: row.status for name, row in database.rows.items()} == {
        "cut": "interrupted",
        "mine": "finished",
        "fellow's": "finished",
    }
