"""What replicas take of hosts' memory is booked in a real Ray, whatever becomes of the controller and of the head."""

import shutil
import time

import pytest

from modelregistry.models import Host, ServedModel
from modelregistry.process.gpus import RAM
from tests.ray.booking_reader import other_work
from tests.ray.controlled import ControlledCluster, controlled
from tests.ray.measurements import note
from tests.waiting import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]  # network namespaces need root


def placed(site: ControlledCluster) -> list[str]:
    """Return the replicas that are ready, with their hosts."""
    names = ServedModel.objects.values_list("name", flat=True)
    return sorted(f"{host}:{name} #{number}" for name in names for number, host in enumerate(site.hosts_of(name)))


def test_each_placed_replica_is_booked_once_whatever_dies(tmp_path):
    with controlled(tmp_path, "a", "b") as site:
        site.model("m", replicas=2)
        site.model("n")
        until(lambda: len(placed(site)) == 3, 60)
        with other_work(site.made) as work:
            began = time.monotonic()
            until(lambda: work.replicas() == placed(site), 30)
            note("bookings of three replicas: made after they were ready by", time.monotonic() - began)
            assert len(work.ask()) == 3
            until(lambda: all((host.bookings or {}).get("booked") for host in Host.objects.filter(clustered=True)), 30)

            site.processes[0].kill()
            site.processes[0].wait()
            site.supervise()
            ServedModel.objects.filter(name="n").update(enabled=False)
            began = time.monotonic()
            until(lambda: len(work.ask()) == 2, 60)
            note("controller -9, and a model is switched off: its booking is gone after", time.monotonic() - began)
            assert work.replicas() == placed(site)

        site.made.kill_head()
        site.made.redis.kill()
        site.made.redis.wait()
        shutil.rmtree(site.made.directory / "redis")
        site.made.start_redis()
        began = time.monotonic()
        site.made.start_head()
        until(lambda: not Host.objects.filter(clustered=True).exclude(silent_since=None).exists(), 90)
        with other_work(site.made) as work:
            until(lambda: work.replicas() == placed(site) and len(work.ask()) == 2, 60)
            note("Redis lost, head new and empty: all booked again after", time.monotonic() - began)


def test_what_other_work_has_booked_is_counted_and_what_ray_cannot_book_is_said(tmp_path):
    with controlled(tmp_path, "a", "b") as site, other_work(site.made) as work:

        def offered(host: str) -> int:
            return Host.objects.get(name=host).bookings["offered"][str(RAM)]

        until(lambda: all(host.bookings for host in Host.objects.filter(clustered=True)), 30)
        # It takes all of a, so that nothing is placed there, however much is free. Its name is nearly one of ours.
        taken = {"madoguchi-host:a": 0.001, "memory": float(offered("a"))}
        work.ask(take=taken, name="madoguchi:finetune")
        until(lambda: Host.objects.get(name="a").bookings["others"] == {str(RAM): offered("a")}, 30)
        site.model("m", replicas=2)
        until(lambda: site.hosts_of("m") == ["b", "b"], 60)

        # What belongs to a alone runs there all the same, if an operator insists.
        only = site.model("only", host=Host.objects.get(name="a"), overcommit=True)
        until(lambda: site.hosts_of("only") == ["a"], 60)
        until(lambda: Host.objects.get(name="a").bookings["late"], 40)
        [late] = Host.objects.get(name="a").bookings["late"]
        assert (late["code"], late["replica"]) == ("booking-held", "only #0")
        assert "a:only #0" not in work.replicas()

        assert ["madoguchi:finetune", "CREATED"] in work.ask()
        work.ask(give=True)
        until(lambda: "a:only #0" in work.replicas(), 60)
        until(lambda: not Host.objects.get(name="a").bookings["late"], 30)
        only.delete()
        until(lambda: work.replicas() == ["b:m #0", "b:m #1"], 60)
