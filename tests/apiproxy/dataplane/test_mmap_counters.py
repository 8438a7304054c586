"""Numbers of several workers in files of one directory, with real processes that are killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apiproxy.dataplane import mmap_counters
from apiproxy.dataplane.mmap_counters import CounterFile

KEY = ("requests", "模型", "finished")
# Counts as fast as it can, and reports on request how far it is.
WORKER = """
import sys, threading
from pathlib import Path
from apiproxy.dataplane.mmap_counters import CounterFile
tally = CounterFile(Path(sys.argv[1]), "layout")
for number in range(int(sys.argv[2])):
    tally.add(("requests", "模型", "finished"), 1, (0, 1))
    tally.add((f"of {number % 100}",), 3, (0, 1), (2, 0.5))
print("counted", flush=True)
threading.Event().wait()
"""


def total(directory: Path, key: tuple[str, ...] = KEY) -> float:
    rows = mmap_counters.read_files(directory, mmap_counters.encode_layout("layout"))
    return sum(of_one.get(key, [0.0])[0] for of_one in rows)


def worker(directory: Path, count: int) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", WORKER, str(directory), str(count)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "counted\n"
    return process


def kill(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()


def test_workers_are_added_up_and_a_killed_one_neither_counts_less_nor_twice(tmp_path):
    first, second = worker(tmp_path, 1000), worker(tmp_path, 200)
    assert total(tmp_path) == 1200
    kill(first)
    assert total(tmp_path) == 1200
    third = worker(tmp_path, 30)
    assert total(tmp_path) == 1230
    assert total(tmp_path, ("of 7",)) == 10 + 2 + 1
    kill(second)
    kill(third)
    assert total(tmp_path) == 1230
    assert sorted(path.name for path in tmp_path.glob("*.*")) == ["0.lock", "0.numbers", "1.lock", "1.numbers"]
    assert {oct(path.stat().st_mode)[-3:] for path in tmp_path.glob("*.numbers")} == {"600"}


def test_one_that_is_killed_while_it_counts_leaves_whole_rows(tmp_path):
    for _ in range(5):
        before = total(tmp_path)
        command = [sys.executable, "-c", WORKER, str(tmp_path), "100000000"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while total(tmp_path) <= before:
                assert process.poll() is None
            process.kill()
        (data,) = [path.read_bytes() for path in tmp_path.glob("*.numbers")]
        assert {len(row) for key, row in mmap_counters.read_rows(data).items() if key[0].startswith("of ")} <= {3}


def test_a_worker_that_ends_hands_its_numbers_on(tmp_path):
    for number in range(1, 4):
        one = CounterFile(tmp_path, "layout")
        one.add(KEY, 1, (0, 1))
        assert one.read_all() == [{KEY: [number]}]
        one.close()


def test_numbers_of_another_layout_are_not_added(tmp_path):
    old, new = CounterFile(tmp_path, "old"), CounterFile(tmp_path, "new")
    old.add(KEY, 1, (0, 5))
    new.add(KEY, 1, (0, 2))
    assert new.read_all() == [{KEY: [2]}]
    new.close()
    old.close()
    newest = CounterFile(tmp_path, "new")  # takes the file of the old one
    assert newest.read_all() == [{}, {KEY: [2]}]
    newest.close()


def test_rows_are_forgotten_and_the_rest_goes_on(tmp_path):
    one = CounterFile(tmp_path, "layout")
    for number in range(5000):
        one.add((f"row {number}",), 4, (3, number))
    size = (tmp_path / "0.numbers").stat().st_size
    one.forget(lambda key: key != ("row 7",))
    assert one.read_all() == [{("row 7",): [0, 0, 0, 7]}]
    assert (tmp_path / "0.numbers").stat().st_size < size / 100
    one.add(("row 7",), 4, (3, 1))
    one.put(KEY, [1.0, 2.0])
    assert one.read_all() == [{("row 7",): [0, 0, 0, 8], KEY: [1, 2]}]
    one.close()


def test_a_full_disk_loses_only_what_has_no_row_yet(tmp_path, monkeypatch):
    one = CounterFile(tmp_path, "layout")
    one.add(KEY, 1, (0, 1))
    allocate = os.posix_fallocate

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    for number in range(5000):
        one.add((f"row {number}",), 10, (0, 1))
    one.add(KEY, 1, (0, 1))
    (rows,) = one.read_all()
    assert rows[KEY] == [2]
    assert 100 < len(rows) < 1000
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    one.add(("row 4999",), 10, (0, 1))
    assert one.read_all()[0]["row 4999",][0] == 1
    one.close()


@given(st.binary(max_size=200), st.integers(min_value=0, max_value=400))
def test_whatever_a_power_cut_leaves_is_read_as_far_as_it_makes_sense(noise, place):
    whole = (
        b"layout.."
        + mmap_counters.struct.pack("d", 1000.0)
        + mmap_counters.pack_key(KEY, [3.0])
        + mmap_counters.pack_key(("b",), [4.0])
    )
    data = (whole[:place] + noise + whole[place + len(noise) :])[: max(16, place)].ljust(16, b"\0")
    mmap_counters.read_rows(data)


@pytest.mark.parametrize("end", [16, 17, 24, 60, 10_000])
def test_a_torn_file_is_repaired_by_the_next_worker(tmp_path, end):
    one = CounterFile(tmp_path, "layout")
    one.add(KEY, 1, (0, 1))
    one.add(("other",), 1, (0, 2))
    one.close()
    os.truncate(tmp_path / "0.numbers", end)
    one = CounterFile(tmp_path, "layout")
    one.add(("new",), 1, (0, 3))
    (rows,) = one.read_all()
    assert rows["new",] == [3]
    assert rows.items() <= {KEY: [1], ("other",): [2], ("new",): [3]}.items()
    one.close()
