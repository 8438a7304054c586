"""Gateway, portal and this host's supervisor, in the foreground: each in processes of its own.

Gateways have the port and hand pages on to the portal's processes (`apiproxy.server.portal_proxy`). These share a Unix
socket that is bound here and outlives them: while one restarts, pages wait in its queue. With `--portal-port` they
listen there too, for an nginx that sends pages to them directly.

Several gateways share the port by SO_REUSEPORT: each binds it for itself, and the system spreads connections over those
that listen. Measured with 1,000 connections on two workers: 489 to 511 each; over one inherited socket 419 to 581,
because the worker that wakes first takes what is there. A worker listens when it is ready, so no connection waits for
one that starts.
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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from apiproxy.bridge import checks
from apiproxy.server.portal_proxy import short_socket_path
from modelregistry.plain_numbers import whole_number
from modelregistry.schema import check_schema
from portal.environment import make_private_directory
from portal.web.catalogues import find_uncompiled

log = logging.getLogger("madoguchi.up")

# Seconds that open answers may go on after SIGTERM before they are cut off.
DRAIN_SECONDS = 10
PR_SET_PDEATHSIG = 1
START_SECONDS = 60.0  # seconds that the portal may take to start; a cold cache of a slow disk took 12
MAX_PAUSE = 30.0
# Seconds after which a program that ends is in no crash loop. Killed every 20 s, it was away for 16 or 30 each time and
# its supervisor's host taken for gone.
LIVED_WELL = 10.0
SOCKET_QUEUE = 2048  # connections that may wait for the portal

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
        check_port(bind, port)
        if portal_port is not None:
            check_port(bind, portal_port)
        prepare_state()
        check_schema()
        for texts in find_uncompiled(map(Path, settings.LOCALE_PATHS)):
            self.stderr.write(f"warning: {texts} is not compiled, so pages are partly in English. Run `make setup`.")
        raise_file_limit()
        with portal_sockets(settings.PORTAL_SOCKET, bind, portal_port) as listeners:
            programs = [
                *(Program(name, gateway_command(bind, port), GATEWAY) for name in number_names("gateway", workers)),
                *(
                    Program(name, portal_command(listeners), PORTAL, [listener.fileno() for listener in listeners])
                    for name in number_names("portal", settings.PORTAL_WORKERS)
                ),
            ]
            if not no_supervisor:
                programs.append(Program("supervisor", supervisor_command(), SUPERVISOR))
            if not asyncio.run(Parent(programs, bind, port, settings.PORTAL_SOCKET).run()):
                sys.exit(1)


@dataclass(frozen=True, slots=True, eq=False)
class Program:
    """A program that is kept running."""

    name: str
    command: list[str]
    kind: Kind
    files: Sequence[int] = ()  # descriptors that it is given


def number_names(name: str, count: int) -> list[str]:
    return [name] if count == 1 else [f"{name} {number}" for number in range(1, count + 1)]


def gateway_command(bind: str, port: int) -> list[str]:
    """Return the command of one gateway."""
    options = {
        "host": bind,
        "port": port,
        "workers": 1,
        "loop": "uvloop",
        "http": "apiproxy.server.protocol:Protocol",
        "ws": "apiproxy.server.portal_proxy:Tunnel",
        "lifespan": "on",
        "log-level": "warning",
        "timeout-graceful-shutdown": DRAIN_SECONDS,
        "timeout-keep-alive": 75,  # longer than nginx keeps an idle one (60 s), so that it never finds it closed
    }
    flags = ["--no-access-log", "--no-server-header", "--no-proxy-headers"]
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "uvicorn", "apiproxy.server.front:application", *words, *flags]


def portal_command(listeners: Sequence[socket.socket]) -> list[str]:
    """Return the command of one portal process; it is to be given these sockets."""
    return [sys.executable, "-m", "apiproxy.server.portal_worker", *(str(listener.fileno()) for listener in listeners)]


def supervisor_command() -> list[str]:
    return [sys.executable, str(settings.BASE_DIR / "manage.py"), "supervise", "--stop-engines"]


@contextmanager
def portal_sockets(path: Path, bind: str, port: int | None) -> Iterator[list[socket.socket]]:
    """Provide listening sockets for the portal's processes: the Unix one, and one on its own port if that is wanted.

    Raises CommandError if a process answers on the Unix socket.
    """
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    short = short_socket_path(path)
    if is_listening(socket.AF_UNIX, short):
        raise CommandError(f"another Madoguchi runs with this state directory: its portal answers on {path}")
    path.unlink(missing_ok=True)
    with ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        with private_umask():
            listener.bind(short)
        stack.callback(partial(path.unlink, missing_ok=True))
        listeners = [listener]
        if port is not None:
            listeners.append(stack.enter_context(listening_port(bind, port)))
        for listener in listeners:
            listener.listen(SOCKET_QUEUE)
        yield listeners


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
        try:
            probe.connect(address)
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


def check_port(bind: str, port: int) -> None:
    """Raise CommandError if the port cannot be listened on."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind, port))
        except (OSError, OverflowError) as error:
            raise CommandError(
                f"cannot listen on {bind} port {port}: {error}. Choose another: PORT=8001 make run"
            ) from error


def shared_port(bind: str, port: int) -> socket.socket:
    """Return a socket that is bound, but not listening: the worker that is given it listens when it is ready.

    Ours is closed then, so that the system does not send connections to a worker that has ended.
    """
    return listening_port(bind, port, socket.SO_REUSEPORT)


def listening_port(bind: str, port: int, *more: int) -> socket.socket:
    """Return a socket that is bound, but not listening. `more`: options of the socket to turn on."""
    listener = socket.socket(socket.AF_INET6 if ":" in bind else socket.AF_INET)
    for option in (socket.SO_REUSEADDR, *more):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    # Connections inherit it. uvicorn takes what it is given for a Unix socket, on which uvloop would not set it: tokens
    # would wait for the acknowledgement of the one before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    listener.bind((bind, port))
    return listener


def prepare_state() -> None:
    """Make the state directory and the secrets in it, which all started processes read. Raises CommandError."""
    try:
        make_private_directory(settings.VAR)
        for name in ("SECRET_KEY", "API_KEY_SECRET"):
            str(getattr(settings, name))  # one that is not there yet is made by its first use
    except (OSError, ImproperlyConfigured) as error:
        raise CommandError(f"cannot write to the state directory {settings.VAR} (MADOGUCHI_VAR): {error}") from error


def die_with_parent() -> None:
    """Ask the kernel, in the child, for SIGTERM when `up` is killed, so that nothing goes on without it."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Parent:
    """Keeps programs running; `run` returns when it was asked to stop, or when they could not start.

    Gateways are stopped first: answers under way need their engines, and a page that a person has requested needs its
    portal.
    """

    def __init__(self, programs: Sequence[Program], bind: str, port: int, portal: Path) -> None:
        self._programs = programs
        self._gateways = [program for program in programs if program.kind == GATEWAY]
        self._address = (bind, port)
        self._settings = {
            "GATEWAY_WORKERS": str(len(self._gateways)),
            "GATEWAY_URL": settings.GATEWAY_URL or f"http://{url_host(reachable_host(bind))}:{port}",
        }
        self._portal = short_socket_path(portal)
        self._stop = asyncio.Event()
        self._gateways_gone = asyncio.Event()  # no gateway is left
        self._kill_now = asyncio.Event()

    async def run(self) -> bool:
        """Wait until all programs have ended. False: the gateways or the portal never answered."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        fronts = [program for program in self._programs if program.kind != SUPERVISOR]
        processes = {program: await self._start(program) for program in fronts}
        keepers = {
            program: asyncio.create_task(
                self._keep_running(program, self._stop if program in self._gateways else self._gateways_gone, process)
            )
            for program, process in processes.items()
        }
        started = await self._wait_until_serving(list(processes.values()))
        for program in self._programs:
            if program.kind == SUPERVISOR:
                keepers[program] = asyncio.create_task(self._keep_running(program, self._gateways_gone))
        await asyncio.gather(*(keepers[program] for program in self._gateways))
        self._gateways_gone.set()
        await asyncio.gather(*keepers.values())
        return started

    async def _wait_until_serving(self, processes: list[asyncio.subprocess.Process]) -> bool:
        """Wait until gateway and portal answer, and print where. If one ends before, stop everything."""
        deadline = asyncio.get_running_loop().time() + START_SECONDS
        while not self._stop.is_set() and asyncio.get_running_loop().time() < deadline:
            if await self._is_serving():
                bind, port = self._address
                print(f"Madoguchi answers on http://{url_host(bind)}:{port}  (Ctrl-C stops it)", flush=True)
                return True
            if any(process.returncode is not None for process in processes):
                log.error("the gateway or the portal could not start")
                break
            await asyncio.sleep(0.1)
        stopped = self._stop.is_set()
        self._stop.set()
        return stopped

    async def _is_serving(self) -> bool:
        bind, port = self._address
        host = reachable_host(bind)
        return await answers(partial(asyncio.open_connection, host, port)) and await answers(
            partial(asyncio.open_unix_connection, self._portal)
        )

    def _on_signal(self) -> None:
        if self._stop.is_set():
            self._kill_now.set()
        self._stop.set()

    async def _start(self, program: Program) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C in the terminal reaches `up` alone, which stops the others in order.
        spawn = partial(
            asyncio.create_subprocess_exec,
            *program.command,
            cwd=settings.BASE_DIR,
            start_new_session=True,
            preexec_fn=die_with_parent,
            env={**os.environ, **SETTINGS[program.kind], **self._settings},
        )
        if program.kind != GATEWAY or len(self._gateways) == 1:
            return await spawn(pass_fds=program.files)
        with shared_port(*self._address) as listener:
            number = listener.fileno()
            return await spawn("--fd", str(number), pass_fds=[number])

    async def _keep_running(
        self, program: Program, stop: asyncio.Event, process: asyncio.subprocess.Process | None = None
    ) -> None:
        """Restart a program whenever it ends by itself, after `next_pause`; stop it when asked to."""
        pause = 0.0
        while not stop.is_set():
            process = process or await self._start(program)
            begun = asyncio.get_running_loop().time()
            await wait_for_first(process.wait, stop.wait)
            if process.returncode is None:
                break
            if stop.is_set():
                return
            pause = next_pause(pause, asyncio.get_running_loop().time() - begun)
            log.error("the %s ended (%s); it restarts in %.0f s", program.name, process.returncode, pause)
            await wait_for_first(stop.wait, partial(asyncio.sleep, pause))
            process = None
        if process is not None and process.returncode is None:
            await self._stop_process(program.name, process)

    async def _stop_process(self, name: str, process: asyncio.subprocess.Process) -> None:
        """Send SIGTERM, wait, and send SIGKILL after a second Ctrl-C or far too long."""
        process.terminate()
        patience = DRAIN_SECONDS + 5 + settings.ENGINE_STOP_GRACE
        await wait_for_first(process.wait, self._kill_now.wait, partial(asyncio.sleep, patience))
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)  # the supervisor takes a second one as: at once
            await wait_for_first(process.wait, partial(asyncio.sleep, 5))
        if process.returncode is None:
            log.error("the %s does not stop; it is killed", name)
            process.kill()
        await process.wait()


def reachable_host(bind: str) -> str:
    """Return the address at which this machine reaches what listens on `bind`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(bind, bind)  # noqa: S104 - compared, not bound


def url_host(address: str) -> str:
    return f"[{address}]" if ":" in address else address


async def wait_for_first(*things: Callable[[], Awaitable[Any]]) -> None:
    """Wait for the first of these to end; cancel the others."""
    tasks = [asyncio.ensure_future(thing()) for thing in things]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def answers(connect: Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]) -> bool:
    """Return whether an HTTP server answers there."""
    try:
        reader, writer = await connect()
    except OSError:
        return False
    try:
        writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        line = await asyncio.wait_for(reader.readline(), 5)
    except (OSError, TimeoutError):
        return False
    finally:
        writer.close()
    return line.startswith(b"HTTP/1.1 ")
