"""Counters of this worker in a mapped file, beside those of the other workers: any worker can add up all of them.

A number is counted where it stays: in pages that the kernel keeps when the process is killed. A worker that starts goes
on counting in the file of one that ended, so there are as many files as workers ever ran at the same time, and no sum
ever becomes smaller. No worker writes to the file of another that lives.

A file is 8 bytes that name its layout, the bytes in use (a double), then rows: the lengths of key and numbers (two
u32), the key as a JSON list padded with blanks to a multiple of 8 bytes, the numbers (doubles). A row is whole before
it is in use, and an aligned double is written at once: so readers copy the file and need no lock.
"""

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

from apiproxy.dataplane.file_locks import try_to_acquire

Key = tuple[str, ...]
HEAD = 16
GROWTH = 64 * 1024  # bytes; a model that is in use takes about 1 KB


class CounterFile:
    """`add` and `put` never wait and never fail: on a full disk, what has no row yet is not counted until it has.

    `places`: by key, where in `numbers` its row begins. Both are replaced now and then: look them up each time.
    """

    def __init__(self, directory: Path, layout: str) -> None:
        """Take over a file whose worker has ended, or make one. Numbers of another `layout` are dropped."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._directory = directory
        self._layout = encode_layout(layout)
        self._path, self._lock = claim_file(directory)
        self._open()

    def add(self, key: Key, size: int, *amounts: tuple[int, float]) -> None:
        """Add each amount to the number at its place in a row of `size`."""
        at = self.places.get(key)
        if at is None and (at := self._add_row(key, size)) is None:
            return
        numbers = self.numbers
        for place, amount in amounts:
            numbers[at + place] += amount

    def put(self, key: Key, values: list[float]) -> None:
        """Set a whole row."""
        at = self.places.get(key)
        if at is None and (at := self._add_row(key, len(values))) is None:
            return
        for place, value in enumerate(values, at):
            self.numbers[place] = value

    def read_all(self) -> list[dict[Key, list[float]]]:
        """Return the rows of each file: of this worker, of the others, and of dead ones without a successor."""
        return read_files(self._directory, self._layout)

    def forget(self, gone: Callable[[Key], bool]) -> None:
        """Drop rows of this worker; on a full disk they stay."""
        if not any(gone(key) for key in self.places):
            return
        kept = b"".join(pack_key(key, row) for key, row in read_rows(bytes(self._memory)).items() if not gone(key))
        following = self._path.with_suffix(".following")
        try:
            following.write_bytes(self._layout + struct.pack("d", HEAD + len(kept)) + kept)
            following.replace(self._path)
        except OSError:
            following.unlink(missing_ok=True)
            return
        self._unmap()
        os.close(self._file)
        self._open()

    def close(self) -> None:
        """Close the file; the next worker that starts goes on with it."""
        os.close(self._file)
        os.close(self._lock)

    def _open(self) -> None:
        self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        self._map()

    def _map(self) -> None:
        size = os.fstat(self._file).st_size // 8 * 8
        self._memory: mmap.mmap | bytearray = mmap.mmap(self._file, size) if size >= HEAD else bytearray(HEAD)
        self.numbers = memoryview(self._memory).cast("d")
        if self._memory[:8] != self._layout:  # of another version, or new
            self.numbers[1] = HEAD
            self._memory[:8] = self._layout
        found = list(parse_rows(bytes(self._memory)))
        self.places = {key: at // 8 for key, at, _ in found}
        self.numbers[1] = max([HEAD, *(at + 8 * size for _, at, size in found)])

    def _unmap(self) -> None:
        self.numbers.release()
        if isinstance(self._memory, mmap.mmap):
            self._memory.close()

    def _add_row(self, key: Key, size: int) -> int | None:
        """Return the index of a new row's first number; None: there is no room on the disk."""
        row = pack_key(key, [0.0] * size)
        if int(self.numbers[1]) + len(row) > len(self._memory) and not self._grow(len(row)):
            return None
        used = int(self.numbers[1])
        self._memory[used : used + len(row)] = row
        self.numbers[1] = used + len(row)
        self.places[key] = at = (used + len(row)) // 8 - size
        return at

    def _grow(self, least: int) -> bool:
        """Make room for this many bytes more; allocated, for a page without a block on a full disk would kill us."""
        try:
            os.posix_fallocate(self._file, 0, os.fstat(self._file).st_size + max(GROWTH, least + HEAD))
        except OSError:
            return False
        self._unmap()
        self._map()
        return True


def encode_layout(layout: str) -> bytes:
    """Return the first bytes of a file of this layout."""
    return hashlib.sha256(layout.encode()).digest()[:8]


def read_files(directory: Path, layout: bytes) -> list[dict[Key, list[float]]]:
    """Return the rows of each file of the directory that has this layout."""
    copies = (path.read_bytes() for path in sorted(directory.glob("*.numbers")))
    return [read_rows(data) for data in copies if data[:8] == layout]


def claim_file(directory: Path) -> tuple[Path, int]:
    """Return the first file whose worker has ended, or a new one, and the lock on it."""
    number = 0
    while (lock := try_to_acquire(directory / f"{number}.lock")) is None:
        number += 1
    return directory / f"{number}.numbers", lock


def pack_key(key: Key, numbers: list[float]) -> bytes:
    text = json.dumps(key).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack(f"II{len(text)}s{len(numbers)}d", len(text), len(numbers), text, *numbers)


def read_rows(data: bytes) -> dict[Key, list[float]]:
    return {key: list(struct.unpack_from(f"{size}d", data, at)) for key, at, size in parse_rows(data)}


def parse_rows(data: bytes) -> Iterator[tuple[Key, int, int]]:
    """Yield key, place and number of its numbers, of each row; end where a power cut has left nonsense."""
    (used,) = struct.unpack_from("d", data, 8)
    at = HEAD
    while at + 8 <= min(used, len(data)):
        length, size = struct.unpack_from("II", data, at)
        begin = at + 8 + length
        at = begin + 8 * size
        if at > len(data) or length % 8:
            return
        try:
            key = tuple(json.loads(data[begin - length : begin]))
        except ValueError:
            return
        yield key, begin, size
