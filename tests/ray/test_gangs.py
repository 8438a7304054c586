"""A model that is split over hosts of a real cluster whose parts die: all of its ranks run, or none."""

import time
from collections.abc import Sequence

import pytest

from modelregistry import routes
from modelregistry.models import Replica, ServedModel
from tests.modelregistry import paper_models
from tests.modelregistry.gang_site import FAKE
from tests.ray.booking_reader import other_work
from tests.ray.controlled import ControlledCluster, controlled
from tests.ray.measurements import note
from tests.ray.traffic import chatting
from tests.waiting import until

pytestmark = [pytest.mark.timeout(300), pytest.mark.django_db(transaction=True)]  # network namespaces need root
HEAD_AWAY = 9.0  # seconds, longer than a host's silence after which replicas are started elsewhere


class Gang:
    """A model over two hosts, and what is seen of it."""

    def __init__(self, site: ControlledCluster) -> None:
        self.site = site
        directory = paper_models.small_llama(site.made.directory / "gang")
        split = {"tensor_parallel": 2, "nodes": 2}
        ServedModel.objects.create(
            **{"name": "m", "engine": "vllm", "path": str(directory), "context": 256, "slots": 2, **split}
        )

    def ready(self) -> list[Replica]:
        """Return the rows of its ranks if rank 0 is ready and the other one has joined it."""
        rows = list(Replica.objects.filter(model__name="m").order_by("index").select_related("host", "model"))
        serving = [row for row in rows if row.state in ("ready", "joined")]
        return serving if [row.state for row in serving] == ["ready", "joined"] else []

    def serves(self, before: Sequence[Replica] = (), seconds: float = 90) -> list[Replica]:
        """Wait until it serves, and not by any run of before; return the rows of its ranks, rank 0 first."""
        former = {row.run_id for row in before}
        return until(lambda: (rows := self.ready()) and former.isdisjoint(row.run_id for row in rows) and rows, seconds)

    def processes(self) -> dict[str, list[int]]:
        """Return the processes of its ranks, by host."""
        found = {name: sorted(host.find(FAKE.name)) for name, host in self.site.made.hosts.items()}
        return {name: pids for name, pids in found.items() if pids}

    def becomes_whole(self, rows: Sequence[Replica]) -> None:
        """Wait until each of these ranks runs once, nothing else does, and Ray has the booking of each."""
        alive = {row.host.name: [row.pid] for row in rows}
        places = sorted(f"{row.host.name}:m #{row.index}" for row in rows)
        with other_work(self.site.made) as work:  # one each time: a program of Ray's ends with its head
            until(lambda: self.processes() == alive and work.replicas() == places)

    def answers(self, rows: Sequence[Replica]) -> None:
        """Wait until rank 0 answers, which takes all ranks."""
        with chatting(self.site.made.spaces[0], rows[0].url, rows[0].api_key) as tokens:
            until(lambda: any(tokens))


def test_a_model_over_two_hosts_starts_serves_and_ends_as_one(tmp_path):
    with controlled(tmp_path, "a", "b", "c") as site:
        what, began = "a model over two hosts", time.monotonic()
        gang = Gang(site)
        first = gang.serves()
        note(f"{what}: ready after", time.monotonic() - began)
        gang.becomes_whole(first)
        note(f"{what}: each rank runs once and is booked after", time.monotonic() - began)

        with chatting(site.made.spaces[0], first[0].url, first[0].api_key) as tokens:
            until(lambda: any(tokens))
            tokens.clear()
            site.made.kill_head()
            began = time.monotonic()
            until(lambda: time.monotonic() - began > HEAD_AWAY)
            site.made.start_head()
            gang.becomes_whole(first)
            note(f"{what}, head -9 for {HEAD_AWAY:g} s: {len(tokens)} calls, failed: {tokens.count(0)}")
            assert all(tokens)
            assert [row.run_id for row in gang.ready()] == [row.run_id for row in first]

        lost = site.made.hosts[first[1].host.name]
        began = time.monotonic()
        lost.space.cut()
        lost.space.kill_all()
        until(lambda: not routes.ready_replicas(), 40)
        note(f"{what}, the host of rank 1 dies: off the catalogue after", time.monotonic() - began)
        second = gang.serves(first)
        note(f"{what}, the host of rank 1 dies: ready on others after", time.monotonic() - began)
        assert lost.directory.name not in {row.host.name for row in second}
        gang.answers(second)

        # Rank 0's host as well: on the one that is left nothing may run.
        other = site.made.hosts[second[0].host.name]
        began = time.monotonic()
        other.space.cut()
        other.space.kill_all()
        until(lambda: not routes.ready_replicas(), 40)
        note(f"{what}, the host of rank 0 dies: off the catalogue after", time.monotonic() - began)
        until(lambda: not gang.processes(), 40)
        note(f"{what}, the host of rank 0 dies: nothing of it runs after", time.monotonic() - began)
        began = time.monotonic()
        for host in (lost, other):
            host.space.mend()
            host.start()
        third = gang.serves([*first, *second], 120)
        note(f"{what}, hosts with power again: ready after", time.monotonic() - began)
        gang.answers(third)
        until(site.all_heard, 60)
        gang.becomes_whole(third)
        assert Replica.objects.filter(model__name="m").count() == 2
