"""python -m tests.modelregistry.remote_supervisor supervise …: `manage.py supervise` for another machine.

It is reached at the port MACHINE_PORT. What this process does on its own machine that is not a supervisor's to do is
written to the file TOUCHED: starting and signalling processes, and opening what is below /proc or MACHINE_VAR.
"""

import os
import re
import sys
from typing import Any

import django
from django.core.management import execute_from_command_line

from modelregistry.hostside import remote
from modelregistry.hostside.remote import RemoteHost
from tests.modelregistry.tcp_channel import TcpChannel

ACTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.kill", "os.killpg", "os.exec"}
LOOKS = {"open", "os.listdir", "os.scandir", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.rmtree"}
LIMITS = {**remote.LIMITS, "usual": 5.0, "take_snapshot": 1.0, "launch": 2.0}


def watch(touched: str, machine: str) -> None:
    theirs = re.compile(rf"/proc/\d|{re.escape(machine)}(?:/|$)")

    def note(event: str, args: tuple[Any, ...]) -> None:
        looks = event in LOOKS and isinstance(args[0], str | bytes | os.PathLike)
        if event in ACTS or (looks and theirs.match(os.fsdecode(args[0]))):
            descriptor = os.open(touched, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            os.write(descriptor, f"{event} {args[:2]}\n".encode())
            os.close(descriptor)

    sys.addaudithook(note)


def main() -> None:
    django.setup()
    from modelregistry.controller.controller import Controller
    from modelregistry.management.commands import supervise

    def reach_machine() -> RemoteHost:
        return RemoteHost(TcpChannel(int(os.environ["MACHINE_PORT"])), limits=LIMITS, silent_after=3.0)

    def control_machine(*args: Any, **options: Any) -> Controller:
        # Without tasks, which are processes of this machine.
        return Controller(*args, **{**options, "periodic_tasks": None, "make_local": reach_machine})

    supervise.Controller = control_machine  # type: ignore[attr-defined, assignment]
    watch(os.environ["TOUCHED"], os.environ["MACHINE_VAR"])
    execute_from_command_line(["manage.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
