"""Hosts: containers that boot Debian's own systemd, each in a network namespace on one bridge that leads nowhere.

Needs root and systemd-nspawn. The machine's own networks and units are not touched.
"""

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from deploy.rehearse.images import overlay
from deploy.rehearse.protocol import Deviation

NETWORK = "10.79.0"  # exists in these namespaces only
# Of a login of root on Debian.
ENVIRONMENT = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8")
BOOT_SECONDS = 90.0


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=20, stdout=subprocess.DEVNULL)


@dataclass
class Network:
    """The bridge, and which names lead to which address; every host and every caller knows all of them."""

    tag: str = field(default_factory=lambda: f"mdr{secrets.token_hex(2)}")
    names: dict[str, str] = field(default_factory=dict)
    spaces: list[str] = field(default_factory=list)

    @property
    def bridge(self) -> str:
        return f"{self.tag}br"

    @property
    def hosts_file(self) -> str:
        rows = [f"{address}\t{name}" for name, address in self.names.items()]
        return "\n".join(["127.0.0.1\tlocalhost", *rows, ""])

    def add(self, name: str) -> str:
        """Make the network of a host, and return the namespace."""
        space, number = f"{self.tag}-{name}", len(self.spaces) + 1
        ip("netns", "add", space)
        self.spaces.append(space)
        wire, address = f"w{number}", f"{NETWORK}.{number}"
        ip("-n", self.bridge, "link", "add", wire, "type", "veth", "peer", "name", "eth0", "netns", space)
        ip("-n", self.bridge, "link", "set", wire, "master", "br0", "up")
        ip("-n", space, "address", "add", f"{address}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "eth0", "up")
        ip("-n", space, "link", "set", "lo", "up")
        self.names[name] = address
        return space

    def plug(self, name: str, state: str) -> None:
        """Put the host's cable in ("up") or take it out ("down")."""
        number = self.names[name].rpartition(".")[2]
        ip("-n", self.bridge, "link", "set", f"w{number}", state)


@contextlib.contextmanager
def network() -> Iterator[Network]:
    made = Network()
    ip("netns", "add", made.bridge)
    try:
        ip("-n", made.bridge, "link", "add", "br0", "type", "bridge")
        ip("-n", made.bridge, "link", "set", "br0", "up")
        yield made
    finally:
        for space in (*made.spaces, made.bridge):
            subprocess.run(["ip", "netns", "delete", space], check=False)


@dataclass
class Machine:
    """One host. `place`: what it has on this machine, below that `root`, its file system."""

    name: str
    network: Network
    space: str
    place: Path
    process: "subprocess.Popen[bytes] | None" = None
    init: int = 0  # its systemd, as this machine numbers processes

    @property
    def address(self) -> str:
        return self.network.names[self.name]

    @property
    def root(self) -> Path:
        return self.place / "root"

    @property
    def log(self) -> Path:
        return self.place / "console.log"

    def boot(self) -> str:
        """Return what systemd says of itself once it has started everything: "running"; Raises Deviation."""
        self.network.plug(self.name, "up")
        (self.root / "etc" / "hosts").write_text(self.network.hosts_file)
        (self.root / "etc" / "hostname").write_text(f"{self.name}\n")
        command = ["systemd-nspawn", "--quiet", "--boot", f"--directory={self.root}", f"--machine={self.space}"]
        command += ["--register=no", "--keep-unit", f"--network-namespace-path=/run/netns/{self.space}"]
        command += ["--resolv-conf=off", "--timezone=off", "--link-journal=no", "--console=pipe"]
        command += [f"--hostname={self.name}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command,
                # Without this it takes over the first version of control groups of a machine that has both.
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + BOOT_SECONDS
        while not (self.init or self.find_init()):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Deviation(f"{self.name} does not boot: {self.log.read_text(errors='replace')[-500:]}")
            time.sleep(0.1)  # the kernel does not report children of children
        while (state := self.ask("systemctl is-system-running --wait")) in ("", "offline"):
            if time.monotonic() > deadline:
                raise Deviation(
                    f"systemd of {self.name} does not answer: {self.log.read_text(errors='replace')[-500:]}"
                )
            time.sleep(0.2)  # its socket is not there yet
        return state

    def find_init(self) -> int:
        """Return its process 1 as this machine numbers it; 0: it is not there yet."""
        assert self.process
        with contextlib.suppress(OSError):
            for pid in Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split():
                if Path(f"/proc/{pid}/comm").read_text().strip() == "systemd":
                    self.init = int(pid)
        return self.init

    def command(self, script: str) -> list[str]:
        enter = [
            "nsenter",
            f"--target={self.init}",
            "--mount",
            "--uts",
            "--ipc",
            "--net",
            "--pid",
            "--cgroup",
            "--root",
        ]
        return [*enter, "--", "env", "-i", "--chdir=/root", *ENVIRONMENT, "sh", "-euc", script]

    def ask(self, script: str) -> str:
        """Return what root's shell prints there, whether or not it succeeds."""
        done = subprocess.run(self.command(script), capture_output=True, text=True, timeout=120, check=False)
        return done.stdout.strip()

    def run(self, script: str, *, given: str = "", seconds: float = 300.0) -> str:
        """Return what root's shell prints there. Raises Deviation with the end of its output if it fails."""
        done = subprocess.run(
            self.command(script), input=given, capture_output=True, text=True, timeout=seconds, check=False
        )
        if done.returncode:
            said = f"{done.stdout}\n{done.stderr}".strip()[-1500:]
            raise Deviation(f"on {self.name}, {script.strip()!r} ended with {done.returncode}: {said}")
        return done.stdout.strip()

    def put(self, source: Path, to: str) -> None:
        """Copy a file of this machine there, as a stick or scp would."""
        target = self.root / to.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, target)

    def write(self, to: str, text: str, mode: int = 0o644) -> None:
        target = self.root / to.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)
        target.chmod(mode)

    def lose_power(self) -> None:
        """End all of it at once; its cable is out first, so no kernel answers for it."""
        self.network.plug(self.name, "down")
        self.kill()

    def kill(self) -> None:
        if self.process and self.process.poll() is None:
            for pid in (self.init, self.process.pid):
                with contextlib.suppress(ProcessLookupError):
                    if pid:
                        os.kill(pid, signal.SIGKILL)
            self.process.wait(30)
        self.init = 0


@dataclass
class Room:
    """Where the machines of one rehearsal are; all end with it."""

    place: Path
    network: Network
    layers: dict[str, list[Path]]
    stack: ExitStack

    def machine(self, name: str, kind: str) -> Machine:
        """Return a clean host with this name that is not booted yet."""
        return self.make(Machine(name, self.network, self.network.add(name), self.place / name), kind)

    def replace(self, before: Machine, kind: str) -> Machine:
        """Return a clean host with the name and the address of one, to be booted when that is gone."""
        following = Machine(before.name, self.network, before.space, before.place.with_name(f"{before.name}-2"))
        return self.make(following, kind)

    def make(self, machine: Machine, kind: str) -> Machine:
        for part in ("root", "changes", "work"):
            (machine.place / part).mkdir(parents=True)
        layers = overlay(machine.root, self.layers[kind], machine.place / "changes", machine.place / "work")
        self.stack.enter_context(layers)
        self.stack.callback(machine.kill)
        return machine

    def caller(self, name: str) -> "Caller":
        """Return a desk without a machine of its own: programs of this one, in a network of their own."""
        space = self.network.add(name)
        files = Path("/etc/netns") / space  # `ip netns exec` has its programs see these in place of those of /etc
        files.mkdir(parents=True)
        self.stack.callback(shutil.rmtree, files)
        return Caller(self.network, space, files)


@dataclass
class Caller:
    network: Network
    space: str
    files: Path

    def command(self, *words: str) -> list[str]:
        (self.files / "hosts").write_text(self.network.hosts_file)
        return ["ip", "netns", "exec", self.space, *words]


def boot(machine: Machine) -> str:
    """Boot a host, and return what systemd says. Raises Deviation, which names the units that failed."""
    state = machine.boot()
    if state != "running":
        failed = machine.ask("systemctl --failed --plain --no-legend --no-pager")
        raise Deviation(f"systemd of {machine.name} is {state}: {failed}")
    return state
