#!/usr/bin/env python
"""The operator's command line: `python manage.py help`."""

import os
import platform
import sys

# These check the settings of the servers first. Checks load every page: 1 s of the 2 that all other commands took, some
# of which a supervisor starts again and again.
CHECKED = (["up"], ["runserver"])


def main() -> None:
    os.umask(0o077)  # what we and our engines write is for our user alone
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    if asks_for_version(sys.argv[1:]):
        from django import get_version

        from modelregistry.version import VERSION

        print(f"Madoguchi {VERSION} (Django {get_version()}, Python {platform.python_version()})")
        return
    if any("\ud800" <= sign <= "\udfff" for word in sys.argv for sign in word):
        sys.exit("madoguchi: an argument is not valid in this locale's encoding; no name here can have such bytes.")
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.core.management.base import BaseCommand

    from portal.environment import tighten

    try:
        settings._setup()
    except (ValueError, ImproperlyConfigured) as error:  # environs' errors are ValueErrors
        # A wrong environment is the operator's to mend: its sentence, not our stack.
        sys.exit(f"madoguchi: {error}")
    tighten(settings.VAR)
    if sys.argv[1:2] not in CHECKED:
        BaseCommand.requires_system_checks = []
    try:
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C: what shells expect of it, and no stack


def asks_for_version(words: list[str]) -> bool:
    """Django would answer `--version`, `version` and `COMMAND --version` with its own."""
    return words == ["version"] or (len(words) <= 2 and words[-1:] == ["--version"])


if __name__ == "__main__":
    main()
