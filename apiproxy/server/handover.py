"""Runs a server, and has another run of it take its place, unnoticed by its clients.

    python -m apiproxy.server.handover [--directory DIR] [--environment FILE] [--listen NAME=ADDRESS:PORT]…
        --control SOCKET -- COMMAND…
    python -m apiproxy.server.handover --control SOCKET --reload

Listeners come from systemd (`FileDescriptorName=` of its socket units) or are bound here, and stay open. A reload (also
by SIGHUP) reads FILE, goes to where DIR leads now, which may be another version, and runs COMMAND there beside the one
that serves. When the new run accepts connections (`succession.report_ready`), the old one is asked to retire: it takes
no more of them and ends when its last answer has. A new run that fails changes nothing.
While no run accepts, callers wait; if that takes too long they are answered with 503 here (`stand_in`).

A socket unit alone would not do: on `systemctl restart` systemd waits for the old process before it starts the new one,
and an answer may take an hour. Nor do two instances of a unit behind nginx: each version would need a port of its own,
and nginx a reload.

This process outlives versions, so it imports nothing but the standard library, `stand_in` and `succession`. After a
reload it replaces itself by the new version of itself (exec): its children, its listeners and its process id stay. The
new version is tried before that (`--can-adopt`): if it cannot go on with these, this process stays as it is.
"""

import argparse
import asyncio
import contextlib
import ctypes
import json
import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from apiproxy.server.stand_in import PATIENCE, PATIENCE_AFTER_FAILURE, StandIn
from apiproxy.server.succession import GROUP, LISTENERS, READY, RETIRE, format_listeners, listening_port

log = logging.getLogger("madoguchi.handover")

START_SECONDS = 90.0  # that a run may take until it accepts
CONNECT_SECONDS = 2.0  # that a reload may take to be asked for
RELOAD_SECONDS = 2 * START_SECONDS + 10.0  # that a reload is waited for; another start may be under way before it
RESTART_SECONDS = 1.0  # before a run that ended by itself is followed by another
TRIAL_SECONDS = 30.0  # that the next version of this process may take to read what it is to go on with
STATE = "MADOGUCHI_HANDOVER"  # what this process knew before it replaced itself, as JSON
STATE_FORM = 1  # of that JSON; another form is not gone on with
SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}  # that are handled here
PR_SET_PDEATHSIG = 1
FIRST_DESCRIPTOR = 3  # of those that systemd passes


class ReloadFailed(Exception):
    """The new run did not start; the old one serves on. The message says why."""


@dataclass
class ServerRun:
    """One run of the command: a process, whether it was asked to end, and whether it has reported that it accepts."""

    pid: int
    ending: bool = False
    ready: bool = False


@dataclass(frozen=True)
class State:
    """What a process knows that replaces itself. `listeners`: descriptors by name."""

    group: str
    listeners: dict[str, int]
    runs: list[ServerRun]


def read_state(text: str) -> State:
    """Return the state that the version before wrote. Raises ValueError if it has another form."""
    known = json.loads(text)
    if known["form"] != STATE_FORM:
        raise ValueError(f"the state has form {known['form']}, and {STATE_FORM} is read here")
    return State(known["group"], known["listeners"], [ServerRun(pid, ending, True) for pid, ending in known["runs"]])


class Handover:
    """`directory` and `environment` are looked at again for each run."""

    def __init__(
        self,
        command: Sequence[str],
        listeners: Mapping[str, socket.socket],
        *,
        directory: Path,
        environment: Path | None,
        control: Path,
    ) -> None:
        self._command = list(command)
        self._listeners = listeners
        self._directory = directory
        self._environment = environment
        self._control = control
        self._group = secrets.token_hex(8)
        self._runs: list[ServerRun] = []  # the last one that is not ending serves
        self._failing = False  # the last start failed, and no run accepts
        self._stand_in = StandIn(list(listeners.values()), self._find_patience)
        self._stopping = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._changed = asyncio.Event()  # a run has ended
        self._clients: set[asyncio.Task[None]] = set()
        self._base = dict(os.environ)
        self._notify_address = self._base.get("NOTIFY_SOCKET", "")

    async def run(self, state: State | None) -> int:
        """Serve until SIGTERM. Return the exit status. `state`: None at the first start."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload_by_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # the version before blocked them while it became this one
        if state:
            self._adopt(state)
        async with await self._open_control(), self._stand_in.running():
            started = bool(state) or await self._start_first()
            if started:
                self._notify("READY=1")
                await self._keep_serving()
        self._control.unlink(missing_ok=True)
        if started:
            self._notify("STOPPING=1")
        elif not self._stopping.is_set():
            await self._stand_in.answer_waiting()  # the next process could only let them wait again
        await self._end_all()
        return 0 if started or self._stopping.is_set() else 1

    # --- runs

    @property
    def _serving(self) -> ServerRun | None:
        return next((one for one in reversed(self._runs) if not one.ending), None)

    def _find_patience(self) -> float | None:
        """Return how long callers may wait from the end of a run on; None: one accepts."""
        if any(run.ready and not run.ending for run in self._runs):
            self._failing = False
            return None
        return PATIENCE_AFTER_FAILURE if self._failing else PATIENCE

    async def _start_first(self) -> bool:
        """Return whether the first run accepts."""
        try:
            async with self._reloading:
                await self._start()
        except ReloadFailed as error:
            log.error("%s", error)
            return False
        return True

    async def _keep_serving(self) -> None:
        """Replace a run that ends by itself, until this process is to stop."""
        while not self._stopping.is_set():
            self._changed.clear()
            if self._serving is None:
                await self._restart()
                continue
            waits = [asyncio.ensure_future(event.wait()) for event in (self._stopping, self._changed)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()

    async def _restart(self) -> None:
        """Start a run after a moment, unless a reload has started one meanwhile or this process is to stop."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), RESTART_SECONDS)
        async with self._reloading:
            if self._serving is None and not self._stopping.is_set():
                try:
                    await self._start()
                except ReloadFailed as error:
                    log.error("%s", error)

    async def _start(self) -> ServerRun:
        """Start a run and return once it accepts connections. Raises ReloadFailed. Only one may start at a time."""
        try:
            run = await self._try_to_start()
        except ReloadFailed:
            self._failing = True
            raise
        run.ready = True
        return run

    async def _try_to_start(self) -> ServerRun:
        try:
            run, reports = self._launch()
        # A value that no environment can hold, text that is no UTF-8, a loop of links.
        except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
            raise ReloadFailed(f"the command cannot be run in {self._directory}: {error}") from error
        if not await self._is_reported(reports):
            if self._stopping.is_set():
                raise ReloadFailed("the server is stopping")  # which ends all runs
            self._end(run, signal.SIGTERM)
            raise ReloadFailed(f"process {run.pid} in {resolve(self._directory)} did not start: the log says why")
        return run

    async def _is_reported(self, reports: socket.socket) -> bool:
        """Return whether a run reports in time that it accepts, and before this process is to stop."""
        report = asyncio.ensure_future(is_reported(reports, START_SECONDS))
        stop = asyncio.ensure_future(self._stopping.wait())
        await asyncio.wait([report, stop], return_when=asyncio.FIRST_COMPLETED)
        for wait in (report, stop):
            wait.cancel()
        come, _ = await asyncio.gather(report, stop, return_exceptions=True)
        return come is True

    def _launch(self) -> tuple[ServerRun, socket.socket]:
        """Start the command. Return the run, and the connection by which it reports."""
        directory = resolve(self._directory)
        reports, theirs = socket.socketpair()
        passed = [listener.fileno() for listener in self._listeners.values()]
        try:
            variables = {**self._base, **read_environment(self._environment)}
            variables.pop("NOTIFY_SOCKET", None)  # systemd listens to this process alone
            process = subprocess.Popen(  # waiting for the fork is nothing: no one is served here
                self._command,
                cwd=directory,
                env={
                    **variables,
                    GROUP: self._group,
                    LISTENERS: format_listeners(self._listeners),
                    READY: str(theirs.fileno()),
                },
                pass_fds=[*passed, theirs.fileno()],
                preexec_fn=end_with_parent,
                start_new_session=True,
            )
        except BaseException:
            reports.close()
            raise
        finally:
            theirs.close()
        log.info("process %d starts in %s", process.pid, directory)
        run = self._watch(ServerRun(process.pid))
        process.returncode = 0  # it is waited for here and not by `subprocess`
        return run, reports

    def _watch(self, run: ServerRun) -> ServerRun:
        """Notice when this process ends."""
        self._runs.append(run)
        descriptor = os.pidfd_open(run.pid)
        asyncio.get_running_loop().add_reader(descriptor, self._on_end, run, descriptor)
        return run

    def _on_end(self, run: ServerRun, descriptor: int) -> None:
        asyncio.get_running_loop().remove_reader(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(run.pid, 0)
        self._runs.remove(run)
        self._changed.set()
        code = os.waitstatus_to_exitcode(status)
        log.log(logging.INFO if run.ending else logging.ERROR, "process %d has ended (%d)", run.pid, code)

    def _end(self, run: ServerRun, number: int) -> None:
        run.ending = True
        if run in self._runs:
            os.kill(run.pid, number)

    async def _end_all(self) -> None:
        for listener in self._listeners.values():
            listener.close()
        for run in list(self._runs):
            self._end(run, signal.SIGTERM)
        while self._runs:
            self._changed.clear()
            await self._changed.wait()

    # --- reloads

    async def reload(self) -> None:
        """Have a new run take the place of the one that serves. Raises ReloadFailed."""
        async with self._reloading:
            if self._stopping.is_set():
                raise ReloadFailed("the server is stopping")
            self._notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
            before = list(self._runs)
            try:
                run = await self._start()
            finally:
                self._notify("READY=1")
            for one in before:
                if not one.ending:
                    self._end(one, RETIRE)
            log.info("process %d has taken over", run.pid)

    def _reload_by_signal(self) -> None:
        async def reload() -> None:
            try:
                await self.reload()
            except ReloadFailed as error:
                log.error("%s", error)
            else:
                self._replace_itself(await self._find_successor())

        task = asyncio.get_running_loop().create_task(reload())
        self._clients.add(task)
        task.add_done_callback(self._clients.discard)

    async def _open_control(self) -> asyncio.Server:
        self._control.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._control.unlink(missing_ok=True)
        before = os.umask(0o077)
        try:
            return await asyncio.start_unix_server(self._serve_control, self._control)
        finally:
            os.umask(before)

    async def _serve_control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Reload at the request of this connection, and answer how that went: an empty line, or why it failed."""
        words, successor = "the reload failed: the log says why", None
        try:
            await self.reload()
            successor = await self._find_successor()
            words = ""
        except ReloadFailed as error:
            words = " ".join(str(error).split())
        finally:
            with contextlib.suppress(OSError):
                writer.write(words.encode() + b"\n")
                await writer.drain()
                writer.close()
                await writer.wait_closed()
        self._replace_itself(successor)

    # --- the new version of this process

    def _replace_itself(self, directory: Path | None) -> None:
        """Go on as the version in this directory, unless there is none or something is under way."""
        if directory is None or self._stopping.is_set() or self._reloading.locked() or self._serving is None:
            return
        for listener in self._listeners.values():
            os.set_inheritable(listener.fileno(), True)
        # Until the next version handles them they would end it, and its runs with it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            os.chdir(directory)
            os.execvpe(sys.orig_argv[0], sys.orig_argv, {**self._base, STATE: self._state()})  # noqa: S606
        except OSError as error:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            log.error("this process stays as it is: %s", error)

    async def _find_successor(self) -> Path | None:
        """Return where the directory leads now, if this program can read there what it is to go on with."""
        directory = resolve(self._directory)
        words = sys.argv[1:]
        command = [*sys.orig_argv[: len(sys.orig_argv) - len(words)], "--can-adopt", *words]
        try:
            trial = await asyncio.create_subprocess_exec(
                *command, cwd=directory, env={**self._base, STATE: self._state()}, stdin=subprocess.DEVNULL
            )
        except OSError as error:
            log.error("this process stays as it is: %s", error)
            return None
        with contextlib.suppress(TimeoutError):
            if await asyncio.wait_for(trial.wait(), TRIAL_SECONDS) == 0:
                return directory
        if trial.returncode is None:
            trial.kill()
        log.error("this process stays as it is: the version in %s cannot go on with what it knows", directory)
        return None

    def _state(self) -> str:
        names = {name: listener.fileno() for name, listener in self._listeners.items()}
        runs = [[run.pid, run.ending] for run in self._runs]
        return json.dumps({"form": STATE_FORM, "group": self._group, "listeners": names, "runs": runs})

    def _adopt(self, state: State) -> None:
        self._group = state.group
        for run in state.runs:
            self._watch(run)

    # --- systemd

    def _stop(self) -> None:
        self._stopping.set()

    def _notify(self, *lines: str) -> None:
        notify(self._notify_address, lines)


def notify(address: str, lines: Sequence[str]) -> None:
    """Send a notice to systemd, if it wants any (sd_notify)."""
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto("\n".join(lines).encode(), "\0" + address[1:] if address[0] == "@" else address)


def take_from_systemd(environment: MutableMapping[str, str]) -> dict[str, socket.socket]:
    """Return the listeners that systemd passed to this process, by name (sd_listen_fds_with_names)."""
    pid, count, names = (environment.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):
        return {}
    numbers = range(FIRST_DESCRIPTOR, FIRST_DESCRIPTOR + int(count))
    return {name: socket.socket(fileno=number) for name, number in zip(names.split(":"), numbers, strict=True)}


def read_environment(path: Path | None) -> dict[str, str]:
    """Return the variables of a file of `NAME=value` lines, as systemd reads it. Raises OSError."""
    if path is None:
        return {}
    found = {}
    for line in map(str.strip, path.read_text().splitlines()):
        name, equals, value = line.partition("=")
        if equals and line[0] not in "#;":
            found[name.strip()] = read_value(value.strip())
    return found


def read_value(text: str) -> str:
    """Return the value of a line; deploy/versions/programs.py has the same rules, and refuses doubtful lines."""
    if quoted := re.fullmatch(r'"((?:[^"\\]|\\.)*)"', text):
        return re.sub(r'\\(["\\`$])', r"\1", quoted[1])
    if quoted := re.fullmatch(r"'([^']*)'", text):
        return quoted[1]
    return re.sub(r"\\(.)", r"\1", text)


async def is_reported(reports: socket.socket, patience: float) -> bool:
    """Return whether something comes before the other side has gone or the time is over."""
    with reports, contextlib.suppress(TimeoutError, ConnectionResetError):
        reports.setblocking(False)
        async with asyncio.timeout(patience):
            return bool(await asyncio.get_running_loop().sock_recv(reports, 100))
    return False


def resolve(directory: Path) -> Path:
    """Return where a link leads now: by its name a process might load code of the next version later."""
    return directory.resolve()


def end_with_parent() -> None:
    """Ask the kernel, in the child, for SIGTERM when this process is killed: another one will start and serve."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def connect_patiently(asking: socket.socket, control: Path) -> None:
    """Connect to a process that may be replacing itself, which takes 0.2 s. Raises OSError."""
    deadline = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            return asking.connect(str(control))
        time.sleep(0.05)
    return asking.connect(str(control))


def ask_to_reload(control: Path) -> int:
    """Have the process that listens there reload, and return the exit status once it has."""
    with socket.socket(socket.AF_UNIX) as asking:
        try:
            connect_patiently(asking, control)
            asking.settimeout(RELOAD_SECONDS)
            words = asking.makefile().readline()
        except TimeoutError:
            words = f"the reload is not over after {RELOAD_SECONDS:.0f} s"
        except OSError as error:
            words = f"nothing serves there: {error}"
    if words != "\n":
        print(words.strip() or "the server ended meanwhile", file=sys.stderr)
        return 1
    return 0


def bind(words: Sequence[str], given: Mapping[str, socket.socket]) -> dict[str, socket.socket]:
    """Return the listeners that were given, and those of these `NAME=ADDRESS:PORT` that were not."""
    listeners = dict(given)
    for word in words:
        name, _, place = word.partition("=")
        if name not in listeners:
            address, _, port = place.rpartition(":")
            listeners[name] = listening_port(address.strip("[]"), int(port))
    return listeners


class PlainJsonFormatter(logging.Formatter):
    """One object for each line, with the members that those of the portal and the gateway have."""

    def format(self, record: logging.LogRecord) -> str:
        local = time.localtime(record.created)
        fraction, zone = int(record.msecs), time.strftime("%z", local)
        moment = f"{time.strftime('%Y-%m-%dT%H:%M:%S', local)}.{fraction:03d}{zone[:3]}:{zone[3:]}"
        names = {"time": moment, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        return json.dumps(names, ensure_ascii=False)


def log_handler(form: str) -> logging.Handler:
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s")
    handler.setFormatter(PlainJsonFormatter() if form == "json" else text)
    return handler


def main(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Runs a server and hands over to another run of it on reload.")
    parser.add_argument("--directory", type=Path, default=Path(), help="where the command runs; may be a link")
    parser.add_argument("--environment", type=Path, help="file of NAME=value lines, read for each run")
    parser.add_argument("--listen", action="append", default=[], metavar="NAME=ADDRESS:PORT")
    parser.add_argument("--control", type=Path, required=True, help="the socket by which a reload is asked for")
    parser.add_argument("--reload", action="store_true", help="ask the server for a reload and wait for it")
    parser.add_argument("--can-adopt", action="store_true", help=argparse.SUPPRESS)  # a trial of what follows a reload
    parser.add_argument("command", nargs="*")
    options = parser.parse_args(words)
    if options.reload:
        return ask_to_reload(options.control)
    logging.basicConfig(level=logging.INFO, handlers=[log_handler(os.environ.get("LOG_FORMAT", ""))])
    text = os.environ.pop(STATE, "")
    state = read_state(text) if text else None
    if options.can_adopt:
        return 0 if state else 1
    if state:
        listeners = {name: socket.socket(fileno=number) for name, number in state.listeners.items()}
    else:
        listeners = bind(options.listen, take_from_systemd(os.environ))
    directory, environment = options.directory.absolute(), options.environment and options.environment.absolute()

    async def serve() -> int:
        handover = Handover(
            options.command,
            listeners,
            directory=directory,
            environment=environment,
            control=options.control.absolute(),
        )
        return await handover.run(state)

    return asyncio.run(serve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
