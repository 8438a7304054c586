"""What is large and the same for every clone: fetched once per user into the cache, by the process that needs it first.

Standard library only, no Django. pip does the fetching, so a company's own package index and proxy apply as everywhere.
"""

import fcntl
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

Report = Callable[[str], None]


class CannotFetch(Exception):
    """A sentence for the operator: what could not be had, and what to look at.

    `code`: the reason, for programs. `packages`: those that it is about, as `name==version`.
    """

    def __init__(self, sentence: str, *, code: str, packages: Iterable[str] = ()) -> None:
        super().__init__(sentence)
        self.code = code
        self.packages = tuple(packages)


def build_once(
    target: Path, make: Callable[[Path], Path], say: Report, *, whole: Callable[[Path], bool] = Path.exists
) -> Path:
    """Make `target`, a file or a directory, unless it is whole; `make(workspace)` returns where in `workspace` it is.

    It appears under its name by one rename, so a process that sees it sees all of it. Of several processes one makes it
    and the others wait, without a time limit, for they need it too. What `make` raises leaves nothing behind; what a
    killed process left is removed by the next.
    """
    if whole(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _lock(target.with_name(f".{target.name}.lock"), say):
        if not whole(target):
            workspace = target.with_name(f".{target.name}.part")  # beside it: a rename works within one file system
            _remove(workspace)
            workspace.mkdir()
            try:
                made = make(workspace)
                _remove(target)
                made.rename(target)
            finally:
                _remove(workspace)
    return target


def download_with_pip(*arguments: str, pins: Iterable[str]) -> None:
    """Run pip on exactly these requirements (`name==version --hash=sha256:…`), wheels only, without dependencies.

    Blocks until it is done; pip's own limits apply (15 s without a byte, five tries). Its progress goes to stderr.
    Raises CannotFetch.
    """
    text = "\n".join(pins)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as requirements:
        requirements.write(text)
        requirements.flush()
        # No pip cache: the result is kept in ours, and 100 MB need not be kept twice.
        options = ["--require-hashes", "--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"]
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments, *options]
        if subprocess.run([*command, "-r", requirements.name], stdout=2, check=False).returncode:
            names = re.findall(r"^[\w.-]+==[\w.+-]+", text, re.MULTILINE)
            what = ", ".join(names) if len(names) < 4 else f"{names[0]} and {len(names) - 1} more"
            sentence = f"pip could not get {what}: see its message above. Is the package index reachable?"
            raise CannotFetch(sentence, code="not-fetched", packages=names)


@contextmanager
def _lock(path: Path, say: Report) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another process that makes {path.name[1 : -len('.lock')]}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock ends with the open file, however the process ends


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
