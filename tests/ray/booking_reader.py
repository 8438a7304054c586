"""What is booked in a cluster, as another program on it sees it, which may book as well."""

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from modelregistry.cluster import node
from modelregistry.cluster.access import ray_environment
from tests.ray.clusters import Cluster

OTHER_WORK = Path(__file__).with_name("other_work.py")


class OtherWork:
    """Another program on the cluster, beside the head; see `other_work`."""

    def __init__(self, made: Cluster) -> None:
        address, environment = made.access.address, ray_environment(made.access, node.CODE)
        self.process = subprocess.Popen(
            made.spaces[0].inside([str(made.python), str(OTHER_WORK), address]),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: object) -> list[list[str]]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())["bookings"]

    def replicas(self) -> list[str]:
        """Return the replicas that are booked and have what they ask for, with their hosts."""
        return sorted(
            name.removeprefix("madoguchi:").rpartition(":")[0]
            for name, state in self.ask()
            if name.startswith("madoguchi:") and state == "CREATED"
        )


@contextlib.contextmanager
def other_work(made: Cluster) -> Iterator[OtherWork]:
    work = OtherWork(made)
    try:
        yield work
    finally:
        work.process.kill()
        work.process.communicate()
