"""Programs that the steps run: they end with this process, and those of a version run as the service user."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

from versions.layout import Layout, Refused

USER = "madoguchi"
# If the installer is killed, so are they: what runs it again must be alone.
WITH_US = ("setpriv", "--pdeathsig", "KILL")
BECOME_USER = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--init-groups")
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def say(text: str) -> None:
    print(text, flush=True)


def run(*command: str | Path, what: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> None:
    """Run it with its output shown. Raises Refused, which begins with `what`, if it fails."""
    done = subprocess.run([*WITH_US, "--", *command], env=env, cwd=cwd, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise Refused(f"{what} failed (exit status {done.returncode}), see above.")


def read_environment(path: Path) -> dict[str, str]:
    """Return the variables of the file, which systemd and the hand-over read likewise. Raises Refused."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise Refused(f"{path} is not UTF-8: {error}.") from None
    found = {}
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if not text or text[0] in "#;":
            continue
        name, equals, value = text.partition("=")
        read = read_value(value.strip())
        if not equals or not name.isidentifier() or read is None:
            raise Refused(f"{path}, line {number}: not NAME=value, or a quotation mark or a space too many.")
        found[name] = read
    return found


def read_value(text: str) -> str | None:
    """Return what systemd reads; None for what it would understand in another way than it looks.

    Between double quotes a backslash is one unless it is before one of four characters, between single quotes always.
    """
    if quoted := re.fullmatch(r'"((?:[^"\\]|\\.)*)"', text):
        return re.sub(r'\\(["\\`$])', r"\1", quoted[1])
    if quoted := re.fullmatch(r"'([^']*)'", text):
        return quoted[1]
    if re.fullmatch(r"(?:[^\s\\\"']|\\.)*", text):
        return re.sub(r"\\(.)", r"\1", text)
    return None


def command_environment(layout: Layout) -> dict[str, str]:
    """Return what a command of a version runs with: the settings, and nothing of the operator's shell but these."""
    kept = {name: os.environ[name] for name in ("LANG", "LC_ALL", "TERM") if name in os.environ}
    return {"PATH": PATH, "HOME": str(layout.var), **kept, **read_environment(layout.environment)}


def manage(layout: Layout, version: str, *words: str | Path) -> list[str]:
    """Return a command of this version, as the service user unless this is a rehearsal."""
    place = layout.version(version)
    before = (*BECOME_USER, *WITH_US[1:]) if is_real(layout) else WITH_US
    return [*before, "--", *map(str, (place / ".venv" / "bin" / "python", place / "manage.py", *words))]


def list_migrations(layout: Layout, version: str) -> list[dict[str, Any]]:
    """Return the migrations that this version knows, with whether the database has them. Raises Refused."""
    listed: list[dict[str, Any]] = ask_for_migrations(layout, version)
    return listed


def list_unknown(layout: Layout, version: str) -> list[str]:
    """Return the applied migrations that this version lacks, whichever version has them. Raises Refused."""
    names: list[str] = ask_for_migrations(layout, version, "--unknown")
    return names


def list_gateways(layout: Layout, version: str) -> list[dict[str, Any]]:
    """Return the machines of the site that have gateways or controllers. Raises Refused."""
    listed: list[dict[str, Any]] = ask(layout, version, "gateways", "--json", what="gateways")
    return listed


def ask_for_migrations(layout: Layout, version: str, *words: str) -> Any:
    return ask(layout, version, "migrations", *words, what="its migrations")


def ask(layout: Layout, version: str, *words: str, what: str) -> Any:
    """Return what a command of this version prints as JSON. Raises Refused."""
    done = subprocess.run(
        manage(layout, version, *words),
        env=command_environment(layout),
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise Refused(f"Version {version} cannot ask the database for {what}:\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def undo_migrations(layout: Layout, version: str, kept: Path) -> None:
    """Undo what is applied of this version and is not in the file `kept`. Raises Refused if that fails."""
    command = manage(layout, version, "migrations", "--back-to", kept)
    run(*command, what="Undoing migrations", env=command_environment(layout), cwd=Path("/"))


def count_migrations(rows: list[dict[str, Any]]) -> str:
    return "1 migration is" if len(rows) == 1 else f"{len(rows)} migrations are"


def is_real(layout: Layout) -> bool:
    """Return whether this is the machine itself, and not a rehearsal below a directory."""
    return layout.root == Path("/")
