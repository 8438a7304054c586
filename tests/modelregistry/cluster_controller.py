"""python -m tests.modelregistry.cluster_controller supervise …: `manage.py supervise` with hosts reached by TCP.

HOST_PORTS has the ports of its hosts by name, as JSON.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

import django
from django.core.management import execute_from_command_line

from tests.modelregistry.tcp_link import TcpLink


def main() -> None:
    django.setup()
    from modelregistry.controller.controller import Controller
    from modelregistry.management.commands import supervise

    def find_link() -> Callable[[], Any]:
        ports = json.loads(os.environ["HOST_PORTS"])
        return lambda: TcpLink(ports)

    def control(*args: Any, **options: Any) -> Controller:
        return Controller(*args, **{**options, "periodic_tasks": None})  # whose tasks are no matter here

    supervise.find_link = find_link
    supervise.Controller = control  # type: ignore[attr-defined, assignment]
    execute_from_command_line(["manage.py", *sys.argv[1:]])


if __name__ == "__main__":
    main()
