"""Measure what callers notice: `python -m tests.restart [--streams 40] [--seconds 30] [--rate 20]` prints a table."""

import asyncio
import os

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

from tests.restart.measuring import main

asyncio.run(main())
