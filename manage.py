#!/usr/bin/env python
"""The operator's command line: `python manage.py help`."""

import os
import sys


def main() -> None:
    os.umask(0o077)  # what we and our engines write is for our user alone
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    from django.conf import settings
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line

    try:
        settings._setup()
    except (ValueError, ImproperlyConfigured) as error:  # environs' errors are ValueErrors
        # A wrong environment is the operator's to mend: its sentence, not our stack.
        sys.exit(f"madoguchi: {error}")
    try:
        execute_from_command_line(sys.argv)
    except KeyboardInterrupt:
        sys.exit(130)  # Ctrl-C: what shells expect of it, and no stack


if __name__ == "__main__":
    main()
