"""What is booked in Ray of a host's memory: how much, by which names, and what a node offers for it."""

import json
import time

import pytest

from modelregistry.cluster import bookings, node, node_service
from modelregistry.cluster.bookings import Booking, FoundBooking
from modelregistry.cluster.node_directory import NodeDirectory
from modelregistry.process.gpus import RAM, Device


def device(index: int, total: int, name: str = "") -> Device:
    kind = "ram" if index == RAM else "gpu"
    return Device(index=index, uuid=name, name=name, kind=kind, total=total, used=0, free=total)


def test_a_node_offers_each_card_by_itself_and_its_ram_as_rays_own_memory():
    found = bookings.offer([device(0, 80_000_400_000), device(1, 24_000_000_000), device(RAM, 256_000_000_001)])
    assert found == {"gpu-memory-mb:0": 80_000, "gpu-memory-mb:1": 24_000, "memory": 256_000_000_001}


def test_what_is_booked_is_never_less_than_what_was_promised():
    one = Booking(host="gpu1", replica="m #0", amounts={0: 10_000_001, 1: 10_000_000, RAM: 5})
    assert one.bundle == {"madoguchi-host:gpu1": 0.001, "gpu-memory-mb:0": 11, "gpu-memory-mb:1": 10, "memory": 5}
    assert bookings.measure(one.bundle) == {0: 11_000_000, 1: 10_000_000, RAM: 5}


def test_nothing_is_booked_of_a_memory_of_which_nothing_was_promised():
    assert "memory" not in Booking(host="gpu1", replica="m #0", amounts={0: 1, RAM: 0}).bundle


def test_a_booking_is_called_by_its_host_its_replica_and_its_amounts():
    one = Booking(host="gpu1", replica="m #0", amounts={RAM: 5})
    same = Booking(host="gpu1", replica="m #0", amounts={RAM: 5})
    others = [
        Booking(host="gpu2", replica="m #0", amounts={RAM: 5}),
        Booking(host="gpu1", replica="m #1", amounts={RAM: 5}),
        Booking(host="gpu1", replica="m #0", amounts={RAM: 6}),
    ]
    assert one.name == same.name
    assert len({one.name, *(other.name for other in others)}) == 4
    assert FoundBooking(group="", name=one.name, state="", node="", bundle={}).host == "gpu1"


OURS = Booking(host="gpu1", replica="org/m:8b #12", amounts={0: 5, RAM: 5})


def test_a_booking_that_we_asked_for_is_ours():
    assert bookings.is_ours(OURS.name, OURS.bundle)


@pytest.mark.parametrize(
    ("name", "bundle"),
    [
        ("madoguchi:finetune", OURS.bundle),
        ("madoguchi:gpu1:finetune", OURS.bundle),
        ("madoguchi:gpu1:m:0123abcd", OURS.bundle),
        ("madoguchi:gpu1:m #0:0123ABCD", OURS.bundle),
        ("madoguchi:gpu1:m #0:0123abcd-2", OURS.bundle),
        ("my madoguchi:gpu1:m #0:0123abcd", OURS.bundle),
        ("", OURS.bundle),
        (OURS.name, {"memory": 5.0}),
        (OURS.name, {"madoguchi-host:gpu2": 0.001}),
        (OURS.name, {}),
    ],
)
def test_a_placement_group_that_only_looks_like_a_booking_is_of_other_work(name, bundle):
    assert not bookings.is_ours(name, bundle)


def test_resources_that_are_no_memory_are_not_measured():
    other = {"CPU": 4.0, "memory_group_0_ab": 1.0, "gpu-memory-mb:x": 1.0, "node:10.0.0.1": 1.0}
    assert bookings.measure(other) == {}
    lies = {"memory": float("nan"), "gpu-memory-mb:0": float("inf"), "gpu-memory-mb:" + "9" * 5000: 1.0}
    assert bookings.measure(lies) == {}


def test_ray_is_started_with_what_the_host_offers_and_without_cards_of_its_own(issue, tmp_path):
    issue("gpu1").rename(tmp_path / "secrets")
    directory = NodeDirectory(path=tmp_path, name="gpu1", address="10.0.0.2", cluster="10.0.0.1:6377")
    offered = bookings.offer([device(0, 80_000_000_000), device(RAM, 256_000_000_000)])
    argv = node.host_command(node.CODE, directory, resources=offered).argv
    [resources] = [json.loads(word.partition("=")[2]) for word in argv if word.startswith("--resources=")]
    assert resources == {"madoguchi-host:gpu1": 1, "gpu-memory-mb:0": 80_000}
    assert {"--memory=256000000000", "--num-gpus=0"} <= set(argv)


def test_a_host_whose_driver_hangs_joins_without_offering_its_memory(monkeypatch, capsys):
    monkeypatch.setattr(node_service, "READ_WITHIN", 0.05)
    assert node_service.find_offer(lambda: time.sleep(5) or []) == {}
    assert "Ray cannot book" in capsys.readouterr().out


def test_cards_that_an_operator_keeps_for_others_are_not_offered(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    devices = [device(0, 8_000_000), device(1, 9_000_000), device(RAM, 7)]
    assert node_service.find_offer(lambda: devices) == {"gpu-memory-mb:1": 9, "memory": 7}


@pytest.mark.parametrize("index", [RAM, 0, 11])
def test_what_is_offered_can_be_measured_again(index):
    offered = bookings.offer([device(index, 48_000_000_000)])
    assert bookings.measure(offered) == {index: 48_000_000_000}
