"""Models that are split over hosts, as operators see and set them."""

import json
from datetime import date

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from django.utils.html import escape

from modelregistry import overview, routes
from modelregistry.controller.repository import note_gaps
from modelregistry.controller.shortages import Gap
from modelregistry.failure_advice import NO_ROOM, advise
from modelregistry.fit import estimate
from modelregistry.management.commands import models
from modelregistry.models import Host, PlacementGap, Replica, ServedModel
from portal.keys.model_access import Liveness, liveness
from tests.fleet import gpu, host, model, predicted, replica
from tests.html import all_of, has, one_of
from tests.modelregistry import paper_models

pytestmark = pytest.mark.django_db


@pytest.fixture
def gang():
    """Provide a model whose second replica, of two, has lost its rank 1."""
    hosts = [host(f"gpu-{number}", gpu(0, "NVIDIA A100", 85.9, 40.0)) for number in range(1, 5)]
    large = model("large", nodes=2, tensor_parallel=2, replicas=2)
    held = {"devices": [0], "pid": 5, "predicted": predicted(20, 10, 2)}
    replica(large, hosts[0], index=0, url="http://10.0.0.5:1", **held)
    replica(large, hosts[1], "joined", index=1, **held)
    replica(large, hosts[2], "backoff", index=2, cause="gang-broken")
    replica(large, hosts[3], "failed", index=3, cause="gpu-memory")
    return large


def test_each_rank_is_shown_with_its_replica_and_host(as_olivia, gang):
    page = as_olivia.get("/operations/models/large/").content.decode()
    assert [one["data-rank"] for one in all_of(page, "article.replica [data-rank]")] == ["0", "1", "0", "1"]
    assert one_of(page, "[data-nodes]")["data-nodes"] == "2"
    hosts = as_olivia.get("/operations/").content.decode()
    assert [one["data-rank"] for one in all_of(hosts, "[data-placed=large] [data-rank]")] == ["0", "1", "0", "1"]


def test_a_model_on_one_host_shows_no_rank(as_olivia):
    replica(model("small"), host("gpu-1", gpu(0, "A", 80, 0)))
    page = as_olivia.get("/operations/models/small/").content.decode()
    assert not has(page, "[data-rank]")
    assert not has(page, "[data-nodes]")


def test_a_replica_counts_once_and_its_memory_is_that_of_all_ranks(gang):
    now = overview.read_overview(timezone.now()).models[0]
    assert (now.ready, now.wanted, now.state) == (1, 2, overview.ModelState.PARTLY)
    assert [(one.number, one.rank, one.ranks) for one in now.replicas] == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    assert now.predicted == 2 * 32 * 10**9
    devices = [one.devices[0] for one in overview.read_overview(timezone.now()).hosts]
    assert [device.predicted for device in devices] == [32 * 10**9, 32 * 10**9, 0, 0]


def test_ranks_are_in_the_order_of_their_replicas_and_not_of_their_hosts():
    large = model("large", nodes=2, tensor_parallel=2, replicas=2)
    for number, index in enumerate((2, 1, 0, 3), 1):
        replica(large, host(f"gpu-{number}", gpu(0, "NVIDIA A100", 85.9, 0.0)), index=index)
    [now] = overview.read_overview(timezone.now()).models
    assert [(one.number, one.rank) for one in now.replicas] == [(0, 0), (0, 1), (1, 0), (1, 1)]


@pytest.mark.parametrize(("nodes", "moved"), [(1, "alone"), (2, "whole")])
def test_only_a_model_on_one_host_is_said_to_be_bound_by_its_form(as_olivia, nodes, moved):
    model("m", nodes=nodes, tensor_parallel=nodes)
    page = as_olivia.get("/operations/models/m/").content.decode()
    assert one_of(page, "[data-moves]")["data-moves"] == moved


def test_nothing_is_routed_to_a_rank_that_does_not_answer(gang):
    assert [route.url for route in routes.ready_replicas()] == ["http://10.0.0.5:1"]
    Replica.objects.filter(index=0).delete()
    assert liveness(gang.replica_set.select_related("host"), timezone.now()) is Liveness.DOWN


def test_the_terminal_shows_ranks(gang, capsys):
    call_command("models")
    shown = capsys.readouterr().out
    assert ("joined (#0, rank 1 of 2)" in shown, "(#1, rank 1 of 2)" in shown) == (True, True)
    assert "large #1, rank 1 of 2 on gpu-4:" in shown
    call_command("models", "--json")
    assert [
        (one["number"], one["rank"], one["ranks"]) for one in json.loads(capsys.readouterr().out)[0]["replicas"]
    ] == [
        *((0, 0, 2), (0, 1, 2)),
        *((1, 0, 2), (1, 1, 2)),
    ]
    call_command("hosts")
    assert "large (rank 1 of 2)" in capsys.readouterr().out


@pytest.mark.parametrize("chosen", [[], ["large"]])
def test_the_terminal_shows_which_host_s_maintenance_stops_all_ranks(gang, chosen):
    Replica.objects.filter(index__gte=2).update(state="stopped", cause="")
    Host.objects.filter(name="gpu-4").update(maintenance=True)
    lines = call_command("models", *chosen).splitlines()
    shown = [("rank" in line, models.IN_MAINTENANCE.format("gpu-4") in line) for line in lines if "large" in line]
    assert shown[:4] == [(True, False), (True, False), (True, True), (True, True)]
    ServedModel.objects.update(enabled=False)
    assert models.IN_MAINTENANCE.format("gpu-4") not in call_command("models", *chosen)


@pytest.mark.parametrize("others", [{}, {"0": 60 * 10**9, "-1": 10**9}])
def test_what_other_work_has_booked_is_named_where_a_rank_has_no_room(as_olivia, gang, others):
    Replica.objects.filter(index=3).update(cause=NO_ROOM)
    Host.objects.filter(name="gpu-4").update(clustered=True, bookings={"others": others})
    size = sum(others.values()) - others.get("-1", 0)
    advice = advise(NO_ROOM, size)
    assert (advice != advise(NO_ROOM)) is bool(others)
    row = Replica.objects.get(index=3)
    shown = as_olivia.get(f"/api/v1/replicas/{row.pk}/").json()
    assert (shown["booked_by_others"], shown["advice"]) == (size, advice)
    assert f"large #1, rank 1 of 2 on gpu-4: {advice}" in call_command("models")
    Replica.objects.exclude(pk=row.pk).update(cause="", state="stopped")
    assert escape(advice) in as_olivia.get("/operations/models/large/").content.decode()


def test_one_without_places_waits_for_as_many_hosts_as_it_needs(capsys):
    model("large", nodes=3, tensor_parallel=3)
    call_command("models")
    assert models.GANG_UNPLACED.format(3) in capsys.readouterr().out


def missing(page: str) -> list[tuple[str, bool]]:
    """Return the models that a page shows as without a place, and whether they are as grave as can be."""
    found = all_of(page, "[data-unplaced]")
    grave = {
        one["data-unplaced"] for one in found if has(page, f"[data-unplaced={one['data-unplaced']}] .state.broken")
    }
    return [(one["data-unplaced"], one["data-unplaced"] in grave) for one in found]


@pytest.mark.parametrize("cause", PlacementGap.Cause.values)
@pytest.mark.parametrize("language", ["en", "ja"])
def test_what_has_too_few_hosts_needs_attention_until_it_has_them(as_olivia, cause, language):
    as_olivia.cookies["django_language"] = language
    large, fine = model("large", nodes=3, tensor_parallel=3), model("fine")
    replica(fine, host("gpu-1", gpu(0, "NVIDIA A100", 85.9, 40.0)))
    assert missing(as_olivia.get("/operations/").content.decode()) == []
    note_gaps({large.pk: Gap(cause=cause, replicas=1, hosts=2), 10_000: Gap(cause=cause, replicas=1, hosts=0)})
    for path in ("/operations/", "/"):
        page = as_olivia.get(path).content.decode()
        assert missing(page) == [("large", True)]
        assert one_of(page, "[data-unplaced=large] a")["href"] == "/operations/models/large/"
    page = as_olivia.get("/operations/models/large/").content.decode()
    assert one_of(page, "[data-gap]")["data-gap"] == cause
    assert one_of(page, "[data-gap] [data-hosts]")["data-hosts"] == "2-3"
    shown = as_olivia.get(f"/api/v1/models/{large.pk}/").json()["now"]["gap"]
    assert (shown["replicas"], shown["hosts"], shown["needed"], shown["cause"]) == (1, 2, 3, cause)
    note_gaps({})
    assert missing(as_olivia.get("/operations/").content.decode()) == []
    assert not has(as_olivia.get("/operations/models/large/").content.decode(), "[data-gap]")


def test_a_further_replica_without_a_place_is_less_grave_and_comes_after_a_model_without_any(as_olivia):
    served, waiting = model("a", replicas=2), model("b")
    replica(served, host("gpu-1", gpu(0, "NVIDIA A100", 85.9, 40.0)))
    note_gaps({one.pk: Gap(cause="no-files", replicas=1, hosts=0) for one in (served, waiting)})
    page = as_olivia.get("/operations/").content.decode()
    assert missing(page) == [("b", True), ("a", False)]
    assert not has(page, "[data-hosts]")


@pytest.mark.parametrize("change", [{"enabled": False}, {"retires_on": date(2020, 1, 1)}, {"host": 1}])
def test_nothing_that_was_changed_while_no_controller_looked_needs_attention(as_olivia, change):
    large = model("large")
    note_gaps({large.pk: Gap(cause="no-host", replicas=1, hosts=0)})
    if "host" in change:
        change = {"host": host("gpu-1", gpu(0, "NVIDIA A100", 85.9, 40.0))}
    ServedModel.objects.update(**change)
    assert missing(as_olivia.get("/operations/").content.decode()) == []


def test_the_terminal_shows_how_many_hosts_there_are_for_it():
    large = model("large", nodes=3, tensor_parallel=3)
    note_gaps({large.pk: Gap(cause="no-files", replicas=1, hosts=2)})
    assert f"as {models.GAP_REASONS['no-files']} (2 of 3" in call_command("models")
    assert json.loads(call_command("models", "--json"))[0]["gap"]["hosts"] == 2
    note_gaps({})
    assert json.loads(call_command("models", "--json"))[0]["gap"] is None


def test_it_fits_where_enough_hosts_have_room_for_a_part(as_olivia, tmp_path):
    path = paper_models.ezo_9b(tmp_path / "ezo")
    for number, used in enumerate((0.0, 0.0, 84.0)):
        host(f"gpu-{number}", gpu(0, "NVIDIA A100", 85.9, used), engines={"vllm": "0.32.0"})
    large = ServedModel(name="large", engine="vllm", path=str(path), context=4096, nodes=2, tensor_parallel=2)
    found = estimate(large)
    assert (found.has_room, found.fitting, found.prediction.devices) == (True, 2, 1)
    large.nodes = large.tensor_parallel = 3
    assert not estimate(large).has_room


def test_it_is_registered_and_changed_with_its_hosts(as_olivia, gang, tmp_path):
    page = as_olivia.get("/operations/edit/large/").content.decode()
    assert one_of(page, "[name=nodes]")["value"] == "2"
    path = paper_models.small_llama(tmp_path / "m")
    call_command(
        "registermodel", "other", "--engine", "vllm", "--path", str(path), "--nodes", "2", "--tensor-parallel=2"
    )
    assert ServedModel.objects.get(name="other").nodes == 2
    with pytest.raises(CommandError, match="--nodes"):
        call_command("registermodel", "other", "--update", "--nodes", "3")


@pytest.mark.parametrize(("engines", "maintenance"), [({"vllm": "0.32.0"}, True), ({}, False)])
def test_a_host_that_cannot_start_a_part_is_not_counted_although_it_has_room(tmp_path, engines, maintenance):
    path = paper_models.ezo_9b(tmp_path / "ezo")
    host("gpu-1", gpu(0, "NVIDIA A100", 85.9, 0.0), engines={"vllm": "0.32.0"})
    host("gpu-2", gpu(0, "NVIDIA A100", 85.9, 0.0), engines=engines)
    Host.objects.filter(name="gpu-2").update(maintenance=maintenance)
    large = ServedModel(name="large", engine="vllm", path=str(path), context=4096, nodes=2, tensor_parallel=2)
    found = estimate(large)
    assert (found.fitting, found.has_room) == (1, True)
