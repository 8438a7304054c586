"""deploy/install-host [BUNDLE]: installs a version on a GPU host, beside those that are there, and switches to it.

A host has no database and no settings, and of the packages only Ray: the bundle has to be made WITH="ray". Engines go
on while its service restarts; if it does not run then, the version before is in use again. May be run again after an
interruption.
"""

import argparse
import os
import platform
import re
import shutil
import subprocess
import time
from functools import partial
from pathlib import Path

from versions import services
from versions.bundles import Bundle, opened
from versions.installing import Step, carry_out, check_python, check_version, create_user, make_version, switch
from versions.layout import HostLayout, Layout, Refused
from versions.programs import USER, is_real, say

RAY = Path("engines") / "ray"  # of a bundle
LOCK = Path("modelregistry/install/locks/ray/ray.lock")  # of a version
UNIT = services.NOT_HERE
CHECKOUT = "/srv/madoguchi"  # as the unit has it
WATCHED = 10.0  # seconds in which a service that restarted has to go on


class NotRunning(Refused):
    """The service does not run with this version."""


def main(words: list[str], here: Path) -> None:
    """Install the bundle that is named, or else the one in which this installer is."""
    parser = argparse.ArgumentParser(prog="deploy/install-host", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=here, metavar="BUNDLE")
    parser.add_argument("--sum", default="", metavar="SHA256", help="of the manifest, as `make release` printed it")
    parser.add_argument(
        "--restart-later",
        action="store_true",
        help="only install the version: the service goes on with the one in use until this is run again without it",
    )
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
            if not options.restart_later:
                check_cluster(bundle, layout)
            install(bundle, layout, restart_later=options.restart_later)


def check_cluster(bundle: Bundle, layout: Layout) -> None:
    """Raise Refused if the service runs, and with this version it could not join the cluster that it is part of."""
    before = layout.linked("current")
    if not before or not services.is_running(layout, UNIT):
        return
    in_use, new = read_ray(layout.version(before)), (find_ray(bundle), platform.python_version())
    if in_use != new:
        raise Refused(
            f"Version {before} runs Ray {in_use[0]} on Python {in_use[1]}, and {bundle.version} has Ray {new[0]} on "
            f"Python {new[1]}: they do not join one cluster, and engines stop when their lease is over. Nothing was "
            'changed. Install it with --restart-later, and go on as RAY.md says under "Another Ray, or another Python".'
        )


def find_ray(bundle: Bundle) -> str:
    """Return the version of Ray that a bundle brings; "" if it has none."""
    return next((wheel.name.split("-")[1] for wheel in (bundle.path / RAY).glob("ray-*.whl")), "")


def read_ray(place: Path) -> tuple[str, str]:
    """Return the versions of Ray and of Python with which a version was installed."""
    ray = re.search(r"^ray==([^\s;]+)", (place / LOCK).read_text(), re.M)
    python = re.search(r"^version = (\S+)", (place / ".venv" / "pyvenv.cfg").read_text(), re.M)
    return ray[1] if ray else "", python[1] if python else ""


def install(bundle: Bundle, layout: Layout, *, restart_later: bool = False) -> None:
    version, before, earlier = bundle.version, layout.linked("current"), layout.linked("previous")
    steps: list[Step] = [
        ("service user and directories", partial(make_places, layout)),
        (f"version {version} and its packages", partial(make_version, bundle, layout, list_packages)),
    ]
    if not restart_later:
        steps += [
            (f"switch to version {version}", partial(switch, layout, version)),
            ("unit and service", partial(try_out, layout, version, before, earlier)),
        ]
    carry_out(steps)
    if restart_later:
        say(f"Version {version} is installed, and {before or 'no version'} still in use. RAY.md says when to switch:")
        say(f"  systemctl stop {UNIT}; run this again without --restart-later; systemctl start {UNIT}")
    else:
        say(f"Version {version} is installed.")


def make_places(layout: Layout) -> None:
    create_user(layout)
    for path, mode in ((layout.opt, 0o755), (layout.var, 0o700)):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
    if is_real(layout):
        shutil.chown(layout.var, USER, USER)


def list_packages(bundle: Bundle, place: Path) -> tuple[str | Path, ...]:
    """Return what pip is given: Ray as its lock has it, and pip, by which engines are installed."""
    pins = (bundle.path / "requirements.txt").read_text().splitlines()
    wanted = place / "host.txt"
    wanted.write_text((place / LOCK).read_text() + "".join(f"{pin}\n" for pin in pins if pin.startswith("pip==")))
    return ("--find-links", bundle.path / RAY, "--find-links", bundle.path / "wheels", "-r", wanted)


def try_out(layout: Layout, version: str, before: str, earlier: str) -> None:
    """Put a version in use. If its service does not run, the version before is in use again. Raises Refused.

    `before` and `earlier`: what `current` and `previous` led to. There is nothing to go back to if `before` is "" or
    this version, nor a reason if the service did not run before.
    """
    ran = services.is_running(layout, UNIT)
    try:
        put_in_use(layout, ran=ran)
    except NotRunning as error:
        if before in ("", version) or not ran:
            raise
        say(f"  {error}")
        raise Refused(take_back(layout, version, before, earlier)) from None


def take_back(layout: Layout, version: str, before: str, earlier: str) -> str:
    """Switch back, and return what was done. Raises NotRunning if the version before does not run either."""
    layout.link("current", before)
    if earlier:
        layout.link("previous", earlier)
    else:
        layout.unlink("previous")
    # One that was started too often stays down, and is not restarted by try-restart.
    subprocess.run(["systemctl", "reset-failed", UNIT], check=False)
    put_in_use(layout, ran=True)
    return f"Version {version} does not run. Version {before} is in use again."


def put_in_use(layout: Layout, *, ran: bool) -> None:
    """Restart the service with the version that `current` leads to: engines go on. Raises NotRunning."""
    put_unit(layout)
    if not services.read_units(layout, systemd=True):
        return
    wrong = NotRunning(f"{UNIT} does not run. `journalctl -u {UNIT}` says why.")
    if subprocess.run(["systemctl", "restart" if ran else "try-restart", UNIT], check=False).returncode:
        raise wrong
    if ran and not goes_on():
        raise wrong


def goes_on() -> bool:
    """Return whether the service still has the process of now after some seconds: systemd restarts one that ends."""
    say(f"  {UNIT} has restarted, and is watched for {WATCHED:g} s")
    first, until = services.main_process(UNIT), time.monotonic() + WATCHED
    while first != "0" and time.monotonic() < until:
        time.sleep(0.5)
        if services.main_process(UNIT) != first:
            return False
    return first != "0"


def put_unit(layout: Layout) -> None:
    """Put the unit in place, with this version's paths."""
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
