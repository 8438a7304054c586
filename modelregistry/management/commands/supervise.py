import asyncio
import fcntl
import logging
import os
import signal
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from modelregistry.engines.base import CallerIsolation
from modelregistry.schema import check_schema
from modelregistry.supervisor import tasks
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.lease import HeldElsewhere
from modelregistry.supervisor.loop import Signals, Supervisor
from modelregistry.supervisor.tasks import TaskRunner

log = logging.getLogger(__name__)


class Command(BaseCommand):
    help = "Runs the engines of this host's registered models, in the foreground, until SIGTERM or SIGINT."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--stop-engines",
            action="store_true",
            help="stop all engines before exiting; without it they keep running, and the next supervisor adopts them",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if ignored := sorted(name for name in os.environ if name.startswith("LLAMA_ARG_")):
            log.warning("engines do not receive %s: write them as arguments of the models", ", ".join(ignored))
        check_schema()
        config = SupervisorConfig(
            host=settings.HOST_NAME,
            runs=settings.RUN / "engines",
            cache=settings.CACHE,
            commands=settings.ENGINE_COMMANDS,
            ports=parse_ports(settings.ENGINE_PORTS),
            start_limit=settings.ENGINE_START_TIMEOUT,
            stop_grace=settings.ENGINE_STOP_GRACE,
            claim=settings.RUN / "claim",
            isolation=CallerIsolation(
                media_domains=tuple(settings.MEDIA_DOMAINS), shared_cache=settings.SHARED_PREFIX_CACHE
            ),
        )
        with hold_lock(settings.RUN / "supervisor.lock"):
            try:
                asyncio.run(_supervise(config, options["stop_engines"]))
            except HeldElsewhere as error:
                raise CommandError(str(error)) from error


async def _supervise(config: SupervisorConfig, stop_engines: bool) -> None:
    signals = Signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.receive)
    periodic_tasks = TaskRunner(tasks.registered_tasks(), config.host)
    await Supervisor(config, periodic_tasks=periodic_tasks).run(signals, stop_engines=stop_engines)


def parse_ports(text: str) -> range:
    """Parse a range like `18100-18999`, both included. Raises ImproperlyConfigured."""
    first, _, last = text.partition("-")
    if not (text.isascii() and first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last) < 65536):
        raise ImproperlyConfigured(f'ENGINE_PORTS is "{text}" and must be two ports like 18100-18999.')
    return range(int(first), int(last) + 1)


@contextmanager
def hold_lock(path: Path) -> Iterator[None]:
    """Hold the lock of this host's supervisor; the kernel frees it however the process ends. Raises CommandError."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise CommandError(f"A supervisor runs on this host already (process {holder}).") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
