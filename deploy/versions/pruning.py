"""deploy/prune [--host] [--plan]: removes old versions.

Kept: the one in use, the one before, and those of which a process runs. An engine that an older version started holds
on to that version's files until it is restarted.
"""

import argparse
import contextlib
import os
import shutil
from pathlib import Path

from versions.layout import HostLayout, Layout, Refused
from versions.programs import is_real, say


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="deploy/prune", description=__doc__)
    parser.add_argument("--host", action="store_true", help="those of a GPU host, in /opt/madoguchi-host")
    parser.add_argument("--plan", action="store_true", help="only show what would be removed")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="a rehearsal below this directory")
    options = parser.parse_args(words)
    layout = (HostLayout if options.host else Layout)(options.root.resolve())
    if is_real(layout) and os.geteuid() != 0:
        raise Refused("Only root can remove versions, and see whose processes use them.")
    with layout.locked():
        kept = {layout.linked("current"), layout.linked("previous")}
        for place in sorted(path for path in layout.opt.iterdir() if path.is_dir() and not path.is_symlink()):
            if place.name in kept:
                say(f"{place.name}: kept, in use or the version before")
            elif running := processes_of(place):
                say(f"{place.name}: kept, used by the processes {', '.join(map(str, running[:5]))}")
            else:
                say(f"{place.name}: {'would be removed' if options.plan else 'removed'}")
                if not options.plan:
                    remove(place)


def remove(place: Path) -> None:
    """Remove a version; under another name first, so that one that is half removed is never taken for a whole one."""
    gone = place.with_name(f".{place.name.lstrip('.')}.removed")
    place.rename(gone)
    shutil.rmtree(gone)


def processes_of(place: Path) -> list[int]:
    """Return the processes whose command, program or directory is in the version."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            places = [part.decode(errors="replace") for part in (process / "cmdline").read_bytes().split(b"\0")]
            places += [os.readlink(process / "cwd"), os.readlink(process / "exe")]
            if any(f"{text}/".startswith(f"{place}/") for text in places):
                found.append(int(process.name))
    return sorted(found)
