"""A cluster with a real controller: `manage.py supervise` beside its head, on the test's database."""

import contextlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from modelregistry.cluster.head import HeadDirectory
from modelregistry.models import Host, Replica, ServedModel
from tests.modelregistry import gang_site, paper_models
from tests.modelregistry.site import FAKE, Site
from tests.ray.clusters import REDIS_PORT, Cluster, cluster
from tests.ray.traffic import Served
from tests.waiting import until

# What engines of hosts are.
STAND_IN = {"llama-server": f"{sys.executable} {FAKE}", "vllm": f"{sys.executable} {gang_site.FAKE}"}


class ControlledCluster(Site):
    """`made`: the cluster. The controller's own machine is in maintenance: all models run on hosts."""

    def __init__(self, made: Cluster, var: Path) -> None:
        super().__init__(var)
        var.mkdir(exist_ok=True)
        self.made = made
        self.before = made.spaces[0].inside([])
        self.environment |= {"MADOGUCHI_HOST": "portal", "LLAMA_SERVER_COMMAND": "", "PATH": "/usr/bin:/bin"}
        del self.environment["MADOGUCHI_CACHE"]  # Ray is in the real one
        Host.objects.create(name="portal", maintenance=True)
        (var / "cluster").symlink_to(made.directory)
        space = made.spaces[0]
        HeadDirectory(path=made.directory / "head", address=space.address, redis=f"127.0.0.1:{REDIS_PORT}").save()

    def model(self, name: str = "m", *behave: str, **fields: object) -> ServedModel:
        """Return a model for the stand-in, whose file all hosts have."""
        path = paper_models.gguf(self.made.directory / "model.gguf")
        args = [f"--behave={each}" for each in behave]
        return ServedModel.objects.create(name=name, engine="llama.cpp", path=str(path), args=args, **fields)

    def hosts_of(self, name: str = "m", state: str = "ready") -> list[str]:
        """Return the hosts on which replicas of a model are in this state, by their numbers."""
        rows = Replica.objects.filter(model__name=name, state=state).order_by("index", "pk")
        return [row.host.name for row in rows.select_related("host")]

    def all_joined(self) -> bool:
        return Host.objects.filter(clustered=True, report__isnull=False).count() == len(self.made.hosts)

    def engines(self) -> dict[str, list[int]]:
        """Return the stand-ins that run, by host."""
        return {name: host.find(FAKE.name) for name, host in self.made.hosts.items()}

    def served(self) -> list[Served]:
        """Return where the replicas that are ready say that they are well, without a key."""
        return [Served(f"{row.url}/health") for row in Replica.objects.filter(state="ready")]

    def all_heard(self) -> bool:
        return not Host.objects.filter(clustered=True).exclude(silent_since=None).exists()

    def close(self) -> None:
        if self.log.exists():
            print(self.log.read_text()[-30_000:])
        for log in [self.made.directory / "controller.log", *self.made.directory.glob("*/ray.log")]:
            if log.exists():
                print(f"--- {log}\n{log.read_text()[-3000:]}")
        for supervisor in self.processes:
            supervisor.kill()
            supervisor.wait()


@contextlib.contextmanager
def controlled(
    var: Path, *names: str, clocks: Mapping[str, float] | None = None, models: Path | None = None, **settings: str
) -> Iterator[ControlledCluster]:
    """Provide a cluster whose hosts have stand-ins for engines, and a controller that has found them."""
    with cluster(*names, commands=STAND_IN, clocks=clocks, models=models) as made:
        site = ControlledCluster(made, var)
        site.environment |= settings
        try:
            site.supervise()
            until(site.all_joined, 90)
            yield site
        finally:
            site.close()
