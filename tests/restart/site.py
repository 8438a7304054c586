"""A site as its unit runs it: the handover before `up`, in a directory that is a link to a version, behind nginx."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests import engine
from tests.installation import ROOT, Installation, installed
from tests.nginx import Nginx, nginx

PARTS = ("apiproxy", "modelregistry", "portal", "templates", "manage.py", "pyproject.toml")
PYTHON = ".venv/bin/python"  # of a version
NEXT = "99.0.0"  # the version that is changed to
CHANGED = re.compile(r'^version = ".*"$', re.M)


def copy_version(place: Path, version: str) -> Path:
    """Return a copy of this product that says it has this version, with the programs of this environment."""
    root = place / version
    root.mkdir()
    for part in PARTS:
        source = ROOT / part
        if source.is_dir():
            shutil.copytree(source, root / part, ignore=shutil.ignore_patterns("__pycache__", "node_modules"))
        else:
            shutil.copy(source, root / part)
    (root / ".venv").symlink_to(sys.prefix)
    text, count = CHANGED.subn(f'version = "{version}"', (root / "pyproject.toml").read_text(), count=1)
    assert count == 1
    (root / "pyproject.toml").write_text(text)
    return root


@dataclass
class Site:
    """`current` is a link to the version that is to run. `listeners` are held here, as systemd holds its sockets."""

    place: Path
    installation: Installation
    engine: engine.Running
    key: str
    listeners: list[socket.socket]
    nginx: Nginx
    process: "subprocess.Popen[bytes]" = field(init=False, repr=False)
    started: list["subprocess.Popen[bytes]"] = field(default_factory=list, repr=False)

    @property
    def current(self) -> Path:
        return self.place / "current"

    @property
    def control(self) -> Path:
        return self.place / "control"

    @property
    def environment(self) -> Path:
        return self.place / "environment"

    @property
    def log(self) -> str:
        return (self.installation.var / "up.log").read_text()

    def lead_to(self, version: Path) -> None:
        """Have `current` lead to this version, in one step."""
        following = self.place / "following"
        following.symlink_to(version)
        following.rename(self.current)

    def start(self) -> None:
        """Start as systemd does; return when it reports that it serves. Sockets are passed from descriptor 3 on."""
        count = len(self.listeners)
        notices = self.place / "notices"
        notices.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
            systemd.bind(str(notices))
            systemd.settimeout(60)
            command: list[str | Path] = [
                *(PYTHON, "-m", "apiproxy.server.handover"),
                *("--directory", self.current, "--environment", self.environment, "--control", self.control),
                *("--", PYTHON, "manage.py", "up", "--no-supervisor"),
            ]
            # As systemd: the process id is known only between fork and exec.
            words: list[str | Path] = ["sh", "-c", 'LISTEN_PID=$$ exec "$0" "$@"', self.current / PYTHON, *command[1:]]
            names = {"LISTEN_FDS": str(count), "LISTEN_FDNAMES": "gateway:portal", "NOTIFY_SOCKET": str(notices)}

            def place_listeners() -> None:
                copies = [os.dup(listener.fileno()) for listener in self.listeners]
                for number, copy in enumerate(copies, 3):
                    os.dup2(copy, number)

            with (self.installation.var / "up.log").open("ab") as log:
                self.process = subprocess.Popen(
                    words,
                    cwd=self.current,
                    env={**self.installation.env, **names},
                    stdout=log,
                    stderr=log,
                    close_fds=False,
                    preexec_fn=place_listeners,
                )
            self.started.append(self.process)
            assert b"READY=1" in systemd.recv(1000), self.log

    def reload(self) -> "subprocess.CompletedProcess[str]":
        """Run what the unit's ExecReload runs; return when that ends."""
        command: list[str | Path] = [PYTHON, "-m", "apiproxy.server.handover", "--control", self.control, "--reload"]
        return subprocess.run(command, cwd=self.current, capture_output=True, text=True, timeout=120)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)

    def gateways(self) -> list[int]:
        return [pid for pid, command in self.installation.processes().items() if "gateway_worker" in command]

    def version(self) -> str:
        """Return the version of the gateway that a new connection reaches."""
        text = httpx2.get(f"{self.installation.url}/metrics", timeout=30).text
        return re.search(r'madoguchi_build_info\{version="([^"]+)"', text)[1]  # type: ignore[index]


@contextlib.contextmanager
def site(place: Path, **env: str) -> Iterator[Site]:
    """Provide a site that is not started: behind nginx, before an engine that does what it is asked for."""
    with contextlib.ExitStack() as stack:
        fake = stack.enter_context(engine.running())
        installation = stack.enter_context(installed(place / "var", TRUSTED_PROXIES="1", **env))
        key = installation.furnish(fake.url)
        calls, pages = (stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=2048)) for _ in range(2))
        installation.port = calls.getsockname()[1]
        before = nginx(f"127.0.0.1:{installation.port}", pages=f"127.0.0.1:{pages.getsockname()[1]}")
        running = Site(place, installation, fake, key, [calls, pages], stack.enter_context(before))
        running.environment.write_text("# read at each start\n")
        running.lead_to(ROOT)
        try:
            yield running
        finally:
            for process in running.started:
                if process.poll() is None:
                    process.terminate()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(30)
