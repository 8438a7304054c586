"""Hosts that are network namespaces: each its own network, all on one bridge, which is in a namespace as well.

Nothing of it touches the machine's own networks. Needs root, as build machines give it.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.waiting import until

CLONE_NEWNET = 0x40000000  # linux/sched.h
NETWORK = "10.77.0"  # exists in these namespaces only


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=20, check=True)
    return done.stdout


@dataclass
class Namespace:
    """One host. `name`: of the namespace; `wire`: the end of its cable that is on the bridge."""

    name: str
    bridge: str
    address: str
    wire: str
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def run(self, argv: Sequence[str], *, env: Mapping[str, str], log: Path) -> "subprocess.Popen[bytes]":
        """Start a process in it; what it writes goes to the log."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                self.inside(argv),
                env=dict(env),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started.append(process)
        return process

    def inside(self, argv: Sequence[str]) -> list[str]:
        """Return a command that runs in it."""
        return ["ip", "netns", "exec", self.name, *argv]

    def enter(self) -> None:
        """Have the sockets that this thread opens from now on be of this network."""
        with Path(f"/var/run/netns/{self.name}").open() as handle:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(handle.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "the network cannot be entered")

    def cut(self) -> None:
        ip("-n", self.bridge, "link", "set", self.wire, "down")

    def mend(self) -> None:
        ip("-n", self.bridge, "link", "set", self.wire, "up")

    def pids(self) -> list[int]:
        with contextlib.suppress(subprocess.CalledProcessError):
            return [int(word) for word in ip("netns", "pids", self.name).split()]
        return []

    def kill_all(self) -> None:
        """Kill -9 all that runs in it, as when the machine loses its power."""

        def nothing_left() -> bool:
            left = self.pids()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for process in self.started:
                process.poll()
            return not left

        until(nothing_left, 20)


@contextlib.contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    """Provide so many hosts that reach each other; on leaving all that runs in them is killed."""
    tag = secrets.token_hex(2)
    bridge = f"mdg{tag}b"
    hosts: list[Namespace] = []
    try:
        ip("netns", "add", bridge)
        ip("-n", bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", bridge, "link", "set", "br0", "up")
        for number in range(1, count + 1):
            host = Namespace(f"mdg{tag}{number}", bridge, f"{NETWORK}.{number}", f"w{number}")
            ip("netns", "add", host.name)
            hosts.append(host)
            ip("-n", bridge, "link", "add", host.wire, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("-n", bridge, "link", "set", host.wire, "master", "br0", "up")
            ip("-n", host.name, "address", "add", f"{host.address}/24", "dev", "eth0")
            ip("-n", host.name, "link", "set", "eth0", "up")
            ip("-n", host.name, "link", "set", "lo", "up")
        yield hosts
    finally:
        for host in hosts:
            host.kill_all()
        for name in (*(host.name for host in hosts), bridge):
            with contextlib.suppress(subprocess.CalledProcessError):
                ip("netns", "delete", name)
