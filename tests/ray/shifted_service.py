"""python tests/ray/shifted_service.py DIRECTORY SECONDS: a host's service whose Python, and its agent's, is off.

See `clock/sitecustomize.py`. The fence and the shims have an environment of their own, and the machine's time.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from modelregistry.cluster import node, node_service
from modelregistry.cluster.node import NodeCommand
from modelregistry.cluster.node_directory import NodeDirectory

CLOCK = Path(__file__).resolve().with_name("clock")
host_command = node.host_command


def main(path: Path, seconds: str) -> int:
    def shifted(
        python: Path, directory: NodeDirectory, *, cpus: int = 0, resources: Mapping[str, float] | None = None
    ) -> NodeCommand:
        made = host_command(python, directory, cpus=cpus, resources=resources)
        path = f"{CLOCK}:{made.env['PYTHONPATH']}"
        return NodeCommand(made.argv, {**made.env, "PYTHONPATH": path, "MADOGUCHI_TEST_CLOCK": seconds})

    node.host_command = shifted
    return node_service.main(path)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
