"""Hosts and models as they are now, from rows of every kind."""

from datetime import date, timedelta

import pytest
from django.utils import timezone

from modelregistry import overview
from modelregistry.models import Alias, Host, HostReport, Replica, ServedModel
from modelregistry.overview import DeviceNow, FirstToken, ModelState

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
    with django_assert_num_queries(4):
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
