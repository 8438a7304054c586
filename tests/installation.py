"""A whole Madoguchi as operators start it: `manage.py up` in a directory of its own, with real engines."""

import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from apiproxy.bridge.management.commands.up import GATEWAY, SETTINGS
from modelregistry.process import shim
from tests import made_once
from tests.ports import unused_port
from tests.waiting import until

# A tenant, a key for it, and one model of each kind in front of a (fake) engine: without the supervisor's help.
# The gateway passes unary calls on to "plain"; for "assembled" it asks for a stream and puts it together.
FURNISH = """
import sys
from modelregistry.models import Host, Replica, ServedModel
from portal.accounts.models import Tenant
from portal.keys.lifecycle import issue_key
host = Host.objects.create(name="elsewhere")
for name, engine in ("plain", "external"), ("assembled", "llama.cpp"):
    model = ServedModel.objects.create(name=name, engine=engine, url="{url}")
    Replica.objects.create(model=model, host=host, state="ready", url="{url}")
print(issue_key(tenant=Tenant.objects.create(slug="research", name="研究部"), service="test", name="test")[1])
"""

FRESH = True  # made by the commands that operators run, not as a copy of what they made for another test
DATABASE = "madoguchi.sqlite3"  # in a state directory
QUIET = {"MADOGUCHI_CANARY_HOUR": "off"}  # or its calls would be among those that tests count
ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Installation:
    """`var` is its state, `env` what its processes are given."""

    var: Path
    port: int
    env: dict[str, str]
    before: tuple[str, ...] = ()  # a command that runs it, as one that enters a network
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.var / "up.log").read_text()

    def manage(self, *words: str, **more: Any) -> str:
        """Return what a command prints; its failure fails the test with its words."""
        done = subprocess.run(
            [sys.executable, ROOT / "manage.py", *words], env=self.env, capture_output=True, text=True, **more
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def start(self) -> None:
        """Return when gateway and portal answer."""
        (self.var / "up.log").unlink(missing_ok=True)
        # Appended to: `serve` may add another process, and each would write over the other at an offset of its own.
        with (self.var / "up.log").open("ab") as log:
            up: list[str | Path] = [sys.executable, ROOT / "manage.py", "up", "--port", str(self.port)]
            command = [*self.before, *up]
            self.process = subprocess.Popen(command, env=self.env, stdout=log, stderr=log)
        until(lambda: self.url in self.log or self.process.poll() is not None)
        assert self.process.poll() is None, self.log

    def serve(self) -> None:
        """Start only the gateway's process, as `up` does; return at once. Its output is added to the log."""
        with (self.var / "up.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "apiproxy.server.gateway_worker", "127.0.0.1", str(self.port)],
                cwd=ROOT,
                env={**self.env, **SETTINGS[GATEWAY]},
                stdout=log,
                stderr=log,
            )

    def answers(self) -> bool:
        """Return whether calls are taken now."""
        with contextlib.suppress(OSError), urlopen(f"{self.url}/readyz", timeout=5) as answer:
            return answer.status == 200
        return False

    def furnish(self, engine_url: str) -> str:
        """Return two models, "plain" and "assembled", that this engine answers; the text of a key for them."""
        return self.manage("shell", "--verbosity", "0", "--command", FURNISH.format(url=engine_url))

    def start_for(self, *models: str, seconds: float = 60.0) -> str:
        """Start everything, return once these models answer, with the text of a key of the tenant "research"."""
        tenant = "from portal.accounts.models import Tenant; Tenant.objects.create(slug='research', name='研究部')"
        self.manage("shell", "--verbosity", "0", "--command", tenant)
        self.start()
        self.ready(*models, seconds=seconds)
        return self.manage("createkey", "--tenant", "research", "--service", "test")

    def usage(self) -> dict[str, dict[str, Any]]:
        """Return the recorded usage by request id. The database ensures that there is only one row of each."""
        with contextlib.closing(sqlite3.connect(self.var / "madoguchi.sqlite3", timeout=20)) as database:
            database.row_factory = sqlite3.Row
            found = [dict(row) for row in database.execute("select * from usage_usagerecord")]
        assert len({row["request_id"] for row in found}) == len(found)
        return {row["request_id"]: row for row in found}

    def read(self, question: str) -> list[tuple[Any, ...]]:
        """Return rows of the database."""
        with contextlib.closing(sqlite3.connect(self.var / "madoguchi.sqlite3", timeout=20)) as database:
            return database.execute(question).fetchall()

    def spool(self) -> list[str]:
        return sorted(path.name for path in (self.var / "spool").iterdir())

    def stop(self) -> int:
        """Send SIGTERM and return the exit status, once it and everything that it started has gone."""
        self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(60)
        assert self.processes() == {}
        return status

    def ready(self, *models: str, seconds: float = 60.0) -> None:
        """Return when these models answer."""

        def states() -> dict[str, str]:
            return {row["model"]: row["state"] for row in self.rows("replicas")}

        until(lambda: all(states().get(name) == "ready" for name in models), seconds)

    def rows(self, what: str) -> list[dict[str, Any]]:
        """Return the replicas as gateways see them (address and key included, which no command prints)."""
        assert what == "replicas"
        with contextlib.closing(sqlite3.connect(self.var / "madoguchi.sqlite3", timeout=20)) as database:
            database.row_factory = sqlite3.Row
            query = """select m.name as model, r.* from modelregistry_replica r
                       join modelregistry_servedmodel m on m.id = r.model_id"""
            return [dict(row) for row in database.execute(query)]

    def replica(self, model: str) -> dict[str, Any]:
        (row,) = [row for row in self.rows("replicas") if row["model"] == model]
        return row

    def processes(self) -> dict[int, str]:
        """Return every process of this installation: pid -> command line.

        Ours have its state directory in their environment, engines the directory of their run in it, and shims have
        neither but write a log there.
        """
        marks = (f"MADOGUCHI_VAR={self.var}\0".encode(), f"{shim.MARK}={self.var}/".encode())
        found: dict[int, str] = {}
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not entry.name.isdigit():
                    continue
                environment = (entry / "environ").read_bytes() + b"\0"
                ours = any(mark in environment for mark in marks)
                if ours or os.readlink(entry / "fd" / "1").startswith(f"{self.var}/"):
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        return found

    def pid_of(self, word: str) -> int:
        (pid,) = [pid for pid, command in self.processes().items() if word in command]
        return pid


def prepare(installation: Installation) -> None:
    installation.manage("migrate", "--verbosity", "0")
    installation.manage("collectstatic", "--noinput", "--verbosity", "0")


def kept_environment() -> dict[str, str]:
    """Return the environment without what would lead processes to other parts than an installation's own."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LDAP_", "DJANGO_", "REDIS_"))}


def template(var: Path) -> Installation:
    """Return an installation with SQLite that is only copied, also where a test has set another database."""
    kept = {name: value for name, value in kept_environment().items() if name != "DATABASE_URL"}
    return Installation(var, 0, {**kept, "MADOGUCHI_VAR": str(var)})


@functools.cache
def migrated() -> Path:
    """Return a migrated SQLite database, made once per run of tests (10 s)."""

    def make(workspace: Path) -> Path:
        var = workspace / "var"
        template(var).manage("migrate", "--verbosity", "0")
        with contextlib.closing(sqlite3.connect(var / DATABASE)) as database:
            database.execute("pragma wal_checkpoint(truncate)")  # the file is all of it
        return var / DATABASE

    return made_once.made("migrated.sqlite3", make)


@functools.cache
def prepared() -> Path:
    """Return a state directory with a migrated SQLite database and static files, made once per run of tests."""

    def make(workspace: Path) -> Path:
        var = workspace / "var"
        var.mkdir(mode=0o700)
        shutil.copy(migrated(), var / DATABASE)
        template(var).manage("collectstatic", "--noinput", "--verbosity", "0")
        return var

    return made_once.made("prepared", make)


@contextlib.contextmanager
def installed(var: Path, fresh: bool = False, /, **env: str) -> Iterator[Installation]:
    """Migrated, not started; on leaving everything of it is ended.

    `fresh`: see FRESH.
    """
    port = unused_port()
    installation = Installation(var, port, {**kept_environment(), **QUIET, "MADOGUCHI_VAR": str(var), **env})
    if fresh:
        prepare(installation)
    elif "DATABASE_URL" in env:
        shutil.copytree(prepared() / "static", var / "static")
        installation.manage("migrate", "--verbosity", "0")
    else:
        # Keys of an installation are its own: it makes them when it starts.
        shutil.copytree(prepared(), var, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*secret*"))
    try:
        yield installation
    finally:
        if hasattr(installation, "process") and installation.process.poll() is None:
            installation.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                installation.process.wait(30)
        for pid in installation.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def models_json(installation: Installation) -> list[dict[str, Any]]:
    return json.loads(installation.manage("models", "--json"))
