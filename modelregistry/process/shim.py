"""The small parent of one engine: holds its whole tree, its log and its exit status, and outlives the supervisor.

Run as `python -I shim.py RUN_DIRECTORY`; imports the standard library only, all of it at the start, so that replacing
the installation under a running shim does not matter. It reads `spec.json`, leaves its caller by a double fork, and
becomes the subreaper of all that the engine forks: a grandchild that went into a session of its own, or that lost its
parent, is still its child. It writes these files, the first two atomically:

    state.json   {"boot", "shim": [pid, start], "engine": [pid, start], "group"}   before its caller returns
    exit.json    {"code", "signal", "asked"}                              when the last process of the tree is gone
    engine.log   both outputs of the engine; engine.log.1 holds what was before. With "filtered" in the spec they come
                 through a pipe and `log_filter`: an engine that repeats its callers' words never writes to the file

SIGTERM: TERM to the engine's front process, `grace` seconds, then KILL to all that is left. SIGUSR1: KILL at once (not
a second SIGTERM: two that come close together are one). If the front process ends by itself, what it left behind is
stopped too (a killed vLLM front would leave its engine core on the GPU for ever). If the shim itself is killed, the
engine's mark (MARK in its environment) finds the rest, and so does the run's cgroup where the host lets us create one:
no process leaves that, not even one that wiped its environment and lost its parent.

It also has what `process` needs to identify processes for sure: a pid alone means nothing after a while.
"""

import contextlib
import ctypes
import importlib.util
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

MARK = "MADOGUCHI_RUN"  # in every engine's environment: the path of its run directory
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NAME = 15
RESERVE = "reserve"  # a block of the disk, so that an engine's end can be exit_status also when the disk is full
SURVIVORS_GRACE = 2.0  # seconds for processes that a dead front process left behind to exit by themselves
KILL_AGAIN = 0.05  # seconds between two rounds of KILL; a round may meet processes that are just forking
LOG_LIMIT = 8 * 1024 * 1024  # bytes; at least the last half of twice that is kept
AWAITED = {signal.SIGCHLD, signal.SIGTERM, signal.SIGUSR1}
LOG_DRAIN = 2.0  # seconds for the output of an ended engine to reach its log
LOG_CHECK_EVERY = 10.0  # seconds between two checks of the log's size


class Identity(NamedTuple):
    """A process, uniquely: no other one of this boot has the same pid and start (in clock ticks since boot)."""

    pid: int
    start: int


class Stat(NamedTuple):
    parent: int
    state: str
    start: int
    ticks: int  # of CPU time, user and system


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def read_stat(pid: int) -> Stat | None:
    """Read what the kernel says about a process; None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and brackets
    return Stat(parent=int(fields[1]), state=fields[0], start=int(fields[19]), ticks=int(fields[11]) + int(fields[12]))


def identify(pid: int) -> Identity | None:
    """Return the process that has this pid now; None if none has or it only waits to be reaped."""
    found = read_stat(pid)
    return Identity(pid, found.start) if found and found.state not in "ZX" else None


def is_alive(who: Identity) -> bool:
    return identify(who.pid) == who


def send_signal(who: Identity, number: int) -> bool:
    """Signal exactly that process, never another one that got its pid later. False: it is gone."""
    try:
        descriptor = os.pidfd_open(who.pid)
    except ProcessLookupError:
        return False
    try:
        # The descriptor is of the process that had the pid when it was opened; its start shows whether it is the right
        # one.
        if not is_alive(who):
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def process_name(pid: int) -> str:
    """Return the name of a process, without arguments (they may hold secrets); "" if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


def list_processes() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def descendants(ancestor: int) -> list[Identity]:
    """Return all living processes below this one."""
    children: dict[int, list[tuple[int, Stat]]] = {}
    for pid in list_processes():
        if found := read_stat(pid):
            children.setdefault(found.parent, []).append((pid, found))
    below, queue = [], [ancestor]
    while queue:
        for pid, found in children.get(queue.pop(), []):
            queue.append(pid)
            if found.state not in "ZX":
                below.append(Identity(pid, found.start))
    return below


def own_group(mounts: str, groups: str) -> Path | None:
    """Return our cgroup (version 2) as a directory, from the texts of /proc/self/mountinfo and /proc/self/cgroup.

    None if none is visible. Whether we may create others in it shows only on trying.
    """
    own = next((line.removeprefix("0::") for line in groups.splitlines() if line.startswith("0::/")), None)
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        _, _, _, root, place, *_ = fields.split(" ")
        if own is not None and kind.startswith("cgroup2 ") and Path(own).is_relative_to(root):
            return Path(place) / Path(own).relative_to(root)
    return None


def group_members(group: Path) -> list[int]:
    """Return the processes in a cgroup and those below it; none if it is gone. It may go while we look."""
    found: set[int] = set()
    for path in [str(group), *(below for below, _, _ in os.walk(group))]:
        with contextlib.suppress(OSError):
            # 0: a process of another container
            found.update(pid for word in Path(path, "cgroup.procs").read_text().split() if (pid := int(word)))
    return sorted(found)


def kill_group(group: Path) -> None:
    """Kill all processes in a cgroup at once, also those just being forked. Does nothing on kernels before 5.14."""
    with contextlib.suppress(OSError), (group / "cgroup.kill").open("r+") as file:
        file.write("1")


def remove_group(group: Path) -> None:
    """Remove a cgroup in which nothing runs any more."""
    with contextlib.suppress(OSError):
        group.rmdir()


def write_atomically(path: Path, value: object) -> None:
    """Write a file completely or not at all; with mode 0600, as values may hold keys."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
    draft.replace(path)


def _load_log_filter() -> Callable[[int, int], None]:
    """Load `log_filter.copy_filtered` from beside this file; no module of ours can be imported by name here."""
    spec = importlib.util.spec_from_file_location("log_filter", Path(__file__).with_name("log_filter.py"))
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    copy: Callable[[int, int], None] = module.copy_filtered
    return copy


class Shim:
    """The run of one engine. `run` returns when all of its processes are gone."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        spec = json.loads((directory / "spec.json").read_text())
        self.argv: list[str] = spec["argv"]
        self.env: dict[str, str] = spec["env"]
        self.grace: float = spec["grace"]
        self.group = Path(spec["group"]) if spec.get("group") else None
        self.log = directory / "engine.log"
        self.filter = _load_log_filter() if spec.get("filtered") else None
        self.filtering: threading.Thread | None = None
        self.front = 0
        self.status: int | None = None  # as of waitpid, of the front process
        self.asked = False
        self.kill_at: float | None = None

    def start(self) -> None:
        """Execute the engine and record its processes. Raises OSError if it cannot be executed or recorded."""
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")
        libc.prctl(PR_SET_NAME, b"madoguchi-shim", 0, 0, 0)
        # Taken by `sigtimedwait`; the engine starts with nothing blocked.
        signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        os.chdir("/")  # hold no file system
        self._enter_group()
        # APPEND: each process writes at the end, after what others wrote and after the file was truncated.
        out = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if self.filter:
            out = self.start_filter(out)
        self.front = os.posix_spawn(
            self.argv[0],
            self.argv,
            self.env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, out, 1),
                (os.POSIX_SPAWN_DUP2, out, 2),
            ],
            setsid=True,
            setsigmask=[],
            setsigdef=[signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
        )
        os.close(out)
        self._leave_group()
        engine = read_stat(self.front)
        shim = identify(os.getpid())
        assert engine, "an unreaped child stays in /proc"
        group = self.group and str(self.group)
        state = {"boot": boot_id(), "shim": shim, "engine": Identity(self.front, engine.start), "group": group}
        try:
            (self.directory / RESERVE).write_text(" " * 4096)
            write_atomically(self.directory / "state.json", state)
        except OSError:
            self.kill()  # an engine that no supervisor could find again
            raise

    def start_filter(self, log: int) -> int:
        """Return the writing end of a pipe from which a thread fills the log."""
        reader, writer = os.pipe()
        self.filtering = threading.Thread(target=self._fill_log, args=(reader, log), daemon=True)
        self.filtering.start()
        return writer

    def _fill_log(self, reader: int, log: int) -> None:
        assert self.filter
        try:
            self.filter(os.dup(reader), log)
        except Exception:  # noqa: BLE001 - whatever it is
            # Without a reader the engine would die on its next line, or block for ever: better no log than no engine.
            with contextlib.suppress(OSError):  # a full disk
                traceback.print_exc()
                os.write(log, b"(the log ends here: its filter failed, see shim.log)\n")
            while os.read(reader, 65536):
                pass

    def kill(self) -> None:
        """Kill all processes of the run and wait for them, which takes milliseconds."""
        while self._reap():
            self._signal_all(signal.SIGKILL)
            time.sleep(KILL_AGAIN)

    def _enter_group(self) -> None:
        """Enter the run's cgroup, so that the engine starts in it; do without one where the host does not allow it."""
        if self.group is None:
            return
        try:
            self.group.mkdir()
            (self.group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            remove_group(self.group)
            self.group = None

    def _leave_group(self) -> None:
        if self.group is None:
            return
        try:
            (self.group.parent / "cgroup.procs").write_text(str(os.getpid()))
        except OSError as error:
            print("cannot leave the engine's cgroup, so it is not used:", error, flush=True)
            self.group = None  # to kill it would kill us, who have to record how the engine ended

    def run(self) -> None:
        while True:
            got = signal.sigtimedwait(AWAITED, self._wait_time())
            if got and got.si_signo == signal.SIGTERM:
                self._begin_stop()
            elif got and got.si_signo == signal.SIGUSR1:
                self.asked, self.kill_at = True, time.monotonic()
            children_left = self._reap()
            if self.kill_at is not None and time.monotonic() >= self.kill_at:
                self._signal_all(signal.SIGKILL)
                self.kill_at = time.monotonic() + KILL_AGAIN
            if not children_left:
                break
            self.cut_log()
        if self.filtering:
            self.filtering.join(LOG_DRAIN)
        self.write_exit()
        if self.group:
            remove_group(self.group)

    def _wait_time(self) -> float:
        return (
            LOG_CHECK_EVERY if self.kill_at is None else max(0.0, min(LOG_CHECK_EVERY, self.kill_at - time.monotonic()))
        )

    def _begin_stop(self) -> None:
        if self.asked:
            return
        self.asked = True
        self.kill_at = time.monotonic() + self.grace
        if self.status is None:
            os.kill(self.front, signal.SIGTERM)  # our unreaped child: the pid is its own

    def _reap(self) -> bool:
        """Reap every dead child; return False when none is left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                return True
            if pid == self.front and self.status is None:
                self.status = status
                self._signal_all(signal.SIGTERM)
                soon = time.monotonic() + SURVIVORS_GRACE
                self.kill_at = soon if self.kill_at is None else min(soon, self.kill_at)

    def _signal_all(self, number: int) -> None:
        if self.group and number == signal.SIGKILL:
            kill_group(self.group)
        for who in descendants(os.getpid()):
            send_signal(who, number)

    def cut_log(self) -> None:
        """Truncate a log that is too long, as `copytruncate` does: writers need not reopen it.

        What is written between the copy and the cut is lost.
        """
        try:
            if self.log.stat().st_size > LOG_LIMIT:
                older = self.log.with_name("engine.log.1")
                with self.log.open("rb") as source, older.open("wb") as target:
                    os.sendfile(target.fileno(), source.fileno(), 0, LOG_LIMIT * 2)
                os.truncate(self.log, 0)
        except OSError as error:
            print("cannot cut the log:", error, flush=True)  # a full disk must not stop an engine that answers

    def write_exit(self) -> None:
        assert self.status is not None, "waitpid left no child, so the front process was among them"
        code = os.waitstatus_to_exitcode(self.status)
        exit_status = {"code": max(code, 0), "signal": max(-code, 0), "asked": self.asked}
        try:
            write_atomically(self.directory / "exit.json", exit_status)
        except OSError:  # a full disk: the block reserved for this moment is freed
            (self.directory / RESERVE).unlink()
            write_atomically(self.directory / "exit.json", exit_status)


def main(directory: Path) -> int:
    """Leave a shim running, and return when its engine was executed: 0, or 1 with the reason on stderr."""
    os.umask(0o077)
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader) as file:
            reason = file.read()
        sys.stderr.write(reason)
        return 1 if reason else 0
    os.close(reader)
    os.setsid()
    if os.fork():
        os._exit(0)
    try:
        _redirect(directory / "shim.log")
        shim = Shim(directory)
        try:
            shim.start()
        except OSError as error:
            os.write(writer, f"{error.filename or shim.argv[0]}: {error.strerror}".encode())
            os._exit(1)
        os.close(writer)
        shim.run()
        os._exit(0)
    finally:
        # In any case a forked process must not return into its parent's program.
        traceback.print_exc()
        os._exit(1)


def _redirect(log: Path) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
