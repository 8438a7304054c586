"""deploy/install-host [BUNDLE]: installs a version on a GPU host, beside those that are there, and switches to it.

A host has no database and no settings, and of the packages only Ray: the bundle has to be made WITH="ray". Engines go
on while its service restarts. May be run again after an interruption.
"""

import argparse
import os
import shutil
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from versions import services
from versions.bundles import Bundle, opened
from versions.installing import check_python, check_version, has_user, make_version, switch
from versions.layout import Layout, Refused
from versions.programs import USER, is_real, run, say

RAY = Path("engines") / "ray"  # of a bundle
LOCK = Path("modelregistry/install/locks/ray/ray.lock")  # of a version
UNIT = services.NOT_HERE
CHECKOUT = "/srv/madoguchi"  # as the unit has it


class HostLayout(Layout):
    """Apart from the versions of portal and gateway, for one machine may have both."""

    @property
    def opt(self) -> Path:
        return self.root / "opt" / "madoguchi-host"

    @property
    def var(self) -> Path:
        return self.root / "var" / "lib" / "madoguchi-host"


def main(words: list[str], here: Path) -> None:
    """Install the bundle that is named, or else the one in which this installer is."""
    parser = argparse.ArgumentParser(prog="deploy/install-host", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=here, metavar="BUNDLE")
    parser.add_argument("--sum", default="", metavar="SHA256", help="of the manifest, as `make release` printed it")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="a rehearsal below this directory")
    options = parser.parse_args(words)
    layout = HostLayout(options.root.resolve())
    if is_real(layout) and os.geteuid() != 0:
        raise Refused("The installer has to be root: it creates a user and writes below /opt.")
    os.umask(0o022)
    say("checking the bundle's sums")
    with opened(options.bundle.resolve(), layout, options.sum) as bundle:
        if wrong := check_python(bundle):
            raise Refused(f"This machine lacks: {wrong}.")
        if not (bundle.path / RAY).is_dir():
            raise Refused('This bundle has no Ray, which hosts need: make it WITH="ray".')
        check_version(bundle, layout)
        with layout.locked():
            install(bundle, layout)


def install(bundle: Bundle, layout: Layout) -> None:
    steps: list[tuple[str, Callable[[], object]]] = [
        ("service user and directories", partial(make_places, layout)),
        (f"version {bundle.version} and its packages", partial(make_version, bundle, layout, list_packages)),
        (f"switch to version {bundle.version}", partial(switch, layout, bundle.version)),
        ("unit", partial(put_unit, layout)),
    ]
    for number, (name, step) in enumerate(steps, start=1):
        say(f"[{number}/{len(steps)}] {name}")
        step()
    say(f"Version {bundle.version} is installed.")


def make_places(layout: Layout) -> None:
    real = is_real(layout)
    if real and not has_user():
        home = (
            "--system",
            "--user-group",
            "--home-dir",
            layout.var,
            "--no-create-home",
            "--shell",
            "/usr/sbin/nologin",
        )
        run("useradd", *home, USER, what="Creating the service user")
    for path, mode in ((layout.opt, 0o755), (layout.var, 0o700)):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    if real:
        shutil.chown(layout.var, USER, USER)


def list_packages(bundle: Bundle, place: Path) -> tuple[str | Path, ...]:
    """Return what pip is given: Ray as its lock has it, and pip, by which engines are installed."""
    pins = (bundle.path / "requirements.txt").read_text().splitlines()
    wanted = place / "host.txt"
    wanted.write_text((place / LOCK).read_text() + "".join(f"{pin}\n" for pin in pins if pin.startswith("pip==")))
    return ("--find-links", bundle.path / RAY, "--find-links", bundle.path / "wheels", "-r", wanted)


def put_unit(layout: Layout) -> None:
    """Put the unit in place, with this version's paths. A service that runs is restarted: engines go on."""
    text = (layout.opt / "current" / "deploy" / UNIT).read_text()
    layout.units.mkdir(parents=True, exist_ok=True)
    target = layout.units / UNIT
    if target.is_symlink():
        say(f"  {UNIT} is left as it is, a link to {os.readlink(target)}")
    else:
        draft = target.with_name(f".{UNIT}.new")
        draft.write_text(text.replace(CHECKOUT, str(Path("/") / layout.opt.relative_to(layout.root) / "current")))
        draft.chmod(0o644)
        draft.rename(target)
    if services.read_units(layout, systemd=True) and subprocess.run(["systemctl", "try-restart", UNIT]).returncode:
        raise Refused(f"{UNIT} does not restart. `journalctl -u {UNIT}` says why.")
