from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.engine_environments import INSTALLABLE, install
from modelregistry.fetching import CannotFetch

GPU = (
    "Only vLLM's build for CPUs can be installed here: say --cpu. For a GPU, vLLM depends on the driver: install it "
    "in an environment of its own as its documentation tells, and name its program in VLLM_COMMAND."
)


class Command(BaseCommand):
    help = "Installs an engine in an environment of its own under MADOGUCHI_CACHE and prints its Python."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("engine", choices=sorted(INSTALLABLE))
        parser.add_argument("--cpu", action="store_true", help="vllm: its build for CPUs (2.5 GB), slow but complete")

    def handle(self, *args: Any, **options: Any) -> str:
        if options["engine"] == "vllm" and not options["cpu"]:
            raise CommandError(GPU)
        try:
            return str(install(INSTALLABLE[options["engine"]], settings.CACHE, self.stderr.write))
        except CannotFetch as error:
            raise CommandError(str(error)) from error
