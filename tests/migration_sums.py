"""Check that every migration is as it was when databases applied it: python -m tests.migration_sums [--add].

A database remembers the names of its migrations and not their content: a change never reaches databases that have
applied the file already, and new ones get another schema. So `tests/migrations.sha256` holds the SHA-256 sum of each,
as `sha256sum` prints it, and `make check` refuses what differs.
The schema of version 1.0.0 is in the files of the first list.

--add    adds new migrations to the list, and refuses changed ones
"""

import argparse
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIST = "tests/migrations.sha256"
PACKAGES = ("apiproxy", "modelregistry", "portal")
COMMAND = ".venv/bin/python -m tests.migration_sums"

Sums = Mapping[str, str]  # path below the root -> SHA-256 in hex


def present(root: Path) -> Sums:
    """Return the migrations that are there."""
    paths = [path for name in PACKAGES for path in (root / name).rglob("migrations/*.py") if path.stem != "__init__"]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)}


def read(root: Path) -> Sums:
    """Return the migrations of the list."""
    rows = (line.split(maxsplit=1) for line in (root / LIST).read_text().splitlines())
    return {path: total for total, path in rows}


def write(root: Path, sums: Sums) -> None:
    (root / LIST).write_text("".join(f"{sums[path]}  {path}\n" for path in sorted(sums)))


def changed(now: Sums, listed: Sums) -> list[str]:
    """Return a sentence for each migration that is not what it was."""
    return [
        f"{path} {'has changed' if path in now else 'is gone'}: databases that have applied it would not notice. "
        "Put it back (git checkout), and create a new migration: .venv/bin/python manage.py makemigrations"
        for path in sorted(listed)
        if now.get(path) != listed[path]
    ]


def new(now: Sums, listed: Sums) -> list[str]:
    """Return a sentence for each migration that is not in the list."""
    return [f"{path} is new. When it is final, run: {COMMAND} --add" for path in now if path not in listed]


def main(words: list[str], root: Path = ROOT) -> int:
    """Return the exit status; what is wrong goes to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", action="store_true")
    options = parser.parse_args(words)
    now = present(root)
    listed = read(root)
    faults = changed(now, listed)
    if options.add and not faults:
        write(root, now)
        return 0
    for fault in faults + new(now, listed):
        print(fault, file=sys.stderr)
    return 1 if faults or new(now, listed) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
