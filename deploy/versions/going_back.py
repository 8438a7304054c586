"""deploy/rollback [--to VERSION]: goes back to the version before, with the database, as far as migrations can.

Refuses before anything is changed if one of them cannot be undone, and names it: then only a backup goes back. What was
entered into tables and columns that the version before lacks is deleted, so it also refuses while another machine of
the site runs a version that uses them. May be run again after an interruption.
"""

import argparse
import os
from pathlib import Path
from typing import Any

from versions.installing import put_in_use
from versions.layout import Layout, Refused
from versions.programs import count_migrations, is_real, list_gateways, list_migrations, say, undo_migrations


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="deploy/rollback", description=__doc__)
    parser.add_argument("--to", default="", metavar="VERSION", help="another one than the version before")
    parser.add_argument("--plan", action="store_true", help="only show what would be done")
    parser.add_argument(
        "--break-other-machines",
        action="store_true",
        help="undo migrations although other machines run a version that needs them: their pages fail until they go "
        "back too, and what people enter there meanwhile is lost",
    )
    parser.add_argument("--no-systemd", dest="systemd", action="store_false", help="restart nothing")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="a rehearsal below this directory")
    options = parser.parse_args(words)
    layout = Layout(options.root.resolve())
    if is_real(layout) and os.geteuid() != 0:
        raise Refused("The rollback has to be root: it changes what is below /opt and restarts services.")
    with layout.locked():
        target = choose(layout, options.to)
        due = migrations_to_undo(layout, target)
        if due and not options.break_other_machines:
            check_other_machines(layout, target)
        if not options.plan:
            go_back(layout, target, due, systemd=options.systemd)


def choose(layout: Layout, named: str) -> str:
    """Return the version to go back to. Raises Refused."""
    target = named or layout.linked("previous")
    if not target:
        raise Refused("There is no version before the one in use; --to names one that is installed.")
    if not layout.is_complete(target):
        raise Refused(f"Version {target} is not installed here, or not completely.")
    return target


def migrations_to_undo(layout: Layout, target: str) -> list[dict[str, Any]]:
    """Show and return the applied migrations that the target lacks. Raises Refused if one cannot be undone."""
    current = layout.linked("current")
    say(f"in use: version {current}; going back to version {target}")
    theirs = {(row["app"], row["name"]) for row in layout.migrations(target)}
    rows = list_migrations(layout, current)
    due = [row for row in reversed(rows) if row["applied"] and (row["app"], row["name"]) not in theirs]
    lacking = [row for row in rows if not row["applied"] and (row["app"], row["name"]) in theirs]
    if lacking or len(theirs) > len(rows):
        raise Refused(f"Version {target} has migrations that the database lacks: deploy/install installs it.")
    say(f"  {count_migrations(due)} to be undone")
    for row in due:
        say(f"  {row['app']}.{row['name']}{'' if row['reversible'] else ', CANNOT BE UNDONE'}")
    if blocked := [f"{row['app']}.{row['name']}" for row in due if not row["reversible"]]:
        raise Refused(
            f"These migrations cannot be undone: {', '.join(blocked)}. To go back to version {target}, restore the "
            "backup from before the upgrade. Nothing was changed."
        )
    return due


def check_other_machines(layout: Layout, target: str) -> None:
    """Raise Refused if another machine of the site runs another version than the one to go back to."""
    running = [row for row in list_gateways(layout, layout.linked("current")) if row["running"] and not row["here"]]
    if others := [named(row) for row in running if row["version"] != target]:
        raise Refused(
            f"Other machines of this site use what would be deleted: {', '.join(others)}. Stop Madoguchi there "
            "(systemctl stop madoguchi-gateway.socket madoguchi-pages.socket madoguchi-portal "
            "madoguchi-supervisor), run this again 90 seconds later, then deploy/rollback there. "
            "--break-other-machines goes back without that: their pages fail until they go back too, and what people "
            "enter there meanwhile is lost. Nothing was changed."
        )


def named(row: dict[str, Any]) -> str:
    """Return how a machine is named in a refusal: with its version, and what runs it if that is no gateway."""
    kind = row.get("kind", "gateway")  # versions that list gateways alone do not write it
    return f"{row['name']} ({row['version']}{'' if kind == 'gateway' else ', ' + kind})"


def go_back(layout: Layout, target: str, due: list[dict[str, Any]], *, systemd: bool) -> None:
    current = layout.linked("current")
    if due:
        say("[1/3] undo migrations")
        undo_migrations(layout, current, layout.version(target) / "migrations.json")
        layout.applied_before(current).unlink(missing_ok=True)
    say(f"[2/3] switch to version {target}")
    layout.link("current", target)
    say("[3/3] units, command and services")
    put_in_use(layout, target, systemd=systemd)
    layout.unlink("previous")  # or a second run would go forward again
    say(f"Version {target} is in use.")
