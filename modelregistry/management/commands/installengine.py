from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.engine_environments import INSTALLABLE, install
from modelregistry.fetching import CannotFetch


class Command(BaseCommand):
    help = "Installs an engine in an environment of its own under MADOGUCHI_CACHE and prints its Python."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("engine", choices=sorted(INSTALLABLE))

    def handle(self, *args: Any, **options: Any) -> str:
        try:
            return str(install(INSTALLABLE[options["engine"]], settings.CACHE, self.stderr.write))
        except CannotFetch as error:
            raise CommandError(str(error)) from error
