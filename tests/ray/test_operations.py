"""What operators do to a cluster that serves: no engine ends of it, and no call fails."""

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from modelregistry.cluster import fence, node, node_directory
from modelregistry.cluster.access import ClusterAccess
from modelregistry.cluster.link import ClusterLink, ClusterSilent
from modelregistry.models import ControllerClaim, Host, HostReport, ModelCopy, Replica, ServedModel
from tests.modelregistry.site import Site
from tests.ray.clusters import REDIS_PORT, Cluster, cluster
from tests.ray.clusters import Host as ClusterHost
from tests.ray.controlled import STAND_IN, ControlledCluster, controlled
from tests.ray.measurements import note
from tests.ray.shifted_service import CLOCK
from tests.ray.traffic import calling
from tests.waiting import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]  # network namespaces need root
ROOT = Path(__file__).resolve().parent.parent.parent
TAKEN_OVER_WITHIN = 15.0  # seconds


def wait_for_replicas(site: ControlledCluster, count: int, name: str = "m") -> None:
    until(lambda: len(site.hosts_of(name)) == count, 60)


# --- controllers


def make_second_site(site: ControlledCluster, var: Path, host: str) -> Site:
    """Return a site whose controller runs on the machine of a host, with its own state, on the same database."""
    made, second = site.made, Site(var)
    head = var / "cluster" / "head"
    head.mkdir(parents=True)
    shutil.copytree(made.directory / "head" / "secrets", head / "secrets")
    shutil.copy(made.directory / "head" / "head.json", head)
    second.before = made.hosts[host].space.inside([])
    second.environment |= {"MADOGUCHI_HOST": host, "LLAMA_SERVER_COMMAND": "", "PATH": "/usr/bin:/bin"}
    del second.environment["MADOGUCHI_CACHE"]  # Ray is in the real one
    return second


def test_a_controller_on_another_machine_takes_over(tmp_path):
    with controlled(tmp_path / "first", "a", "b") as site:
        site.model("m", replicas=2)
        wait_for_replicas(site, 2)
        before = site.engines()
        second = make_second_site(site, tmp_path / "second", "b")
        try:
            second.supervise()
            until((second.var / "run" / "supervisor.lock").exists, 30)  # it waits from here on
            assert ControllerClaim.objects.get().term == 1
            with calling(site.made.spaces[0], *site.served()) as calls:
                site.processes[0].kill()
                site.processes[0].wait()
                began = time.monotonic()
                until(lambda: ControllerClaim.objects.get().term == 2, 30)
                note("controller -9, one on another machine waits: elected after", time.monotonic() - began)
                until(lambda: second.log.read_text().count("adopted") >= 2 and site.all_heard(), 60)
                adopted = time.monotonic() - began
                note("controller -9, one on another machine waits: all adopted after", adopted)
                assert adopted < TAKEN_OVER_WITHIN
                assert str(second.var) in ControllerClaim.objects.get().holder
                site.model("n")
                wait_for_replicas(site, 1, "n")
                assert calls.all_failures() == 0
            assert {name: found[0] for name, found in before.items()} == {
                name: min(found) for name, found in site.engines().items()
            }
        finally:
            second.close()


async def read_clocks(made: Cluster) -> dict[str, float]:
    """Return by how many seconds the clocks of hosts differ from this machine's."""
    async with made.link() as link:
        await link.wait_until_ready(60)
        return {name: (await link.describe(name))["clock"] - time.time() for name in made.hosts}


def test_clocks_that_are_five_minutes_off_change_nothing(tmp_path):
    lease = 30
    clocks = {"a": 300.0, "b": -300.0}
    with controlled(tmp_path, "a", "b", clocks=clocks, HOST_LEASE=str(lease)) as site:
        site.model("m", replicas=2)
        wait_for_replicas(site, 2)
        before = site.engines()
        shown = asyncio.run(read_clocks(site.made))
        assert {name: round(shift, -1) for name, shift in shown.items()} == clocks
        with calling(site.made.spaces[0], *site.served()) as calls:
            for shift in (300, -300):
                site.processes[-1].kill()
                site.processes[-1].wait()
                adopted, began = site.log.read_text().count("adopted"), time.monotonic()
                site.supervise(PYTHONPATH=str(CLOCK), MADOGUCHI_TEST_CLOCK=str(shift))
                until(lambda had=adopted: site.log.read_text().count("adopted") >= had + 2 and site.all_heard(), 60)
                note(f"controller's clock {shift:+} s: all adopted after", time.monotonic() - began)
                until(
                    lambda by=shift: abs(HostReport.objects.get(host__name="a").at.timestamp() - time.time() - by) < 30
                )
                # Longer than a lease, which nothing but renewals extends.
                time.sleep(max(0.0, lease + fence.STOPPED_WITHIN - (time.monotonic() - began)) if shift < 0 else 0.0)
                assert sorted(site.hosts_of()) == ["a", "b"]
            assert calls.all_failures() == 0
        assert site.engines() == before


# --- releases of ours and of Ray's


def copy_release(to: Path, version: str) -> Path:
    """Return where there is another release of what runs on hosts."""
    shutil.copytree(ROOT / "modelregistry", to / "modelregistry", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests" / "ray", to / "tests" / "ray", ignore=shutil.ignore_patterns("__pycache__"))
    project = (ROOT / "pyproject.toml").read_text()
    [line] = [line for line in project.splitlines() if line.startswith("version = ")]
    (to / "pyproject.toml").write_text(project.replace(line, f'version = "{version}"'))
    return to


def test_agents_are_upgraded_one_by_one_and_ray_everywhere_at_once(tmp_path):
    with controlled(tmp_path / "site", "a", "b", HOST_LEASE="120") as site:
        made = site.made
        site.model("m", replicas=2)
        wait_for_replicas(site, 2)
        before = site.engines()
        release = copy_release(tmp_path / "release", "99.0.0")
        with calling(made.spaces[0], *site.served()) as calls:
            for name, host in made.hosts.items():
                former, began = host.agent(), time.monotonic()
                host.stop()
                host.release = release
                host.start()
                until(lambda now=host, before=former: now.find("ray::HostAgent") not in ([], [before]), 60)
                until(site.all_heard, 60)
                note(f"agent of {name} upgraded: answers after", time.monotonic() - began)
            # The controller has agents describe themselves every half minute.
            until(lambda: {host.agent["version"] for host in Host.objects.filter(clustered=True)} == {"99.0.0"}, 60)

            began = time.monotonic()
            for host in made.hosts.values():
                host.stop()
            made.kill_head()
            flush = ["redis-cli", "-p", str(REDIS_PORT), "flushall"]  # what an older Ray has kept
            subprocess.run(made.spaces[0].inside(flush), check=True, timeout=20)
            until(lambda: not any(host.find("/ray/raylet/raylet") for host in made.hosts.values()), 30)
            assert not made.head_pids()
            for host in made.hosts.values():
                host.release = None
                host.start()
            made.start_head()
            until(lambda: all(host.find("ray::HostAgent") for host in made.hosts.values()) and site.all_heard(), 90)
            note("Ray stopped everywhere and started again: all hosts answer after", time.monotonic() - began)
            assert calls.all_failures() == 0
        assert site.engines() == before
        assert sorted(site.hosts_of()) == ["a", "b"]


# --- who is let in


def join(
    made: Cluster, space: int, invitation: Path, directory: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run the command of a host on the machine of that number. Engines of other tests are none of its own."""
    command = [str(made.python), "-m", "modelregistry.cluster.join", *(options or ("--runs", "none")), str(directory)]
    return subprocess.run(
        made.spaces[space].inside(command),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(node.CODE)},
        input=invitation.read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def is_let_in(made: Cluster, secrets: Path) -> bool:
    """Return whether who has these secrets gets into the cluster."""

    async def ask() -> bool:
        access = ClusterAccess(address=made.access.address, secrets=secrets)
        link = ClusterLink(made.python, access=access, server=made.server)
        link.argv = tuple(made.spaces[0].inside(link.argv))
        await link.open()
        try:
            await link.wait_until_ready(12)
        except ClusterSilent:
            return False
        finally:
            await link.close()
        return True

    return asyncio.run(ask())


@contextlib.contextmanager
def invited(var: Path, settings: Any) -> Iterator[ControlledCluster]:
    """Provide a cluster whose hosts, a and b, have joined by what `addhost` wrote, and a controller that has them."""
    with cluster(spare=2, commands=STAND_IN) as made:
        site = ControlledCluster(made, var)
        site.environment["HOST_LEASE"] = "90"
        settings.VAR = var
        log = made.directory / "head" / "ray.log"
        until(lambda: "Ray runtime started" in log.read_text(), 60)
        for number, name in enumerate(("a", "b"), 1):
            call_command("addhost", name, "--address", made.spaces[number].address)
            joined = join(made, number, made.directory / "invitations" / name, made.directory / name)
            assert joined.returncode == 0, joined.stderr
            directory = node_directory.load(made.directory / name)
            facts = json.loads((directory.path / "host.json").read_text())
            (directory.path / "host.json").write_text(json.dumps({**facts, "commands": STAND_IN}))
            made.hosts[name] = ClusterHost(node_directory.load(directory.path), made.spaces[number])
            made.hosts[name].start()
        try:
            site.supervise()
            until(site.all_joined, 90)
            yield site
        finally:
            site.close()


def restart_with_new_secrets(site: ControlledCluster, *names: str) -> None:
    """Do on the site and on these hosts what `rotatecluster` and `removehost` say; return when all answer."""
    made = site.made
    for name in names:
        number = made.spaces.index(made.hosts[name].space)
        renewed = join(made, number, made.directory / "invitations" / name, made.directory / name, "--renew")
        assert renewed.returncode == 0, renewed.stderr
    made.kill_head()
    made.start_head_and_join_server()
    for name in names:
        former = made.hosts[name].agent()
        made.hosts[name].stop()
        made.hosts[name].start()
        until(lambda host=made.hosts[name], before=former: host.find("ray::HostAgent") not in ([], [before]), 60)
    until(lambda: not Host.objects.filter(name__in=names).exclude(silent_since=None).exists(), 60)


def test_a_host_that_was_removed_is_let_in_nowhere_and_the_others_serve_on(tmp_path, settings):
    with invited(tmp_path / "site", settings) as site:
        made = site.made
        stolen = tmp_path / "stolen"
        shutil.copy(made.directory / "invitations" / "b", stolen)
        site.model("m", host=Host.objects.get(name="a"))
        wait_for_replicas(site, 1)
        assert is_let_in(made, made.hosts["b"].directory.secrets)
        engines = site.engines()["a"]
        with calling(made.spaces[0], *site.served()) as calls:
            began = time.monotonic()
            call_command("removehost", "b")
            refused = join(made, 2, stolen, tmp_path / "again")
            assert refused.returncode == 1, refused.stdout
            restart_with_new_secrets(site, "a")
            until(lambda: Host.objects.get(name="b").silent_since is not None, 60)
            note("removehost, all restarted: the other host answers after", time.monotonic() - began)
            assert not is_let_in(made, made.hosts["b"].directory.secrets)
            assert is_let_in(made, made.hosts["a"].directory.secrets)
            again = join(made, 2, stolen, tmp_path / "again")
            assert again.returncode == 1, again.stdout
            assert calls.all_failures() == 0
        assert site.engines()["a"] == engines


def test_a_rotation_on_the_running_cluster_ends_the_former_token_and_no_engine(tmp_path, settings):
    with invited(tmp_path / "site", settings) as site:
        made = site.made
        site.model("m", replicas=2)
        wait_for_replicas(site, 2)
        engines = site.engines()
        former = shutil.copytree(made.hosts["a"].directory.secrets, tmp_path / "former")
        with calling(made.spaces[0], *site.served()) as calls:
            began = time.monotonic()
            call_command("rotatecluster")
            assert is_let_in(made, former)  # until all run with what is new
            restart_with_new_secrets(site, "a", "b")
            note("rotatecluster, all restarted one after the other: all hosts answer after", time.monotonic() - began)
            assert not is_let_in(made, former)
            assert all(is_let_in(made, host.directory.secrets) for host in made.hosts.values())
            assert calls.all_failures() == 0
        assert site.engines() == engines
        site.model("n")
        wait_for_replicas(site, 1, "n")


# --- files


def test_a_model_is_copied_from_host_to_host(tmp_path):
    size = 1_000_000_000
    models = tmp_path / "models"
    models.mkdir()
    with controlled(tmp_path / "site", "a", "b", models=models) as site:
        hosts = site.made.hosts
        source = hosts["a"].own_models / "big"
        source.mkdir()
        with (source / "model.gguf").open("wb") as file:
            for _ in range(size // 10_000_000):
                file.write(os.urandom(10_000_000))
        ServedModel.objects.create(
            name="big", engine="llama.cpp", path=str(models / "big" / "model.gguf"), enabled=False
        )
        began = time.monotonic()
        call_command("copymodel", "big", "b", "--from", "a", "--no-wait")
        until(lambda: ModelCopy.objects.get().done >= size, 120)
        moved = time.monotonic() - began
        until(lambda: ModelCopy.objects.get().state == ModelCopy.State.DONE, 120)
        done = time.monotonic() - began
        note(f"copymodel, {size / 1e9:g} GB from host to host: moved with", size / moved / 1e6, "MB/s")
        note(f"copymodel, {size / 1e9:g} GB from host to host: with checksums at both ends after", done)
        one, other = (path / "big" / "model.gguf" for path in (hosts["a"].own_models, hosts["b"].own_models))
        assert subprocess.run(["cmp", one, other], check=False).returncode == 0
        assert not Replica.objects.exists()
