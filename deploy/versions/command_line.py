"""madoguchi COMMAND...: the command line of the version in use, with its settings and as the service user."""

import os
from pathlib import Path

from versions.layout import Layout, Refused
from versions.programs import BECOME_USER, command_environment, is_real, manage


def main(words: list[str], version: Path) -> None:
    """Become the command; `version` is the directory of the version that this file belongs to."""
    layout = Layout(version.parents[2])
    try:
        environment = command_environment(layout)
    except PermissionError:
        raise Refused(f"Only root and the service user can read {layout.environment}.") from None
    # It is this process then, so no other has to pass signals on, and nothing ends it.
    command = manage(layout, version.name, *words)
    command = command[command.index("--") + 1 :]
    if is_real(layout) and os.geteuid() == 0:
        command = [*BECOME_USER, "--", *command]
    os.execvpe(command[0], command, environment)  # noqa: S606
