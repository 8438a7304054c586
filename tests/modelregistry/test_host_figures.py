"""Figures of hosts for monitoring."""

from datetime import timedelta

import pytest
from django.utils import timezone

from modelregistry.host_figures import MOST_DEVICES, read_disk_figures, read_figures
from modelregistry.models import ControllerClaim, Host, HostReport, Replica, ReplicaPlacement, ServedModel, TaskRun
from modelregistry.supervisor.tasks import registered_tasks

pytestmark = pytest.mark.django_db


def test_a_silent_host_is_down_for_as_long_as_it_is_silent():
    now = timezone.now()
    Host.objects.create(name="a", seen_at=now)
    Host.objects.create(name="b", seen_at=now, watched_at=now, silent_since=now - timedelta(seconds=90))
    Host.objects.create(name="c", seen_at=now - timedelta(hours=1), maintenance=True)
    Host.objects.create(name="d")
    figures = read_figures().hosts
    assert [(one.name, one.up, one.maintenance) for one in figures] == [
        ("a", True, False),
        ("b", False, False),
        ("c", False, True),
        ("d", False, False),
    ]
    assert [one.silent_seconds for one in figures] == [0, pytest.approx(90, abs=30), pytest.approx(3600, abs=30), 0]


def test_replicas_are_counted_by_state_where_they_are_placed():
    now = timezone.now()
    silent, other = (Host.objects.create(name=name, seen_at=now) for name in ("a", "b"))
    model = ServedModel.objects.create(name="qwen", engine="vllm", path="/qwen", replicas=2)
    ReplicaPlacement.objects.create(model=model, number=0, host=other, at=now)
    Replica.objects.create(model=model, host=silent, index=0, state="unhealthy")  # was moved
    Replica.objects.create(model=model, host=other, index=0, state="ready")
    Replica.objects.create(model=model, host=other, index=1, state="failed")
    first, second = read_figures().hosts
    assert set(first.replicas.values()) == {0}
    assert {state: count for state, count in second.replicas.items() if count} == {"ready": 1, "failed": 1}
    assert set(second.replicas) == set(Replica.State.values)


def test_the_controller_and_what_it_has_moved():
    assert read_figures().controller is None
    ControllerClaim.objects.create(number="n", term=7, holder="site", seen_at=timezone.now(), moves=3)
    controller = read_figures().controller
    assert controller is not None
    assert (controller.alive, controller.term, controller.moves) == (True, 7, 3)


def test_devices_are_those_of_hosts_that_are_up():
    now = timezone.now()
    gpu = {"index": 0, "kind": "gpu", "total": 80, "used": 60, "fault": "", "utilisation": 93, "temperature": 71}
    ram = {"index": -1, "kind": "ram", "total": 512, "used": 100, "fault": "", "utilisation": None}
    for name, seen in (("a", now), ("b", now - timedelta(hours=1))):
        HostReport.objects.create(host=Host.objects.create(name=name, seen_at=seen), devices=[gpu, ram], at=seen)
    up, silent = read_figures().hosts
    assert [(one.name, one.total, one.used, one.readable) for one in up.devices] == [
        ("0", 80, 60, True),
        ("ram", 512, 100, True),
    ]
    assert [one.sensors for one in up.devices] == [{"utilisation": 93, "temperature": 71}, {}]
    assert silent.devices == ()


@pytest.mark.parametrize(
    "devices",
    [
        ["GPU", None, 7],
        [{"index": 0}],
        [{"index": 0, "total": "80", "used": 1}],
        [{"index": 0, "total": 1e400, "used": True}],
    ],
)
def test_devices_that_are_not_reported_as_such_are_left_out(devices):
    now = timezone.now()
    HostReport.objects.create(host=Host.objects.create(name="a", seen_at=now), devices=devices, at=now)
    assert read_figures().hosts[0].devices == ()


def test_a_device_that_is_reported_twice_counts_once_and_no_host_has_thousands():
    now = timezone.now()
    devices = [{"index": number // 2, "kind": "gpu", "total": 80, "used": 0} for number in range(1000)]
    HostReport.objects.create(host=Host.objects.create(name="a", seen_at=now), devices=devices, at=now)
    names = [one.name for one in read_figures().hosts[0].devices]
    assert len(names) == len(set(names)) <= MOST_DEVICES


def test_disks_are_those_of_hosts_that_are_up():
    now = timezone.now()
    disks = [{"path": "/models", "total": 100, "free": 7}, {"path": "/models", "total": 1, "free": 1}]
    odd = [7, {"path": "/x"}, {"path": "/y", "total": 0, "free": 0}, {"path": "/z\n", "total": 10, "free": 0}]
    for name, seen in (("a", now), ("b", now - timedelta(hours=1))):
        HostReport.objects.create(host=Host.objects.create(name=name, seen_at=seen), disks=disks + odd, at=seen)
    up, silent = read_figures().hosts
    assert [(one.path, one.total, one.free) for one in up.disks] == [("/models", 100, 7), ("/z?", 10, 0)]
    assert silent.disks == ()


@pytest.mark.parametrize(
    ("total", "free", "is_nearly_full"),
    [(100e9, 9e9, True), (100e9, 11e9, False), (10e12, 60e9, False), (10e12, 40e9, True)],
)
def test_a_disk_is_nearly_full_by_its_size_and_by_what_models_need(total, free, is_nearly_full):
    [disk] = read_disk_figures([{"path": "/models", "total": total, "free": free}])
    assert disk.is_nearly_full == is_nearly_full


def test_replicas_say_what_their_engines_do_while_their_host_is_up():
    now = timezone.now()
    live = {"at": "2026-11-02", "running": 3, "waiting": 2, "tokens_per_second": 41.5, "cache_used": None}
    model = ServedModel.objects.create(name="qwen", engine="vllm", path="/qwen", replicas=2, nodes=2)
    for name, seen in (("a", now), ("b", now - timedelta(hours=1))):
        host = Host.objects.create(name=name, seen_at=seen)
        of = {"a": 2, "b": 3}[name]
        Replica.objects.create(model=model, host=host, index=of, state="ready", live=live, memory_bytes=9, restarts=4)
    first, second = read_figures().replicas
    assert (first.model, first.host, first.number, first.rank, first.memory) == ("qwen", "a", 1, 0, 9)
    assert (first.state, first.restarts) == ("ready", 4)
    assert first.live == {"running": 3, "waiting": 2, "tokens_per_second": 41.5}
    assert (second.number, second.rank, second.live) == (1, 1, {})


def test_every_periodic_task_has_figures_also_before_its_first_run():
    ended = timezone.now()
    TaskRun.objects.create(name="sendnotices", claimed_at=ended, ended_at=ended, succeeded=False)
    TaskRun.objects.create(name="of-another-version", claimed_at=ended, ended_at=ended, succeeded=True)
    tasks = {one.name: one for one in read_figures().tasks}
    assert set(tasks) == {one.name for one in registered_tasks()}
    first = tasks["sendnotices"]
    assert (first.failing, first.ended_at, first.every_seconds > 0) == (True, ended.timestamp(), True)
    assert {(one.failing, one.ended_at) for one in tasks.values() if one is not first} == {(False, None)}


def test_it_asks_five_questions_however_many_hosts_and_replicas_there_are(django_assert_num_queries):
    now = timezone.now()
    model = ServedModel.objects.create(name="qwen", engine="vllm", path="/qwen", replicas=5)
    for number in range(5):
        host = Host.objects.create(name=f"gpu-{number}", seen_at=now)
        HostReport.objects.create(host=host, devices=[{"index": 0, "total": 1, "used": 0}], at=now)
        Replica.objects.create(model=model, host=host, index=number, state="ready", live={"running": 1})
    with django_assert_num_queries(5):
        read_figures()
