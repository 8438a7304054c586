"""Gateway, portal and this host's supervisor, in the foreground: each in processes of its own.

Gateways have the port and hand pages on to the portal's processes (`apiproxy.server.portal_proxy`) by a Unix socket.
With `--portal-port` these listen there too, for an nginx that sends pages to them directly.

All sockets are bound here, or by `apiproxy.server.handover` that started this, and outlive the processes that accept on
them: while one restarts, connections wait in the queue or are accepted by the others. Several gateways share a socket.
Sockets of their own (SO_REUSEPORT) would spread connections more evenly (of 1,000 on two workers 489 to 511, here 419
to 581), but what is in the queue of one that ends is reset by the kernel, which fails calls.
"""

import asyncio
import ctypes
import logging
import os
import resource
import signal
import socket
import sys
from argparse import ArgumentParser
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import DatabaseError, connection

from apiproxy.bridge import checks
from apiproxy.server.portal_proxy import short_socket_path
from apiproxy.server.stand_in import PATIENCE, PATIENCE_AFTER_FAILURE, StandIn
from apiproxy.server.succession import (
    GROUP,
    READY,
    RETIRE,
    STOP_SECONDS,
    inherit_listeners,
    listening_port,
    report_ready,
)
from modelregistry.host_port import join_host_port
from modelregistry.plain_numbers import whole_number
from modelregistry.schema import check_schema
from portal.environment import make_private_directory
from portal.web.catalogues import find_uncompiled

log = logging.getLogger("madoguchi.up")

PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0  # seconds that the portal may take to start; a cold cache of a slow disk took 12
MAX_PAUSE = 30.0
# Seconds after which a program that ends is in no crash loop. Killed every 20 s, it was away for 16 or 30 each time and
# its supervisor's host taken for gone.
LIVED_WELL = 10.0
SOCKET_QUEUE = 2048  # connections that may wait for the portal
PROBE_SECONDS = 0.5
PUBLISH_SECONDS = 1.0  # between two looks whether gateways find a portal

Kind = Literal["gateway", "portal", "supervisor"]
GATEWAY: Kind = "gateway"
PORTAL: Kind = "portal"
SUPERVISOR: Kind = "supervisor"
# What each kind of process has in its environment.
SETTINGS: dict[Kind, dict[str, str]] = {
    GATEWAY: {"DJANGO_SETTINGS_MODULE": "apiproxy.server.gateway_settings"},
    PORTAL: {"DJANGO_SETTINGS_MODULE": "portal.settings"},
    SUPERVISOR: {},
}


class Command(BaseCommand):
    help = "Runs gateway, portal and supervisor until SIGTERM or Ctrl-C, then stops them and every engine."
    requires_migrations_checks = False

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--port", type=whole_number, default=8000)
        parser.add_argument(
            "--workers",
            type=whole_number,
            default=settings.GATEWAY_WORKERS,
            help="gateway processes; more than one needs REDIS_URL",
        )
        parser.add_argument(
            "--portal-port",
            type=whole_number,
            help="a second port, for pages alone: of an nginx that sends them there",
        )
        parser.add_argument("--bind", default="127.0.0.1", help="address to listen on")
        parser.add_argument(
            "--no-supervisor",
            action="store_true",
            help="no engines from here: `supervise` runs as a service of its own",
        )

    def handle(
        self, *, port: int, portal_port: int | None, bind: str, workers: int, no_supervisor: bool, **options: Any
    ) -> None:
        check_workers(workers)
        prepare_state()
        check_schema()
        compare_secrets()
        for texts in find_uncompiled(map(Path, settings.LOCALE_PATHS)):
            self.stderr.write(f"warning: {texts} is not compiled, so pages are partly in English. Run `make setup`.")
        raise_file_limit()
        given = inherit_listeners(os.environ)
        with ExitStack() as stack:
            calls = stack.enter_context(given.get("gateway") or open_port(bind, port))
            socket_of_pages = stack.enter_context(portal_socket(settings.PORTAL_SOCKET))
            pages = [socket_of_pages.listener]
            if "portal" in given or portal_port is not None:
                pages.append(stack.enter_context(given.get("portal") or open_port(bind, portal_port or 0)))
                pages[-1].listen(SOCKET_QUEUE)
            programs = [
                *(Program(name, gateway_command(calls), GATEWAY, [calls]) for name in number_names("gateway", workers)),
                *(
                    Program(name, portal_command(pages), PORTAL, pages)
                    for name in number_names("portal", settings.PORTAL_WORKERS)
                ),
            ]
            if not no_supervisor:
                programs.append(Program("supervisor", supervisor_command(), SUPERVISOR))
            if not asyncio.run(Parent(programs, calls, pages, socket_of_pages).run()):
                sys.exit(1)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A program that is kept running."""

    name: str
    command: list[str]
    kind: Kind
    listeners: Sequence[socket.socket] = ()  # that it is given


def number_names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]


def gateway_command(listener: socket.socket) -> list[str]:
    """Return the command of one gateway; it is to be given this socket."""
    return [sys.executable, "-m", "apiproxy.server.gateway_worker", str(listener.fileno())]


def portal_command(listeners: Sequence[socket.socket]) -> list[str]:
    """Return the command of one portal process; it is to be given these sockets."""
    return [sys.executable, "-m", "apiproxy.server.portal_worker", *(str(listener.fileno()) for listener in listeners)]


def supervisor_command() -> list[str]:
    return [sys.executable, str(settings.BASE_DIR / "manage.py"), "supervise", "--stop-engines"]


@dataclass(frozen=True, slots=True)
class PortalSocket:
    """The Unix socket of the portal's processes. It listens, but gateways find it only when it is published.

    It keeps the name `bound`, so that it can be published again: a run that takes over and is given up after that
    leaves no name, or that of a socket on which no process listens.
    """

    listener: socket.socket
    bound: Path
    path: Path

    def publish(self) -> None:
        """Have gateways connect to this one; who connected to the one before still has that."""
        linked = self.bound.with_suffix(f"{self.bound.suffix}-linked")
        linked.unlink(missing_ok=True)
        linked.hardlink_to(self.bound)
        linked.rename(self.path)
        linked.unlink(missing_ok=True)  # it stays if `path` was this one already

    def publish_if_missing(self) -> None:
        """Publish it again if gateways find no portal."""
        with suppress(FileNotFoundError):
            if self.path.samefile(self.bound) or is_listening(socket.AF_UNIX, short_socket_path(self.path)):
                return
        try:
            self.publish()
        except OSError as error:
            log.error("no gateway finds the portal, and its socket cannot be published again: %s", error)
        else:
            log.warning("the portal's socket led nowhere; it is published again")


@contextmanager
def portal_socket(path: Path) -> Iterator[PortalSocket]:
    """Provide the portal's Unix socket. Raises CommandError if the processes of another Madoguchi answer there."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not os.environ.get(GROUP) and is_listening(socket.AF_UNIX, short_socket_path(path)):
        raise CommandError(f"another Madoguchi runs with this state directory: its portal answers on {path}")
    for left in path.parent.glob(f"{path.stem}.[0-9]*"):  # by processes that were killed
        if not is_listening(socket.AF_UNIX, short_socket_path(left)):
            left.unlink(missing_ok=True)
    bound = path.with_suffix(f".{os.getpid()}")
    bound.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as listener:
        with private_umask():
            listener.bind(short_socket_path(bound))
        listener.listen(SOCKET_QUEUE)
        mine = bound.stat().st_ino
        try:
            yield PortalSocket(listener, bound, path)
        finally:
            for name in (bound, path):
                with suppress(FileNotFoundError):
                    if name.stat().st_ino == mine:
                        name.unlink()


@contextmanager
def private_umask() -> Iterator[None]:
    """Make files that are created meanwhile readable for this user alone."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def is_listening(family: socket.AddressFamily, address: Any) -> bool:
    """Return whether a process listens there."""
    with socket.socket(family) as probe:
        probe.settimeout(PROBE_SECONDS)
        try:
            probe.connect(address)
        except (TimeoutError, BlockingIOError):  # its queue is full
            return True
        except OSError:
            return False
    return True


def raise_file_limit() -> None:
    """Allow as many open files as the system permits, for what we start.

    A stream takes two; many shells allow 1,024.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def check_workers(count: int) -> None:
    """Raise CommandError if this number of gateways may not run."""
    if count < 1:
        raise CommandError("at least one worker is needed")
    for problem in checks.check_workers(count, settings.REDIS_URL):
        raise CommandError(f"{problem.msg} {problem.hint}")


def next_pause(before: float, lived: float) -> float:
    """Return the seconds after which a program that lived so long restarts: 1, or 2, 4 … 30 if it did not live well.

    `before`: the pause before that life; 0: there was none.
    """
    return min(MAX_PAUSE, before * 2) if before and lived <= LIVED_WELL else 1.0


def open_port(bind: str, port: int) -> socket.socket:
    """Return a socket for this port, not listening. Raises CommandError."""
    try:
        return listening_port(bind, port)
    except (OSError, OverflowError) as error:
        raise CommandError(
            f"cannot listen on {bind} port {port}: {error}. Choose another: PORT=8001 make run"
        ) from error


def prepare_state() -> None:
    """Make the state directory and the secrets in it, which all started processes read. Raises CommandError."""
    try:
        make_private_directory(settings.VAR)
        for name in ("SECRET_KEY", "API_KEY_SECRET"):
            str(getattr(settings, name))  # one that is not there yet is made by its first use
    except (OSError, ImproperlyConfigured) as error:
        raise CommandError(f"cannot write to the state directory {settings.VAR} (MADOGUCHI_VAR): {error}") from error


def compare_secrets() -> None:
    """Compare the secrets of this machine with its site's. Raises CommandError.

    Passes if the database does not answer, as `check_schema` does: gateways compare theirs once it does.
    """
    from portal.keys.site_secrets import OtherSecret, check_secrets  # has models, and this module is imported without

    try:
        check_secrets()
    except OtherSecret as error:
        raise CommandError(str(error)) from error
    except DatabaseError as error:
        log.warning("the secrets of this machine are not compared with those of its site yet: %s", error)
    finally:
        connection.close()


def die_with_parent() -> None:
    """Ask the kernel, in the child, for SIGTERM when `up` is killed, so that nothing goes on without it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Running:
    """A process of a program. `ready` is set when it reports that it can accept connections, `begin` has it do so."""

    def __init__(self, process: asyncio.subprocess.Process, reports: socket.socket) -> None:
        self.process = process
        self.ready = asyncio.Event()
        self._reports = reports
        self._begun = False
        reports.setblocking(False)
        asyncio.get_running_loop().add_reader(reports, self._on_report)

    def begin(self) -> None:
        """Have it accept connections, now or as soon as it can."""
        self._begun = True
        if self.ready.is_set():
            self._reports.close()

    def accepts(self) -> bool:
        """Return whether it lives and has reported that it can accept connections."""
        return self.ready.is_set() and self.process.returncode is None

    def _on_report(self) -> None:
        asyncio.get_running_loop().remove_reader(self._reports)
        with suppress(ConnectionResetError):
            if self._reports.recv(100):  # otherwise it has ended
                self.ready.set()
        if self._begun or not self.ready.is_set():
            self._reports.close()


class Parent:
    """Keeps programs running; `run` returns when it was asked to stop, or when they could not start.

    Gateways are stopped first: answers under way need their engines, and a page that a person has requested needs its
    portal. On RETIRE there is another portal: gateways and portal processes end when they have nothing more to do.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        calls: socket.socket,
        pages: Sequence[socket.socket],
        socket_of_pages: PortalSocket,
    ) -> None:
        """`socket_of_pages`, one of `pages`, is published when the portal's processes accept."""
        self._programs = programs
        self._latest: dict[Program, Running] = {}
        self._failing: set[Kind] = set()  # the last start of one failed, and none accepts
        self._gateways = [program for program in programs if program.kind == GATEWAY]
        self._calls = calls
        bind, port = calls.getsockname()[:2]
        self._url = f"http://{join_host_port(bind, port)}"
        self._settings = {
            "GATEWAY_WORKERS": str(len(self._gateways)),
            "GATEWAY_URL": settings.GATEWAY_URL or f"http://{join_host_port(reachable_host(bind), port)}",
        }
        self._socket_of_pages = socket_of_pages
        self._stand_ins = [
            StandIn([calls], partial(self._find_patience, GATEWAY)),
            StandIn(pages, partial(self._find_patience, PORTAL)),
        ]
        self._retiring = False
        self._stop = asyncio.Event()
        self._portal_stop = asyncio.Event()  # no gateway needs the portal any more
        self._gateways_gone = asyncio.Event()  # no gateway is left
        self._hurry = asyncio.Event()  # open answers have STOP_SECONDS
        self._kill_now = asyncio.Event()

    async def run(self) -> bool:
        """Wait until all programs have ended. False: the gateways or the portal never answered."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        loop.add_signal_handler(RETIRE, self._on_retire)
        fronts = [program for program in self._programs if program.kind != SUPERVISOR]
        processes = {program: await self._start(program) for program in fronts}
        keepers = {
            program: asyncio.create_task(
                self._keep_running(program, self._stop if program in self._gateways else self._portal_stop, process)
            )
            for program, process in processes.items()
        }
        started = await self._wait_until_serving(list(processes.values()))
        for program in self._programs:
            if program.kind == SUPERVISOR:
                keepers[program] = asyncio.create_task(self._keep_running(program, self._gateways_gone))
        if started:
            await self._watch()
        self._calls.close()  # who calls from now on is refused, unless another accepts there as well
        await asyncio.gather(*(keepers[program] for program in self._gateways))
        self._gateways_gone.set()
        self._portal_stop.set()
        await asyncio.gather(*keepers.values())
        return started

    async def _watch(self) -> None:
        """Look after callers and the portal's socket until everything is to stop."""
        async with AsyncExitStack() as stack:
            for stand_in in self._stand_ins:
                await stack.enter_async_context(stand_in.running())
            while not self._stop.is_set():
                self._socket_of_pages.publish_if_missing()
                await wait_for_first(self._stop.wait, partial(asyncio.sleep, PUBLISH_SECONDS))

    def _find_patience(self, kind: Kind) -> float | None:
        """Return how long callers may wait from the end of the last process of this kind on; None: one accepts."""
        if any(one.accepts() for program, one in self._latest.items() if program.kind == kind):
            self._failing.discard(kind)
            return None
        return PATIENCE_AFTER_FAILURE if kind in self._failing else PATIENCE

    async def _wait_until_serving(self, processes: list[Running]) -> bool:
        """Wait until all accept connections, and print where. If one ends before, stop everything."""
        reports = [partial(one.ready.wait) for one in processes]
        ends = [partial(one.process.wait) for one in processes]
        await wait_for_first(
            lambda: asyncio.gather(*(report() for report in reports)),
            *ends,
            self._stop.wait,
            partial(asyncio.sleep, START_SECONDS),
        )
        if all(one.ready.is_set() for one in processes):
            for one in processes:
                one.begin()
            self._socket_of_pages.publish()
            print(f"Madoguchi answers on {self._url}  (Ctrl-C stops it)", flush=True)
            report_ready(os.environ)
            return True
        stopped = self._stop.is_set()
        if not stopped:
            log.error("the gateway or the portal could not start")
        self._stop.set()
        return stopped

    def _on_signal(self) -> None:
        if self._hurry.is_set():
            self._kill_now.set()
        self._hurry.set()
        self._stop.set()

    def _on_retire(self) -> None:
        self._retiring = True
        self._stop.set()
        self._portal_stop.set()

    async def _start(self, program: Program) -> Running:
        reports, theirs = socket.socketpair()
        try:
            # A session of its own: Ctrl-C in the terminal reaches `up` alone, which stops the others in order.
            process = await asyncio.create_subprocess_exec(
                *program.command,
                cwd=settings.BASE_DIR,
                start_new_session=True,
                preexec_fn=die_with_parent,
                env={**os.environ, **SETTINGS[program.kind], **self._settings, READY: str(theirs.fileno())},
                pass_fds=[theirs.fileno(), *(listener.fileno() for listener in program.listeners)],
            )
        except BaseException:
            reports.close()
            raise
        finally:
            theirs.close()
        running = self._latest[program] = Running(process, reports)
        return running

    async def _keep_running(self, program: Program, stop: asyncio.Event, running: Running | None = None) -> None:
        """Restart a program whenever it ends by itself, after `next_pause`; stop it when asked to."""
        pause = 0.0
        while not stop.is_set():
            if running is None:
                running = await self._start(program)
                running.begin()
            process = running.process
            begun = asyncio.get_running_loop().time()
            await wait_for_first(process.wait, stop.wait)
            if process.returncode is None:
                await self._stop_process(program, process)
                return
            if stop.is_set():
                return
            if not running.ready.is_set():
                self._failing.add(program.kind)
            pause = next_pause(pause, asyncio.get_running_loop().time() - begun)
            log.error("the %s ended (%s); it restarts in %.0f s", program.name, process.returncode, pause)
            await wait_for_first(stop.wait, partial(asyncio.sleep, pause))
            running = None

    async def _stop_process(self, program: Program, process: asyncio.subprocess.Process) -> None:
        """Send SIGTERM, wait, and send SIGKILL after a second Ctrl-C or far too long."""
        if self._retiring and program.kind != SUPERVISOR:
            process.send_signal(RETIRE)
            patience = settings.GATEWAY_DRAIN + STOP_SECONDS
            await wait_for_first(process.wait, self._hurry.wait, partial(asyncio.sleep, patience))
            if process.returncode is not None:
                return
        process.terminate()
        patience = STOP_SECONDS + 5 + settings.ENGINE_STOP_GRACE
        await wait_for_first(process.wait, self._kill_now.wait, partial(asyncio.sleep, patience))
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)  # the supervisor takes a second one as: at once
            await wait_for_first(process.wait, partial(asyncio.sleep, 5))
        if process.returncode is None:
            log.error("the %s does not stop; it is killed", program.name)
            process.kill()
        await process.wait()


def reachable_host(bind: str) -> str:
    """Return the address at which this machine reaches what listens on `bind`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - compared, not bound


async def wait_for_first(*things: Callable[[], Awaitable[Any]]) -> None:
    """Wait for the first of these to end; cancel the others."""
    tasks = [asyncio.ensure_future(thing()) for thing in things]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
