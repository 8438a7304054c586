"""A site of two machines with gateway and portal behind one nginx: one PostgreSQL with a standby, one Redis, slapd."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests import engine
from tests.installation import ROOT, Installation, installed
from tests.nginx import Nginx, nginx
from tests.ports import unused_port
from tests.postgres import Postgres, multi_host_url, postgres, standby_of
from tests.redis import Redis, redis_server
from tests.slapd import Directory, running_directory
from tests.waiting import until

SECRETS = {"SECRET_KEY": "s" * 50, "API_KEY_SECRET": "a" * 50}
WORKERS = "2"  # gateway processes of each machine


@dataclass
class Machine:
    """Gateway and portal as the unit of one machine runs them, with a state directory of their own."""

    installation: Installation
    pages: int = field(default_factory=unused_port)
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.installation.port}"

    def start(self) -> None:
        """Return when it can take calls and pages."""
        command: list[str | Path] = [
            *(sys.executable, "-m", "apiproxy.server.handover", "--control", self.installation.var / "control"),
            *("--listen", f"gateway={self.address}", "--listen", f"portal=127.0.0.1:{self.pages}"),
            *("--", sys.executable, "manage.py", "up", "--no-supervisor"),
        ]
        with (self.installation.var / "up.log").open("ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=self.installation.env, stdout=log, stderr=log)
        until(self.is_ready)

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.installation.log
        return self.installation.answers() and self.shows_pages()

    def shows_pages(self) -> bool:
        with contextlib.suppress(httpx2.HTTPError):
            return httpx2.get(f"http://127.0.0.1:{self.pages}/sign-in/", timeout=10).status_code == 200
        return False

    def kill(self) -> None:
        """End every process of it at once, as when its power fails."""
        while processes := self.installation.processes():
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait(10)


@dataclass
class TwoMachines:
    machines: list[Machine]
    primary: Postgres
    standby: Postgres
    shared: Redis
    directory: Directory
    engine: engine.Running
    nginx: Nginx
    key: str


@contextlib.contextmanager
def two_machines(place: Path) -> Iterator[TwoMachines]:
    """Provide a site that serves."""
    with contextlib.ExitStack() as stack:
        fake = stack.enter_context(engine.running())
        primary = stack.enter_context(postgres("max_connections=100"))
        standby = stack.enter_context(standby_of(primary))
        shared = stack.enter_context(redis_server())
        directory = stack.enter_context(running_directory())
        env = {
            **directory.env(),
            **SECRETS,
            "DATABASE_URL": multi_host_url(primary, standby),
            "REDIS_URL": shared.url,
            "GATEWAY_WORKERS": WORKERS,
            "TRUSTED_PROXIES": "1",
            "ALLOWED_HOSTS": "localhost,127.0.0.1",
            "PUBLIC_URL": "https://localhost",
        }
        installations = [stack.enter_context(installed(place / name, **env)) for name in ("one", "other")]
        machines = [Machine(installation) for installation in installations]
        key = installations[0].furnish(fake.url)
        for machine in machines:
            machine.start()
        before = nginx(
            *(machine.address for machine in machines),
            pages=" ".join(f"127.0.0.1:{machine.pages}" for machine in machines),
        )
        running = stack.enter_context(before)
        try:
            yield TwoMachines(machines, primary, standby, shared, directory, fake, running, key)
        finally:
            for machine in machines:
                machine.process.terminate()
            for machine in machines:
                machine.process.wait(60)
