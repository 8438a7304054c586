#!/usr/bin/env python
"""The operator's command line: `python manage.py help`."""

import os
import sys


def main() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "portal.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from environs import EnvError

    try:
        execute_from_command_line(sys.argv)
    except (EnvError, ImproperlyConfigured) as error:
        # A wrong environment is the operator's to mend: its sentence, not our stack.
        sys.exit(f"madoguchi: {error}")


if __name__ == "__main__":
    main()
