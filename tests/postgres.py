"""A real PostgreSQL of the tests' own: a cluster in a temporary directory, on a free port of this machine."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.ports import unused_port
from tests.waiting import until


def program(name: str) -> str:
    """Return a program of the newest version; Debian keeps it off PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: int(path.parts[4]))
    path = str(found[-1]) if found else shutil.which(name)
    assert path, "no PostgreSQL: run `make test-setup`"
    return path


@dataclass
class Postgres:
    """`start` and `stop` as often as one likes; what was committed stays."""

    directory: Path
    port: int
    identity: dict[str, Any]  # PostgreSQL refuses to run as root
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)
    options: tuple[str, ...] = ()  # of the server, as max_connections=30

    @property
    def url(self) -> str:
        return f"postgres://madoguchi@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Return when it takes connections."""
        where = ["-D", str(self.directory), "-p", str(self.port), "-h", "127.0.0.1", "-k", ""]
        with (self.directory / "log").open("ab") as log:
            more = [word for option in ("fsync=off", *self.options) for word in ("-c", option)]
            command = [program("postgres"), *where, *more]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", **self.identity)
        until(self.answers)

    def stop(self) -> None:
        """Break every connection, as when its host loses power."""
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(30)

    def promote(self) -> None:
        """Have a standby become a server that takes changes; return when it does."""
        ((done,),) = self.rows("select pg_promote()")
        assert done

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop it without a sign: connections stay open, and nothing is sent on them."""
        processes = [self.process.pid, *children(self.process.pid)]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    def answers(self) -> bool:
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(self.url):
            return True
        return False

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.url) as connection:
            return connection.execute(query).fetchall()


def multi_host_url(*clusters: Postgres) -> str:
    """Return the setting that names several servers, of which the one is used that takes changes."""
    hosts, ports = ",".join("127.0.0.1" for _ in clusters), ",".join(str(one.port) for one in clusters)
    return f"postgres://madoguchi@/postgres?host={hosts}&port={ports}&target_session_attrs=read-write&connect_timeout=3"


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def new_directory() -> tuple[Path, dict[str, Any]]:
    """Return a directory for a cluster, and the identity that its processes have."""
    directory = Path(tempfile.mkdtemp(prefix="madoguchi-postgres-"))
    if os.geteuid() != 0:
        return directory, {}
    person = pwd.getpwnam("postgres")
    os.chown(directory, person.pw_uid, person.pw_gid)
    return directory, {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def postgres(*options: str) -> Iterator[Postgres]:
    """Provide a new cluster, started, with these options (max_connections=30)."""
    directory, identity = new_directory()
    command = [program("initdb"), "-D", str(directory), "-U", "madoguchi", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run([*command, "--locale", "C"], check=True, capture_output=True, cwd="/", **identity)
    with started(Postgres(directory, unused_port(), identity, options=options)) as cluster:
        yield cluster


@contextlib.contextmanager
def standby_of(primary: Postgres) -> Iterator[Postgres]:
    """Provide a server that receives every change of another one, and answers questions."""
    directory, identity = new_directory()
    source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", "madoguchi"]
    command = [program("pg_basebackup"), "-D", str(directory), "-R", "-X", "stream", "-c", "fast", "--no-sync", *source]
    subprocess.run(command, check=True, capture_output=True, cwd="/", **identity)
    with started(Postgres(directory, unused_port(), identity, options=primary.options)) as cluster:
        yield cluster


@contextlib.contextmanager
def started(cluster: Postgres) -> Iterator[Postgres]:
    """Start a cluster; on leaving, stop it and remove its files."""
    try:
        cluster.start()
        yield cluster
    finally:
        if hasattr(cluster, "process") and cluster.process.poll() is None:
            cluster.stop()
        shutil.rmtree(cluster.directory, ignore_errors=True)
