"""A real controller keeps models on the hosts of a real cluster whose parts die."""

import time
from dataclasses import replace

import pytest

from modelregistry.models import Host, Replica
from tests.modelregistry.site import Site
from tests.ray.clusters import cluster
from tests.ray.controlled import STAND_IN, ControlledCluster, controlled
from tests.ray.measurements import note
from tests.waiting import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]  # network namespaces need root


def test_models_run_on_hosts_and_outlive_their_controller(tmp_path):
    with controlled(tmp_path, "a", "b") as site:
        site.model("m", replicas=2)
        began = time.monotonic()
        until(lambda: sorted(site.hosts_of()) == ["a", "b"], 60)
        note("two replicas on two hosts: ready after", time.monotonic() - began)
        before = site.engines()
        assert sum(map(len, before.values())) == 2
        site.processes[0].kill()
        site.processes[0].wait()
        began = time.monotonic()
        site.supervise()
        until(lambda: Host.objects.filter(name="a", silent_since=None).exists(), 60)
        until(lambda: "adopted" in site.log.read_text(), 60)
        note("controller -9: the next one adopts after", time.monotonic() - began)
        assert site.engines() == before
        assert sorted(site.hosts_of()) == ["a", "b"]


def test_a_replica_of_a_host_without_power_is_off_the_catalogue_and_started_elsewhere(tmp_path):
    with controlled(tmp_path, "a", "b", "c") as site:
        site.model("one")
        site.model("two", replicas=2)
        until(lambda: len(site.hosts_of("one")) == 1 and len(site.hosts_of("two")) == 2, 60)
        [lost] = site.hosts_of("one")
        host = site.made.hosts[lost]
        began = time.monotonic()
        host.space.cut()
        host.space.kill_all()
        until(lambda: lost not in site.hosts_of("one"), 30)
        note("host without power: off the catalogue after", time.monotonic() - began)
        until(lambda: site.hosts_of("one") and site.hosts_of("one") != [lost], 60)
        note("host without power: its replica ready elsewhere after", time.monotonic() - began)
        until(lambda: len(set(site.hosts_of("two")) - {lost}) >= 1, 60)
        assert Host.objects.get(name=lost).silent_since is not None

        host.space.mend()
        host.start()
        until(lambda: Host.objects.filter(name=lost, silent_since=None).exists(), 90)
        until(lambda: not Replica.objects.filter(model__name="one", host__name=lost).exists(), 60)
        assert len(site.hosts_of("one")) == 1


def test_a_host_that_goes_into_maintenance_serves_until_others_have_its_replicas(tmp_path):
    with controlled(tmp_path, "a", "b") as site:
        site.model("m", "loading=3")
        until(lambda: len(site.hosts_of()) == 1, 60)
        [before] = site.hosts_of()
        Host.objects.filter(name=before).update(maintenance=True)

        def is_elsewhere() -> bool:
            now = site.hosts_of()
            assert now, "no replica is ready"
            return before not in now

        until(is_elsewhere, 60)
        until(lambda: not site.engines()[before], 30)
        assert len(site.hosts_of()) == 1


def test_a_machine_that_had_a_supervisor_of_its_own_joins_with_its_engines(tmp_path):
    with cluster(spare=1, commands=STAND_IN) as made:
        space = made.spaces[1]
        before = Site(tmp_path / "before")
        before.var.mkdir()
        before.before = space.inside([])
        before.environment["MADOGUCHI_HOST"] = "a"
        host = Host.objects.create(name="a", address=space.address)
        site = ControlledCluster(made, tmp_path / "site")
        site.model("m", host=host)
        supervisor = before.supervise()
        ready = before.reaches("ready")
        supervisor.terminate()
        assert supervisor.wait(30) == 0

        joined = made.add_host("a")
        replace(joined.directory, runs_before=str(before.runs.root)).save()
        joined.start()
        try:
            site.supervise()
            until(lambda: Host.objects.filter(name="a", clustered=True, report__at__gte=ready.changed_at).exists(), 90)
            until(lambda: site.hosts_of() == ["a"], 30)
            assert Replica.objects.get().pid == ready.pid
            assert before.living()
        finally:
            site.close()
            before.close()
