"""Engines on hosts and callers of theirs, from inside one network."""

import contextlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from modelregistry.cluster.link import ClusterLink
from modelregistry.process import shim
from modelregistry.process.shim import Identity
from tests.ray.clusters import Host, ask
from tests.ray.networks import Namespace

PORT = 18_100
HERE = Path(__file__).parent


@dataclass(frozen=True)
class Engine:
    """One that was started on a host, through its agent."""

    run_id: str
    url: str
    who: Identity

    def is_alive(self) -> bool:
        return shim.is_alive(self.who)

    def environment(self) -> dict[str, str]:
        entries = Path(f"/proc/{self.who.pid}/environ").read_bytes().decode(errors="replace").split("\0")
        return dict(entry.split("=", 1) for entry in entries if "=" in entry)


@dataclass(frozen=True)
class Served:
    """An address that answers as long as its engine is well."""

    url: str


async def start_engine(link: ClusterLink, host: Host, run_id: str, *, term: int = 1) -> Engine:
    """Start a tiny engine on a host; return when it is executed."""
    argv = [sys.executable, str(HERE / "tiny_engine.py"), host.directory.address, str(PORT)]
    started = await ask(link, host.directory.name, "start", term=term, run_id=run_id, argv=argv, env={})
    who = shim.identify(started["pid"])
    assert who, "the engine ended at once"
    return Engine(run_id, f"http://{host.directory.address}:{PORT}/", who)


@dataclass
class Callers:
    """What calls brought: `answers` has (when, address, pid that answered, 0: none)."""

    answers: list[tuple[float, str, int]] = field(default_factory=list)

    def failures(self, url: str, since: float = 0.0) -> int:
        return sum(1 for at, whose, pid in list(self.answers) if whose == url and not pid and at >= since)

    def answered(self, url: str, since: float = 0.0) -> int:
        return sum(1 for at, whose, pid in list(self.answers) if whose == url and pid and at >= since)

    def all_failures(self) -> int:
        return sum(1 for _at, _whose, pid in list(self.answers) if not pid)

    def last_answer(self, url: str) -> float:
        return max((at for at, whose, pid in list(self.answers) if whose == url and pid), default=0.0)


@contextlib.contextmanager
def calling(space: Namespace, *engines: Engine | Served) -> Iterator[Callers]:
    """Call engines ten times a second from inside a network; returns once each has answered."""
    found = Callers()
    process = subprocess.Popen(
        space.inside([sys.executable, str(HERE / "prober.py"), *(engine.url for engine in engines)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            one = json.loads(line)
            found.answers.append((one["at"], one["url"], one["pid"]))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        deadline = time.monotonic() + 20
        while not all(found.answered(engine.url) for engine in engines):
            assert time.monotonic() < deadline, "an engine does not answer"
            time.sleep(0.05)
        found.answers.clear()
        yield found
        assert process.poll() is None, "the callers ended before their time"
    finally:
        process.kill()
        process.wait()
        reader.join(10)


@contextlib.contextmanager
def chatting(space: Namespace, url: str, key: str) -> Iterator[list[int]]:
    """Ask one after the other from inside a network; the list grows by the tokens of each answer, 0: it failed."""
    tokens: list[int] = []
    process = subprocess.Popen(
        space.inside([sys.executable, str(HERE / "chatter.py"), url, key]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            tokens.append(json.loads(line)["tokens"])

    reader = threading.Thread(target=read)
    reader.start()
    try:
        yield tokens
        assert process.poll() is None, "the caller ended before its time"
    finally:
        process.kill()
        process.wait()
        reader.join(10)
