import signal
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from modelregistry.engines import parsers
from modelregistry.engines.registry import installable_engines, launched_by
from modelregistry.install import engine_environments
from modelregistry.install.build_cache import CannotFetch
from modelregistry.install.engine_environments import EngineEnvironment

NO_DRIVER = (
    "This machine shows no NVIDIA driver, and vLLM's build for GPUs (9.5 GB) would run nothing here. Give --cpu for "
    "its build for CPUs, or --force if the driver comes later."
)


class Command(BaseCommand):
    help = "Installs an engine in a directory of its own under MADOGUCHI_CACHE and prints the program that starts it."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "engine",
            choices=sorted(installable_engines()),
            help="llama.cpp is xllamacpp, which needs no compiler; llama-server and llama-cpp-python are compiled here",
        )
        parser.add_argument("--cpu", action="store_true", help="vllm: its build for CPUs (2.5 GB), slow but complete")
        parser.add_argument("--force", action="store_true", help="vllm: also without an NVIDIA driver")
        where = parser.add_mutually_exclusive_group()
        where.add_argument("--from", dest="folder", type=Path, metavar="DIR", help="a folder of packages; no index")
        where.add_argument(
            "--download-to",
            type=Path,
            metavar="DIR",
            help="only fill such a folder, for a machine without network",
        )

    def handle(self, *args: Any, **options: Any) -> str:
        environment = _choose(options["engine"], cpu=options["cpu"])
        signal.signal(signal.SIGTERM, _exit)
        try:
            if folder := options["download_to"]:
                engine_environments.download_packages(environment, folder, self._say)
                return str(folder)
            if environment.needs_nvidia and not (engine_environments.nvidia_driver() or options["force"]):
                raise CommandError(NO_DRIVER)
            made = engine_environments.install(environment, settings.CACHE, self._say, folder=options["folder"])
        except CannotFetch as error:
            raise CommandError(str(error)) from error
        except OSError as error:  # a folder that cannot be made, a full disk
            raise CommandError(f"{error.filename or environment.name}: {error.strerror or error}") from error
        # Now rather than when an operator registers a model and waits for it.
        parsers.load_options(environment.name, launched_by(environment.name).program(made), settings.CACHE)
        return str(made)

    def _say(self, text: str) -> None:
        self.stderr.write(text, style_func=str)
        self.stderr.flush()


def _choose(engine: str, *, cpu: bool) -> EngineEnvironment:
    environment = installable_engines()[engine].environment(cpu=cpu)
    assert environment, "only what can be installed is a choice"
    return environment


def _exit(*_: object) -> None:
    raise SystemExit(143)  # so that running downloads stop as well
