"""Measure what people notice when parts of a site fail: `python -m tests.failover [--only WORD …]` prints a table."""

import asyncio
import os

import django

os.environ["DJANGO_SETTINGS_MODULE"] = "tests.settings"
django.setup()

from tests.failover.measuring import main

asyncio.run(main())
