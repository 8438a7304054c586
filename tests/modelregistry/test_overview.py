"""Hosts and models as they are now, from rows of every kind."""

from datetime import date, timedelta

import pytest
from django.utils import timezone

from modelregistry import overview
from modelregistry.models import (
    Alias,
    ControllerClaim,
    Host,
    HostReport,
    Replica,
    ReplicaPlacement,
    ServedModel,
)
from modelregistry.overview import AgentNow, DeviceNow, FirstToken, HostReach, ModelState

pytestmark = pytest.mark.django_db

GB = 10**9
RAM = {
    **{"index": -1, "uuid": "", "name": "RAM", "kind": "ram", "fault": ""},
    **{"total": 64 * GB, "used": 30 * GB, "free": 34 * GB},
}


def gpu(index: int, used: int) -> dict[str, object]:
    return {**RAM, "index": index, "kind": "gpu", "name": "L40S", "used": used * GB, "free": (48 - used) * GB}


def plan(weights: int, cache: int, overhead: int, devices: int = 1) -> dict[str, int]:
    total = weights + cache + overhead
    parts = {"weights": weights, "cache": cache, "overhead": overhead, "total": total}
    return {**{name: value * GB for name, value in parts.items()}, "devices": devices}


@pytest.fixture
def host() -> Host:
    return Host.objects.create(name="gpu-01", seen_at=timezone.now())


def model(name: str = "qwen", **more) -> ServedModel:
    return ServedModel.objects.create(name=name, engine="vllm", path="/qwen", **more)


def replica(model: ServedModel, host: Host, state: str = "ready", **more) -> Replica:
    return Replica.objects.create(model=model, host=host, state=state, index=model.replica_set.count(), **more)


def read() -> overview.Overview:
    return overview.read_overview(timezone.now())


def bars(host: Host, *devices: dict[str, object]) -> list[DeviceNow]:
    HostReport.objects.create(host=host, devices=list(devices), at=timezone.now())
    return list(read().hosts[0].devices)


def parts(device: DeviceNow) -> tuple[float, ...]:
    """Return weights, cache, overhead, others in GB."""
    return tuple(value / GB for value in (device.weights, device.cache, device.overhead, device.others))


# --- the state of a model


@pytest.mark.parametrize(
    ("states", "state"),
    [
        ([], ModelState.UNPLACED),
        (["ready", "ready"], ModelState.READY),
        (["ready", "failed"], ModelState.PARTLY),
        (["ready"], ModelState.PARTLY),
        (["starting", "failed"], ModelState.FAILED),
        (["starting", "backoff"], ModelState.BACKOFF),
        (["unhealthy", "asleep"], ModelState.UNHEALTHY),
        (["starting", "draining"], ModelState.STARTING),
        (["asleep", "asleep"], ModelState.ASLEEP),
    ],
)
def test_the_state_of_a_model_that_should_have_two_replicas(host, states, state):
    row = model(replicas=2)
    for one in states:
        replica(row, host, one)
    assert read().models[0].state is state


@pytest.mark.parametrize("seconds", [-61, 61])  # its clock may have been ahead
def test_a_model_is_not_confirmed_when_its_host_is_silent(host, seconds):
    replica(model(), host)
    Host.objects.update(seen_at=timezone.now() + timedelta(seconds=seconds))
    one = read().models[0]
    assert (one.state, one.replicas[0].supervised) == (ModelState.UNSURE, False)


@pytest.mark.parametrize(
    ("fields", "still"),
    [({"enabled": False}, ModelState.STOPPED), ({"retires_on": date(2020, 1, 1)}, ModelState.RETIRED)],
)
def test_a_model_that_is_not_wanted_drains_and_is_gone(host, fields, still):
    row = replica(model(**fields), host)
    assert read().models[0].state is ModelState.DRAINING
    row.state = "stopped"
    row.save()
    assert read().models[0].state is still


# --- hosts, and what was moved from them


@pytest.mark.parametrize(
    ("seen", "watched", "silent", "reach"),
    [
        (1, 1, None, HostReach.ONLINE),
        (3, 1, 3, HostReach.ONLINE),  # for a moment, as when a controller begins
        (20, 1, 20, HostReach.SILENT),
        (4000, 1, 4000, HostReach.SILENT),
        (4000, 70, 4000, HostReach.UNWATCHED),  # it was silent when the controller was last heard of
        (70, 70, None, HostReach.UNWATCHED),
        (None, None, None, HostReach.UNWATCHED),
    ],
)
def test_a_silent_host_is_not_one_that_no_controller_looks_at(host, seen, watched, silent, reach):
    now = timezone.now()
    past = [None if ago is None else now - timedelta(seconds=ago) for ago in (seen, watched, silent)]
    Host.objects.update(**dict(zip(("seen_at", "watched_at", "silent_since"), past, strict=True)))
    assert overview.read_overview(now).hosts[0].reach is reach


def test_a_model_is_confirmed_while_a_controller_asks_the_engines_of_its_silent_host(host):
    replica(model(), host)
    long_ago = timezone.now() - timedelta(hours=1)
    Host.objects.update(seen_at=long_ago, silent_since=long_ago, watched_at=timezone.now())
    one = read().models[0]
    assert (one.state, one.replicas[0].supervised) == (ModelState.READY, True)


def moved(state: str) -> tuple[ServedModel, Host]:
    """Return a model whose replica was placed on another host since, and that host. `state`: of the remainder."""
    silent, other = Host.objects.create(name="gpu-08", watched_at=timezone.now()), Host.objects.get(name="gpu-01")
    row = model()
    Replica.objects.create(model=row, host=silent, state=state, memory_bytes=5 * GB)
    ReplicaPlacement.objects.create(model=row, number=0, host=other, at=timezone.now())
    return row, other


def test_what_is_left_of_a_moved_replica_counts_for_nothing(host):
    row, other = moved("unhealthy")
    Replica.objects.create(model=row, host=other, state="ready", memory_bytes=3 * GB)
    one = read().models[0]
    assert {replica.host: replica.moved_to for replica in one.replicas} == {"gpu-01": "", "gpu-08": "gpu-01"}
    assert (one.state, one.host, one.memory, one.bound) == (ModelState.READY, "gpu-01", 3 * GB, False)


def test_what_is_left_of_a_moved_replica_counts_until_it_is_found_elsewhere(host):
    moved("unhealthy")
    assert read().models[0].state is ModelState.UNHEALTHY


def test_what_still_answers_on_the_host_before_counts(host):
    row, other = moved("ready")
    Replica.objects.create(model=row, host=other, state="starting")
    assert read().models[0].state is ModelState.READY


def test_the_replicas_of_a_model_with_a_host_of_its_own_are_not_moved(host):
    row, _ = moved("ready")
    ServedModel.objects.filter(pk=row.pk).update(host=Host.objects.get(name="gpu-08"))
    one = read().models[0]
    assert (one.replicas[0].moved_to, one.bound) == ("", True)


@pytest.mark.parametrize(
    ("number", "ago", "alive"), [("n", 3, True), ("n", 70, False), ("", 3, False), (None, 0, None)]
)
def test_who_the_controller_is(number, ago, alive):
    if number is not None:
        at = timezone.now() - timedelta(seconds=ago)
        ControllerClaim.objects.create(number=number, term=7, holder="site", seen_at=at, since=at, moves=2)
    found = read().controller
    assert (found and found.alive) == alive
    assert found is None or (found.term, found.holder, found.moves) == (7, "site", 2)


def test_what_an_agent_says_of_itself(host):
    Host.objects.update(clustered=True, agent={"version": "1.4", "python": "3.11.2", "boot": "b", "fenced": False})
    assert read().hosts[0].agent == AgentNow(version="1.4", python="3.11.2", boot="b", fenced=False)
    Host.objects.update(agent={"python": "3.11.2"})  # one of an earlier version
    assert read().hosts[0].agent == AgentNow(version="", python="3.11.2", boot="", fenced=None)
    Host.objects.update(clustered=False)
    assert read().hosts[0].agent is None


def test_what_is_booked_in_ray_of_a_hosts_memory(host):
    late = {"code": "booking-held", "replica": "m #0", "detail": "m #0, GPU 0: 60.0 GB"}
    found = {"offered": {"-1": 9, "10": 8, "2": 7}, "booked": {"2": 5}, "others": {"-1": 3}, "late": [late]}
    Host.objects.update(clustered=True, bookings=found)
    now = read().hosts[0]
    assert [(one.memory, one.offered, one.booked, one.others) for one in now.bookings] == [
        ("GPU 2", 7, 5, 0),
        ("GPU 10", 8, 0, 0),
        ("RAM", 9, 0, 3),
    ]
    assert late in now.problems
    Host.objects.update(clustered=False)
    assert (read().hosts[0].bookings, late in read().hosts[0].problems) == ((), False)


# --- figures


def test_the_figures_of_a_model_are_sums_of_its_running_replicas(host):
    row = model(replicas=3)
    for running, speed in ((2, 40.0), (3, 20.5)):
        replica(
            row, host, live={"running": running, "tokens_per_second": speed}, memory_bytes=GB, predicted=plan(1, 1, 0)
        )
    replica(row, host, "failed", live={"running": 9, "tokens_per_second": 99}, memory_bytes=9 * GB)
    one = read().models[0]
    assert (one.running, one.waiting, one.tokens_per_second) == (5, None, 60.5)
    assert (one.memory, one.predicted, one.ready, one.wanted) == (2 * GB, 4 * GB, 2, 3)


def test_what_is_not_known_is_not_zero(host):
    replica(model(), host, "starting")
    one = read().models[0]
    assert (one.running, one.tokens_per_second, one.memory, one.predicted, one.first_token) == (None,) * 5


def test_a_prediction_is_of_each_device(host):
    replica(model(), host, devices=[0, 1], predicted=plan(8, 4, 1, devices=2))
    assert read().models[0].predicted == 26 * GB


def test_names_aliases_and_time_to_first_token(host):
    Alias.objects.create(name="default", model=model())
    token = FirstToken(requests=3, half=0.2, slow=0.9)
    (one,) = overview.read_overview(timezone.now(), {"qwen": token, "other": token}).models
    assert (one.aliases, one.first_token) == (("default",), token)


def test_it_asks_the_same_few_questions_however_many_there_are(host, django_assert_num_queries):
    HostReport.objects.create(host=host, devices=[RAM], at=timezone.now())
    for number in range(5):
        replica(model(f"m{number}"), host)
    with django_assert_num_queries(5):
        read()


# --- bars of memory


def test_a_card_is_divided_as_it_was_planned_and_the_rest_is_overhead(host):
    replica(model(), host, devices=[0], memory_by_device={"0": 18 * GB}, predicted=plan(10, 5, 1))
    (bar,) = bars(host, gpu(0, used=21))
    assert parts(bar) == (10, 5, 3, 3)
    assert (bar.ours, bar.predicted) == (18 * GB, 16 * GB)


def test_an_engine_that_is_still_loading_has_no_more_than_it_holds(host):
    replica(model(), host, "starting", devices=[0], memory_by_device={"0": 4 * GB}, predicted=plan(10, 5, 1))
    (bar,) = bars(host, gpu(0, used=4))
    assert parts(bar) == (4, 0, 0, 0)


def test_each_card_shows_its_own(host):
    two = {"0": 13 * GB, "1": 12 * GB}
    replica(model("big"), host, devices=[0, 1], memory_by_device=two, predicted=plan(8, 4, 1, devices=2))
    replica(model("small"), host, devices=[1], memory_by_device={"1": 3 * GB}, predicted=plan(2, 1, 0))
    first, second, ram = bars(host, gpu(0, used=13), gpu(1, used=16), RAM)
    assert parts(first) == (8, 4, 1, 0)
    assert parts(second) == (10, 5, 0, 1)
    assert parts(ram) == (0, 0, 0, 30)


def test_an_engine_without_cards_lives_in_ram(host):
    replica(model(), host, memory_bytes=6 * GB, predicted=plan(4, 1, 1))
    (bar,) = bars(host, RAM)
    assert parts(bar) == (4, 1, 1, 24)


@pytest.mark.parametrize("state", ["stopped", "failed", "asleep", "backoff"])
def test_what_does_not_run_holds_nothing(host, state):
    replica(model(), host, state, memory_bytes=6 * GB, predicted=plan(4, 1, 1))
    (bar,) = bars(host, RAM)
    assert parts(bar) == (0, 0, 0, 30)
    assert bar.predicted == 0


def test_an_engine_that_lives_on_asleep_holds_what_is_left_of_it(host):
    held = {"memory_bytes": GB, "memory_by_device": {"0": GB}, "devices": [0], "predicted": plan(0, 0, 1)}
    replica(model(), host, "asleep", pid=4711, **held)
    assert parts(bars(host, gpu(0, 3))[0]) == (0, 0, 1, 2)
    assert read().models[0].memory == GB


def test_another_host_s_engines_are_not_here(host):
    replica(model(), Host.objects.create(name="gpu-02"), memory_bytes=6 * GB)
    (bar,) = bars(host, RAM)
    assert bar.ours == 0


def test_measurements_that_overtook_each_other_leave_no_negative_part(host):
    replica(model(), host, memory_bytes=32 * GB)
    (bar,) = bars(host, RAM)  # which says that 30 are used
    assert parts(bar) == (0, 0, 32, 0)
