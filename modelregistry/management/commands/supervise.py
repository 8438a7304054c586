import asyncio
import fcntl
import logging
import os
import signal
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from modelregistry.cluster.access import tls_context
from modelregistry.cluster.link import ClusterLink
from modelregistry.cluster.site import ClusterSite, NoCluster
from modelregistry.controller.controller import Controller
from modelregistry.controller.reporting import report_often
from modelregistry.controller.scaler import ScalingRule
from modelregistry.database import use_pool
from modelregistry.engines.base import CallerIsolation
from modelregistry.install.engine_environments import RAY
from modelregistry.schema import check_schema
from modelregistry.supervisor import tasks
from modelregistry.supervisor.async_helpers import cancel_and_wait
from modelregistry.supervisor.launching import SupervisorConfig
from modelregistry.supervisor.loop import Signals
from modelregistry.supervisor.state_sync import HostRemoved
from modelregistry.supervisor.tasks import TaskRunner
from modelregistry.transfer.local import FileConfig, LocalFiles

log = logging.getLogger(__name__)

CONNECTIONS = 5  # to the database: of the controller, its reader of files, periodic tasks, reports of this machine
SERVER = "modelregistry.cluster.host_server:make_server"


class Command(BaseCommand):
    help = (
        "Runs the engines of the registered models, on this machine and on the hosts of its cluster if there is one, "
        "in the foreground, until SIGTERM or SIGINT. Of several of one site, the others wait until the first is gone."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--stop-engines",
            action="store_true",
            help="stop all engines before exiting; without it they keep running, and the next supervisor adopts them",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if ignored := sorted(name for name in os.environ if name.startswith("LLAMA_ARG_")):
            log.warning("engines do not receive %s: write them as arguments of the models", ", ".join(ignored))
        use_pool(settings.DATABASES["default"], most=CONNECTIONS)  # before anything asks the database
        check_schema()
        config = SupervisorConfig(
            host=settings.HOST_NAME,
            runs=settings.RUN / "engines",
            cache=settings.CACHE,
            commands=settings.ENGINE_COMMANDS,
            ports=parse_ports(settings.ENGINE_PORTS),
            start_limit=settings.ENGINE_START_TIMEOUT,
            directories=(settings.MODELS,),
            stop_grace=settings.ENGINE_STOP_GRACE,
            isolation=CallerIsolation(
                media_domains=tuple(settings.MEDIA_DOMAINS), shared_cache=settings.SHARED_PREFIX_CACHE
            ),
        )
        with hold_lock(settings.RUN / "supervisor.lock"):
            try:
                asyncio.run(_supervise(config, options["stop_engines"]))
            except (HostRemoved, NoCluster) as error:
                raise CommandError(str(error)) from error


async def _supervise(config: SupervisorConfig, stop_engines: bool) -> None:
    signals = Signals()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.receive)
    periodic_tasks = TaskRunner(tasks.registered_tasks(), config.host)
    controller = Controller(
        config,
        claim=settings.RUN / "claim",
        periodic_tasks=periodic_tasks,
        make_link=find_link(),
        files=LocalFiles(describe_files()),
        copies_files=settings.COPY_MODELS,
        lease=settings.HOST_LEASE,
        scaling=ScalingRule(
            wait=settings.SCALE_UP_WAIT, after=settings.SCALE_UP_AFTER, quiet=settings.SCALE_DOWN_AFTER
        ),
    )
    reports = asyncio.create_task(report_often())
    try:
        await controller.run(signals, stop_engines=stop_engines)
    finally:
        await cancel_and_wait([reports])


def find_link() -> Callable[[], ClusterLink] | None:
    """Return what makes a way into the site's cluster; None: it has none. Raises NoCluster where it is not secured."""
    site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE)
    if not site.head.exists():
        return None
    access = site.load().access
    return lambda: ClusterLink(
        RAY.python(settings.CACHE), access=access, server=SERVER, log=settings.VAR / "cluster" / "controller.log"
    )


def describe_files() -> FileConfig:
    """Return where this machine keeps models' files, and how it gives them to hosts of the site's cluster."""
    site = ClusterSite(directory=settings.VAR / "cluster", cache=settings.CACHE)
    config = FileConfig(models=settings.MODELS, state=settings.RUN / "files")
    if not site.head.exists():
        return config
    head = site.load()
    make = partial(tls_context, head.access.secrets)
    return replace(
        config, address=head.address, make_server=partial(make, server=True), make_client=partial(make, server=False)
    )


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
