"""Loads the use cases that Madoguchi brings along; the supervisors run it daily, so also after an upgrade."""

from typing import Any

from django.core.management.base import BaseCommand

from portal.use_cases.starters import load_starters


class Command(BaseCommand):
    help = (
        "Loads the use cases that come with this version. What people have edited or hidden stays as it is. May be run "
        "again at any time."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        self.stdout.write(", ".join(load_starters()) or "nothing is new")
