"""Hosts on which versions are installed: directories of this machine, and programs that have no network."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from deploy.release.bundle import MANIFEST, sum_of

COMPLETE = ".complete"  # what is written last
# As root on a build machine; elsewhere in a user namespace, in which one is root.
WITHOUT_NETWORK = ("unshare", "--net", *(() if os.geteuid() == 0 else ("--user", "--map-root-user")))
COMMAND = "usr/local/bin/madoguchi"
DATABASE = "var/lib/madoguchi/madoguchi.sqlite3"


@dataclass(frozen=True)
class Host:
    root: Path

    @property
    def opt(self) -> Path:
        return self.root / "opt" / "madoguchi"

    @property
    def environment(self) -> Path:
        return self.root / "etc" / "madoguchi" / "environment"

    @property
    def current(self) -> str:
        return os.readlink(self.opt / "current") if (self.opt / "current").is_symlink() else ""

    @property
    def previous(self) -> str:
        return os.readlink(self.opt / "previous") if (self.opt / "previous").is_symlink() else ""

    def run(self, program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(self.command(program, *words), capture_output=True, text=True)

    def command(self, program: Path, *words: str | Path) -> list[str | Path]:
        return [*WITHOUT_NETWORK, program, "--root", self.root, *words]

    def interrupt(self, program: Path, line: str, *words: str | Path) -> None:
        """Run it and kill it, as a power cut would, when it prints a line that begins so."""
        process = subprocess.Popen(
            self.command(program, *words), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert process.stdout
        with process.stdout as lines:
            assert any(text.startswith(line) for text in lines), f"it ended before {line!r}"
            process.send_signal(signal.SIGKILL)
            lines.read()  # until all that it started has ended
        process.wait()

    def copy(self, root: Path, *, whole: bool = False) -> "Host":
        """Return a host of its own: a copy of the state, settings that name the other place, and the same versions.

        These are links, unless it is to be `whole`: the command `madoguchi` finds its host by where its version is.
        """
        copy = Host(root)
        if whole:
            shutil.copytree(self.opt, copy.opt, symlinks=True, copy_function=link)
        else:
            copy.opt.mkdir(parents=True)
            for path in self.opt.iterdir():
                (copy.opt / path.name).symlink_to(os.readlink(path) if path.is_symlink() else path)
        for folder in ("etc", "var"):
            shutil.copytree(self.root / folder, root / folder)
        (root / COMMAND).parent.mkdir(parents=True)
        (root / COMMAND).symlink_to(copy.opt / "current" / "deploy" / "madoguchi")
        copy.environment.write_text(self.environment.read_text().replace(str(self.root), str(root)))
        return copy

    def place(self, bundle: Path, version: str, like: str, files: Mapping[str, str]) -> None:
        """Put a version in place as its installer does, out of an installed one with the same packages: in a second."""
        place = self.opt / version
        shutil.copytree(self.opt / like, place, symlinks=True, copy_function=link)
        for name in ("bundle.json", "migrations.json", COMPLETE):
            (place / name).unlink()
        for name, text in files.items():
            (place / name).unlink(missing_ok=True)
            (place / name).write_text(text)
        for name in ("bundle.json", "migrations.json"):
            shutil.copy(bundle / name, place)
        (place / COMPLETE).write_text(sum_of(bundle / MANIFEST))

    def migrations(self) -> set[str]:
        """Return the applied ones of modelregistry."""
        with closing(sqlite3.connect(self.root / DATABASE)) as database:
            rows = database.execute("select name from django_migrations where app = 'modelregistry'").fetchall()
        return {name for (name,) in rows}

    def tables(self) -> set[str]:
        with closing(sqlite3.connect(self.root / DATABASE)) as database:
            return {name for (name,) in database.execute("select name from sqlite_master").fetchall()}

    def manage(self, *words: str) -> str:
        """Return what the command `madoguchi` prints."""
        return subprocess.run([self.root / COMMAND, *words], capture_output=True, text=True, check=True).stdout.strip()

    def description(self, version: str) -> dict[str, object]:
        found: dict[str, object] = json.loads((self.opt / version / "bundle.json").read_text())
        return found


def link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)
