"""Folders of packages: what a lock asks for, what a folder holds of it, and fetching what is missing. No Django.

A package is whole in a folder or not in it: pip fetches below it, and what has the right hash is renamed into place.
So a fetch that was cut goes on with the packages that it had, and a folder can be carried to a host without a net.

pip and not uv: uv 0.13.9 starts a file over when the line breaks, cannot download into a folder, and reads neither
pip.conf nor PIP_INDEX_URL, in which sites name their own package index.
"""

import contextlib
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from modelregistry.install.build_cache import CannotFetch, Report

# An index rarely gives one connection all that the line can carry.
AT_A_TIME = 4
REPORT_EVERY = 5.0  # seconds between two lines on how far it is
PARTS = ".parts"  # in a folder: what is not whole yet
MB = 1_000_000
# No cache of pip's own: the result is kept in ours.
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir", "--no-input")


@dataclass(frozen=True, slots=True)
class Pin:
    """One package in one version. Without hashes any file of that version will do."""

    name: str
    version: Version
    hashes: frozenset[str]
    line: str  # as pip reads it

    def __str__(self) -> str:
        return f"{self.name}=={self.version}"


def read_pins(lock: str) -> list[Pin]:
    """Return what a lock (requirements with hashes) asks for on this machine and for this Python."""
    text = re.sub(r"^\s*#.*$", "", lock, flags=re.MULTILINE).replace("\\\n", " ")
    made = [_parse_pin(line.strip()) for line in text.splitlines() if line.strip()]
    return [pin for pin in made if pin]


def _parse_pin(line: str) -> Pin | None:
    words, *options = re.split(r"\s--hash=sha256:", line)
    requirement = Requirement(words)
    [exact] = requirement.specifier
    if requirement.marker and not requirement.marker.evaluate():
        return None
    hashes = frozenset(option.strip() for option in options)
    return Pin(canonicalize_name(requirement.name), Version(exact.version), hashes, line)


def find_packages(folder: Path, wanted: Sequence[Pin]) -> dict[Pin, Path]:
    """Return the file of each pin that the folder has, with a right hash and fit for this machine. Reads them whole."""
    files: dict[tuple[str, Version], list[Path]] = {}
    fits = frozenset(sys_tags())
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.is_file() and (package := _parse_package(path.name, fits)):
            files.setdefault(package, []).append(path)
    found = {}
    for pin in wanted:
        for path in files.get((pin.name, pin.version), ()):
            if not pin.hashes or _sha256(path) in pin.hashes:
                found[pin] = path
    return found


def _parse_package(name: str, fits: frozenset[object]) -> tuple[str, Version] | None:
    try:
        if name.endswith(".whl"):
            project, version, _, tags = parse_wheel_filename(name)
            return (project, version) if tags & fits else None
        return parse_sdist_filename(name)
    except (InvalidWheelFilename, InvalidSdistFilename):
        return None  # something else that lies there


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require(folder: Path, wanted: Sequence[Pin]) -> None:
    """Raise CannotFetch that names everything the folder lacks; asks no index."""
    if not folder.is_dir():
        raise CannotFetch(f"there is no folder {folder}", code="no-folder")
    there = find_packages(folder, wanted)
    if missing := [str(pin) for pin in wanted if pin not in there]:
        raise CannotFetch(
            f"{folder} lacks {len(missing)} of {len(wanted)} packages for this machine (Python "
            f"{sys.version_info.major}.{sys.version_info.minor}) or has them with another checksum: "
            f"{', '.join(missing)}. `installengine … --download-to` fills such a folder on a machine of the same kind "
            "with a net.",
            code="folder-lacks",
            packages=missing,
        )


def fetch(folder: Path, wanted: Sequence[Pin], say: Report, *, megabytes: int, builder: Path | None = None) -> None:
    """Fetch into the folder what it lacks: wheels, or with a `builder` sources.

    pip looks into a source to see what it is, for which the `builder`, a Python, must have what the source is built
    with. Blocks for as long as the line takes; pip's own limits apply to each package. `megabytes` is what all of it is
    about, for the words on the way. Raises CannotFetch; what is whole by then stays for the next try.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = folder / PARTS
    _salvage(folder, wanted)  # of a fetch that was killed
    there = find_packages(folder, wanted)
    missing = [pin for pin in wanted if pin not in there]
    if there and missing:
        kept = sum(path.stat().st_size for path in there.values()) // MB
        say(f"kept from before: {len(there)} of {len(wanted)} packages, {kept:,} MB")
    others = len(_list_packages(folder)) - len(there)
    # Of one pip's requirements all must have hashes, or none.
    hashed, unhashed = [pin for pin in missing if pin.hashes], [pin for pin in missing if not pin.hashes]
    shares = [*(hashed[number::AT_A_TIME] for number in range(AT_A_TIME)), unhashed]
    downloads = [
        _Download(share, parts / f"{os.getpid()}-{number}", builder) for number, share in enumerate(shares) if share
    ]
    try:
        for download in downloads:
            download.start()
        _follow_downloads(
            downloads, folder, _Progress(say, folder, total=len(wanted), others=others, megabytes=megabytes)
        )
    finally:
        for download in downloads:
            download.stop()
        _salvage(folder, wanted)


def _salvage(folder: Path, wanted: Sequence[Pin]) -> None:
    """Take what is whole out of the parts and throw the rest away."""
    parts = folder / PARTS
    # The pips of a fetch that was killed may still be at it, and move what we look at.
    for directory, _, _ in list(os.walk(parts)):
        with contextlib.suppress(FileNotFoundError):
            for pin, path in find_packages(Path(directory), wanted).items():
                if pin.hashes:
                    path.rename(folder / path.name)
    shutil.rmtree(parts, ignore_errors=True)


class _Download:
    """One pip with its share of the packages. It writes each file where we can see it, under its name."""

    def __init__(self, pins: Sequence[Pin], directory: Path, builder: Path | None) -> None:
        self.pins = pins
        self.directory = directory
        self.builder = builder
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        scratch = self.directory / "scratch"
        scratch.mkdir(parents=True)
        requirements = self.directory / "requirements.txt"
        requirements.write_text("\n".join(pin.line for pin in self.pins))
        kind = ["--no-binary=:all:", "--no-build-isolation"] if self.builder else ["--only-binary=:all:"]
        # Newer pips go on within a file when the line breaks; older ones do not know the variable.
        environment = {"PIP_RESUME_RETRIES": "20", **os.environ, "TMPDIR": str(scratch)}
        if self.builder:
            environment["PIP_PYTHON"] = str(self.builder)
        with (self.directory / "errors").open("wb") as errors:
            self.process = subprocess.Popen(
                [*PIP, "download", "--quiet", "--no-deps", *kind, "--dest", self.whole, "--requirement", requirements],
                env=environment,
                stdout=errors,
                stderr=errors,
            )

    @property
    def whole(self) -> Path:
        return self.directory / "whole"

    def wait(self) -> bool:
        """Wait for up to a second. Raises CannotFetch."""
        assert self.process
        try:
            code = self.process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return False
        if code:
            names = list(map(str, self.pins))
            what = ", ".join(names) if len(names) < 4 else f"one of {', '.join(names[:2])} and {len(names) - 2} more"
            why = read_reason((self.directory / "errors").read_text(errors="replace"))
            sentence = f"pip could not get {what}: {why} Is the package index reachable?"
            raise CannotFetch(sentence, code="not-fetched", packages=names)
        return True

    def stop(self) -> None:
        if self.process:
            self.process.kill()  # SIGTERM would have it clean up what is whole
            self.process.wait()


def _follow_downloads(downloads: Sequence[_Download], folder: Path, progress: "_Progress") -> None:
    running = list(downloads)
    while running:
        progress.report(running)
        if running[0].wait():
            done = running.pop(0)
            for path in done.whole.iterdir():
                path.rename(folder / path.name)
        else:
            running.append(running.pop(0))
    if downloads:
        progress.finish()


class _Progress:
    """Says every few seconds how far it is."""

    def __init__(self, say: Report, folder: Path, *, total: int, others: int, megabytes: int) -> None:
        self.say = say
        self.folder = folder
        self.total = total
        self.others = others  # files that lie there and are not asked for now
        self.megabytes = megabytes
        self.next = 0.0

    def report(self, running: Sequence[_Download]) -> None:
        if time.monotonic() < self.next:
            return
        self.next = time.monotonic() + REPORT_EVERY
        files = _list_packages(self.folder)
        now = [newest.name for download in running if (newest := _newest(download.directory))]
        done = max(len({path.name for path in files}) - self.others - len(now), 0)
        fetching = f", now {', '.join(sorted(now))}" if now else ""
        size = f"{count_megabytes(self.folder):,} of about {self.megabytes:,} MB"
        self.say(f"fetched {done} of {self.total} packages, {size}{fetching}")

    def finish(self) -> None:
        self.say(f"fetched {self.total} of {self.total} packages, {count_megabytes(self.folder):,} MB")


def _list_packages(folder: Path) -> list[Path]:
    # Not `rglob`, which raises FileNotFoundError for a directory that a pip removes meanwhile.
    files = (Path(directory, name) for directory, _, names in os.walk(folder) for name in names)
    return [path for path in files if path.name.endswith((".whl", ".tar.gz"))]


def _newest(folder: Path) -> Path | None:
    return max(_list_packages(folder), key=lambda path: _stat(path)[0], default=None)


def count_megabytes(folder: Path) -> int:
    """Return the packages that a folder has by now, also those on their way; not what pip unpacks of a source."""
    sizes: dict[str, int] = {}
    for path in _list_packages(folder):  # one may lie in two places while it is moved
        sizes[path.name] = max(sizes.get(path.name, 0), _stat(path)[1])
    return sum(sizes.values()) // MB


def _stat(path: Path) -> tuple[float, int]:
    """Return when it was last written to, and its size; it may have been moved to its place meanwhile."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return 0.0, 0
    return status.st_mtime, status.st_size if stat.S_ISREG(status.st_mode) else 0


def read_reason(errors: str) -> str:
    """Return the last line that pip wrote, with a full stop."""
    if "DO NOT MATCH THE HASHES" in errors:
        names = re.findall(r"^\s+(\S+==\S+)", errors, re.MULTILINE)
        # To older pips the first half of a file is a file too.
        return f"{', '.join(names)} came incompletely or has another checksum than the pinned one."
    lines = [line.removeprefix("ERROR: ").strip() for line in errors.splitlines() if line.startswith("ERROR: ")]
    word = lines[-1] if lines else (errors.strip().splitlines() or ["no reason was given"])[-1]
    return word if word.endswith(".") else f"{word}."
