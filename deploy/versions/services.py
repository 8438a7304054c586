"""The systemd units of a version: put in place, and restarted in the order in which no call is missed."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from versions.layout import Layout, Refused
from versions.programs import is_real, say

PORTAL, SUPERVISOR, HEAD = "madoguchi-portal.service", "madoguchi-supervisor.service", "madoguchi-head.service"
UNITS = ("service", "socket", "timer")
NOT_HERE = "madoguchi-host.service"  # of GPU hosts, which have no portal: deploy/RAY.md


class NotStarted(Refused):
    """Gateway and portal of this version do not start; those of the version before go on."""


def copy_units(layout: Layout, version: str) -> list[str]:
    """Put the units of this version in place, and return the names of those that changed.

    A link is the operator's: `systemctl mask` makes one to /dev/null.
    """
    layout.units.mkdir(parents=True, exist_ok=True)
    changed = []
    deploy = layout.version(version) / "deploy"
    for unit in sorted(path for end in UNITS for path in deploy.glob(f"madoguchi-*.{end}")):
        if unit.name == NOT_HERE:
            continue
        target = layout.units / unit.name
        if target.is_symlink():
            say(f"  {unit.name} is left as it is, a link to {os.readlink(target)}")
            continue
        if not target.exists() or target.read_bytes() != unit.read_bytes():
            draft = target.with_name(f".{unit.name}.new")
            shutil.copyfile(unit, draft)
            draft.chmod(0o644)
            draft.rename(target)
            changed.append(unit.name)
    return changed


def is_masked(layout: Layout, unit: str) -> bool:
    target = layout.units / unit
    return target.is_symlink() and os.readlink(target) == os.devnull


def link_command(layout: Layout) -> None:
    """Put `madoguchi` on PATH: the command line of the version in use."""
    layout.commands.mkdir(parents=True, exist_ok=True)
    draft = layout.commands / ".madoguchi.new"
    draft.unlink(missing_ok=True)
    draft.symlink_to(layout.opt / "current" / "deploy" / "madoguchi")
    draft.rename(layout.commands / "madoguchi")


def is_running(layout: Layout, unit: str) -> bool:
    """Return whether systemd has it running here; False in a rehearsal."""
    if not is_real(layout) or not Path("/run/systemd/system").is_dir():
        return False
    return subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


def main_process(unit: str) -> str:
    """Return the process of a unit, "0" if it has none."""
    command = ["systemctl", "show", "--property", "MainPID", "--value", unit]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "0"


def read_units(layout: Layout, *, systemd: bool) -> bool:
    """Have systemd read the units again, and return whether it did: not in a rehearsal. Raises Refused."""
    if not systemd or not is_real(layout) or not Path("/run/systemd/system").is_dir():
        return False
    systemctl("daemon-reload")
    return True


def restart(layout: Layout, changed: Sequence[str] = (), *, systemd: bool) -> None:
    """Bring what runs to the version in use, and start what does not run. Raises Refused, which names a unit.

    Gateway and portal first: their reload fails while the version before goes on, if the new one does not start. Then
    the controller, which adopts the engines. The head of a cluster is left as it is: leases run on while it restarts.
    """
    if not read_units(layout, systemd=systemd):
        say("  no service was restarted: without systemd, or a rehearsal")
        return
    for verb, unit in (("reload-or-restart", PORTAL), ("restart", SUPERVISOR)):
        if is_masked(layout, unit):
            continue
        systemctl("enable", "--quiet", unit)
        say(f"  {verb} {unit}")
        systemctl(verb, unit, error=NotStarted if unit == PORTAL else Refused)
    for unit in sorted({PORTAL, "madoguchi-gateway.socket", "madoguchi-pages.socket"} & set(changed)):
        say(f"  {unit} has changed; what is new in it counts from the next `systemctl restart {unit}`")
    if subprocess.run(["systemctl", "is-active", "--quiet", HEAD], check=False).returncode == 0:
        say(f"  {HEAD} still runs the version before; restart it when that suits (deploy/RAY.md)")


def systemctl(*words: str, error: type[Refused] = Refused) -> None:
    if subprocess.run(["systemctl", *words], check=False).returncode:
        raise error(
            f"systemctl {' '.join(words)} failed. `journalctl -u {words[-1]}` says why. When that is mended, run this "
            "again; or deploy/rollback goes back."
        )
