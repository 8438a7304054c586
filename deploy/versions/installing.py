"""deploy/install [BUNDLE]: installs a version beside those that are there, migrates the database and switches to it.

Each step is shown, and does only what is not done yet: after an interruption, or when what is missing has been brought,
run the same command again. Until the switch, the version before goes on serving.
"""

import argparse
import ctypes
import json
import os
import platform
import pwd
import shutil
import sys
import zoneinfo
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from versions import services
from versions.bundles import Bundle, opened
from versions.layout import COMPLETE, Layout, Refused, write_whole
from versions.programs import (
    USER,
    command_environment,
    count_migrations,
    is_real,
    list_migrations,
    list_unknown,
    manage,
    run,
    say,
    undo_migrations,
)

NEEDED = ("setpriv", "useradd")
LDAP = {"debian": "the package libldap-2.5-0", "ubuntu": "the package libldap2"}
DOCUMENTS = ("deploy", "licences", "README.md", "README.ja.md", "SECURITY.md", "migrations.json", "sbom.json")
DOCUMENTS += ("bundle.json", "SHA256SUMS")
Step = tuple[str, Callable[[], object]]


def main(words: list[str], here: Path) -> None:
    """Install the bundle that is named, or else the one in which this installer is."""
    parser = argparse.ArgumentParser(prog="deploy/install", description=__doc__)
    parser.add_argument("bundle", nargs="?", type=Path, default=here, metavar="BUNDLE")
    parser.add_argument("--plan", action="store_true", help="only show what would be done")
    parser.add_argument("--sum", default="", metavar="SHA256", help="of the manifest, as `make release` printed it")
    parser.add_argument(
        "--image", action="store_true", help="of a container: put the version in place, and nothing else"
    )
    parser.add_argument("--no-systemd", dest="systemd", action="store_false", help="restart nothing")
    parser.add_argument("--root", type=Path, default=Path("/"), metavar="DIR", help="a rehearsal below this directory")
    options = parser.parse_args(words)
    layout = Layout(options.root.resolve())
    if is_real(layout) and os.geteuid() != 0:
        raise Refused("The installer has to be root: it creates a user and writes below /opt and /etc.")
    os.umask(0o022)
    say("checking the bundle's sums")
    with opened(options.bundle.resolve(), layout, options.sum) as bundle:
        say(f"  version {bundle.version}, commit {bundle.described['commit'][:12]}, manifest {bundle.sum}")
        check_machine(bundle)
        check_version(bundle, layout)
        if options.plan:
            show_plan(bundle, layout)
            return
        with layout.locked():
            carry_out(
                steps_of_image(bundle, layout) if options.image else steps_of_host(bundle, layout, options.systemd)
            )
    say(f"Version {bundle.version} is installed.")


def steps_of_image(bundle: Bundle, layout: Layout) -> list[Step]:
    """Return what makes the files of a container's image; settings, database and processes are the container's."""
    return [
        ("service user and directories", partial(make_places, layout)),
        (f"version {bundle.version} and its packages", partial(make_version, bundle, layout)),
        (f"switch to version {bundle.version}", partial(switch, layout, bundle.version)),
    ]


def steps_of_host(bundle: Bundle, layout: Layout, systemd: bool) -> list[Step]:
    version, before, earlier = bundle.version, layout.linked("current"), layout.linked("previous")
    return [
        ("service user and directories", partial(make_places, layout)),
        ("settings", partial(make_settings, bundle, layout)),
        (f"version {version} and its packages", partial(make_version, bundle, layout)),
        ("migrations of the database", partial(migrate, bundle, layout)),
        (f"switch to version {version}", partial(switch, layout, version)),
        ("units, command and services", partial(try_out, layout, version, before, earlier, systemd=systemd)),
    ]


def carry_out(steps: list[Step]) -> None:
    for number, (name, step) in enumerate(steps, start=1):
        say(f"[{number}/{len(steps)}] {name}")
        step()


# --- Before anything is changed ---------------------------------------------------------------------------------
def check_machine(bundle: Bundle) -> None:
    """Raise Refused, which names all that this machine lacks or that is not what the bundle was made for."""
    made_for = bundle.described
    lacks = [wrong] if (wrong := check_python(bundle)) else []
    lacks += [f"the program {name}" for name in NEEDED if not shutil.which(name)]
    missing = [name for name in made_for["libraries"] if not can_load(name)]
    if missing:
        package = LDAP.get(made_for["distribution"].split()[0], "OpenLDAP's client library")
        lacks.append(f"{', '.join(missing)} (of {package})")
    try:
        zoneinfo.ZoneInfo("Asia/Tokyo")
    except zoneinfo.ZoneInfoNotFoundError:
        lacks.append("time zones (apt-get install tzdata)")
    if lacks:
        raise Refused(f"This machine lacks: {'; '.join(lacks)}.")


def check_python(bundle: Bundle) -> str:
    """Return for what the bundle is, if that is not this machine's Python and processor."""
    made_for, python = bundle.described, f"{sys.version_info.major}.{sys.version_info.minor}"
    if python == made_for["python"] and platform.machine() == made_for["machine"]:
        return ""
    return (
        f"the bundle is for Python {made_for['python']} on {made_for['machine']} ({made_for['distribution']}), "
        f"and this is Python {python} on {platform.machine()}"
    )


def can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def check_version(bundle: Bundle, layout: Layout) -> None:
    """Raise Refused if this version was installed from other bytes: a version is one artefact."""
    version = bundle.version
    if layout.is_complete(version) and (layout.version(version) / COMPLETE).read_text() != bundle.sum:
        raise Refused(
            f"Version {version} is already installed in {layout.opt} from another bundle. Give the new one another "
            "version (pyproject.toml). Or have deploy/prune remove the installed one, which it does once that is "
            "neither in use nor the version before, and no process runs from it."
        )


def show_plan(bundle: Bundle, layout: Layout) -> None:
    current = layout.linked("current")
    say(f"In use: {current or 'no version'}; would be installed: {bundle.version} in {layout.version(bundle.version)}.")
    if not layout.environment.exists():
        say(f"{layout.environment} would be written, for you to fill in.")
    if current:
        show_migrations(bundle.migrations, list_migrations(layout, current))
    else:
        say(f"No version is here that could ask the database; this one has {len(bundle.migrations)} migrations.")
    say("Nothing was changed.")


def show_migrations(ours: list[dict[str, Any]], there: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Show which of `ours` would run, by what the database has, and return them."""
    applied = {(row["app"], row["name"]) for row in there if row["applied"]}
    due = [row for row in ours if (row["app"], row["name"]) not in applied]
    say(f"  {count_migrations(due)} to be applied{'' if applied else ', as the database is empty'}")
    for row in due if applied else []:
        note = "" if row["reversible"] else ", CANNOT BE UNDONE: only a backup goes back from here"
        note += ", deletes columns or tables" if row["deletes"] else ""
        say(f"  {row['app']}.{row['name']}{note}")
    return due


# --- Steps ------------------------------------------------------------------------------------------------------
def create_user(layout: Layout) -> None:
    """Create the service user, unless it is there. Below another root it is not needed."""
    if is_real(layout) and not has_user():
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


def make_places(layout: Layout) -> None:
    create_user(layout)
    for path, mode, is_users in (
        (layout.opt, 0o755, False),
        (layout.etc, 0o750, False),
        (layout.var, 0o700, True),
        (layout.cache, 0o750, True),
    ):
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        path.chmod(mode)
        if is_real(layout):
            shutil.chown(path, USER if is_users else "root", USER)


def has_user() -> bool:
    try:
        pwd.getpwnam(USER)
    except KeyError:
        return False
    return True


def make_settings(bundle: Bundle, layout: Layout) -> None:
    """Keep the file of settings; without one, write an example. Raises Refused until that has been filled in."""
    path = layout.environment
    text = (bundle.path / "deploy" / "environment.example").read_text()
    if not path.exists():
        draft = path.with_name(".environment.new")
        draft.write_text(text.replace("=/var/", f"={layout.root / 'var'}/"))
        draft.chmod(0o640)
        if is_real(layout):
            shutil.chown(draft, "root", USER)
        draft.rename(path)
    if path.read_text().startswith(text.splitlines()[0]):
        raise Refused(f"Fill in {path} and remove its first line, then run the installer again: it goes on from here.")
    command_environment(layout)


Packages = Callable[[Bundle, Path], tuple[str | Path, ...]]  # what pip is given for a version in this place


def list_packages(bundle: Bundle, place: Path) -> tuple[str | Path, ...]:
    return ("--find-links", bundle.path / "wheels", "-r", bundle.path / "requirements.txt")


def make_version(bundle: Bundle, layout: Layout, packages: Packages = list_packages) -> None:
    """Make the directory of the version; what an interrupted installation left of it is removed first."""
    place = layout.version(bundle.version)
    if layout.is_complete(bundle.version):
        say("  is complete")
        return
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(mode=0o755)
    python = place / ".venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", "--without-pip", place / ".venv", what="Creating .venv")
    wheels = bundle.path / "wheels"
    pip = (python, "-I", next(wheels.glob("pip-*.whl")) / "pip", "--disable-pip-version-check", "--quiet", "install")
    options = (
        "--no-index",
        "--no-deps",
        "--require-hashes",
        "--no-cache-dir",
        "--no-input",
        "--root-user-action=ignore",
    )
    # pip's own settings of this machine (an index, constraints) do not apply: all that it needs is here.
    clean = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "PIP_CONFIG_FILE": os.devnull}
    say("  Madoguchi")
    listed = ("--find-links", bundle.path / "product", "-r", bundle.path / "product.txt")
    run(*pip, *options, *listed, "--target", place, what="Installing Madoguchi", env=clean)
    say("  packages")
    run(*pip, *options, *packages(bundle, place), what="Installing the packages", env=clean)
    for name in DOCUMENTS:
        copy = partial(shutil.copytree, symlinks=True) if (bundle.path / name).is_dir() else shutil.copy
        copy(bundle.path / name, place / name)
    layout.complete(bundle.version, bundle.sum)


def migrate(bundle: Bundle, layout: Layout) -> None:
    """Apply what the database lacks. If one fails, those that succeeded are undone again."""
    version, current = bundle.version, layout.linked("current")
    if unknown := list_unknown(layout, version):
        raise Refused(
            f"The database has migrations that {version} does not know ({', '.join(unknown[:5])}): a newer version has "
            "migrated it. Install that one; or its deploy/rollback goes back to a version before."
        )
    there = list_migrations(layout, version)
    if not show_migrations(there, there):
        return
    note_applied(layout, version, there)
    command, environment = manage(layout, version, "migrate", "--no-input"), command_environment(layout)
    try:
        run(*command, what="Migrating the database", env=environment, cwd=Path("/"))
    except Refused as error:
        if current:
            say(f"  back to the schema before; version {current} goes on serving")
            forget_migrations(layout, version)
        raise Refused(f"{error} Version {version} is not in use.") from None


def note_applied(layout: Layout, version: str, there: list[dict[str, Any]]) -> None:
    """Write what the database has before the first migration; a run that goes on from there leaves that as it is.

    It is not always what the version in use here has: another machine may have migrated the database already.
    """
    path = layout.applied_before(version)
    if not path.exists():
        write_whole(path, json.dumps([row for row in there if row["applied"]]))


def forget_migrations(layout: Layout, version: str) -> None:
    """Undo what installing this version has applied. Raises Refused."""
    undo_migrations(layout, version, layout.applied_before(version))
    layout.applied_before(version).unlink()


def switch(layout: Layout, version: str) -> None:
    current = layout.linked("current")
    if current != version:
        if current:
            layout.link("previous", current)
        layout.link("current", version)


def put_in_place(layout: Layout, version: str) -> list[str]:
    """Return the units that changed."""
    changed = services.copy_units(layout, version)
    for unit in changed:
        say(f"  {unit}")
    services.link_command(layout)
    before, now = (layout.opt / link / "deploy" / "nginx.conf" for link in ("previous", "current"))
    if before.exists() and before.read_bytes() != now.read_bytes():
        say(f"  nginx.conf of this version differs from the one before; bring it into yours: diff {before} {now}")
    return changed


def put_in_use(layout: Layout, version: str, *, systemd: bool) -> None:
    services.restart(layout, put_in_place(layout, version), systemd=systemd)


def try_out(layout: Layout, version: str, before: str, earlier: str, *, systemd: bool) -> None:
    """Put a version in use. If it does not start, the one before is in use again, with its schema. Raises Refused.

    `before` and `earlier`: what `current` and `previous` led to. There is nothing to go back to if `before` is "" or
    this version.
    """
    try:
        put_in_use(layout, version, systemd=systemd)
    except services.NotStarted as error:
        if before in ("", version):
            raise
        say(f"  {error}")
        raise Refused(take_back(layout, version, before, earlier, systemd=systemd)) from None
    layout.applied_before(version).unlink(missing_ok=True)


def take_back(layout: Layout, version: str, before: str, earlier: str, *, systemd: bool) -> str:
    """Undo migrations and switch back, and return what was done. Raises Refused if undoing fails."""
    if layout.applied_before(version).exists():
        if blocked := irreversible(layout, version):
            return (
                f"Version {version} does not start. The processes of version {before} go on, but would not start "
                f"again: {', '.join(blocked)} cannot be undone. `current` still leads to {version}."
            )
        forget_migrations(layout, version)
    layout.link("current", before)
    if earlier:
        layout.link("previous", earlier)
    else:
        layout.unlink("previous")
    put_in_place(layout, before)
    services.read_units(layout, systemd=systemd)
    return f"Version {version} does not start. Version {before} is in use again, with the schema of before."


def irreversible(layout: Layout, version: str) -> list[str]:
    """Return what installing this version has applied and cannot be undone."""
    kept = {(row["app"], row["name"]) for row in json.loads(layout.applied_before(version).read_text())}
    rows = [row for row in list_migrations(layout, version) if row["applied"] and not row["reversible"]]
    return [f"{row['app']}.{row['name']}" for row in rows if (row["app"], row["name"]) not in kept]
