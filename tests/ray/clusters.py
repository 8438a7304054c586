"""A real cluster of Ray's over namespaces: a head with Redis behind it, and GPU hosts, secured as in production."""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelregistry.cluster import join_server, node
from modelregistry.cluster.access import ClusterAccess
from modelregistry.cluster.head import HeadDirectory
from modelregistry.cluster.invitation import FILES, Invitation
from modelregistry.cluster.link import ClusterLink, ClusterSilent, HostRefused, Renewal
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.install.engine_environments import RAY
from tests.ray.networks import Namespace, namespaces
from tests.waiting import until

REDIS_PORT = 7001
BESIDE_THE_HEAD = (
    b"manage.py",
    b"redis-server",
    b"modelregistry.cluster.driver",
    b"tests/ray/prober.py",
    b"tests/ray/chatter.py",
)
SERVER = "tests.ray.plain_server:PlainServer"
SHIFTED_SERVICE = Path(__file__).with_name("shifted_service.py")


def ray_python() -> Path:
    """Return the Python that has Ray, as `make test-setup` installs it."""
    cache = Path(os.environ.get("MADOGUCHI_CACHE") or Path.home() / ".cache" / "madoguchi")
    python = RAY.python(cache)
    assert python.exists(), "Ray is missing: make test-setup"
    return python


@dataclass
class Host:
    """A GPU host: its namespace, its directory, and what keeps Ray running on it.

    `clock`: by how many seconds the clock of its Python is off. `release`: where the release is that it has in place
    of this one; `models`: where all hosts see models' files, of which each has its own. None: as the others have.
    """

    directory: NodeDirectory
    space: Namespace
    clock: float = 0.0
    release: Path | None = None
    models: Path | None = None
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)

    def start(self) -> None:
        argv = [str(ray_python()), "-m", "modelregistry.cluster.node_service", str(self.directory.path)]
        if self.clock:
            argv = [str(ray_python()), str(SHIFTED_SERVICE), str(self.directory.path), str(self.clock)]
        if self.models:
            self.own_models.mkdir(exist_ok=True)
        mounts = [(self.own_models, self.models), (self.release, node.CODE)]
        given = [f"mount --bind {source} {target}" for source, target in mounts if source and target]
        if given:
            script = " && ".join([*given, "cd /", 'exec "$@"'])
            argv = ["unshare", "--mount", "sh", "-c", script, "sh", *argv]
        env = {"PATH": os.environ["PATH"], "HOME": str(Path.home()), "PYTHONPATH": str(node.CODE)}
        self.process = self.space.run(argv, env=env, log=self.directory.path / "ray.log")

    def stop(self) -> None:
        """Stop its service as an operator does."""
        self.process.terminate()
        assert self.process.wait(40) == 0

    @property
    def own_models(self) -> Path:
        """Where its own files of models are, as this process sees them."""
        return self.directory.path / "models"

    def find(self, word: str) -> list[int]:
        """Return the processes in its network whose command line holds a word."""
        found = []
        for pid in self.space.pids():
            with contextlib.suppress(OSError):
                if word in Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(pid)
        return found

    def agent(self) -> int:
        [pid] = self.find("ray::HostAgent")
        return pid

    def raylet(self) -> int:
        [pid] = [pid for pid in self.find("raylet/raylet") if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"]
        return pid


@dataclass
class Cluster:
    """`spaces[0]` has the head and Redis, and the controller's side of tests."""

    directory: Path
    spaces: list[Namespace]
    commands: Mapping[str, str] = field(default_factory=dict)  # programs of engines on hosts, by launcher
    hosts: dict[str, Host] = field(default_factory=dict)
    python_version: str = ""  # of Ray's, which need not be that of tests
    clocks: Mapping[str, float] = field(default_factory=dict)  # by host, by how many seconds they are off
    models: Path | None = None  # where hosts see their own files of models
    head: "subprocess.Popen[bytes]" = field(init=False, repr=False)
    redis: "subprocess.Popen[bytes]" = field(init=False, repr=False)

    @property
    def python(self) -> Path:
        return ray_python()

    @property
    def server(self) -> str:
        return SERVER

    @property
    def access(self) -> ClusterAccess:
        return ClusterAccess(
            address=f"{self.spaces[0].address}:{node.PORT}", secrets=self.directory / "head" / "secrets"
        )

    def issue(self, directory: str, address: str, *, name: str = "") -> Path:
        """Let a machine in: return where its secrets are. It is called as its directory, or otherwise."""
        into = self.directory / directory / "secrets"
        site = self.directory / "authority"
        done = subprocess.run(
            [ray_python(), "-m", "modelregistry.cluster.certificates", site, name or directory, address, into],
            env={"PYTHONPATH": str(node.CODE), "PATH": os.defpath},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        self.python_version = done.stdout.strip()
        return into

    def start_redis(self) -> None:
        place = self.directory / "redis"
        place.mkdir(exist_ok=True)
        argv = ["redis-server", "--port", str(REDIS_PORT), "--bind", "127.0.0.1", "--dir", str(place)]
        argv += ["--appendonly", "yes", "--save", "", "--daemonize", "no"]
        space = self.spaces[0]
        self.redis = space.run(argv, env=os.environ, log=place / "log")
        ping = space.inside(["redis-cli", "-p", str(REDIS_PORT), "ping"])
        until(lambda: b"PONG" in subprocess.run(ping, capture_output=True, timeout=10).stdout)

    def start_head(self) -> None:
        command = node.head_command(
            ray_python(),
            address=self.spaces[0].address,
            access=self.access,
            directory=self.directory / "head" / "ray",
            redis=f"127.0.0.1:{REDIS_PORT}",
        )
        node.forget_last_start(self.directory / "head" / "ray")
        self.head = self.spaces[0].run(command.argv, env=command.env, log=self.directory / "head" / "ray.log")

    def start_head_and_join_server(self) -> None:
        """Start the head as its service does, with the join server beside it."""
        directory = HeadDirectory(
            path=self.directory / "head", address=self.spaces[0].address, redis=f"127.0.0.1:{REDIS_PORT}"
        )
        directory.save()
        argv = [str(ray_python()), "-m", "modelregistry.cluster.head", str(directory.path)]
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(node.CODE)}
        self.head = self.spaces[0].run(argv, env=env, log=self.directory / "head" / "ray.log")

    def invite(self, name: str, address: str) -> Invitation:
        """Return what `addhost` prints."""
        secrets = self.issue(f"invited-{name}", address, name=name)
        return Invitation(
            name=name,
            address=address,
            cluster=self.access.address,
            join_port=join_server.PORT,
            ray=RAY.version,
            python=self.python_version,
            gpus=0,
            files={each: (secrets / each).read_text() for each in FILES},
        )

    def add_host(self, name: str) -> Host:
        """Join another host, in a namespace of its own."""
        space = self.spaces[1 + len(self.hosts)]
        secrets = self.issue(name, space.address)
        directory = NodeDirectory(
            path=secrets.parent,
            name=name,
            address=space.address,
            cluster=self.access.address,
            commands=self.commands,
            models=str(self.models or ""),
        )
        directory.save()
        self.hosts[name] = host = Host(directory, space, clock=self.clocks.get(name, 0.0), models=self.models)
        return host

    def head_pids(self) -> list[int]:
        """Return what belongs to the head: of what is in its network, Ray, but for a controller's link."""
        found = []
        for pid in self.spaces[0].pids():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                its = b"/ray/" in command or b"ray::" in command or b"modelregistry.cluster.head" in command
                if its and not any(word in command for word in BESIDE_THE_HEAD):
                    found.append(pid)
        return found

    def kill_head(self) -> None:
        """Kill -9 all of the head; Redis stays."""
        for pid in self.head_pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.head.wait(20)

    @contextlib.asynccontextmanager
    async def link(self, server: str = SERVER) -> AsyncIterator[ClusterLink]:
        """Provide a controller's link, in the head's namespace."""
        link = ClusterLink(ray_python(), access=self.access, server=server, log=self.directory / "driver.log")
        link.argv = tuple(self.spaces[0].inside(link.argv))
        await link.open()
        try:
            yield link
        finally:
            await link.close()


@contextlib.contextmanager
def cluster(
    *hosts: str,
    spare: int = 0,
    commands: Mapping[str, str] | None = None,
    clocks: Mapping[str, float] | None = None,
    models: Path | None = None,
) -> Iterator[Cluster]:
    """Provide a cluster whose hosts are started; all of it is gone when this is left.

    `spare`: networks of machines that may join. With some, the head has its join server. `commands`: programs of
    engines on its hosts, by launcher. `clocks`, `models`: see Cluster.
    """
    # Short: Ray's sockets are below it, and a socket's path has 107 characters at most.
    directory = Path(tempfile.mkdtemp(prefix="mdg-"))
    try:
        with namespaces(1 + len(hosts) + spare) as spaces:
            made = Cluster(directory, spaces, commands or {}, clocks=clocks or {}, models=models)
            made.issue("head", spaces[0].address)
            made.start_redis()
            if spare:
                made.start_head_and_join_server()
            else:
                made.start_head()
            for name in hosts:
                made.add_host(name).start()
            yield made
    finally:
        shutil.rmtree(directory, ignore_errors=True)


async def wait_for_hosts(link: ClusterLink, *names: str, seconds: float = 60.0) -> None:
    """Wait until these hosts are alive in the cluster."""
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(ClusterSilent):
                alive = {each.host for each in await link.list_nodes() if each.alive}
                if alive >= set(names):
                    return
            await asyncio.sleep(0.1)


async def ask(link: ClusterLink, host: str, do: str, *, term: int = 1, within: float = 10.0, **more: Any) -> Any:
    holder = RENEWAL.holder if term == RENEWAL.term else SECOND.holder
    return json.loads(await link.exchange(host, term, holder, json.dumps({"do": do, **more}), within=within))


RENEWAL = Renewal(term=1, holder="test", seconds=60)
SECOND = Renewal(term=2, holder="second", seconds=60)


async def renewed(link: ClusterLink, host: str, renewal: Renewal = RENEWAL, *, seconds: float = 90.0) -> float:
    """Return after how many seconds the host's agent took a renewal."""
    return await _repeat(lambda: link.renew(host, renewal, within=2), seconds)


async def reopened(link: ClusterLink, host: str, *, seconds: float = 120.0) -> float:
    """Return after how many seconds the host has an agent, which is created if the cluster forgot it."""
    return await _repeat(lambda: link.open_host(host, within=5), seconds)


@contextlib.asynccontextmanager
async def renewing(link: ClusterLink, *hosts: str) -> AsyncIterator[None]:
    """Renew leases as a controller does, also of hosts that are silent."""

    async def renew(host: str) -> None:
        while True:
            with contextlib.suppress(ClusterSilent, HostRefused):
                await link.renew(host, RENEWAL, within=2)
            await asyncio.sleep(2)

    tasks = [asyncio.create_task(renew(host)) for host in hosts]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _repeat(request: Callable[[], Awaitable[Any]], seconds: float) -> float:
    """Repeat a request until it is answered; return how long that took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while True:
            with contextlib.suppress(ClusterSilent):
                await request()
                return time.monotonic() - began
            await asyncio.sleep(0.05)
