"""A site whose supervisor works on another machine: a process of its own, reached by TCP, which can fall silent."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from django.conf import settings

from tests import ports
from tests.modelregistry.site import FAKE, Site


class RemoteSite(Site):
    def __init__(self, place: Path) -> None:
        machine, controller = place / "machine", place / "controller"
        machine.mkdir()
        controller.mkdir()
        super().__init__(machine)
        self.port = ports.unused_port()
        self.touched = place / "touched"
        self.machine: subprocess.Popen[str] | None = None
        self.log = place / "supervisor.log"
        self.command = ["-m", "tests.modelregistry.remote_supervisor"]
        self.environment |= {
            "MADOGUCHI_VAR": str(controller),
            "MADOGUCHI_CACHE": str(controller / "cache"),
            "LLAMA_SERVER_COMMAND": "",
            "MACHINE_PORT": str(self.port),
            "MACHINE_VAR": str(machine),
            "TOUCHED": str(self.touched),
        }

    def start_machine(self) -> None:
        """Start what a host runs, and wait until it listens. Its environment is that of a bare host."""
        self.machine = subprocess.Popen(
            [sys.executable, "-m", "tests.modelregistry.remote_machine", str(self.port), str(self.var)],
            cwd=settings.BASE_DIR,
            env={"PATH": os.environ["PATH"], "LLAMA_SERVER_COMMAND": f"{sys.executable} {FAKE}"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.machine.stdout
        assert self.machine.stdout.readline() == "listening\n"

    def fall_silent(self) -> None:
        """Answer nothing from now on; requests that come meanwhile are read later."""
        assert self.machine
        self.machine.send_signal(signal.SIGSTOP)

    def answer_again(self) -> None:
        assert self.machine
        self.machine.send_signal(signal.SIGCONT)

    def kill_machine(self) -> None:
        """Kill the process that acts for the supervisor, not the engines."""
        if self.machine:
            self.machine.kill()
            self.machine.wait()
            assert self.machine.stdout
            self.machine.stdout.close()
            self.machine = None

    def close(self) -> None:
        self.kill_machine()
        super().close()
        assert not self.touched.exists(), self.touched.read_text()
