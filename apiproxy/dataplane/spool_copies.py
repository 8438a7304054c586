"""Copies of a spool's files for backups: usage that is not in the database yet, read while gateways write.

Copied before the database: what is moved meanwhile is then in both, and recorded once, because request ids are unique.
"""

from collections.abc import Iterator
from pathlib import Path

PATTERNS = ("*.jsonl", "refused.txt", "refused.replaying")


def copy_spool(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each file's name and whole lines. Raises OSError."""
    for path in sorted(path for pattern in PATTERNS for path in directory.glob(pattern)):
        try:
            content = read_whole_lines(path)
        except FileNotFoundError:  # moved to the database since
            continue
        if content:
            yield path.name, content


def read_whole_lines(path: Path) -> bytes:
    """Return the lines of a file up to the last whole one; a segment is reserved as a whole, its end reads as NUL."""
    data = path.read_bytes()
    data = data[: data.rfind(b"\n") + 1]
    last = data.rfind(b"\n", 0, -1) + 1
    return data[:last] if b"\0" in data[last:] else data  # the last event may just be being copied


def add_to_spool(directory: Path, name: str, content: bytes) -> None:
    """Put a copied file back, for the next gateway to move. No gateway may be running.

    A segment that is there already was only appended to since: the longer one has both. What was set aside is kept
    beside what is set aside now. Raises OSError.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / name
    existing = read_whole_lines(path) if path.exists() else b""
    if not name.endswith(".jsonl"):
        known = set(existing.splitlines())
        content = existing + b"".join(line + b"\n" for line in content.splitlines() if line not in known)
    if len(content) > len(existing):
        draft = path.with_name(f"{name}.draft")
        draft.touch(mode=0o600)
        draft.write_bytes(content)
        draft.rename(path)
