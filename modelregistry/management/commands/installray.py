import signal
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.install import engine_environments
from modelregistry.install.build_cache import CannotFetch
from modelregistry.install.engine_environments import RAY


class Command(BaseCommand):
    help = (
        "Installs Ray in a directory of its own under MADOGUCHI_CACHE and prints its Python. A site needs it once its "
        "models run on several hosts; a GPU host has its own by `python3 deploy/setup.py host`."
    )
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="a folder of its packages; no index")
        where.add_argument(
            "--download-to", type=Path, metavar="DIR", help="only fill such a folder, for a machine without network"
        )

    def handle(self, *args: Any, **options: Any) -> str:
        signal.signal(signal.SIGTERM, _exit)
        try:
            if folder := options["download_to"]:
                engine_environments.download_packages(RAY, folder, self._say)
                return str(folder)
            return str(engine_environments.install(RAY, settings.CACHE, self._say, folder=options["folder"]))
        except CannotFetch as error:
            raise CommandError(str(error)) from error
        except OSError as error:  # a folder that cannot be made, a full disk
            raise CommandError(f"{error.filename or RAY.name}: {error.strerror or error}") from error

    def _say(self, text: str) -> None:
        self.stderr.write(text, style_func=str)
        self.stderr.flush()


def _exit(*_: object) -> None:
    raise SystemExit(143)  # so that running downloads stop as well
